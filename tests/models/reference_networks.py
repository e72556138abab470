"""Networks with the parameter names of public code, written from descriptions of the architectures.

They are independent of `taet.models.resnet`, which must compute the same functions. `width` divides
all widths, for tests that run them.
"""

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)


def conv3(inputs: int, outputs: int, stride: int = 1, padding: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding, bias=False)


class Basic(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            convolution = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet18(nn.Module):
    """As pytorch-cifar names it."""

    def __init__(self, width: int = 1) -> None:
        super().__init__()
        w = [64 // width * 2**stage for stage in range(4)]
        self.conv1 = conv3(3, w[0])
        self.bn1 = nn.BatchNorm2d(w[0])
        self.layer1 = nn.Sequential(Basic(w[0], w[0], 1), Basic(w[0], w[0], 1))
        self.layer2 = nn.Sequential(Basic(w[0], w[1], 2), Basic(w[1], w[1], 1))
        self.layer3 = nn.Sequential(Basic(w[1], w[2], 2), Basic(w[2], w[2], 1))
        self.layer4 = nn.Sequential(Basic(w[2], w[3], 2), Basic(w[3], w[3], 1))
        self.linear = nn.Linear(w[3], 10)

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        return self.linear(out.mean((2, 3)))


class PreAct(nn.Module):
    """`raw`: the shortcut takes the input of the block, not its normalised and rectified form."""

    def __init__(self, inputs: int, outputs: int, stride: int, raw: bool) -> None:
        super().__init__()
        self.raw = raw
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv3(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3(outputs, outputs)
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        active = functional.relu(self.bn1(x))
        shortcut = x
        if hasattr(self, "shortcut"):
            shortcut = self.shortcut(x if self.raw else active)
        out = self.conv1(active)
        return self.conv2(functional.relu(self.bn2(out))) + shortcut


class PreActResNet18(nn.Module):
    def __init__(self, width: int = 1, *, raw: bool = False, last_norm: bool = True) -> None:
        super().__init__()
        w = [64 // width * 2**stage for stage in range(4)]
        self.conv1 = conv3(3, w[0])
        self.layer1 = nn.Sequential(PreAct(w[0], w[0], 1, raw), PreAct(w[0], w[0], 1, raw))
        self.layer2 = nn.Sequential(PreAct(w[0], w[1], 2, raw), PreAct(w[1], w[1], 1, raw))
        self.layer3 = nn.Sequential(PreAct(w[1], w[2], 2, raw), PreAct(w[2], w[2], 1, raw))
        self.layer4 = nn.Sequential(PreAct(w[2], w[3], 2, raw), PreAct(w[3], w[3], 1, raw))
        if last_norm:
            self.bn = nn.BatchNorm2d(w[3])
        self.linear = nn.Linear(w[3], 10)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        if hasattr(self, "bn"):
            out = functional.relu(self.bn(out))
        return self.linear(out.mean((2, 3)))


class WideBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv3(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3(outputs, outputs)
        self.convShortcut = None
        if inputs != outputs:
            self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = functional.relu(self.bn1(x))
        out = self.conv2(functional.relu(self.bn2(self.conv1(active))))
        return out + (x if self.convShortcut is None else self.convShortcut(active))


class WideGroup(nn.Module):
    def __init__(self, blocks: int, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        others = [WideBlock(outputs, outputs, 1) for _ in range(blocks - 1)]
        self.layer = nn.Sequential(WideBlock(inputs, outputs, stride), *others)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    """As TRADES names it; `sub_block1` is never called."""

    def __init__(self, width: int = 1, *, blocks: int = 5, sub_block: bool = True) -> None:
        super().__init__()
        w = [160 // width, 320 // width, 640 // width]
        self.conv1 = conv3(3, 16)
        self.block1 = WideGroup(blocks, 16, w[0], 1)
        if sub_block:
            self.sub_block1 = WideGroup(blocks, 16, w[0], 1)
        self.block2 = WideGroup(blocks, w[0], w[1], 2)
        self.block3 = WideGroup(blocks, w[1], w[2], 2)
        self.bn1 = nn.BatchNorm2d(w[2])
        self.fc = nn.Linear(w[2], 10)

    def forward(self, x: Tensor) -> Tensor:
        out = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(functional.relu(self.bn1(out)).mean((2, 3)))


def pad_same(x: Tensor, stride: int) -> Tensor:
    return functional.pad(x, (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1))


Activation = Callable[[Tensor], Tensor]


class DeepMindWideBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, activation: Activation) -> None:
        super().__init__()
        self.stride, self.activation = stride, activation
        self.batchnorm_0 = nn.BatchNorm2d(inputs)
        self.conv_0 = conv3(inputs, outputs, stride, 0)
        self.batchnorm_1 = nn.BatchNorm2d(outputs)
        self.conv_1 = conv3(outputs, outputs)
        self.shortcut = None
        if inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.activation(self.batchnorm_0(x))
        out = self.conv_0(pad_same(active, self.stride))
        out = self.conv_1(self.activation(self.batchnorm_1(out)))
        return out + (x if self.shortcut is None else self.shortcut(active))


class DeepMindGroup(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, activation: Activation) -> None:
        super().__init__()
        first = DeepMindWideBlock(inputs, outputs, stride, activation)
        others = [DeepMindWideBlock(outputs, outputs, 1, activation) for _ in range(3)]
        self.block = nn.Sequential(first, *others)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class DeepMindWideResNet(nn.Module):
    """WRN-28-10; it normalises images, and its files do not hold by what."""

    def __init__(self, width: int = 1, *, activation: Activation = functional.relu) -> None:
        super().__init__()
        w = [160 // width, 320 // width, 640 // width]
        self.activation = activation
        self.init_conv = conv3(3, 16)
        self.layer = nn.Sequential(
            DeepMindGroup(16, w[0], 1, activation),
            DeepMindGroup(w[0], w[1], 2, activation),
            DeepMindGroup(w[1], w[2], 2, activation),
        )
        self.batchnorm = nn.BatchNorm2d(w[2])
        self.logits = nn.Linear(w[2], 10)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(self.init_conv(normalized(x)))
        return self.logits(self.activation(self.batchnorm(out)).mean((2, 3)))


class DeepMindBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, activation: Activation) -> None:
        super().__init__()
        self.stride, self.activation = stride, activation
        self.batchnorm_0 = nn.BatchNorm2d(inputs)
        self.conv_2d_1 = conv3(inputs, outputs, stride, 0)
        self.batchnorm_1 = nn.BatchNorm2d(outputs)
        self.conv_2d_2 = conv3(outputs, outputs)
        if stride != 1 or inputs != outputs:
            self.shortcut = conv3(inputs, outputs, stride, 0)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if hasattr(self, "shortcut"):
            shortcut = self.shortcut(pad_same(x, self.stride))
        active = self.activation(self.batchnorm_0(x))
        out = self.conv_2d_1(pad_same(active, self.stride))
        return self.conv_2d_2(self.activation(self.batchnorm_1(out))) + shortcut


class DeepMindPreActResNet18(nn.Module):
    def __init__(self, width: int = 1, *, activation: Activation = functional.relu) -> None:
        super().__init__()
        w = [64 // width * 2**stage for stage in range(4)]
        self.activation = activation
        self.conv_2d = conv3(3, w[0])
        self.layer_0 = self.group(w[0], w[0], 1)
        self.layer_1 = self.group(w[0], w[1], 2)
        self.layer_2 = self.group(w[1], w[2], 2)
        self.layer_3 = self.group(w[2], w[3], 2)
        self.batchnorm = nn.BatchNorm2d(w[3])
        self.logits = nn.Linear(w[3], 10)

    def group(self, inputs: int, outputs: int, stride: int) -> nn.Sequential:
        first = DeepMindBlock(inputs, outputs, stride, self.activation)
        return nn.Sequential(first, DeepMindBlock(outputs, outputs, 1, self.activation))

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer_0(self.conv_2d(normalized(x)))
        out = self.layer_3(self.layer_2(self.layer_1(out)))
        return self.logits(self.activation(self.batchnorm(out)).mean((2, 3)))


def normalized(x: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (CIFAR10_MEAN, CIFAR10_STD))
    return (x - mean) / std


class Normalize(nn.Module):
    """Names of MadryLab's robustness."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("new_mean", torch.tensor(CIFAR10_MEAN).view(3, 1, 1))
        self.register_buffer("new_std", torch.tensor(CIFAR10_STD).view(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.new_mean) / self.new_std


class Attacker(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.normalize = Normalize()
        self.model = model


class AttackerModel(nn.Module):
    """MadryLab's robustness: a network, its normalisation, and an attack that holds both again."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.normalizer = Normalize()
        self.model = model
        self.attacker = Attacker(model)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(self.normalizer(x))


def random_statistics(network: nn.Module) -> nn.Module:
    """Draw what is constant in a fresh network, so that a wrong place of a tensor shows."""
    draws = torch.Generator().manual_seed(3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3, generator=draws)
            module.running_var.uniform_(0.5, 2, generator=draws)
            nn.init.normal_(module.weight, 1, 0.2, generator=draws)
            nn.init.normal_(module.bias, 0, 0.2, generator=draws)
    return network.eval()


def under(prefix: str, network: nn.Module) -> "OrderedDict[str, Tensor]":
    """The state of a network with a prefix before every name."""
    return OrderedDict((prefix + name, value) for name, value in network.state_dict().items())
