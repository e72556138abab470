"""Residual networks with basic, bottleneck or pre-activation blocks, also wide ones, for small or
large images.

Sources: He et al., Deep Residual Learning for Image Recognition, CVPR 2016, arXiv:1512.03385.
Bottlenecks have their stride in the 3x3 convolution (version 1.5, as in torchvision and the CIFAR
code of this field), shortcuts that change the shape are 1x1 convolutions (option B of section 3.3).

Pre-activation: He et al., Identity Mappings in Deep Residual Networks, ECCV 2016, arXiv:1603.05027.
As the adversarial training of this field uses it (Rice et al., ICML 2020, arXiv:2002.11569): a
shortcut that changes the shape takes the normalised and rectified input, and the pooling follows a
last normalisation and rectifier.

WRN-d-k: Zagoruyko and Komodakis, Wide Residual Networks, BMVC 2016, arXiv:1605.07146, without
dropout: three groups of (d - 4) / 6 pre-activation blocks, of k times the widths 16, 32, 64. The
public code of TRADES, and code derived from it, has a further `sub_block1` that is never called; it
is left out here.

The networks dm-* are those of Gowal et al., Uncovering the Limits of Adversarial Training, 2020,
arXiv:2010.03593, and of the work that follows their public code: they pad as TensorFlow's SAME
does, and have Swish, x sigmoid(x), as activation.
"""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from taet.models.classifier import Classifier, Head, build_head

NAMES = {
    "resnet18": "ResNet-18, 11.2 million parameters (both papers)",
    "resnet50": "ResNet-50, bottleneck blocks, 23.5 million parameters (TAET, at 224 pixels)",
    "resnet20": "ResNet-20, three blocks at each of the widths 16, 32, 64, 272 thousand parameters "
    "(He et al.)",
    "resnet8": "ResNet-8, one block at each of the widths 16, 32, 64, 78 thousand parameters: for "
    "CPUs",
    "preact-resnet18": "ResNet-18 with pre-activation, 11.2 million parameters (AWP; AT-BSL on "
    "Tiny-ImageNet-LT)",
    "wrn-28-10": "Wide ResNet, 28 layers, 10 times as wide, 36.5 million parameters (ADT)",
    "wrn-34-10": "Wide ResNet, 34 layers, 10 times as wide, 46.2 million parameters (AT-BSL, "
    "TRADES, RoBal)",
    "nfgsm-preact-resnet18": "preact-resnet18 whose shortcuts take the input as it comes, 11.2 "
    "million parameters (N-FGSM)",
    "dm-preact-resnet18": "ResNet-18 of DeepMind's code with ReLU, 12.6 million parameters (Gowal "
    "et al.)",
    "dm-preact-resnet18-swish": "ResNet-18 of DeepMind's code with Swish, 12.6 million parameters "
    "(Rebuffi et al.)",
    "dm-wrn-28-10": "Wide ResNet of DeepMind's code with ReLU, 36.5 million parameters (Gowal et "
    "al.)",
    "dm-wrn-28-10-swish": "Wide ResNet of DeepMind's code with Swish, 36.5 million parameters "
    "(Gowal et al., Rebuffi et al., Wang et al.)",
}
# pixels: 12 after the stem and 2 before the pooling; a smaller image would be pooled away
IMAGENET_FROM = 96


class ResidualBlock(nn.Module):
    """A block of a residual network, built from the number of its inputs, its width and its
    stride."""

    expansion: ClassVar[int] = 1
    """Outputs per width."""
    preactivation: ClassVar[bool] = False
    """Whether it normalises and rectifies its inputs itself, so that stem and last block do not."""
    activation: ClassVar[type[nn.Module]] = nn.ReLU


class BasicBlock(ResidualBlock):
    """relu(bn(conv(relu(bn(conv(x))))) + shortcut(x)), 3x3 convolutions."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = projection(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class Bottleneck(ResidualBlock):
    """1x1, 3x3 and 1x1 convolutions, each normalised, with ReLUs as in the basic block; four times
    as wide."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = self.expansion * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn1(self.conv1(x)))
        out = torch.relu(self.bn2(self.conv2(out)))
        return torch.relu(self.bn3(self.conv3(out)) + self.shortcut(x))


class PreActBlock(ResidualBlock):
    """conv(relu(bn(conv(a)))) + shortcut with a = relu(bn(x)), 3x3 convolutions; the shortcut is x,
    or conv1x1(a)."""

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


class RawShortcutBlock(PreActBlock):
    """A pre-activation block whose shortcut is x, or conv1x1(x), as in the public code of N-FGSM.

    Its parameters have the names and shapes of those of a `PreActBlock`.
    """

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv1(torch.relu(self.bn1(x)))
        out = self.conv2(torch.relu(self.bn2(out)))
        return out + (x if self.shortcut is None else self.shortcut(x))


def same_padding(x: Tensor, stride: int) -> Tensor:
    """Pad images for a 3x3 convolution without padding, as SAME does in TensorFlow.

    With stride 1 by a pixel on every side, with stride 2, for even sizes, on the right and below.
    """
    return functional.pad(x, (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1))


class SamePaddingWideBlock(PreActBlock):
    """The pre-activation block of a Wide ResNet in the public code of Gowal et al."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(inputs, outputs, stride)
        self.stride = stride
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 0, bias=False)
        self.activate = self.activation()

    def forward(self, x: Tensor) -> Tensor:
        active = self.activate(self.bn1(x))
        out = self.conv1(same_padding(active, self.stride))
        out = self.conv2(self.activate(self.bn2(out)))
        shortcut: Tensor = x if self.shortcut is None else self.shortcut(active)
        return out + shortcut


class SamePaddingBlock(SamePaddingWideBlock):
    """The pre-activation block of ResNet-18 in the public code of Gowal et al.

    A shortcut that changes the shape is a 3x3 convolution of x.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(inputs, outputs, stride)
        if self.shortcut is not None:
            self.shortcut = nn.Conv2d(inputs, outputs, 3, stride, 0, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(same_padding(self.activate(self.bn1(x)), self.stride))
        out = self.conv2(self.activate(self.bn2(out)))
        shortcut: Tensor = x
        if self.shortcut is not None:
            shortcut = self.shortcut(same_padding(x, self.stride))
        return out + shortcut


class SwishWideBlock(SamePaddingWideBlock):
    """A `SamePaddingWideBlock` with Swish, x sigmoid(x)."""

    activation = nn.SiLU


class SwishBlock(SamePaddingBlock):
    """A `SamePaddingBlock` with Swish, x sigmoid(x)."""

    activation = nn.SiLU


class AveragePooling(nn.Module):
    """Mean over the pixels, (N, C, H, W) -> (N, C), whose gradient keeps the memory layout of its
    input."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def projection(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Return the shortcut: x itself, or a normalised 1x1 convolution if the shape changes."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class ResidualLayout(NamedTuple):
    """The dimensions of a residual network."""

    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    """Number of blocks per width."""
    block: type[ResidualBlock] = BasicBlock
    stem: int | None = None
    """Outputs of the first convolution; None: as many as the first width."""


LAYOUTS = {
    "resnet18": ResidualLayout((64, 128, 256, 512), (2, 2, 2, 2)),
    "resnet50": ResidualLayout((64, 128, 256, 512), (3, 4, 6, 3), Bottleneck),
    "resnet20": ResidualLayout((16, 32, 64), (3, 3, 3)),
    "resnet8": ResidualLayout((16, 32, 64), (1, 1, 1)),
    "preact-resnet18": ResidualLayout((64, 128, 256, 512), (2, 2, 2, 2), PreActBlock),
    "wrn-28-10": ResidualLayout((160, 320, 640), (4, 4, 4), PreActBlock, stem=16),
    "wrn-34-10": ResidualLayout((160, 320, 640), (5, 5, 5), PreActBlock, stem=16),
    "nfgsm-preact-resnet18": ResidualLayout((64, 128, 256, 512), (2, 2, 2, 2), RawShortcutBlock),
    "dm-preact-resnet18": ResidualLayout((64, 128, 256, 512), (2, 2, 2, 2), SamePaddingBlock),
    "dm-preact-resnet18-swish": ResidualLayout((64, 128, 256, 512), (2, 2, 2, 2), SwishBlock),
    "dm-wrn-28-10": ResidualLayout((160, 320, 640), (4, 4, 4), SamePaddingWideBlock, stem=16),
    "dm-wrn-28-10-swish": ResidualLayout((160, 320, 640), (4, 4, 4), SwishWideBlock, stem=16),
}


class ResidualBody(nn.Sequential):
    """The layers of a residual network before its head."""

    layout: ResidualLayout


def residual_body(layout: ResidualLayout, channels: int, *, large: bool = False) -> ResidualBody:
    """Stem, blocks, average pooling: images (N, channels, H, W) -> features (N, expansion * last
    width).

    The stem is a 3x3 convolution at full resolution or, if `large`, a 7x7 one and a pooling, down
    to a quarter of it (He et al., table 1). Each width after the first begins at half the
    resolution.
    """
    inputs, block = layout.stem or layout.widths[0], layout.block
    kernel, stride = (7, 2) if large else (3, 1)
    layers: list[nn.Module] = [nn.Conv2d(channels, inputs, kernel, stride, kernel // 2, bias=False)]
    if not block.preactivation:
        layers += [nn.BatchNorm2d(inputs), nn.ReLU()]
    if large:
        layers.append(nn.MaxPool2d(3, 2, 1))
    for stage, (width, count) in enumerate(zip(layout.widths, layout.blocks, strict=True)):
        for number in range(count):
            layers.append(block(inputs, width, 2 if stage > 0 and number == 0 else 1))
            inputs = block.expansion * width
    if block.preactivation:
        layers += [nn.BatchNorm2d(inputs), block.activation()]
    body = ResidualBody(*layers, AveragePooling())
    body.layout = layout
    return body


def build(
    name: str, num_classes: int, image_shape: tuple[int, int, int], head: Head, stem: str
) -> Classifier:
    """Return the network called `name`, its convolutions drawn from N(0, 2 / fan-out), as
    rectifiers need it.

    With the stem auto it has that of ImageNet if the shorter side has 96 pixels or more. Source of
    the initialisation: He et al., Delving Deep into Rectifiers, ICCV 2015, arXiv:1502.01852.
    """
    layout, channels = LAYOUTS[name], image_shape[0]
    large = stem == "imagenet" or (stem == "auto" and min(image_shape[1:]) >= IMAGENET_FROM)
    features = layout.block.expansion * layout.widths[-1]
    body = residual_body(layout, channels, large=large)
    model = Classifier(body, build_head(head, features, num_classes), num_classes, channels)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model
