"""Networks of other origins for training: taken apart into features and head, or used whole, or refused in one line."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from taet import models
from taet.errors import UserError
from taet.models import Adapter, Classifier, CosineHead, Head
from taet.models.foreign import taken_apart

SHAPE = (3, 8, 8)


def images(shape: tuple[int, int, int] = SHAPE) -> Tensor:
    return torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))


def convolved() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Function(nn.Module):
    """A network with one linear layer of four outputs, and something done with it."""

    def __init__(self, end: Callable[[nn.Linear, Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.last, self.end = convolved(), nn.Linear(8, 4), end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.last, self.body(x))


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(convolved(), nn.Linear(8, 6), nn.Linear(6, 4), nn.Identity()),
        nn.Sequential(convolved(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 4, bias=False)),
        Function(lambda last, h: last(h).squeeze(-1)),
    ],
)
def test_features_and_head_give_the_networks_logits(network: nn.Module) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    expected = network(images())
    model = taken_apart(network, 4, SHAPE)
    assert isinstance(model, Classifier)
    assert model.features(images()).shape == (3, model.head.in_features)
    torch.testing.assert_close(model(images()), expected)
    assert all(module.training for module in model.modules())
    (note,) = model.notes
    assert note.startswith("features: the inputs of the network's last layer, ")
    with torch.no_grad():  # the parts are copies
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_last_layer_of_zeros_is_not_taken_for_any_other() -> None:
    """torchvision's transformers start with one: every logit is zero, whatever the features."""
    same, other = Function(lambda last, h: last(h)), Function(lambda last, h: 2 * last(h.relu()))
    for network in (same, other):
        nn.init.zeros_(network.last.weight)
        nn.init.zeros_(network.last.bias)
    assert isinstance(taken_apart(other, 4, SHAPE), Adapter)
    assert isinstance(taken_apart(same, 4, SHAPE), Classifier)


@pytest.mark.parametrize(
    "network",
    [
        Function(lambda last, h: last(h).log_softmax(1)),
        Function(lambda last, h: last(h) + last(h.flip(1))),
        Function(lambda last, h: nn.functional.linear(h, nn.functional.normalize(last.weight))),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Sequential(nn.Flatten(2), nn.Linear(64, 4), nn.AdaptiveMaxPool2d((1, None)), nn.Flatten()),
    ],
    ids=["log-softmax", "twice", "weight", "no-linear", "of-tokens"],
)
def test_another_network_is_used_whole(network: nn.Module) -> None:
    expected = network(images())
    model = taken_apart(network, 4, SHAPE)
    assert isinstance(model, Adapter)
    assert model.network is network
    assert torch.equal(model(images()), expected)
    assert model.training
    assert model.notes[0].startswith("the network is used whole: no linear layer gives its logits")


def test_a_cosine_head_takes_the_place_of_the_networks_own() -> None:
    model = taken_apart(nn.Sequential(convolved(), nn.Linear(8, 4)), 4, SHAPE, Head("cosine", scale=10))
    assert isinstance(model, Classifier)
    assert isinstance(model.head, CosineHead)
    assert model(images()).abs().max() <= 10


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Conv2d(1, 4, 3), r"model: cannot take images of shape \(3, 8, 8\): RuntimeError:"),
        (nn.Flatten(), r"model: got \(2, 192\) for 2 images; allowed: \(2, 4\), one logit per class"),
    ],
)
def test_a_network_that_does_not_fit_the_data_is_one_line(network: nn.Module, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        taken_apart(network, 4, SHAPE)
    assert "\n" not in str(caught.value)


def test_more_than_one_output_in_training_is_refused() -> None:
    network = torchvision.models.googlenet(num_classes=4, init_weights=False)
    with pytest.raises(UserError, match="model: its auxiliary classifiers give more outputs in training; allowed: one"):
        taken_apart(network, 4, (3, 32, 32))


SOURCE = """
from torch import nn
from taet.models import Classifier

def classifier(num_classes):
    body = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Classifier(body, nn.Linear(5, num_classes), num_classes, 3)

ready = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module in the current directory."""
    name = "own_nets_to_take_apart"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    yield name
    sys.modules.pop(name, None)
    importlib.invalidate_caches()


def test_a_module_of_ones_own_can_be_trained_twice(own: str) -> None:
    """It is one object in its file; what is trained is a copy."""
    first = models.build(f"{own}:ready", 4, SHAPE)
    expected = first(images())
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(1)
    assert torch.equal(models.build(f"{own}:ready", 4, SHAPE)(images()), expected)


def test_a_classifier_of_ones_own_is_used_as_it_is_with_weights_of_the_seed(own: str) -> None:
    first, again, other = (models.build(f"{own}:classifier", 6, SHAPE, seed=seed) for seed in (1, 1, 2))
    assert isinstance(first, Classifier)
    assert first.features(images()).shape == (3, 5)
    assert (first.notes, first.training) == ((), True)
    assert torch.equal(first(images()), again(images()))
    assert not torch.equal(first(images()), other(images()))


@pytest.mark.parametrize(
    ("name", "shape", "features", "last"),
    [
        ("resnet18", (1, 32, 32), 512, "fc"),
        ("mobilenet_v3_small", (5, 32, 32), 1024, "classifier.3"),
        pytest.param("vit_b_32", (1, 32, 32), 768, "heads.head", marks=pytest.mark.full),
    ],
)
def test_torchvision(name: str, shape: tuple[int, int, int], features: int, last: str) -> None:
    model = models.build(f"torchvision:{name}", 7, shape)
    assert isinstance(model, Classifier)
    assert model.notes == (f"features: the inputs of the network's last layer, {last}",)
    assert model.features(images(shape)).shape == (3, features)
    assert model(images(shape)).shape == (3, 7)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("vit_b_16", (3, 40, 40), "torchvision:vit_b_16 failed: .*indivisible by patch size"),
        ("squeezenet1_0", (1, 8, 8), "cannot take images of shape .* Output size is too small"),
        ("maxvit_t", (3, 32, 32), "torchvision:maxvit_t failed: ValueError: Input size .* not divisible"),
    ],
)
def test_torchvision_that_does_not_fit_the_images_is_one_line(
    name: str, shape: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        models.build(f"torchvision:{name}", 7, shape)
    assert "\n" not in str(caught.value)
