"""What every method promises, checked on whatever the registry finds, in each of its variants and stages."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import re
import typing
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from taet import methods, registry
from taet.attacks.ball import frozen
from taet.config import Threat
from taet.data.loader import Batch
from taet.errors import UserError
from taet.methods import Method, Task
from taet.methods.base import Adversarial, Attack, Loss, Step
from taet.models import Adapter
from taet.training.step import training_step

METHODS = sorted(registry.entries("methods"))
COUNTS = (14, 12, 10, 9, 8, 7, 6, 5, 4, 3)
THREAT = Threat(eps=8 / 255, step_size=4 / 255, steps=2, start="uniform")
EPOCHS = 5


def task(classes: int = 10, shape: tuple[int, int, int] = (1, 8, 8)) -> Task:
    counts = COUNTS if classes == 10 else tuple(range(classes + 1, 1, -1))
    return Task(class_counts=counts, image_shape=shape, epochs=EPOCHS, steps_per_epoch=4, milestones=(3, 4))


class Case(NamedTuple):
    """A method, its knobs, and an epoch (from 0) of one of its stages."""

    name: str
    settings: dict[str, Any]
    stage: str
    epoch: int

    def build(self, task: Task) -> Method:
        method = methods.build(self.name, self.settings, task)
        method.stage = method.stage_at(self.epoch)
        return method


def choices(name: str) -> dict[str, tuple[Any, ...]]:
    """Knobs that take one of a few values, with these values."""
    hints = typing.get_type_hints(methods.find(name).Config)
    return {knob: typing.get_args(hint) for knob, hint in hints.items() if typing.get_origin(hint) is typing.Literal}


def cases() -> list[Case]:
    """The defaults and every value of every choice of every method, in each of its stages."""
    found = []
    for name in METHODS:
        variants = [{}] + [{knob: value} for knob, values in choices(name).items() for value in values]
        for settings in variants:
            method = methods.build(name, settings, task())
            first = {method.stage_at(epoch): epoch for epoch in reversed(range(EPOCHS))}
            found += [Case(name, settings, stage, epoch) for stage, epoch in first.items()]
    return found


CASES = cases()
every_method = pytest.mark.parametrize("name", METHODS)
every_case = pytest.mark.parametrize(
    "case", CASES, ids=lambda case: "-".join([case.name, *map(str, case.settings.values()), case.stage])
)


def attack(seed: int = 0, threat: Threat = THREAT) -> Attack:
    return Attack(threat, torch.Generator().manual_seed(seed))


def perturb(method: Method, model: nn.Module, batch: Batch, seed: int = 0, threat: Threat = THREAT) -> Adversarial:
    """Examples to train on, made as the training step makes them."""
    with frozen(model, threat.bn_mode):
        return method.perturb(model, batch.x, batch.y, attack(seed, threat))


def step(
    method: Method, model: nn.Module, batch: Batch, seed: int = 0, lr: float = 0.1, autocast: bool = False
) -> Loss:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    noise = torch.Generator().manual_seed(seed)
    return training_step(model, method, optimizer, batch, THREAT, noise, autocast=autocast)


def batch_of(labels: list[int], shape: tuple[int, int, int] = (1, 8, 8)) -> Batch:
    x = torch.rand(len(labels), *shape, generator=torch.Generator().manual_seed(1))
    return Batch(torch.arange(len(labels)), x, torch.tensor(labels))


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in (*module.named_parameters(), *module.named_buffers())}


def assert_same(before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name]), name


# -- what it is --------------------------------------------------------------------------------------------------------


@every_method
def test_says_what_it_is(name: str) -> None:
    cls = methods.find(name)
    assert cls.__dict__["title"].strip()
    assert re.search(r"\b(19|20)\d\d\b", cls.__dict__["reference"]), "a reference has a year"
    assert inspect.cleandoc(cls.__doc__ or "").strip()
    assert all(isinstance(line, str) and line for line in cls.deviations)
    assert cls.__mro__[1] is Method, "a method holds another one; it never subclasses it"
    assert cls.loss is not Method.loss


@every_method
@pytest.mark.parametrize("classes", [2, 7, 10, 100])
def test_builds_for_any_number_of_classes(name: str, classes: int, network: Callable[..., Adapter]) -> None:
    method = methods.build(name, None, task(classes))
    assert torch.equal(method.class_counts, torch.tensor(task(classes).class_counts, dtype=torch.float32))
    assert method.offset().shape == (classes,)
    assert method.stage == method.stage_at(0)
    loss = step(method, network(classes), batch_of([0, 1, classes - 1, 1]))
    assert loss.logits.shape == (4, classes)
    assert torch.isfinite(loss.total)


@every_method
def test_settings_are_its_config_or_a_mapping_or_nothing(name: str) -> None:
    cls = methods.find(name)
    assert methods.build(name, None, task()).config == cls.Config()
    assert methods.build(name, {}, task()).config == cls.Config()
    assert methods.build(name, cls.Config(), task()).config == cls.Config()


@every_method
def test_an_unknown_knob_is_refused(name: str) -> None:
    knobs = [field.name for field in dataclasses.fields(methods.find(name).Config)]
    with pytest.raises(UserError, match="unknown field of Config 'no_such_knob'"):
        methods.build(name, {"no_such_knob": 1}, task())
    for knob in knobs:
        with pytest.raises(UserError, match=rf"did you mean '{knob}'\?"):
            methods.build(name, {knob + "x": 1}, task())


@every_method
def test_every_knob_is_documented(name: str) -> None:
    """A string under each field of each Config in the method's own source: the command line prints it."""
    tree = ast.parse(Path(inspect.getfile(methods.find(name))).read_text(encoding="utf-8"))
    for config in (n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == "Config"):
        assert ast.get_docstring(config)
        for field, after in zip(config.body, [*config.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign):
                documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and after.value.value
                assert documented, ast.unparse(field)


@every_method
def test_knobs_refuse_what_no_knob_can_be(name: str) -> None:
    config = methods.find(name).Config
    assert dataclasses.fields(config) == () or config.__dataclass_params__.frozen
    for knob in choices(name):
        with pytest.raises(UserError, match=r"no-such-choice.*allowed"):
            config(**{knob: "no-such-choice"})
    for field in dataclasses.fields(config):
        if isinstance(field.default, float):
            for nonsense in (math.nan, math.inf, -math.inf):
                with pytest.raises(UserError, match="allowed"):
                    config(**{field.name: nonsense})


# -- loss --------------------------------------------------------------------------------------------------------------


@every_case
def test_loss_is_a_finite_differentiable_scalar(case: Case, network: Callable[..., Adapter], digits: Batch) -> None:
    method, model = case.build(task()), network(10)
    adversarial = perturb(method, model, digits)
    loss = method.loss(model.train(), digits.x, digits.y, adversarial)
    assert loss.total.shape == ()
    assert loss.logits.shape == (64, 10)
    assert all(part.shape == () and torch.isfinite(part) for part in loss.parts.values())
    loss.total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


@every_case
def test_loss_is_pure(case: Case, network: Callable[..., Adapter], digits: Batch) -> None:
    """Weight perturbation calls it twice on one batch."""
    method, model = case.build(task()), network(10)
    adversarial = perturb(method, model, digits)
    before, inputs, rng = state(method), digits.x.clone(), torch.random.get_rng_state()
    first, second = (method.loss(model.train(), digits.x, digits.y, adversarial) for _ in range(2))
    assert torch.equal(first.total, second.total)
    assert {k: v.item() for k, v in first.parts.items()} == {k: v.item() for k, v in second.parts.items()}
    assert_same(before, state(method))
    assert torch.equal(digits.x, inputs)
    assert torch.equal(torch.random.get_rng_state(), rng)


@every_case
def test_loss_is_float32_under_autocast_and_close_to_that_without(
    case: Case, network: Callable[..., Adapter], digits: Batch
) -> None:
    totals = []
    for autocast in (False, True):
        loss = step(case.build(task()), network(10), digits, autocast=autocast)
        assert loss.total.dtype == torch.float32
        assert loss.logits.dtype == torch.float32
        assert all(part.dtype == torch.float32 for part in loss.parts.values())
        totals.append(loss.total.item())
    assert totals[0] == pytest.approx(totals[1], rel=0.02)
    assert totals[0] != totals[1], "autocast changed nothing: it was not on"


@every_case
def test_works_in_float64(case: Case, network: Callable[..., Adapter], digits: Batch) -> None:
    method, model = case.build(task()).double(), network(10, dtype=torch.float64)
    loss = step(method, model, digits._replace(x=digits.x.double()))
    assert loss.total.dtype == torch.float64
    single = step(case.build(task()), network(10), digits)
    assert loss.total.item() == pytest.approx(single.total.item(), rel=1e-3)


@every_case
def test_twenty_steps_lower_the_loss(case: Case, network: Callable[..., Adapter], digits: Batch) -> None:
    method, model = case.build(task()), network(10)
    losses = [step(method, model, digits, seed, lr=0.1).total.item() for seed in range(20)]
    assert sum(losses[-3:]) / 3 < 0.95 * losses[0], losses


@every_case
@pytest.mark.parametrize(
    ("labels", "shape"),
    [
        pytest.param([0, 0, 9], (1, 8, 8), id="missing-classes"),
        pytest.param([4, 4], (3, 8, 8), id="one-class"),
        pytest.param(list(range(10)), (1, 8, 8), id="one-image-per-class"),
        pytest.param([7], (1, 4, 4), id="one-image-of-4x4"),
    ],
)
def test_small_batches(
    case: Case, labels: list[int], shape: tuple[int, int, int], network: Callable[..., Adapter]
) -> None:
    method, model = case.build(task(shape=shape)), network(10, channels=shape[0])
    loss = step(method, model, batch_of(labels, shape))
    assert torch.isfinite(loss.total)
    assert all(torch.isfinite(value).all() for value in (*state(model).values(), *state(method).values()))


@every_case
def test_state_is_restored_from_its_state_dict(case: Case, network: Callable[..., Adapter], digits: Batch) -> None:
    method, model = case.build(task()), network(10)
    method.start_epoch(case.epoch, torch.ones(10))
    for seed in range(3):
        step(method, model, batch_of([seed, 5, 9]), seed)
    saved, optimizers = (
        deepcopy(method.state_dict()),
        {k: deepcopy(o.state_dict()) for k, o in method.optimizers.items()},
    )
    other, twin = case.build(task()), deepcopy(model)
    other.load_state_dict(saved)
    for name, values in optimizers.items():
        other.optimizers[name].load_state_dict(values)
    for seed in (7, 8):
        expected, found = step(method, model, digits, seed), step(other, twin, digits, seed)
        assert torch.equal(expected.total, found.total)
    assert_same(state(method), state(other))
    assert_same(state(model), state(twin))


# -- perturb -----------------------------------------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize("start", ["uniform", "gaussian", "none"])
def test_examples_lie_in_the_ball_and_in_the_image_range(
    case: Case, start: Any, network: Callable[..., Adapter], digits: Batch
) -> None:
    method, model = case.build(task()), network(10)
    threat = dataclasses.replace(THREAT, start=start)
    x = perturb(method, model, digits, threat=threat).x
    assert x.shape == digits.x.shape
    assert x.dtype == digits.x.dtype
    assert not x.requires_grad
    assert x.min() >= 0
    assert x.max() <= 1
    assert (x - digits.x).abs().max() <= THREAT.eps + 1e-6
    if case.stage == "clean":
        assert torch.equal(x, digits.x)
    else:
        assert (x - digits.x).abs().max() > THREAT.eps / 2


@every_case
def test_examples_depend_on_the_seed_alone(case: Case, network: Callable[..., Adapter], digits: Batch) -> None:
    method, model = case.build(task()), network(10)
    first, second, other = (perturb(method, model, digits, seed).x for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert case.stage == "clean" or not torch.equal(first, other)


@every_case
def test_perturb_leaves_everything_as_it_was(case: Case, network: Callable[..., Adapter], digits: Batch) -> None:
    method, model = case.build(task()), network(10).train()
    model.network[0].weight.requires_grad_(False)  # whatever the caller had set
    model.network[1].eval()
    model.network[5].bias.grad = torch.full((10,), 3.0)
    inputs, labels, weights, own = digits.x.clone(), digits.y.clone(), state(model), state(method)
    modes = [module.training for module in model.modules()]
    needed = [parameter.requires_grad for parameter in model.parameters()]
    rng = torch.random.get_rng_state()
    perturb(method, model, digits)
    assert torch.equal(digits.x, inputs)
    assert not digits.x.requires_grad
    assert torch.equal(digits.y, labels)
    assert_same(weights, state(model))
    assert_same(own, state(method))
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == needed
    assert [p.grad is not None for p in model.parameters()] == [p is model.network[5].bias for p in model.parameters()]
    assert (model.network[5].bias.grad == 3).all()
    assert torch.equal(torch.random.get_rng_state(), rng)


@every_case
def test_an_empty_ball_returns_the_images(case: Case, network: Callable[..., Adapter], digits: Batch) -> None:
    threat = Threat(eps=0, step_size=2 / 255, steps=2, start="none")
    assert torch.equal(perturb(case.build(task()), network(10), digits, threat=threat).x, digits.x)


@every_case
def test_after_step_moves_nothing_but_its_own_state(case: Case, network: Callable[..., Adapter], digits: Batch) -> None:
    method, model = case.build(task()), network(10)
    loss = step(method, model, digits)
    weights, inputs = state(model), digits.x.clone()
    method.after_step(model, Step(digits.index, digits.x, digits.y, loss, attack(), 0.1, 5e-4))
    assert_same(weights, state(model))
    assert torch.equal(digits.x, inputs)
    assert all(not buffer.requires_grad for buffer in method.buffers())
