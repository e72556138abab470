"""Residual networks with basic blocks and the CIFAR stem (3x3, stride 1, no pooling).

Source: He et al., Deep Residual Learning for Image Recognition, CVPR 2016, arXiv:1512.03385; the CIFAR stem with the
widths of ResNet-18 is what the papers of this field train.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from taet.models.classifier import Classifier
from taet.models.heads import Head, build_head

NAMES = {
    "resnet18": "ResNet-18 with the CIFAR stem, 11.2 million parameters (both papers)",
    "resnet8": "ResNet-8, one block at each of the widths 16, 32, 64, 78 thousand parameters: for CPUs",
}
LAYOUTS = {"resnet18": ((64, 128, 256, 512), 2), "resnet8": ((16, 32, 64), 1)}  # widths, blocks per width


class BasicBlock(nn.Module):
    """relu(bn(conv(relu(bn(conv(x))))) + shortcut(x)), 3x3 convolutions."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


def residual_body(widths: Sequence[int], blocks: int, channels: int) -> nn.Sequential:
    """Stem, `blocks` basic blocks per width, each width after the first at half the side, average pooling: (N, D)."""
    layers: list[nn.Module] = [
        nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False),
        nn.BatchNorm2d(widths[0]),
        nn.ReLU(),
    ]
    inputs = widths[0]
    for stage, width in enumerate(widths):
        for block in range(blocks):
            layers.append(BasicBlock(inputs, width, stride=2 if stage > 0 and block == 0 else 1))
            inputs = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def build(name: str, num_classes: int, image_shape: tuple[int, int, int], head: Head) -> Classifier:
    """Return the network called `name` with He initialisation from the global random state."""
    widths, blocks = LAYOUTS[name]
    body = residual_body(widths, blocks, image_shape[0])
    model = Classifier(body, build_head(head, widths[-1], num_classes), num_classes, image_shape[0])
    for module in model.modules():
        if isinstance(module, nn.Conv2d):  # He et al., 2015, arXiv:1502.01852: keeps the variance through rectifiers
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model
