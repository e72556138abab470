"""Networks of amortised adversarial distributional training: a generator of perturbations and an encoder of its codes.

Source: Dong et al., Adversarial Distributional Training for Robust Deep Learning, NeurIPS 2020, arXiv:2002.05999.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from taet.models.resnet import BasicBlock
from taet.models.sync_norm import normalisations

INIT_SCALE = 0.02  # standard deviation of the generator's first weights (public code)
PUBLISHED_SIDE = 32  # pixels; the encoder's layers have no padding and need as many


class Generator(nn.Module):
    """Map maps (N, inputs, H, W), and codes (N, latent) where `latent` is not 0, to maps (N, outputs, H, W).

    3x3 convolution to `width` maps, residual blocks to twice the width, twice and once, 3x3 convolution; the whole at
    full resolution. A code becomes one more input map through layers of 256 and H W rectified units. The published
    width is 256: 10.3 million parameters.
    """

    def __init__(self, inputs: int, outputs: int, width: int, side: tuple[int, int], latent: int = 0) -> None:
        super().__init__()
        self.side = side
        self.plane = None
        if latent:
            pixels = side[0] * side[1]
            self.plane = nn.Sequential(nn.Linear(latent, 256), nn.ReLU(), nn.Linear(256, pixels), nn.ReLU())
        self.body = nn.Sequential(
            nn.Conv2d(inputs + bool(latent), width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            BasicBlock(width, 2 * width, 1),
            BasicBlock(2 * width, 2 * width, 1),
            BasicBlock(2 * width, width, 1),
            nn.Conv2d(width, outputs, 3, 1, 1, bias=False),
        )
        use_batch_statistics(self)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
                nn.init.normal_(module.weight, float(isinstance(module, nn.BatchNorm2d)), INIT_SCALE)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, maps: Tensor, codes: Tensor | None = None) -> Tensor:
        if self.plane is not None:
            maps = torch.cat([maps, self.plane(codes).view(-1, 1, *self.side)], 1)
        outputs: Tensor = self.body(maps)
        return outputs


class Encoder(nn.Module):
    """Map perturbations (N, C, H, W) to mean and raw variance of the code's distribution, (N, 2 latent).

    The published layers take 32 x 32 pixels to one value per map. A smaller image is padded with zeros to that size; of
    a larger one, the convolution output is averaged over all positions.
    """

    def __init__(self, channels: int, latent: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for outputs, kernel, stride in ((32, 5, 1), (64, 4, 2), (128, 4, 1), (256, 4, 2)):
            layers += [nn.Conv2d(channels, outputs, kernel, stride, bias=False), nn.BatchNorm2d(outputs)]
            layers += [nn.LeakyReLU(0.01)]
            channels = outputs
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 2 * latent))
        use_batch_statistics(self)

    def forward(self, perturbations: Tensor) -> Tensor:
        height, width = perturbations.shape[2:]
        rows, columns = max(PUBLISHED_SIDE - height, 0), max(PUBLISHED_SIDE - width, 0)
        margins = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
        codes: Tensor = self.body(functional.pad(perturbations, margins))
        return codes


def use_batch_statistics(module: nn.Module) -> None:
    """Make every batch normalisation in `module` use batch statistics only, so that a forward pass has no effect."""
    for norm in normalisations(module):
        norm.track_running_stats = False
        norm.running_mean = norm.running_var = norm.num_batches_tracked = None
