"""Pre-activation residual networks: blocks apply normalisation and ReLU before each convolution.

Source: He et al., Identity Mappings in Deep Residual Networks, ECCV 2016, arXiv:1603.05027. As the adversarial training
of this field uses it (Rice et al., ICML 2020, arXiv:2002.11569): the shortcut that changes the shape takes what is
already normalised and rectified, and a last normalisation and rectifier stand before the pooling.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from taet.models.classifier import Classifier
from taet.models.heads import Head
from taet.models.resnet import (
    LAYOUTS,
    AveragePooling,
    first_convolution,
    first_pooling,
    is_large,
    residual_network,
    strides,
)

NAMES = {"preact-resnet18": "ResNet-18 with pre-activation, 11.2 million parameters (AWP; AT-BSL on Tiny-ImageNet-LT)"}


class PreActBlock(nn.Module):
    """conv(relu(bn(conv(a)))) + shortcut with a = relu(bn(x)), 3x3 convolutions; the shortcut is x, or conv1x1(a)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        same = stride == 1 and inputs == outputs
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = torch.relu(self.bn1(x))
        out: Tensor = self.conv2(torch.relu(self.bn2(self.conv1(active))))
        return out + (x if self.shortcut is None else self.shortcut(active))


def preactivation_body(
    first: int, widths: Sequence[int], blocks: Sequence[int], channels: int, *, large: bool = False
) -> nn.Sequential:
    """Stem of width `first`, blocks, a last normalisation, average pooling: (N, channels, H, W) -> (N, last width)."""
    layers: list[nn.Module] = [first_convolution(channels, first, large), *first_pooling(large)]
    inputs = first
    for width, stage in zip(widths, strides(blocks), strict=True):
        for stride in stage:
            layers.append(PreActBlock(inputs, width, stride))
            inputs = width
    return nn.Sequential(*layers, nn.BatchNorm2d(inputs), nn.ReLU(), AveragePooling())


def build(name: str, num_classes: int, image_shape: tuple[int, int, int], head: Head, stem: str) -> Classifier:
    """Return the network called `name` with He initialisation from the global random state."""
    layout, channels = LAYOUTS[name.removeprefix("preact-")], image_shape[0]
    widths = layout.widths
    body = preactivation_body(widths[0], widths, layout.blocks, channels, large=is_large(stem, image_shape))
    return residual_network(body, widths[-1], num_classes, channels, head)
