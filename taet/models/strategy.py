"""The network of LAS-AT that chooses how strongly each image is attacked.

Source: Jia et al., LAS-AT: Adversarial Training with Learnable Attack Strategy, CVPR 2022, arXiv:2203.06616.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from taet.models.resnet import LAYOUTS, residual_body


class Strategy(nn.Module):
    """Map images (N, C, H, W) to the logits (N, options) of one choice per head.

    A ResNet-18 whose widths are 1, 2, 4 and 8 times `width` (64 is published) with linear heads. The published head for
    the kind of attack has one option only, of log-probability 0: it is left out.
    """

    def __init__(self, options: Sequence[int], width: int, channels: int) -> None:
        super().__init__()
        widths = tuple(width * factor for factor in (1, 2, 4, 8))
        self.body = residual_body(LAYOUTS["resnet18"]._replace(widths=widths), channels)
        self.heads = nn.ModuleList(nn.Linear(8 * width, count) for count in options)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = self.body(x)
        return [head(features) for head in self.heads]
