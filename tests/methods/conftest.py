"""Every variant and stage of every method that the registry finds, a small network, and a few
digits.

A test that takes `case` runs over all of them, also wrapped in a method that holds another; one
that takes `plain_case` leaves the wrapped ones out. `whole_variant` is a variant with all of its
stages.
"""

import itertools
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from taet import methods, registry
from taet.attacks.ball import frozen
from taet.attacks.noise import Source
from taet.data import load
from taet.data.augmentation import to_unit
from taet.data.loader import Batch
from taet.methods import Method, Task
from taet.methods.base import Adversarial, Attack, ClassFeedback, Loss
from taet.methods.wrapper import BudgetRule, ClassBudgets
from taet.models import Classifier, Head
from taet.models.classifier import build_head
from taet.settings import Outer, Run, Threat, Training
from taet.training.state import State
from taet.training.step import training_step

METHODS = sorted(registry.entries("methods"))
HOLDERS = [name for name in METHODS if issubclass(methods.find(name), ClassBudgets)]
COUNTS = (14, 12, 10, 9, 8, 7, 6, 5, 4, 3)
EPOCHS, MILESTONES = 5, (3, 4)

Network = Callable[..., Classifier]


def make_task(
    classes: int = 10, image_shape: tuple[int, int, int] = (1, 8, 8), **more: Any
) -> Task:
    """A long-tailed training set and a run of five epochs."""
    counts = COUNTS if classes == 10 else tuple(range(classes + 1, 1, -1))
    return Task(
        counts, image_shape, epochs=EPOCHS, steps_per_epoch=4, milestones=MILESTONES, **more
    )


def small(name: str) -> dict[str, Any]:
    """Knobs that make a method cheaper and change nothing in kind."""
    if name == "adt":
        return {"steps": 2, "samples": 2}
    return {"steps": (1, 2), "width": 4, "interval": 3} if name == "las-at" else {}


def built(
    name: str,
    epoch: int = 0,
    counts: Any = COUNTS,
    outer: Any = "cross-entropy",
    task: Any = (),
    **knobs: Any,
) -> Any:
    """The method in this epoch of a run of ten; `task` has other fields of its task, knobs are its
    own settings."""
    outer = Outer(name=outer) if isinstance(outer, str) else outer
    fields: dict[str, Any] = {
        "image_shape": (1, 8, 8),
        "epochs": 10,
        "steps_per_epoch": 1,
        "milestones": (6, 8),
    }
    method = methods.build(name, knobs, Task(counts, outer=outer, **{**fields, **dict(task)}))
    method.enter(epoch)
    return method


def make_attack(seed: int = 0, **threat: Any) -> Attack:
    """The protocol's attack with two steps, or with these settings of a threat."""
    return Attack(Threat(**{"steps": 2, **threat}), Source(torch.Generator().manual_seed(seed)))


def perturb(method: Method, model: nn.Module, batch: Batch, attack: Attack) -> Adversarial:
    """Examples to train on, made as the training step makes them."""
    with frozen(model, attack.threat.bn_mode):
        return method.perturb(model, batch.x, batch.y, attack)


def loss_on(method: Method, natural: Tensor, logits: Tensor, labels: Any, **info: Tensor) -> Loss:
    """The loss of a model with these logits (N, C) on clean and on attacked images."""
    x, x_adv = torch.zeros(len(logits), 1), torch.ones(len(logits), 1)
    model: Any = lambda given: natural if given is x else logits  # noqa: E731
    return method.loss(model, x, torch.as_tensor(labels), Adversarial(x_adv, info))


def seen_of(clean: Any, robust: Any, losses: Any = 0.0, images: Any = 100.0) -> ClassFeedback:
    """Feedback with these accuracies, clean and attacked, and mean losses of the classes; no
    divergence."""
    robust = torch.as_tensor(robust, dtype=torch.float64)
    clean, losses, images = (
        torch.as_tensor(values, dtype=torch.float64).expand(len(robust))
        for values in (clean, losses, images)
    )
    zero = torch.zeros_like(robust)
    return ClassFeedback(images, clean * images, robust * images, losses * images, zero)


def batch_of(labels: list[int], shape: tuple[int, int, int] = (1, 8, 8)) -> Batch:
    """Noise with these labels."""
    x = torch.rand(len(labels), *shape, generator=torch.Generator().manual_seed(1))
    return Batch(torch.arange(len(labels)), x, torch.tensor(labels))


def trained_step(
    method: Method,
    model: Any,
    batch: Batch,
    seed: int = 0,
    number: int = 0,
    attack: Attack | None = None,
    **more: Any,
) -> Loss:
    """Step `number` of a run with plain SGD, under an attack with this seed or the one given; more:
    of training."""
    run = Run(training=Training(**{"precision": "float32", **more}))
    state = State(model, method, torch.optim.SGD(model.parameters(), lr=0.1), run, step=number)
    return training_step(state, batch, attack or make_attack(seed))


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters and buffers."""
    return {
        name: value.detach().clone()
        for name, value in (*module.named_parameters(), *module.named_buffers())
    }


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) for name, value in first.items()
    )


class Case(NamedTuple):
    """A method, its knobs, and an epoch (from 0) of one of its stages."""

    name: str
    knobs: dict[str, Any]
    stage: str = ""
    epoch: int = 0

    def __str__(self) -> str:
        return "-".join(
            [self.name, *(f"{knob}={value}" for knob, value in self.knobs.items()), self.stage]
        )

    def fresh(self, **task: Any) -> Method:
        """The method as it is built, small, for a task of these settings."""
        if "base" not in self.knobs:
            return methods.build(self.name, small(self.name) | self.knobs, make_task(**task))
        cheap = small(self.knobs["base"])
        return methods.build(self.name, {**self.knobs, "base_settings": cheap}, make_task(**task))

    def build(self, **task: Any) -> Method:
        """The same in the middle of its run, after epochs with these predictions, and what else it
        learns from."""
        method = self.fresh(**task)
        for epoch in range(self.epoch + 1):
            method.enter(epoch)
            method.start_epoch(epoch, torch.arange(method.task.num_classes, 0, -1.0))
            if epoch < self.epoch:
                live(method, epoch)
        return method


def live(method: Method, epoch: int) -> None:
    """What a method is told in an epoch: the logits of a batch, and feedback on twenty images of
    each class."""
    classes, draw = method.task.num_classes, torch.Generator().manual_seed(epoch)
    labels = torch.arange(classes).repeat(3)
    logits = torch.randn(len(labels), classes, generator=draw) + torch.eye(classes)[labels]
    logits[:, 0] += 3  # the largest class is what the others are mistaken for
    for rule in (module for module in method.modules() if isinstance(module, BudgetRule)):
        rule.observe(epoch, logits, labels)
    if method.needs_feedback:
        robust, further, losses = torch.rand(3, classes, generator=draw)
        method.feedback(epoch, seen_of(robust + (1 - robust) * further, robust, 2 * losses, 20))


def choices(name: str) -> dict[str, tuple[Any, ...]]:
    """Knobs that take one of a few values, with these values."""
    hints = typing.get_type_hints(methods.find(name).Config)
    found = {
        knob: typing.get_args(hint)
        for knob, hint in hints.items()
        if typing.get_origin(hint) is typing.Literal
    }
    return found | {knob: (False, True) for knob, hint in hints.items() if hint is bool}


def variants(name: str) -> Iterator[dict[str, Any]]:
    """The defaults, and every other value of every choice; a method that holds another, over each
    that attacks."""
    defaults = methods.find(name).Config()
    if name in HOLDERS:
        # The rules differ, what they hold does not: each base within one of them.
        bases = [other for other in METHODS if other not in (*HOLDERS, "standard")]
        yield from (
            {"base": other} for other in (bases if name == "robust-lt" else [defaults.base])
        )
        plain = {"base": defaults.base}
    else:
        plain = {}
        yield plain
    for knob, values in choices(name).items():
        yield from (plain | {knob: value} for value in values if value != getattr(defaults, knob))


def all_cases() -> list[Case]:
    """Every variant of every method, in the last epoch of each of its stages."""
    found = []
    for name in METHODS:
        for knobs in variants(name):
            method = Case(name, knobs).fresh()
            stages = {method.task.stages[epoch]: epoch for epoch in range(EPOCHS)}
            found += [Case(name, knobs, stage, epoch) for stage, epoch in stages.items()]
    return found


CASES = all_cases()
PLAIN = [case for case in CASES if "base" not in case.knobs]
VARIANTS = [
    list(stages) for _, stages in itertools.groupby(CASES, lambda case: (case.name, case.knobs))
]


def parameter(case: Case) -> Any:
    """A case, marked `full` if make test leaves it out: it has all methods with their defaults, two
    of them wrapped."""
    usual = not case.knobs.keys() - {"base"} and (
        case.name != "robust-lt" or case.knobs["base"] in ("at", "taet")
    )
    return pytest.param(case, id=str(case), marks=() if usual else pytest.mark.full)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for argument, found in (("case", CASES), ("plain_case", PLAIN)):
        if argument in metafunc.fixturenames:
            metafunc.parametrize(argument, [parameter(case) for case in found])
    if "whole_variant" in metafunc.fixturenames:
        variants = [
            pytest.param(stages, id=str(stages[0]), marks=parameter(stages[0]).marks)
            for stages in VARIANTS
        ]
        metafunc.parametrize("whole_variant", variants)


def make_network(
    classes: int, channels: int = 1, dtype: Any = torch.float32, head: Head | None = None
) -> Classifier:
    """Return a classifier: convolution, batch normalisation, pooling, a head."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        maps = [
            nn.Conv2d(channels, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
        ]
        head_module = build_head(head or Head(), 128, classes)
        return Classifier(nn.Sequential(*maps, nn.Flatten()), head_module, classes, channels).to(
            dtype
        )


@pytest.fixture(scope="session")
def network() -> Network:
    """Return (classes, channels, dtype, head) -> classifier, the same at every call."""
    return make_network


@pytest.fixture(scope="session")
def stages() -> Callable[[str], list[Case]]:
    """Return name -> each stage of the method with its defaults; of robust-lt around plain
    training."""

    def found(name: str) -> list[Case]:
        base = "at" if name == "robust-lt" else getattr(methods.find(name).Config(), "base", "")
        return [case for case in CASES if case.name == name and case.knobs in ({}, {"base": base})]

    return found


@pytest.fixture(scope="session")
def digits() -> Batch:
    """64 long-tailed digits of all ten classes."""
    split = load("digits-lt", imbalance_ratio=5, max_count=14).train
    index = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:64]
    labels = torch.from_numpy(split.labels)[index]
    assert len(labels.unique()) == 10
    return Batch(index, to_unit(torch.from_numpy(split.images)[index], channels_last=False), labels)


@pytest.fixture(scope="session")
def batch(digits: Batch) -> Batch:
    """At most three of these digits of each class."""
    chosen = torch.cat([(digits.y == c).nonzero()[:3, 0] for c in range(10)])
    return Batch(*(part[chosen] for part in digits))
