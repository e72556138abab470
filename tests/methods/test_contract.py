"""What every method promises, checked on whatever the registry finds, in each of its variants and
stages."""

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
from torch import Tensor

from taet import methods, registry
from taet.data.loader import Batch
from taet.errors import UserError
from taet.methods import Method, las_at
from taet.methods.base import Attack, Step
from taet.methods.wrapper import ClassBudgets
from taet.settings import Outer
from taet.training.step import buffers_kept
from tests.methods.conftest import (
    METHODS,
    Case,
    Network,
    batch_of,
    make_attack,
    perturb,
    same,
    seen_of,
    state_of,
    trained_step,
)

RADIUS = 8 / 255
OUTERS = {name: Outer(name=name) for name in registry.entries("losses") if name != "cross-entropy"}
OUTERS |= {"logit-adjustment": Outer(name="logit-adjustment", tau=0.5), "drw": Outer(drw=True)}
OUTERS |= {"focal-sigmoid": Outer(name="focal", focal_form="sigmoid")}
# Other values than a rule would find: an epoch more of the clean stage, part of a warm-up, a method
# that can be held.
ANOTHER: dict[str, tuple[Any, ...]] = {
    "clean_share": (1.0,),
    "b": (0.9,),
    "base": ("mart", "trades"),
    "lam": (0.1,),
}
ANOTHER |= {"begin": (0.95,), "regulariser": ("official",)}
OWN_OUTER = {"at-bsl": "balanced-softmax", "reat": "balanced-softmax"}
"""The outer loss that a method takes where the run names none."""
LARGEST = {"frl": 3, "n-fgsm": 3}  # radius over that of the threat, where it may be more than twice

every_method = pytest.mark.parametrize("name", METHODS)


def attack(seed: int = 0, **threat: Any) -> Attack:
    return make_attack(seed, **{"step_size": RADIUS / 2, "start": "uniform", **threat})


def refused_or_built(case: Case, **task: Any) -> Method | UserError:
    try:
        return case.build(**task)
    except UserError as error:
        return error


def model_of(method: Method, network: Network, **options: Any) -> Any:
    """A network for a method, which begins from it."""
    model = network(10, head=method.task.head, **options)
    method.begin(model)
    return model


def slopes(method: Method, model: Any) -> dict[str, Tensor | None]:
    """The gradients of what a method trains."""
    named = model.named_parameters()
    return {name: p.grad for name, p in named if method.uses_labels or not name.startswith("head.")}


# -- what it is


@every_method
def test_says_what_it_is(name: str) -> None:
    cls = methods.find(name)
    assert re.search(r"\b(19|20)\d\d\b", cls.__dict__["reference"]), "a reference has a year"
    assert all(isinstance(line, str) and line for line in cls.deviations)
    assert cls.__mro__[1] in (Method, ClassBudgets), (
        "a method holds another one; it never subclasses it"
    )


@pytest.mark.sample(2)
def test_builds_for_any_number_of_classes(case: Case, network: Network) -> None:
    for classes in (2, 7, 100):
        method = case.build(classes=classes)
        assert method.stage == method.task.stages[case.epoch] == case.stage
        assert method.offset().shape == (classes,)
        assert torch.isfinite(method.offset()).all()
        loss = trained_step(
            method, network(classes, head=method.task.head), batch_of([0, 1, classes - 1, 1])
        )
        assert torch.isfinite(loss.total)
        assert loss.logits.shape == (4, classes)


@every_method
def test_every_setting_is_documented(name: str) -> None:
    """A string under each field of a Config in the method's own source: the command line prints
    it."""
    tree = ast.parse(Path(inspect.getfile(methods.find(name))).read_text(encoding="utf-8"))
    for node in (n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == "Config"):
        assert ast.get_docstring(node)
        for field, after in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign) and "ClassVar" not in ast.unparse(field.annotation):
                assert isinstance(after, ast.Expr), ast.unparse(field)
                assert isinstance(after.value, ast.Constant), ast.unparse(field)


def knobs(name: str) -> dict[str, Any]:
    """The type of every option of a method, without its bounds."""
    kind = methods.find(name).Config
    return {knob: typing.get_type_hints(kind)[knob] for knob in kind.model_fields}


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


def outcome(
    stages: list[Case], network: Network, batch: Batch, **changes: Any
) -> dict[str, Tensor]:
    """All that a step gives and leaves behind in each stage of a variant, with these knobs changed.

    Batch statistics in the attack, where samples feel each other: elsewhere a weight by class moves
    no example.
    """
    found = {}
    for case in stages:
        method = case._replace(knobs=case.knobs | changes).build()
        model = model_of(method, network)
        loss = trained_step(method, model, batch, number=9, attack=attack(bn_mode="train"))
        values = {
            "total": loss.total,
            "logits": loss.logits,
            "offset": method.offset(),
            **loss.parts,
        }
        values |= state_of(method) | {
            f"model {name}": slope for name, slope in slopes(method, model).items()
        }
        # which epochs enter the average as the worst class withstands more and more
        if method.average_decay:
            told = (seen_of(0.9, [worst / 100, 0.5]) for worst in range(51))
            admitted = (
                method.accepts_epoch(100 + number, seen) for number, seen in enumerate(told)
            )
            values["admitted"] = torch.tensor([method.average_decay, *admitted])
        found |= {f"{case.stage}: {name}": value for name, value in values.items()}
    return found


def differ(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Beyond what rounding does."""
    return one.keys() != other.keys() or any(
        value.shape != other[name].shape
        or not torch.allclose(value, other[name], rtol=1e-6, atol=1e-9)
        for name, value in one.items()
    )


@pytest.mark.sample(3)
def test_every_knob_acts_or_is_refused(
    whole_variant: list[Case], network: Network, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A knob that does nothing in some variant is refused there, in one line that names it."""
    # a clipped gradient forgets how large the reward was
    monkeypatch.setattr(las_at, "LARGEST_NORM", math.inf)
    lacking = Batch(*(part[batch.y != 5] for part in batch))  # a class, which some knobs are about
    settings = whole_variant[0].build().config
    before = outcome(whole_variant, network, lacking)
    assert not differ(before, outcome(whole_variant, network, lacking))
    for knob, hint in knobs(whole_variant[0].name).items():
        # those of the method that is held: its own variants see to them
        if knob == "base_settings":
            continue
        value = another(knob, getattr(settings, knob), hint)
        try:
            after = outcome(whole_variant, network, lacking, **{knob: value})
        except UserError as error:
            assert re.fullmatch("method .+: got .+; allowed: .+", str(error))  # noqa: PT017
            assert knob.replace("_", " ") in str(error), "what is said names it"  # noqa: PT017
        else:
            assert differ(before, after), f"{knob} {value} does what {getattr(settings, knob)} does"


# -- loss


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
            method = refused_or_built(case, outer=settings)
            if isinstance(method, UserError):
                assert re.fullmatch(f"{name}: got .+", str(method))
                return
            model = model_of(method, network)
            loss = method.loss(
                model.train(), batch.x, batch.y, perturb(method, model, batch, attack())
            )
            assert torch.isfinite(loss.total)
            totals.append(loss.total.item())
    assert (totals[::2] == totals[1::2]) == (OWN_OUTER.get(name) == outer)


def test_loss_is_pure(case: Case, network: Network, batch: Batch) -> None:
    """Weight perturbation calls it twice on one batch; it moves nothing but the statistics of batch
    normalisation.

    A finite scalar, with a gradient for every weight of the model.
    """
    method = case.build()
    model = model_of(method, network).train()
    adversarial = perturb(method, model, batch, attack())
    own, weights, rng = state_of(method), state_of(model), torch.random.get_rng_state()
    inputs = {"x": batch.x, "y": batch.y, "adversarial": adversarial.x, **adversarial.info}
    copies = {name: value.clone() for name, value in inputs.items()}
    parameters = [p for p in (*model.parameters(), *method.parameters()) if p.requires_grad]
    found = []
    for _ in range(2):
        with buffers_kept(model):
            loss = method.loss(model, batch.x, batch.y, adversarial)
            gradients = torch.autograd.grad(loss.total, parameters, allow_unused=True)
        found.append(
            [
                loss.total,
                loss.logits,
                *loss.parts.values(),
                *(g for g in gradients if g is not None),
            ]
        )
    assert loss.logits.shape == (len(batch.y), 10)
    assert all(
        value.shape == () and torch.isfinite(value) for value in (loss.total, *loss.parts.values())
    )
    for slope in gradients[: len(slopes(method, model))]:
        assert slope is not None
        assert torch.isfinite(slope).all()
        assert slope.any()
    assert len(found[0]) == len(found[1])
    assert all(torch.equal(first, second) for first, second in zip(*found, strict=True))
    assert all(p.grad is None for p in parameters)
    assert same(own, state_of(method))
    assert same(weights, state_of(model))
    assert same(copies, inputs)
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.random.get_rng_state(), rng)


@pytest.mark.sample(2)
def test_loss_in_each_precision(plain_case: Case, network: Network, batch: Batch) -> None:
    totals = {}
    for precision in ("float32", "bf16"):
        method = plain_case.build()
        loss = trained_step(
            method, model_of(method, network), batch, precision=precision, attack=attack()
        )
        assert {value.dtype for value in (loss.total, loss.logits, *loss.parts.values())} == {
            torch.float32
        }
        totals[precision] = loss.total.item()
    method = plain_case.build().double()
    model = model_of(method, network, dtype=torch.float64)
    loss = trained_step(method, model, batch._replace(x=batch.x.double()), attack=attack())
    assert loss.total.dtype == loss.logits.dtype == torch.float64
    # The draws of float64 are others, and a step along a sign may turn.
    assert totals["float32"] == pytest.approx(loss.total.item(), rel=0.1)
    assert totals["float32"] == pytest.approx(totals["bf16"], rel=0.05)
    assert totals["float32"] != totals["bf16"], "autocast changed nothing: it was not on"


@pytest.mark.sample(3)
def test_twenty_steps_lower_the_loss(plain_case: Case, network: Network, batch: Batch) -> None:
    method = plain_case.build()
    model = model_of(method, network)
    losses = [
        trained_step(method, model, batch, number=seed, attack=attack(seed)).total.item()
        for seed in range(20)
    ]
    assert sum(losses[-3:]) / 3 < 0.95 * losses[0], losses


@pytest.mark.diagonal("case", "labels")
@pytest.mark.parametrize(
    ("labels", "shape"),
    [
        pytest.param([0, 0, 9], (1, 8, 8), id="missing-classes"),
        pytest.param([4, 4], (3, 32, 32), id="one-class"),
        pytest.param(list(range(10)), (1, 8, 8), id="one-image-per-class"),
        pytest.param([7], (1, 4, 4), id="one-image-of-4x4"),
    ],
)
def test_small_batches(
    case: Case, labels: list[int], shape: tuple[int, int, int], network: Network
) -> None:
    method = case.build(image_shape=shape)
    model = model_of(method, network, channels=shape[0])
    loss = trained_step(method, model, batch_of(labels, shape))
    assert torch.isfinite(loss.total)
    assert all(
        torch.isfinite(value).all()
        for value in (*state_of(model).values(), *state_of(method).values())
    )


@pytest.mark.sample(2)
def test_state_is_restored_in_the_middle_of_an_epoch(
    case: Case, network: Network, batch: Batch
) -> None:
    method = case.build()
    model = model_of(method, network)
    for seed in range(3):
        trained_step(method, model, batch_of([seed, 5, 9]), seed, seed)
    saved = deepcopy(method.state_dict())
    other, twin = case.fresh(), deepcopy(model)
    other.begin(twin)
    other.load_state_dict(saved)
    other.enter(case.epoch)
    for seed in (3, 4):
        expected, found = (
            trained_step(method, model, batch, seed, seed),
            trained_step(other, twin, batch, seed, seed),
        )
        assert torch.equal(expected.total, found.total)
    assert same(state_of(method), state_of(other))
    assert same(state_of(model), state_of(twin))


# -- perturb


@pytest.mark.diagonal("case", "start")
@pytest.mark.parametrize("start", ["uniform", "positive", "gaussian", "none"])
def test_examples_lie_in_the_ball_and_in_the_image_range(
    case: Case, start: Any, network: Network, batch: Batch
) -> None:
    method = case.build()
    model = model_of(method, network)
    x = perturb(method, model, batch, attack(start=start)).x
    assert x.shape == batch.x.shape
    assert x.dtype == batch.x.dtype
    assert not x.requires_grad
    assert 0 <= x.min() <= x.max() <= 1
    if case.stage == "clean":
        assert torch.equal(x, batch.x)
        return
    # A method may give every image its own radius, and says so; few go beyond twice that of the
    # threat.
    own_radius = any("eps" in line for line in method.deviations)
    largest = LARGEST.get(case.knobs.get("base", case.name), 1) * (2 if "base" in case.knobs else 1)
    assert (x - batch.x).abs().max() <= max(largest, 2 if own_radius else 1) * RADIUS + 1e-6
    # others are refused: see `resolve`
    if start != "none" or method.label_attack or method.own_attack:
        assert (x - batch.x).abs().max() > RADIUS / 8


@pytest.mark.sample(2)
def test_examples_depend_on_the_seed_alone_and_are_the_images_where_the_ball_is_empty(
    case: Case, network: Network, batch: Batch
) -> None:
    method = case.build()
    model = model_of(method, network)
    first, second, other = (perturb(method, model, batch, attack(seed)).x for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert case.stage == "clean" or not torch.equal(first, other)
    for start in ("gaussian", "uniform"):
        assert torch.equal(perturb(method, model, batch, attack(eps=0.0, start=start)).x, batch.x)


def test_a_weighting_of_the_attack_is_refused_or_felt(
    case: Case, network: Network, batch: Batch
) -> None:
    method = refused_or_built(case, weighting="brw")
    if isinstance(method, UserError):
        assert re.fullmatch(
            f"{case.knobs.get('base', case.name)}: got the weighting brw; .+", str(method)
        )
        return
    model, plain = model_of(method, network), attack()
    balanced = Attack(plain.threat, attack().source, prior=torch.logspace(0, 6, 10))
    examples = [perturb(method, model, batch, each).x for each in (plain, balanced)]
    assert torch.equal(*examples) == (case.stage == "clean")


def test_perturb_leaves_everything_as_it_was(case: Case, network: Network, batch: Batch) -> None:
    method = case.build()
    model = model_of(method, network).train()
    model.body[0].weight.requires_grad_(False)  # whatever the caller had set
    model.body[1].eval()
    model.head.weight.grad = torch.full_like(model.head.weight, 3.0)
    inputs, labels, weights, own = (
        batch.x.clone(),
        batch.y.clone(),
        state_of(model),
        state_of(method),
    )
    modules, parameters = (
        [*model.modules(), *method.modules()],
        [*model.parameters(), *method.parameters()],
    )
    modes, needed = (
        [module.training for module in modules],
        [parameter.requires_grad for parameter in parameters],
    )
    rng = torch.random.get_rng_state()
    perturb(method, model, batch, attack())
    assert torch.equal(batch.x, inputs)
    assert not batch.x.requires_grad
    assert torch.equal(batch.y, labels)
    assert same(weights, state_of(model))
    assert same(own, state_of(method))
    assert [module.training for module in modules] == modes
    assert [parameter.requires_grad for parameter in parameters] == needed
    assert [p.grad is not None for p in parameters] == [p is model.head.weight for p in parameters]
    assert (model.head.weight.grad == 3).all()
    assert torch.equal(torch.random.get_rng_state(), rng)


def test_after_step_moves_nothing_but_its_own_state(
    case: Case, network: Network, batch: Batch
) -> None:
    method = case.build()
    model = model_of(method, network)
    loss = trained_step(method, model, batch)
    weights, inputs, rng = state_of(model), batch.x.clone(), torch.random.get_rng_state()
    gradients = {name: slope.clone() for name, slope in slopes(method, model).items()}
    modes = [module.training for module in model.modules()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method.after_step(
        model, Step(batch.index, batch.x, batch.y, loss, attack(), optimizer, number=0)
    )
    assert same(weights, state_of(model))
    assert same(gradients, slopes(method, model))
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(batch.x, inputs)
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert all(not buffer.requires_grad for buffer in method.buffers())
