"""Weights under the names of RobustBench's networks mean the same in ours, and what does not fit is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from taet import models
from taet.errors import UserError
from taet.models import Classifier, Head, foreign
from taet.models.preact_resnet import PreActBlock
from taet.models.resnet import ResidualLayout, residual_network
from taet.models.weights import pretrained, published_names

NAMES = {"wide": "block{}.layer.{}.", "preact": "layer{}.{}."}
Weights = dict[str, Tensor]


def ours(groups: int, blocks: int, stem: int) -> Classifier:
    """A small network of pre-activation blocks, in eval mode, with statistics that matter."""
    layout = ResidualLayout((6, 8, 10, 12)[:groups], (blocks,) * groups, PreActBlock, stem=stem)
    model = residual_network(layout, 4, 3, Head())
    with torch.no_grad():
        for tensor in model.body.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.1 if tensor.dim() == 1 else torch.randn_like(tensor) / 4)
    return model.eval()


def logits(state: Weights, x: Tensor, kind: str, groups: int, blocks: int) -> Tensor:
    """The published network, from its definition: a = relu(bn(x)); conv(relu(bn(conv(a)))) + x, or + conv1x1(a)."""

    def active(name: str, value: Tensor) -> Tensor:
        parts = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return torch.relu(functional.batch_norm(value, *parts))

    shortcut, last, head = ("convShortcut", "bn1", "fc") if kind == "wide" else ("shortcut.0", "bn", "linear")
    if "mu" in state:
        x = (x - state["mu"]) / state["sigma"]
    x = functional.conv2d(x, state["conv1.weight"], padding=1)
    for group in range(1, groups + 1):
        for block in range(blocks):
            name = NAMES[kind].format(group, block)
            stride = 2 if group > 1 and block == 0 else 1
            a = active(f"{name}bn1", x)
            out = functional.conv2d(a, state[f"{name}conv1.weight"], stride=stride, padding=1)
            out = functional.conv2d(active(f"{name}bn2", out), state[f"{name}conv2.weight"], padding=1)
            has = state.get(f"{name}{shortcut}.weight")
            x = out + (x if has is None else functional.conv2d(a, has, stride=stride))
    return functional.linear(active(last, x).mean((2, 3)), state[f"{head}.weight"], state[f"{head}.bias"])


def published(kind: str, groups: int, blocks: int) -> Weights:
    """Random weights under the published names."""
    widths = (5 if kind == "wide" else 6, 6, 8, 10, 12)
    state: Weights = {"conv1.weight": torch.randn(widths[0], 3, 3, 3) / 4}

    def norm(name: str, width: int) -> None:
        state.update(
            {f"{name}.{part}": torch.rand(width) + 0.1 for part in ("weight", "bias", "running_mean", "running_var")}
        )
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    shortcut, last, head = ("convShortcut", "bn1", "fc") if kind == "wide" else ("shortcut.0", "bn", "linear")
    for group in range(1, groups + 1):
        for block in range(blocks):
            name, inner, outer = NAMES[kind].format(group, block), widths[group - (block == 0)], widths[group]
            norm(f"{name}bn1", inner)
            norm(f"{name}bn2", outer)
            state[f"{name}conv1.weight"] = torch.randn(outer, inner, 3, 3) / 4
            state[f"{name}conv2.weight"] = torch.randn(outer, outer, 3, 3) / 4
            if inner != outer or (group > 1 and block == 0):
                state[f"{name}{shortcut}.weight"] = torch.randn(outer, inner, 1, 1) / 4
    norm(last, widths[groups])
    state |= {f"{head}.weight": torch.randn(4, widths[groups]), f"{head}.bias": torch.randn(4)}
    return state


def save(path: Path, state: Weights, change: Callable[[str], str] = str) -> Path:
    torch.save({"state_dict": {change(name): value for name, value in state.items()}}, path)
    return path


@pytest.mark.parametrize("buffers", [False, True])
@pytest.mark.parametrize(("kind", "groups", "stem"), [("wide", 3, 5), ("preact", 4, 6)])
def test_published_weights_give_the_published_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, groups: int, stem: int, buffers: bool
) -> None:
    torch.manual_seed(0)
    state = published(kind, groups, 2)
    if buffers:
        state |= {"mu": torch.rand(1, 3, 1, 1), "sigma": torch.rand(1, 3, 1, 1) + 0.2}
    stored = dict(state)
    if kind == "wide":  # a group that no image passes
        stored |= {name.replace("block1", "sub_block1"): value for name, value in state.items() if "block1" in name}
    file = save(tmp_path / "net.pt", stored, "module.{}".format)
    monkeypatch.setattr(foreign, "registered", lambda *_: ours(groups, 2, stem))
    x = torch.rand(3, 3, 16, 16)
    loaded = foreign.load("small", num_classes=4, image_shape=(3, 16, 16), weights=file)
    torch.testing.assert_close(loaded.model(x), logits(state, x, kind, groups, 2))
    assert "with RobustBench's names mapped to ours" in loaded.notes[0]
    if buffers:
        with pytest.raises(UserError, match=r"got 'cifar10'; .* brings its own; allowed: none"):
            foreign.load("small", num_classes=4, image_shape=(3, 16, 16), weights=file, normalize="cifar10")
    # To train from: the body, and the head where it has as many classes.
    model = ours(groups, 2, stem)
    assert ", its head included" in pretrained(model, file)
    model.normalize_by(state["mu"].flatten().tolist(), state["sigma"].flatten().tolist()) if buffers else None
    torch.testing.assert_close(model(x), logits(state, x, kind, groups, 2))


@pytest.mark.parametrize(
    ("name", "kind", "groups", "blocks"),
    [("wrn-28-10", "wide", 3, 4), ("wrn-34-10", "wide", 3, 5), ("preact-resnet18", "preact", 4, 2)],
)
def test_every_name_has_a_place_in_the_networks_of_this_package(name: str, kind: str, groups: int, blocks: int) -> None:
    with torch.device("meta"):
        held = models.build(name, 4).state_dict()
    renamed = published_names(published(kind, groups, blocks), held)
    assert renamed is not None
    assert renamed.keys() == held.keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("linear.bias"), "1 missing (head.bias)"),
        (lambda state: state.pop("layer2.0.shortcut.0.weight"), "1 missing (body.2.shortcut.weight)"),
        (lambda state: state.update({"linear.weight": torch.zeros(10, 12)}), "head.weight (10, 12) for (4, 12)"),
        (lambda state: state.update({"layer1.0.conv3.weight": torch.zeros(2)}), "1 unexpected (body.1.conv3.weight)"),
        # Without normalisation before the last layer it is another network.
        (lambda state: [state.pop(name) for name in list(state) if name.startswith("bn.")], "does not fit the model"),
    ],
)
def test_what_does_not_fit_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Weights], object], message: str
) -> None:
    state = published("preact", 4, 1)
    change(state)
    monkeypatch.setattr(foreign, "registered", lambda *_: ours(4, 1, 6))
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        foreign.load("small", num_classes=4, image_shape=(3, 16, 16), weights=save(tmp_path / "net.pt", state))
    assert "\n" not in str(caught.value)


def test_a_network_of_ones_own_with_these_names_keeps_them() -> None:
    """The names are mapped only for networks of this package."""
    network = nn.Sequential()
    network.add_module("conv1", nn.Conv2d(3, 4, 1))
    assert published_names(published("preact", 4, 1), network.state_dict()) is None
