"""Residual networks: their layers in the papers' order, and torchvision's function for torchvision's weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from taet import models
from taet.errors import UserError
from taet.models import Classifier
from taet.models.preact_resnet import PreActBlock
from taet.models.resnet import AveragePooling, BasicBlock, Bottleneck, residual_network
from taet.models.wide_resnet import wide_layout


def images(shape: tuple[int, int, int] = (3, 32, 32), count: int = 2) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))


def layers(model: Classifier, x: Tensor) -> list[str]:
    """What an image passes, in order: convolutions as kernel/stride:in-out, normalisations and others by name."""
    passed: list[str] = []

    def note(module: nn.Module, _inputs: Any, _output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            channels = f"{module.in_channels}-{module.out_channels}"
            passed.append(f"{module.kernel_size[0]}x{module.kernel_size[0]}/{module.stride[0]}:{channels}")
        elif isinstance(module, nn.BatchNorm2d):
            passed.append(f"bn{module.num_features}")
        elif isinstance(module, AveragePooling):
            passed.append("average")
        elif isinstance(module, nn.MaxPool2d):
            passed.append("max")

    for module in model.modules():
        module.register_forward_hook(note)
    with torch.no_grad():
        model.eval().features(x)
    return passed


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_with_the_imagenet_stem_it_is_torchvisions_network(name: str) -> None:
    theirs = torchvision.models.get_model(name, weights=None, num_classes=10).eval()
    ours = models.build(name, 10, (3, 64, 64), stem="imagenet").eval()
    own = {key: value for key, value in ours.state_dict().items() if key not in ("mean", "std", "offset")}
    # Parameters and statistics are registered in the same order under other names.
    assert [v.shape for v in own.values()] == [v.shape for v in theirs.state_dict().values()]
    for value, other in zip(own.values(), theirs.state_dict().values(), strict=True):
        value.copy_(other)
    with torch.no_grad():
        torch.testing.assert_close(ours(images((3, 64, 64))), theirs(images((3, 64, 64))))


def test_the_cifar_stem_keeps_the_resolution_and_every_later_width_halves_it() -> None:
    sides = []
    model = models.build("resnet8", 10).eval()
    for module in model.modules():
        if isinstance(module, BasicBlock):
            module.register_forward_hook(lambda _module, _inputs, output: sides.append(tuple(output.shape[1:])))
    model(images())
    assert sides == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    assert layers(model, images())[:2] == ["3x3/1:3-16", "bn16"]


@pytest.mark.parametrize(
    ("stem", "shape", "large"),
    [
        ("auto", (3, 95, 200), False),
        ("auto", (3, 96, 96), True),
        ("cifar", (3, 96, 96), False),
        ("imagenet", (3, 32, 32), True),
    ],
)
@pytest.mark.parametrize("name", ["resnet8", "preact-resnet18"])
def test_the_stem_goes_by_the_shorter_side_or_as_asked(
    name: str, stem: str, shape: tuple[int, int, int], large: bool
) -> None:
    with torch.device("meta"):
        model = models.build(name, 10, shape, stem=stem)
        found = layers(model, torch.rand(1, *shape))
    assert found[0].startswith("7x7/2:3-" if large else "3x3/1:3-")
    assert ("max" in found) == large
    assert model.body[0].padding == ((3, 3) if large else (1, 1))


@pytest.mark.parametrize("block", [BasicBlock(4, 4, stride=1), Bottleneck(4, 1, stride=1)])
def test_a_block_adds_its_input(block: nn.Module) -> None:
    block.eval()
    assert isinstance(block.shortcut, nn.Identity)
    nn.init.zeros_((block.conv3 if isinstance(block, Bottleneck) else block.conv2).weight)
    x = torch.rand(2, 4, 5, 5)
    assert torch.equal(block(x), x)
    with torch.no_grad():  # a rectifier follows the sum
        assert (block(-x) == 0).all()


def test_preactivation_is_its_formula() -> None:
    x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    for outputs, stride in ((4, 1), (6, 2)):
        block = PreActBlock(4, outputs, stride)
        norms = [nn.functional.batch_norm(x, None, None, training=True)]
        inner = nn.functional.conv2d(norms[0].relu(), block.conv1.weight, stride=stride, padding=1)
        norms.append(nn.functional.batch_norm(inner, None, None, training=True))
        expected = nn.functional.conv2d(norms[1].relu(), block.conv2.weight, padding=1)
        shortcut = block.shortcut
        straight = x if shortcut is None else nn.functional.conv2d(norms[0].relu(), shortcut.weight, stride=stride)
        assert (shortcut is None) == (outputs == 4)
        torch.testing.assert_close(block(x), expected + straight)  # no rectifier after the sum


def preactivated(inputs: int, width: int, stride: int) -> list[str]:
    change = [f"1x1/{stride}:{inputs}-{width}"] if inputs != width else []
    return [f"bn{inputs}", f"3x3/{stride}:{inputs}-{width}", f"bn{width}", f"3x3/1:{width}-{width}", *change]


def test_layers_of_the_preactivation_network() -> None:
    blocks = [(64, 64, 1), (64, 64, 1)]
    for width in (128, 256, 512):
        blocks += [(width // 2, width, 2), (width, width, 1)]
    expected = ["3x3/1:3-64", *(layer for block in blocks for layer in preactivated(*block)), "bn512", "average"]
    with torch.device("meta"):
        assert layers(models.build("preact-resnet18", 10), torch.rand(1, 3, 32, 32)) == expected


@pytest.mark.parametrize(("depth", "k"), [(28, 10), (34, 10), (10, 1), (16, 2)])
def test_layers_of_a_wide_network(depth: int, k: int) -> None:
    blocks = []
    for inputs, width, stride in ((16, 16 * k, 1), (16 * k, 32 * k, 2), (32 * k, 64 * k, 2)):
        blocks += [(inputs, width, stride), *[(width, width, 1)] * ((depth - 4) // 6 - 1)]
    expected = ["3x3/1:3-16", *(layer for block in blocks for layer in preactivated(*block)), f"bn{64 * k}", "average"]
    assert sum(layer.startswith("3x3") for layer in expected) == depth - 3, "the paper counts 1x1 convolutions as well"
    with torch.device("meta"):
        name = f"wrn-{depth}-{k}"
        model = models.build(name, 10) if k == 10 else residual_network(wide_layout(depth, k), 10, 3, models.Head())
        assert layers(model, torch.rand(1, 3, 32, 32)) == expected


def test_a_stem_is_refused_where_there_is_none_to_choose() -> None:
    with pytest.raises(UserError, match=r"model stem: got imagenet; vit-mini-p4 begins with patches; allowed: auto"):
        models.build("vit-mini-p4", 10, stem="imagenet")
    with pytest.raises(UserError, match=r"model stem: got cifar; torchvision:resnet18 has its own; allowed: auto"):
        models.build("torchvision:resnet18", 10, stem="cifar")
