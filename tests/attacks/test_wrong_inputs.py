"""What no attack can use is refused by every attack alike, in one line: functions, the catalogue, custom attacks."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import taet
import taet.attacks
from taet.attacks import catalogue
from taet.attacks.ball import BALL_TOLERANCE, distance
from taet.attacks.noise import Draws
from taet.attacks.spec import AttackSpec
from taet.attacks.square import square
from taet.errors import UserError
from taet.settings import Evaluation

COUNT, CLASSES, EPS = 4, 4, 8 / 255
SETTINGS = Evaluation(eps=EPS, step_size=EPS / 2, eps_l2=0.5, step_size_l2=0.2, batch_size=COUNT)
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)

ADDED = {
    "lift": """
from dataclasses import dataclass
from typing import ClassVar

from taet.attacks.spec import AttackSpec
from taet.attacks.square import square

NAMES = {"lift": "all pixels up; it asks the model nothing"}


@dataclass(frozen=True, kw_only=True)
class Lift(AttackSpec):
    names: ClassVar = {"lift": "linf"}

    def run(self, model, x, y, draws):
        return (x + self.eps).clamp(0, 1)
""",
    "slope": """
import torch

NAMES = {"slope": "one step along the gradient"}


def slope(model, x, y, *, eps):
    leaf = x.requires_grad_()
    (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(model(leaf), y), leaf)
    return (x + eps * gradient.sign()).clamp(0, 1)
""",
}


def network(head: nn.Module | None = None) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Flatten(), nn.Linear(75, 8), nn.Tanh(), nn.Linear(8, CLASSES)]
    return nn.Sequential(*layers, *([] if head is None else [head]))


def images() -> Tensor:
    return torch.rand(COUNT, 3, 5, 5, generator=torch.Generator().manual_seed(0))


def labels() -> Tensor:
    return torch.tensor([0, 1, 2, 3])


class Given(NamedTuple):
    """What an attack is called with."""

    model: Any
    x: Any
    y: Any


class Layer(nn.Module):
    """A layer that is a function."""

    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> Any:
        return self.change(x)


def normalised() -> Tensor:
    return (images() - torch.tensor(MEAN).view(1, -1, 1, 1)) / torch.tensor(STD).view(1, -1, 1, 1)


def with_value(value: float) -> Tensor:
    x = images()
    x[1, 0, 2, 3] = value
    return x


def made_in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return network()


WRONG: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "normalised": (lambda: {"x": normalised()}, r"images: got values from -1\.\d+ to 2\.\d+; .*taet.models.Normalized"),
    "0 to 255": (lambda: {"x": 255 * images()}, r"images: got values from .*; allowed: 0 to 1.*; divide them by 255"),
    "above 1 by rounding": (lambda: {"x": with_value(1.0001)}, r"images: got values .* to 1.0001; .*x.clamp\(0, 1\)"),
    "uint8": (lambda: {"x": (255 * images()).byte()}, r"images: got torch.uint8; .*divide uint8 by 255"),
    "float64 weights": (lambda: {"model": network().double()}, "images: got torch.float32, on which the model fails"),
    "NaN": (lambda: {"x": with_value(torch.nan)}, "images: got values from nan to nan; allowed: 0 to 1, without NaN"),
    "infinite": (lambda: {"x": with_value(torch.inf)}, "images: got values from .* to inf; allowed: 0 to 1"),
    "an array": (lambda: {"x": images().numpy()}, "images: got a ndarray; allowed: a torch.Tensor"),
    "one image": (lambda: {"x": images()[0], "y": torch.tensor(1)}, r"labels: got torch.int64 \(\); allowed: .*\(3,\)"),
    "no image": (lambda: {"x": images()[:0], "y": labels()[:0]}, r"images: got shape \(0, 3, 5, 5\); allowed: a batch"),
    "a vector": (lambda: {"x": images()[:, 0, 0, 0]}, r"images: got shape \(4,\); allowed: a batch \(N, \.\.\.\)"),
    "float labels": (lambda: {"y": labels().float()}, r"labels: got torch.float32 .*torch.int64 \(4,\).*y.long\(\)"),
    "int32 labels": (lambda: {"y": labels().int()}, r"labels: got torch.int32 \(4,\); allowed: .*y.long\(\)"),
    "one-hot labels": (lambda: {"y": torch.eye(4)}, r"labels: got torch.float32 \(4, 4\); allowed: .*y.argmax\(1\)"),
    "too few labels": (lambda: {"y": labels()[:3]}, r"labels: got torch.int64 \(3,\); allowed: torch.int64 \(4,\)"),
    "a list of labels": (lambda: {"y": [0, 1, 2, 3]}, "labels: got a list; allowed: a torch.Tensor"),
    "a label too large": (lambda: {"y": labels() + 1}, "labels: got up to 4; allowed: 0 to 3, one per logit"),
    "a negative label": (lambda: {"y": labels() - 1}, "labels: got -1; allowed: 0 to 3, one per logit"),
    "a state dict": (lambda: {"model": network().state_dict()}, "model: got a OrderedDict; allowed: a Module"),
    "a path": (lambda: {"model": Path("runs/at")}, "model: got a PosixPath; allowed: a Module or function"),
    "a class": (lambda: {"model": nn.Linear}, "model: got the class Linear; allowed: a Module"),
    "a number": (lambda: {"model": 3}, "model: got a int; allowed: a Module or function from images"),
    "weights without a gradient": (lambda: {"model": made_in_inference_mode()}, "weights made under .*inference_mode"),
    "probabilities": (lambda: {"model": network(nn.Softmax(1))}, r"got probabilities, .*allowed: logits, .*\.log\(\)"),
    "classes": (lambda: {"model": network(Layer(lambda z: z.argmax(1)))}, r"model output: got shape \(\d,\); allowed"),
    "whole numbers": (lambda: {"model": network(Layer(lambda z: z.round().long()))}, "model output: got torch.int64"),
    "a tuple": (lambda: {"model": network(Layer(lambda z: (z, z)))}, "model output: got a tuple; allowed: one tensor"),
    "one logit": (
        lambda: {"model": network(nn.Linear(CLASSES, 1)), "y": 0 * labels()},
        r"got logits of shape \(\d, 1\); allowed: ",
    ),
}


def complains(attack: Callable[..., Tensor], wrong: str) -> None:
    change, message = WRONG[wrong]
    given = Given(network(), images(), labels())._replace(**change())
    with pytest.raises(UserError) as error:
        attack(*given)
    assert re.search(message, str(error.value))
    assert "\n" not in str(error.value)


def works_in_any_mode(attack: Callable[..., Tensor]) -> None:
    """A sound call is no mistake, and gives the same inside Lightning's validation as outside of it."""
    model = network().train()
    expected = attack(model, images(), labels())
    assert not expected.is_inference()
    with torch.no_grad():
        assert torch.equal(attack(model, images(), labels()), expected)
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        found = attack(model, images(), labels())
        assert torch.is_inference_mode_enabled()
        assert model(found).shape == (COUNT, CLASSES)
    x = images()
    assert torch.equal(found, expected)
    assert torch.equal(attack(lambda z: model(z), x, labels()), expected), "a function will do as well"
    assert torch.equal(x, images())
    assert model.training
    assert all(one.requires_grad and one.grad is None for one in model.parameters())


@pytest.fixture(autouse=True)
def few_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["taet.attacks.autoattack"], "QUERIES", 10)


# --- the catalogue, also attacks added at run time -------------------------------------------------------------------


def short(name: str) -> str:
    """The name with few steps."""
    options = {"cw-l2": "steps=5", "deepfool": "steps=3", "square": "queries=5", "random-noise": "tries=3"}
    return f"{name}:{options[name]}" if name in options else name.replace("-N", "-2")


@pytest.fixture(scope="module")
def added(tmp_path_factory: pytest.TempPathFactory, plugged: Callable[..., AbstractContextManager[None]]) -> Any:
    folder = tmp_path_factory.mktemp("attacks")
    for name, text in ADDED.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    with plugged("attacks", *folder.glob("*.py")):
        yield


CATALOGUE = [*catalogue.kinds(), *ADDED]


@pytest.mark.sample(4)
@pytest.mark.usefixtures("added")
@pytest.mark.parametrize("name", CATALOGUE)
def test_every_attack_of_the_catalogue_refuses_the_same(name: str) -> None:
    attack = catalogue.parse(short(name), SETTINGS)
    assert name in catalogue.kinds()
    for wrong in WRONG:
        complains(attack, wrong)


# The suites are slow; their shortest stands for them.
class TooFar(AttackSpec):
    """An attack that leaves its ball."""

    def run(self, model: Any, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        return x + 2 * EPS


@pytest.mark.usefixtures("added")
def test_an_attack_that_is_called_by_name_checks_what_it_made() -> None:
    attack = catalogue.parse("lift", SETTINGS)
    x_adv = attack(network(), images(), labels())
    assert float(distance(x_adv, images()).max()) <= EPS + BALL_TOLERANCE
    with pytest.raises(UserError, match="lift: 4 images left the ball"):
        TooFar(**vars(attack))(network(), images() / 2, labels())


# --- the functions ---------------------------------------------------------------------------------------------------


def function(name: str) -> Callable[..., Tensor]:
    """A public function with what it needs."""
    found = getattr(taet.attacks, name)
    settings: dict[str, Any] = {
        "pgd": {"eps": EPS, "steps": 2, "step_size": EPS},
        "cw_linf": {"eps": EPS, "steps": 2, "step_size": EPS},
        "cw_l2": {"steps": 5},
        "deepfool": {"steps": 3},
        "autoattack": {"eps": EPS, "version": "10"},
    }.get(name, {"eps": EPS})
    return functools.partial(found, **settings)


FUNCTIONS = sorted(taet.attacks.__all__)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_refuses_the_same(name: str) -> None:
    for wrong in WRONG:
        complains(function(name), wrong)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_works_in_any_mode(name: str) -> None:
    works_in_any_mode(function(name))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_pixels_as_the_unit_of_eps_are_refused(name: str) -> None:
    if name in ("cw_l2", "deepfool"):  # a ball in L2 may be larger than 8
        with pytest.raises(UserError, match=r"eps: got values from -1 to 0\.5; allowed: 0 or more"):
            function(name)(network(), images(), labels(), eps=torch.tensor([0.5, 0.5, -1, 0.5]))
        return
    with pytest.raises(UserError, match=r"eps: got 8; .* did you mean 8/255\?"):
        function(name)(network(), images(), labels(), eps=8)
    if name != "autoattack":  # which takes one number
        with pytest.raises(UserError, match=r"eps: got values from 0 to 8; allowed: 0 to 1.* did you mean 8/255\?"):
            function(name)(network(), images(), labels(), eps=torch.tensor([0.0, 0.1, 8, 0]))


SETTINGS_REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "the name of an objective": ("pgd", {"objective": "ce"}, r"objective: got 'ce'; .*OBJECTIVES\['ce'\]"),
    "no objective": ("pgd", {"objective": None}, "objective: got None; allowed: a function from"),
    "one step without an objective": ("pgd", {"objective": [taet.losses.cross_entropy, None]}, "objective: got None"),
    "steps that lead back": (
        "pgd",
        {"step_size": torch.tensor([0.1, -0.1, 0, 0])},
        "step size: got values from -0.1 to",
    ),
    "a step of NaN": ("pgd", {"step_size": [0.1, torch.full((4,), torch.nan)]}, "step size: got values from nan"),
    "steps in pixels": ("pgd", {"step_size": torch.tensor(2.0)}, r"step size: got values from 2 .* mean 2/255\?"),
    "noise of NaN": ("pgd", {"start_noise": torch.full((4, 3, 5, 5), torch.nan)}, "start noise: got NaN or infinity"),
    "queries in words": ("square", {"queries": "a"}, "queries: got 'a'; allowed: a whole number, 1 or more"),
    "rows as images": ("square", {"x": torch.rand(4, 75)}, r"images: got shape \(4, 75\); allowed: \(N, C, H, W\)"),
}


@pytest.mark.parametrize("wrong", SETTINGS_REFUSED)
def test_what_a_function_cannot_use_is_refused_in_one_line(wrong: str) -> None:
    name, change, message = SETTINGS_REFUSED[wrong]
    attack = square if name == "square" else function(name)
    given: dict[str, Any] = {"model": network(), "x": images(), "y": labels(), "eps": EPS, **change}
    with pytest.raises(UserError, match=message):
        attack(**given)


def test_images_of_another_type_than_the_weights_are_refused_where_the_model_fails() -> None:
    with pytest.raises(UserError, match=r"images: got torch.float64, on which the model fails .*x\.float\(\)"):
        function("pgd")(network(), images().double(), labels())


# --- what a caller has checked is not looked at ----------------------------------------------------------------------


class Unreadable(Tensor):
    """A tensor whose values must not be read: reading waits for the device."""

    def __bool__(self) -> bool:
        raise AssertionError("read")

    def item(self) -> Any:
        raise AssertionError("read")

    def tolist(self) -> Any:
        raise AssertionError("read")


@pytest.mark.parametrize("name", ["pgd", "fgsm", "cw_linf"])
def test_what_the_caller_has_checked_is_not_read(name: str) -> None:
    x, y = images().as_subclass(Unreadable), labels().as_subclass(Unreadable)
    checked = function(name)(network(), x, y, checked=True)
    assert torch.equal(checked.as_subclass(Tensor), function(name)(network(), images(), labels()))
    with pytest.raises(AssertionError, match="read"):
        function(name)(network(), x, y)
    with torch.inference_mode():
        inside = function(name)(network_of_before(), images(), labels(), checked=True)
    assert torch.equal(inside, checked.as_subclass(Tensor))


@functools.cache
def network_of_before() -> nn.Module:
    with torch.inference_mode(False):
        return network()


def test_ordinary_logits_are_no_probabilities() -> None:
    rows = torch.tensor([[0.2, 0.3, 0.1, 0.4], [0.5, 0.5, 0.5, 0.5], [1.0, 0, 0, 0], [0.2, 0.9, -0.1, 0]])
    others = {"one row that is none": rows, "one-hot rows": torch.eye(4), "log-probabilities": rows.log_softmax(1)}
    for what, logits in others.items():
        attack = function("fgsm")
        assert attack(lambda x, z=logits: z + 0 * x.flatten(1)[:, :1], images(), labels()).shape == (4, 3, 5, 5), what
    with pytest.raises(UserError, match="got probabilities"):
        function("fgsm")(lambda x: rows[:1] + 0 * x.flatten(1)[:, :1], images(), labels())
