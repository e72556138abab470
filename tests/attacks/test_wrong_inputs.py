"""What no attack can use is refused by every attack alike, in one line: functions, the catalogue,
custom attacks."""

import functools
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import taet.attacks
from taet.attacks import catalogue
from taet.settings import Evaluation
from tests.attacks.test_contract import Layer, short_names
from tests.calls import one_line

COUNT, CLASSES, EPS = 4, 4, 8 / 255
SETTINGS = Evaluation(eps=EPS, step_size=EPS / 2, eps_l2=0.5, step_size_l2=0.2, batch_size=COUNT)


def network(head: nn.Module | None = None) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Flatten(), nn.Linear(75, 8), nn.Tanh(), nn.Linear(8, CLASSES)]
    return nn.Sequential(*layers, *([] if head is None else [head]))


def images() -> Tensor:
    return torch.rand(COUNT, 3, 5, 5, generator=torch.Generator().manual_seed(0))


def with_value(value: float) -> Tensor:
    x = images()
    x[1, 0, 2, 3] = value
    return x


LABELS = torch.tensor([0, 1, 2, 3])
WRONG: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "normalised": (
        lambda: {"x": (images() - 0.5) / 0.25},
        r"images: got values from -.*taet.models.Normalized",
    ),
    "0 to 255": (
        lambda: {"x": 255 * images()},
        r"images: got values from .*; allowed: 0 to 1.*; divide them by 255",
    ),
    "uint8": (
        lambda: {"x": (255 * images()).byte()},
        r"images: got torch.uint8; .*divide uint8 by 255",
    ),
    "NaN": (
        lambda: {"x": with_value(torch.nan)},
        "images: got values from nan to nan; allowed: 0 to 1, without NaN",
    ),
    "an array": (lambda: {"x": images().numpy()}, "images: got a ndarray; allowed: a torch.Tensor"),
    "float labels": (
        lambda: {"y": LABELS.float()},
        r"labels: got torch.float32 .*torch.int64 \(4,\)",
    ),
    "a label too large": (
        lambda: {"y": LABELS + 1},
        "labels: got up to 4; allowed: 0 to 3, one per logit",
    ),
    "a state dict": (
        lambda: {"model": network().state_dict()},
        "model: got a OrderedDict; allowed: a Module",
    ),
    "probabilities": (
        lambda: {"model": network(nn.Softmax(1))},
        r"got probabilities, .*allowed: logits, .*\.log\(\)",
    ),
    "classes": (
        lambda: {"model": network(Layer(lambda z: z.argmax(1)))},
        r"model output: got shape \(\d,\); allowed",
    ),
}


@pytest.fixture(autouse=True)
def few_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["taet.attacks.autoattack"], "QUERIES", 10)


FUNCTIONS = sorted(taet.attacks.__all__)


def function(name: str) -> Callable[..., Tensor]:
    """A public function with what it needs."""
    settings: dict[str, Any] = {
        "pgd": {"eps": EPS, "steps": 2, "step_size": EPS},
        "cw_linf": {"eps": EPS, "steps": 2, "step_size": EPS},
        "cw_l2": {"steps": 5},
        "deepfool": {"steps": 3},
        "autoattack": {"eps": EPS, "version": "10"},
    }.get(name, {"eps": EPS})
    return functools.partial(getattr(taet.attacks, name), **settings)


CATALOGUE = [catalogue.parse(name, SETTINGS) for name in short_names() if name != "clean"]


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    "attack",
    [*CATALOGUE, *map(function, FUNCTIONS)],
    ids=[*(one.name for one in CATALOGUE), *FUNCTIONS],
)
def test_every_attack_of_the_catalogue_and_every_function_refuses_the_same(
    attack: Callable[..., Tensor],
) -> None:
    for change, message in WRONG.values():
        with one_line(message):
            attack(**{"model": network(), "x": images(), "y": LABELS, **change()})


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_works_in_any_mode(name: str) -> None:
    """A sound call is no mistake, and gives the same inside Lightning's validation as outside of
    it."""
    model, attack = network().train(), function(name)
    expected = attack(model, images(), LABELS)
    assert not expected.is_inference()
    with torch.no_grad():
        assert torch.equal(attack(model, images(), LABELS), expected)
    with one_line("no gradient reaches the image"):
        attack(network(Layer(Tensor.detach)), images(), LABELS)
    with torch.inference_mode():
        found = attack(model, images(), LABELS)
        assert model(found).shape == (COUNT, CLASSES)
    assert torch.equal(found, expected)
    assert torch.equal(attack(model.forward, images(), LABELS), expected), (
        "a function will do as well"
    )
    assert model.training
    assert all(one.requires_grad and one.grad is None for one in model.parameters())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_pixels_as_the_unit_of_eps_are_refused(name: str) -> None:
    attack = functools.partial(function(name), network(), images(), LABELS)
    if name in ("cw_l2", "deepfool"):  # a ball in L2 may be larger than 8
        with one_line("eps: got -1; allowed: a number, 0 or more"):
            attack(eps=torch.tensor([0.5, 0.5, -1, 0.5]))
        return
    with one_line(r"eps.*: got 8; .* did you mean 8/255\?"):
        attack(eps=8)
    if name == "autoattack":
        with one_line(r"eps: got a tensor of shape \(4,\); allowed: one number"):
            attack(eps=torch.full((4,), 0.1))
        with one_line("eps: got 0; allowed: above 0"):
            attack(eps=0.0)
    else:
        with one_line(r"eps: got 8; allowed: a number, 0 to 1.* did you mean 8/255\?"):
            attack(eps=torch.tensor([0.0, 0.1, 8, 0]))


def test_ordinary_logits_are_no_probabilities() -> None:
    rows = torch.tensor(
        [[0.2, 0.3, 0.1, 0.4], [0.5, 0.5, 0.5, 0.5], [1.0, 0, 0, 0], [0.2, 0.9, -0.1, 0]]
    )
    others = {
        "one row that is none": rows,
        "one-hot rows": torch.eye(4),
        "log-probabilities": rows.log_softmax(1),
    }
    attack = function("fgsm")
    for what, logits in others.items():
        assert attack(lambda x, z=logits: z + 0 * x.flatten(1)[:, :1], images(), LABELS).shape == (
            4,
            3,
            5,
            5,
        ), what
    with one_line("got probabilities"):
        attack(lambda x: rows[:1] + 0 * x.flatten(1)[:, :1], images(), LABELS)


class Quantised(torch.autograd.Function):
    """As PyTorch's quantised layers, whose outputs require a gradient that they do not have."""

    @staticmethod
    def forward(_context: object, logits: Tensor) -> Tensor:
        return logits.clone()

    @staticmethod
    def backward(_context: object, *_gradients: Tensor) -> None:
        return None


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_model_that_only_claims_a_gradient_is_refused(name: str) -> None:
    with one_line("no gradient reaches the image; .* or is it quantised"):
        function(name)(network(Layer(Quantised.apply)), images(), LABELS)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_works_under_any_default_type(name: str) -> None:
    model, attack = network(), function(name)
    expected = attack(model, images(), LABELS)
    x = images()
    try:
        torch.set_default_dtype(torch.float64)
        found = attack(model, x, LABELS)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_images_of_another_type_than_the_weights_are_refused(name: str) -> None:
    with one_line("images: got torch.float32 for a model with weights of torch.float64; allowed:"):
        function(name)(network().double(), images(), LABELS)
