"""Pre-activation residual networks: blocks apply normalisation and ReLU before each convolution.

Source: He et al., Identity Mappings in Deep Residual Networks, ECCV 2016, arXiv:1603.05027. As the adversarial training
of this field uses it (Rice et al., ICML 2020, arXiv:2002.11569): a shortcut that changes the shape takes the
normalised and rectified input, and the pooling follows a last normalisation and rectifier.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from taet.models.classifier import Classifier
from taet.models.heads import Head
from taet.models.resnet import LAYOUTS, ResidualBlock, is_large, residual_network

NAMES = {"preact-resnet18": "ResNet-18 with pre-activation, 11.2 million parameters (AWP; AT-BSL on Tiny-ImageNet-LT)"}


class PreActBlock(ResidualBlock):
    """conv(relu(bn(conv(a)))) + shortcut with a = relu(bn(x)), 3x3 convolutions; the shortcut is x, or conv1x1(a)."""

    preactivation = True

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


def build(name: str, num_classes: int, image_shape: tuple[int, int, int], head: Head, stem: str) -> Classifier:
    """Return the network called `name` with He initialisation from the global random state."""
    layout = LAYOUTS[name.removeprefix("preact-")]._replace(block=PreActBlock)
    return residual_network(layout, num_classes, image_shape[0], head, large=is_large(stem, image_shape))
