"""What every method promises, checked on whatever the registry finds, in each of its variants and stages."""

from __future__ import annotations

import ast
import inspect
import math
import re
import typing
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from taet import methods, registry
from taet.attacks.ball import frozen
from taet.attacks.noise import Source
from taet.data.loader import Batch
from taet.errors import UserError
from taet.methods import Method, Task, las_at
from taet.methods.base import Adversarial, Attack, Loss, Seen, Step
from taet.methods.wrapper import ClassBudgets
from taet.models import Classifier
from taet.settings import Outer, Run, Threat, Training, from_json, to_json
from taet.training.state import State
from taet.training.step import buffers_kept, training_step

THREAT = Threat(eps=8 / 255, step_size=4 / 255, steps=2, start="uniform")
OUTERS = {
    "balanced-softmax": Outer(name="balanced-softmax"),
    "logit-adjustment": Outer(name="logit-adjustment", tau=0.5),
    "focal": Outer(name="focal"),
    "focal-sigmoid": Outer(name="focal", focal_form="sigmoid"),
    "class-balanced": Outer(name="class-balanced"),
    "ldam": Outer(name="ldam"),
    "drw": Outer(drw=True),
}
# Other values than a rule would find: an epoch more of the clean stage, part of a warm-up, a method that can be held.
ANOTHER: dict[str, tuple[Any, ...]] = {
    "clean_share": (1.0,),
    "b": (0.9,),
    "base": ("mart", "trades"),
    "lam": (0.1,),
    "begin": (0.95,),
    "regulariser": ("official",),
}
# The outer loss that a method takes where the run names none.
OWN_OUTER = {"at-bsl": "balanced-softmax", "reat": "balanced-softmax"}

# Radius over that of the threat, where it may be more than twice.
LARGEST = {"frl": 3, "n-fgsm": 3}

METHODS = sorted(registry.entries("methods"))
every_method = pytest.mark.parametrize("name", METHODS)

Case = Any  # of conftest.py
Network = Callable[..., Classifier]
MakeTask = Callable[..., Task]


def attack(seed: int = 0, threat: Threat = THREAT, **rebalancing: Tensor) -> Attack:
    return Attack(threat, Source(torch.Generator().manual_seed(seed)), **rebalancing)


def perturb(method: Method, model: nn.Module, batch: Batch, attack: Attack) -> Adversarial:
    """Examples to train on, made as the training step makes them."""
    with frozen(model, attack.threat.bn_mode):
        return method.perturb(model, batch.x, batch.y, attack)


def step(
    method: Method, model: nn.Module, batch: Batch, seed: int = 0, lr: float = 0.1, autocast: bool = False
) -> Loss:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return training_step(
        State(
            model, method, optimizer, run=Run(training=Training(precision="bf16" if autocast else "float32")), step=seed
        ),
        batch,
        attack(seed),
    )


def built(case: Case, **settings: Any) -> Method | UserError:
    """The method for a task of these settings, or how it refuses them."""
    try:
        return case.build(**settings)
    except UserError as error:
        return error


def batch_of(labels: list[int], shape: tuple[int, int, int] = (1, 8, 8)) -> Batch:
    x = torch.rand(len(labels), *shape, generator=torch.Generator().manual_seed(1))
    return Batch(torch.arange(len(labels)), x, torch.tensor(labels))


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in (*module.named_parameters(), *module.named_buffers())}


def assert_same(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
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
    assert isinstance(cls.deviations, tuple)
    assert all(isinstance(line, str) and line for line in cls.deviations)
    assert cls.__mro__[1] in (Method, ClassBudgets), "a method holds another one; it never subclasses it"
    assert cls.loss is not Method.loss


def test_builds_for_any_number_of_classes(case: Case, network: Network) -> None:
    for classes in (2, 7, 100):
        method = case.build(classes=classes)
        assert torch.equal(method.class_counts, torch.tensor(method.task.class_counts, dtype=torch.float32))
        assert method.stage == method.task.stages[case.epoch] == case.stage
        assert method.offset().shape == (classes,)
        assert torch.isfinite(method.offset()).all()
        loss = step(method, network(classes, head=method.task.head), batch_of([0, 1, classes - 1, 1]))
        assert loss.logits.shape == (4, classes)
        assert torch.isfinite(loss.total)


@every_method
def test_settings_are_its_config_or_a_mapping_or_nothing(name: str, task: MakeTask) -> None:
    cls = methods.find(name)
    for settings in (None, {}, cls.Config()):
        assert methods.build(name, settings, task()).config == cls.Config()
    assert from_json(cls.Config, to_json(cls.Config())) == cls.Config()


@every_method
def test_an_unknown_knob_is_refused(name: str, task: MakeTask) -> None:
    knobs = list(methods.find(name).Config.model_fields)
    with pytest.raises(UserError, match="unknown field of Config 'no_such_knob'"):
        methods.build(name, {"no_such_knob": 1}, task())
    for knob in (knob for knob in knobs if len(knob) > 1):  # to one letter nothing is near
        with pytest.raises(UserError, match=rf"did you mean '{knob}'\?"):
            methods.build(name, {knob + "x": 1}, task())


@every_method
def test_every_knob_is_documented(name: str) -> None:
    """A string under each field of each Config in the method's own source: the command line prints it."""
    tree = ast.parse(Path(inspect.getfile(methods.find(name))).read_text(encoding="utf-8"))
    for node in (n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == "Config"):
        assert ast.get_docstring(node)
        for field, after in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign) and "ClassVar" not in ast.unparse(field.annotation):
                documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and after.value.value
                assert documented, ast.unparse(field)


def knobs(name: str) -> dict[str, Any]:
    """The type of every option of a method, without its bounds."""
    kind = methods.find(name).Config
    return {knob: typing.get_type_hints(kind)[knob] for knob in kind.model_fields}


@every_method
def test_knobs_refuse_what_no_knob_can_be(name: str) -> None:
    kind = methods.find(name).Config
    for knob, hint in knobs(name).items():
        nonsense: list[Any] = []
        if typing.get_origin(hint) is typing.Literal:
            nonsense = ["no-such-choice"]
        elif hint is bool:
            nonsense = [1, "yes"]
        elif hint in (float, float | None):
            nonsense = [math.nan, math.inf, -math.inf, "1"]
        elif hint in (int, int | None):
            nonsense = [-1, 1.5, True]
        for value in nonsense:
            with pytest.raises(UserError, match=r"^[^\n]*allowed[^\n]*$"):
                kind(**{knob: value})


def another(knob: str, value: Any, hint: Any) -> Any:
    """A legal value of a knob that is not the one it has."""
    if knob in ANOTHER:
        return next(other for other in ANOTHER[knob] if other != value)
    if isinstance(value, tuple):
        return (1, 2) if value != (1, 2) else (2, 3)  # lowest and highest
    kinds = {hint, *typing.get_args(hint)}
    if typing.get_origin(hint) is typing.Literal:
        return next(other for other in typing.get_args(hint) if other != value)
    if bool in kinds:
        return not value
    if int in kinds:
        return 1 if value is None else value + 1
    assert float in kinds
    return value / 2 if value else 0.7


def admitted(method: Method) -> Tensor:
    """The decay of the method's average, and which epochs enter it as the worst class withstands more and more."""
    images, zero = torch.full((2,), 100.0), torch.zeros(2, dtype=torch.float64)
    told = [
        Seen("validation", images, zero, torch.tensor([worst, 50.0]).diag(), zero, zero, zero) for worst in range(51)
    ]
    return torch.tensor(
        [method.average_decay, *(method.admits(100 + number, seen) for number, seen in enumerate(told))]
    )


def outcome(stages: list[Case], network: Network, batch: Batch, **changes: Any) -> dict[str, Tensor]:
    """All that a step gives and leaves behind in each stage of a variant, with these knobs changed.

    Batch statistics in the attack, where samples feel each other: elsewhere a weight by class moves no example.
    """
    found = {}
    for case in stages:
        method = case._replace(knobs=case.knobs | changes).build()
        model = network(10, head=method.task.head)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        threat = THREAT.replace(bn_mode="train")
        loss = training_step(State(model, method, optimizer, step=9), batch, attack(threat=threat))
        values = {"total": loss.total, "logits": loss.logits, "offset": method.offset(), **loss.parts}
        values |= state(method) | {f"model {name}": parameter.grad for name, parameter in model.named_parameters()}
        if method.average_decay:
            values["admitted"] = admitted(method)
        found |= {f"{case.stage}: {name}": value for name, value in values.items()}
    return found


def differ(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Beyond what rounding does."""
    return one.keys() != other.keys() or any(
        value.shape != other[name].shape or not torch.allclose(value, other[name], rtol=1e-6, atol=1e-9)
        for name, value in one.items()
    )


@pytest.mark.sample(3)
def test_every_knob_acts_or_is_refused(
    whole_variant: list[Case], network: Network, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A knob that does nothing in some variant is refused there, in one line that names it."""
    monkeypatch.setattr(las_at, "LARGEST_NORM", math.inf)  # a clipped gradient forgets how large the reward was
    lacking = Batch(*(part[batch.y != 5] for part in batch))  # a class, which some knobs are about
    settings = whole_variant[0].build().config
    before = outcome(whole_variant, network, lacking)
    assert not differ(before, outcome(whole_variant, network, lacking))
    for knob, hint in knobs(whole_variant[0].name).items():
        if knob == "base_settings":  # those of the method that is held: its own variants see to them
            continue
        value = another(knob, getattr(settings, knob), hint)
        try:
            after = outcome(whole_variant, network, lacking, **{knob: value})
        except UserError as error:
            assert re.fullmatch("method .+: got .+; allowed: .+", str(error))  # noqa: PT017
            assert knob.replace("_", " ") in str(error), "what is said names it"  # noqa: PT017
        else:
            assert differ(before, after), f"{knob} {value} does what {getattr(settings, knob)} does"


# -- loss --------------------------------------------------------------------------------------------------------------


def assert_differentiable(loss: Loss, model: nn.Module) -> None:
    assert loss.total.shape == ()
    assert torch.isfinite(loss.total)
    assert all(part.shape == () and torch.isfinite(part) for part in loss.parts.values())
    loss.total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


def test_loss_is_a_finite_differentiable_scalar(case: Case, network: Network, batch: Batch) -> None:
    method = case.build()
    model = network(10, head=method.task.head)
    loss = method.loss(model.train(), batch.x, batch.y, perturb(method, model, batch, attack()))
    assert loss.logits.shape == (len(batch.y), 10)
    assert_differentiable(loss, model)


@pytest.mark.diagonal("name", "outer")
@every_method
@pytest.mark.parametrize("outer", OUTERS)
def test_an_outer_loss_is_refused_or_felt(
    name: str, outer: str, stages: Callable[[str], list[Case]], network: Network, batch: Batch
) -> None:
    """What the run asks for acts in at least one stage; a method in which it cannot says so."""
    totals = []
    for case in stages(name):
        for settings in (Outer(), OUTERS[outer]):
            method = built(case, outer=settings)
            if isinstance(method, UserError):
                assert re.fullmatch(f"{name}: got .+", str(method))
                return
            model = network(10, head=method.task.head)
            loss = method.loss(model.train(), batch.x, batch.y, perturb(method, model, batch, attack()))
            assert_differentiable(loss, model)
            totals.append(loss.total.item())
    assert (totals[::2] == totals[1::2]) == (OWN_OUTER.get(name) == outer)


def test_loss_is_pure(case: Case, network: Network, batch: Batch) -> None:
    """Weight perturbation calls it twice on one batch; it moves nothing but the statistics of batch normalisation."""
    method = case.build()
    model = network(10, head=method.task.head).train()
    adversarial = perturb(method, model, batch, attack())
    own, weights, rng = state(method), state(model), torch.random.get_rng_state()
    inputs = {"x": batch.x, "y": batch.y, "adversarial": adversarial.x, **adversarial.info}
    copies = {name: value.clone() for name, value in inputs.items()}
    parameters = [*model.parameters(), *method.parameters()]
    found = []
    for _ in range(2):
        with buffers_kept(model):
            loss = method.loss(model, batch.x, batch.y, adversarial)
            gradients = torch.autograd.grad(loss.total, parameters, allow_unused=True)
        found.append([loss.total, loss.logits, *loss.parts.values(), *(g for g in gradients if g is not None)])
    assert len(found[0]) == len(found[1])
    assert all(torch.equal(first, second) for first, second in zip(*found, strict=True))
    assert all(p.grad is None for p in parameters)
    assert_same(own, state(method))
    assert_same(weights, state(model))
    assert_same(copies, inputs)
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.random.get_rng_state(), rng)


def test_loss_in_each_precision(plain_case: Case, network: Network, batch: Batch) -> None:
    totals = {}
    for autocast in (False, True):
        method = plain_case.build()
        loss = step(method, network(10, head=method.task.head), batch, autocast=autocast)
        assert loss.total.dtype == torch.float32
        assert loss.logits.dtype == torch.float32
        assert all(part.dtype == torch.float32 for part in loss.parts.values())
        totals["bf16" if autocast else "float32"] = loss.total.item()
    method = plain_case.build().double()
    model = network(10, dtype=torch.float64, head=method.task.head)
    loss = step(method, model, batch._replace(x=batch.x.double()))
    assert loss.total.dtype == loss.logits.dtype == torch.float64
    # The draws of float64 are others, and a step along a sign may turn.
    assert totals["float32"] == pytest.approx(loss.total.item(), rel=0.1)
    assert totals["float32"] == pytest.approx(totals["bf16"], rel=0.05)
    assert totals["float32"] != totals["bf16"], "autocast changed nothing: it was not on"


@pytest.mark.sample(3)
def test_twenty_steps_lower_the_loss(plain_case: Case, network: Network, batch: Batch) -> None:
    method = plain_case.build()
    model = network(10, head=method.task.head)
    losses = [step(method, model, batch, seed, lr=0.1).total.item() for seed in range(20)]
    assert sum(losses[-3:]) / 3 < 0.95 * losses[0], losses


@pytest.mark.diagonal("case", "labels")
@pytest.mark.parametrize(
    ("labels", "shape"),
    [
        pytest.param([0, 0, 9], (1, 8, 8), id="missing-classes"),
        pytest.param([4, 4], (3, 8, 8), id="one-class"),
        pytest.param(list(range(10)), (1, 8, 8), id="one-image-per-class"),
        pytest.param([7], (1, 4, 4), id="one-image-of-4x4"),
    ],
)
def test_small_batches(case: Case, labels: list[int], shape: tuple[int, int, int], network: Network) -> None:
    method = case.build(image_shape=shape)
    model = network(10, channels=shape[0], head=method.task.head)
    loss = step(method, model, batch_of(labels, shape))
    assert torch.isfinite(loss.total)
    assert all(torch.isfinite(value).all() for value in (*state(model).values(), *state(method).values()))


def test_state_is_restored_in_the_middle_of_an_epoch(case: Case, network: Network, batch: Batch) -> None:
    method = case.build()
    model = network(10, head=method.task.head)
    for seed in range(3):
        step(method, model, batch_of([seed, 5, 9]), seed)
    saved = deepcopy(method.state_dict())
    optimizers = {name: deepcopy(optimizer.state_dict()) for name, optimizer in method.optimizers.items()}
    other, twin = case.fresh(), deepcopy(model)
    other.load_state_dict(saved)
    assert other.optimizers.keys() == optimizers.keys()
    for name, values in optimizers.items():
        other.optimizers[name].load_state_dict(values)
    other.enter(case.epoch)
    for seed in (3, 4):
        expected, found = step(method, model, batch, seed), step(other, twin, batch, seed)
        assert torch.equal(expected.total, found.total)
    assert_same(state(method), state(other))
    assert_same(state(model), state(twin))


# -- perturb -----------------------------------------------------------------------------------------------------------


@pytest.mark.diagonal("case", "start")
@pytest.mark.parametrize("start", ["uniform", "positive", "gaussian", "none"])
def test_examples_lie_in_the_ball_and_in_the_image_range(
    case: Case, start: Any, network: Network, batch: Batch
) -> None:
    method = case.build()
    model = network(10, head=method.task.head)
    x = perturb(method, model, batch, attack(threat=THREAT.replace(start=start))).x
    assert x.shape == batch.x.shape
    assert x.dtype == batch.x.dtype
    assert not x.requires_grad
    assert x.min() >= 0
    assert x.max() <= 1
    if case.stage == "clean":
        assert torch.equal(x, batch.x)
        return
    # A method may give every image its own radius, and says so; few go beyond twice that of the threat.
    own_radius = any("eps" in line for line in method.deviations)
    largest = LARGEST.get(case.knobs.get("base", case.name), 1) * (2 if "base" in case.knobs else 1)
    assert (x - batch.x).abs().max() <= max(largest, 2 if own_radius else 1) * THREAT.eps + 1e-6
    assert (x - batch.x).abs().max() > THREAT.eps / 8


def test_an_empty_ball_returns_the_images(case: Case, network: Network, batch: Batch) -> None:
    method = case.build()
    model = network(10, head=method.task.head)
    for start in ("gaussian", "uniform"):
        threat = Threat(eps=0, step_size=2 / 255, steps=2, start=start)
        assert torch.equal(perturb(method, model, batch, attack(threat=threat)).x, batch.x)


def test_examples_depend_on_the_seed_alone(case: Case, network: Network, batch: Batch) -> None:
    method = case.build()
    model = network(10, head=method.task.head)
    first, second, other = (perturb(method, model, batch, attack(seed)).x for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert case.stage == "clean" or not torch.equal(first, other)


def test_a_weighting_of_the_attack_is_refused_or_felt(case: Case, network: Network, batch: Batch) -> None:
    method = built(case, weighting="brw")
    if isinstance(method, UserError):
        assert re.fullmatch(f"{case.knobs.get('base', case.name)}: got the weighting brw; .+", str(method))
        return
    model = network(10, head=method.task.head)
    plain = perturb(method, model, batch, attack()).x
    prior = torch.logspace(0, 6, 10)
    balanced = perturb(method, model, batch, attack(prior=prior)).x
    assert torch.equal(plain, balanced) == (case.stage == "clean")


def test_perturb_leaves_everything_as_it_was(case: Case, network: Network, batch: Batch) -> None:
    method = case.build()
    model = network(10, head=method.task.head).train()
    first = model.body[0].weight
    first.requires_grad_(False)  # whatever the caller had set
    model.body[1].eval()
    model.head.weight.grad = torch.full_like(model.head.weight, 3.0)
    inputs, labels, weights, own = batch.x.clone(), batch.y.clone(), state(model), state(method)
    modes = [module.training for module in (*model.modules(), *method.modules())]
    needed = [parameter.requires_grad for parameter in (*model.parameters(), *method.parameters())]
    rng = torch.random.get_rng_state()
    perturb(method, model, batch, attack())
    assert torch.equal(batch.x, inputs)
    assert not batch.x.requires_grad
    assert torch.equal(batch.y, labels)
    assert_same(weights, state(model))
    assert_same(own, state(method))
    assert [module.training for module in (*model.modules(), *method.modules())] == modes
    assert [parameter.requires_grad for parameter in (*model.parameters(), *method.parameters())] == needed
    assert [p.grad is not None for p in model.parameters()] == [p is model.head.weight for p in model.parameters()]
    assert (model.head.weight.grad == 3).all()
    assert all(p.grad is None for p in method.parameters())
    assert torch.equal(torch.random.get_rng_state(), rng)


def test_after_step_moves_nothing_but_its_own_state(case: Case, network: Network, batch: Batch) -> None:
    method = case.build()
    model = network(10, head=method.task.head)
    loss = step(method, model, batch)
    weights, inputs, rng = state(model), batch.x.clone(), torch.random.get_rng_state()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method.after_step(model, Step(batch.index, batch.x, batch.y, loss, attack(), optimizer, number=0))
    assert_same(weights, state(model))
    assert_same(gradients, {name: parameter.grad for name, parameter in model.named_parameters()})
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(batch.x, inputs)
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert all(not buffer.requires_grad for buffer in method.buffers())
