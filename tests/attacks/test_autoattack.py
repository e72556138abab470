"""AutoAttack gives what the official package gives, unit by unit, and leaves everything else as it was."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import sys
from typing import Any

import pyautoattack
import pytest
import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from taet.attacks.autoattack import (
    NAMES,
    Version,
    autoattack,
    plan,
    run_parts,
)
from taet.attacks.ball import Norm
from taet.attacks.catalogue import parse
from taet.attacks.counted import Counted
from taet.attacks.suite import Suite, SuiteResult
from taet.attacks.suite_run import Batches, Plan, SuiteRun
from taet.attacks.units import Unit
from taet.data.augmentation import to_unit
from taet.errors import UserError

EPS: dict[Norm, float] = {"linf": 0.06, "l2": 0.45}
MODULE = sys.modules["taet.attacks.autoattack"]
BATCH = 9  # does not divide the number of examples


@pytest.fixture
def few_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "QUERIES", 50)


def data(classes: int, channels: int = 3, count: int = 24) -> tuple[Tensor, Tensor]:
    """Noisy copies of one random pattern per class."""
    generator = torch.Generator().manual_seed(classes)
    patterns = torch.rand(classes, channels, 8, 8, generator=generator)
    y = torch.arange(count) % classes
    noise = 0.25 * torch.randn(count, channels, 8, 8, generator=generator)
    return (0.5 + 0.4 * (patterns[y] - 0.5) + noise).clamp(0, 1), y


def _suite(model: nn.Module, x: Tensor, y: Tensor, chosen: Plan) -> SuiteRun:
    batches = Batches(x, y, len(y), x.device, None, True)
    return SuiteRun(Counted(model), batches, chosen, EPS[chosen.norm], 0, "float32")


def train(classes: int, channels: int = 3) -> nn.Module:
    """A small network with batch normalisation that some perturbations of size EPS break and others do not."""
    return copy.deepcopy(_trained(classes, channels))


@functools.cache
def _trained(classes: int, channels: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(channels, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, classes)
        )
        x, y = data(classes, channels, 40 * min(classes, 30))
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        for _ in range(30):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def stock(model: nn.Module, eps: float, chosen: Plan) -> pyautoattack.AutoAttack:
    """The official package as its users set it up; fewer classes, iterations and queries are set by hand."""
    name = {"linf": "Linf", "l2": "L2"}[chosen.norm]
    suite = pyautoattack.AutoAttack(model, norm=name, eps=eps, seed=0, version="standard", device="cpu")
    if chosen.iterations != 100:
        common = {"norm": name, "n_restarts": 1, "n_iter": chosen.iterations, "eps": eps, "device": "cpu"}
        suite.apgd = APGDAttack(model, rho=0.75, logger=suite.logger, **common)
        suite.apgd_targeted = APGDAttack_targeted(model, rho=0.75, logger=suite.logger, **common)
        suite.fab = FABAttack_PT(model, **common)
    if chosen.note:
        suite.apgd_targeted.n_target_classes = suite.fab.n_target_classes = chosen.target_classes
        suite.attacks_to_run = list(chosen.parts)
    suite.square.n_queries = chosen.queries
    return suite


def official(model: nn.Module, x: Tensor, y: Tensor, eps: float, chosen: Plan) -> Tensor:
    """What the official package returns."""
    trace = sys.gettrace()
    try:
        x_adv, _ = stock(model, eps, chosen).run_standard_evaluation(x, y, batch_size=BATCH)
    finally:
        sys.settrace(trace)
    return x_adv


def assert_official(model: nn.Module, x: Tensor, y: Tensor, eps: float, norm: Norm, version: Version) -> None:
    """Flag by flag and image by image what the official package gives; every part can only break more."""
    outcome = run_parts(model, x, y, eps=eps, norm=norm, version=version, batch_size=BATCH)
    expected = official(model, x, y, eps, plan(model(x[:1]).shape[1], version, norm))
    assert outcome.x_adv is not None
    assert torch.equal(outcome.x_adv, expected)
    clean = model(x).argmax(1) == y
    assert torch.equal(outcome.correct, clean & (expected == x).flatten(1).all(1))
    assert torch.equal(outcome.correct, outcome.predictions == y)
    assert 0 < int(outcome.correct.sum()) < int(clean.sum())
    before = clean
    for mask in outcome.parts.values():
        assert not (mask & ~before).any()
        before = mask
    assert torch.equal(before, outcome.correct)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_standard_suite_is_set_as_the_official_package_sets_it(norm: Norm) -> None:
    model, (x, y) = train(10), data(10)
    suite = _suite(model, x, y, plan(10, "standard", norm))
    theirs = stock(model, EPS[norm], suite.plan)
    assert theirs.attacks_to_run == list(suite.plan.parts)
    theirs.fab.targeted, theirs.fab.n_restarts = True, 1  # as its run sets it
    for part, attack in zip(
        suite.plan.parts, (theirs.apgd, theirs.apgd_targeted, theirs.fab, theirs.square), strict=True
    ):
        ours: Any = suite.attack(part)
        ours = getattr(ours, "__self__", None) or ours.__closure__[-1].cell_contents.__self__
        left_out = {"model", "predict", "logger", "device", "seed"}
        assert {k: v for k, v in vars(ours).items() if k not in left_out} == {
            k: v for k, v in vars(attack).items() if k not in left_out
        }


def test_equals_the_official_package_example_by_example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "QUERIES", 300)
    assert_official(train(10, 1), *data(10, 1, 5), EPS["linf"], "linf", "standard")


@pytest.mark.sample(3)
@pytest.mark.usefixtures("few_queries")
@pytest.mark.diagonal("norm", "classes")
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(
    "classes", [2, 3, 4, 10, 11, 100, *(pytest.param(number, marks=pytest.mark.full) for number in (5, 7, 8, 9, 200))]
)
def test_equals_the_official_suite_for_any_number_of_classes(classes: int, norm: Norm) -> None:
    radius = EPS[norm] * (1 if classes < 10 else 0.4 if classes < 100 else 0.2)  # many classes are close to each other
    x, y = data(classes, count=14)
    assert_official(train(classes), x, y, radius, norm, "10")


def test_the_plan_follows_the_number_of_classes() -> None:
    assert plan(10).parts == ("apgd-ce", "apgd-t", "fab-t", "square")
    assert (plan(10).iterations, plan(10).queries, plan(10).target_classes) == (100, 5000, 9)
    assert plan(10).note is None
    assert plan(4).target_classes == 3
    assert plan(7).note == "attacks all 6 other classes; the standard suite attacks 9"
    assert plan(9).note
    assert plan(3).parts == ("apgd-ce", "apgd-dlr", "fab-t", "square")
    assert plan(2).parts == ("apgd-ce", "fab-t", "square")
    assert plan(3).note
    assert plan(2).note
    assert plan(10, "fast").parts == ("apgd-ce", "apgd-t")
    assert plan(10, "10", "l2") == dataclasses.replace(plan(10, "10"), norm="l2")
    assert "target_classes" not in plan(3, "fast").facts()
    assert plan(3, "fast").facts()["note"] == plan(3).note
    assert plan(10).facts() == {
        "parts": ["apgd-ce", "apgd-t", "fab-t", "square"],
        "iterations": 100,
        "target_classes": 9,
        "queries": 5000,
    }
    with pytest.raises(UserError, match="1 class"):
        plan(1)
    with pytest.raises(UserError, match="did you mean 'fast'"):
        plan(10, "fasst")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="unknown norm 'l1'"):
        plan(10, norm="l1")  # type: ignore[arg-type]


def test_the_list_says_what_each_version_costs() -> None:
    for name, line in NAMES.items():
        norm: Norm = "l2" if "-l2" in name else "linf"
        version = name.removeprefix("autoattack").removeprefix("-l2").removeprefix("-") or "standard"
        chosen = plan(10, version, norm)  # type: ignore[arg-type]
        assert f" {sum(map(chosen.cost, chosen.parts))} passes" in line


class Memory:
    """A state that is killed after a number of units."""

    def __init__(self, units: dict[str, Unit], lives: int) -> None:
        self.units, self.lives, self.keys = units, lives, list[str]()

    def get(self, key: str) -> Unit | None:
        return self.units.get(key)

    def put(self, key: str, arrays: Unit) -> None:
        if self.lives == 0:
            raise KeyboardInterrupt
        self.lives -= 1
        self.keys.append(key)
        self.units[key] = arrays


@pytest.mark.usefixtures("few_queries")
def test_resumes_at_the_unit_that_was_not_finished() -> None:
    model, (x, y) = train(4), data(4)

    def run(state: Memory) -> SuiteResult:
        return run_parts(model, x, y, eps=EPS["linf"], version="10", batch_size=BATCH, state=state)

    whole = Memory({}, 99)
    expected = run(whole)
    for kills in (1, 5, len(whole.keys) - 1):
        units: dict[str, Unit] = {}
        with pytest.raises(KeyboardInterrupt):
            run(Memory(units, kills))
        second = Memory(units, 99)
        resumed = run(second)
        assert second.keys == whole.keys[kills:]
        assert_same(resumed, expected)
        assert (resumed.forwards, resumed.backwards) == (expected.forwards, expected.backwards)


@pytest.mark.sample(3)
@pytest.mark.usefixtures("few_queries")
@pytest.mark.parametrize(
    "change",
    ["pixels", "eps", "nothing", *(pytest.param(c, marks=pytest.mark.full) for c in ("labels", "seed", "norm"))],
)
def test_units_of_another_attack_on_as_many_images_are_not_trusted(change: str) -> None:
    model, (x, y) = train(4), data(4)
    settings: dict[str, Any] = {"eps": EPS["linf"], "version": "10", "batch_size": BATCH}
    other_x, other_y = x.clone(), y.clone()
    if change == "pixels":
        other_x[:, 0, 0, 0] = 0.5
    elif change == "labels":
        other_y[::2] = (y[::2] + 1) % 4
    other = {"eps": {"eps": 0.05}, "seed": {"seed": 1}, "norm": {"norm": "l2"}}.get(change, {})
    state = Memory({}, 99)
    run_parts(model, other_x, other_y, **{**settings, **other}, state=state)
    count = len(state.keys)
    first = run_parts(model, x, y, **settings, state=state)
    assert_same(first, run_parts(model, x, y, **settings))
    assert (len(state.keys) == count) == (change == "nothing")


@pytest.mark.usefixtures("few_queries")
@pytest.mark.diagonal("keep_examples", "dtype")
@pytest.mark.parametrize("keep_examples", [True, False])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64])
def test_8_bit_images_are_attacked_as_training_divides_them(dtype: torch.dtype, keep_examples: bool) -> None:
    model, (x, y) = train(4), data(4)
    pixels = (255 * x).round().byte().permute(0, 2, 3, 1).contiguous()
    unit = to_unit(pixels)
    settings: dict[str, Any] = {"eps": EPS["linf"], "version": "10", "batch_size": BATCH}
    state = Memory({}, 99)
    expected = run_parts(model, unit, y, **settings, keep_examples=keep_examples, state=state)
    given = pixels.permute(0, 3, 1, 2) if dtype == torch.uint8 else unit.double()
    before = given.clone()
    assert_same(run_parts(model, given, y, **settings, keep_examples=keep_examples), expected)
    count = len(state.keys)
    assert_same(run_parts(model, given, y, **settings, keep_examples=keep_examples, state=state), expected)
    assert len(state.keys) == count, "the same images, however they are held, share their units"
    assert torch.equal(given, before)


class Largest(TorchDispatchMode):
    """Watches the bytes of the largest tensor that any operation returns."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and not result._is_view():
            self.largest = max(self.largest, result.nbytes)
        return result


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_nothing_as_large_as_the_test_set_is_made(dtype: torch.dtype) -> None:
    model, x = train(4), torch.zeros(500, 3, 8, 8, dtype=dtype)
    y = ((model(x[:1].float()).argmax() + 1) % 4).expand(500).clone()
    with Largest() as watch:
        run_parts(model, x, y, eps=EPS["linf"], batch_size=BATCH, keep_examples=False)
    assert 0 < watch.largest < 20_000 < x.nbytes


FAILING: dict[str, Any] = {
    "gradients": lambda model: lambda x: model(x) + (0 * x.flatten(1)[:, :1]).sqrt(),
    "logits": lambda model: lambda x: torch.where(on_grid(x), model(x), torch.nan),
}


def on_grid(x: Tensor) -> Tensor:
    """Whether all values are multiples of 1/4, as clean ones are here: (N, 1)."""
    return ((4 * x).round() == 4 * x).flatten(1).all(1)[:, None]


@pytest.mark.parametrize(
    ("failing", "part"),
    [
        ("gradients", "apgd-ce"),
        ("gradients", "apgd-t"),
        ("gradients", "fab-t"),
        ("logits", "fab-t"),
        ("logits", "square"),
    ],
)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_what_is_not_finite_inside_a_part_is_refused_not_counted(
    failing: str, part: str, norm: Norm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MODULE, "QUERIES", 5)
    x, model = (4 * data(4)[0][:6]).round() / 4, train(4)
    y = model(x).argmax(1)
    suite = _suite(FAILING[failing](model), x, y, plan(4, "10", norm))
    with pytest.raises(UserError, match=f"model: logits or gradients not finite under {part} on images 0 to 5"):
        list(suite.run(part, torch.arange(6), None, 0, 0))


@pytest.mark.usefixtures("few_queries")
def test_nothing_but_the_result_changes() -> None:
    model, (x, y) = train(4).train(), data(4)
    model[1].eval()  # a mixture of modes comes back as it was
    modes = [module.training for module in model.modules()]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    before, generator_state = x.clone(), torch.random.get_rng_state()
    switches: list[Any] = [torch.backends.mkldnn.matmul, torch.backends.cuda.matmul]
    usual = [switch.fp32_precision for switch in switches]

    def tracer(*_: object) -> None:
        return None

    outer = sys.gettrace()
    sys.settrace(tracer)
    switches[0].fp32_precision, switches[1].fp32_precision = "bf16", "tf32"
    try:
        x_adv = attack(model, x, y)
        assert sys.gettrace() is tracer
        assert [switch.fp32_precision for switch in switches] == ["bf16", "tf32"]
    finally:
        switches[0].fp32_precision, switches[1].fp32_precision = usual
        sys.settrace(outer)
    assert [module.training for module in model.modules()] == modes
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), generator_state)
    assert torch.equal(x, before)
    assert float((x_adv - x).abs().max()) <= EPS["linf"] + 1e-6


def attack(model: nn.Module, x: Tensor, y: Tensor, **settings: Any) -> Tensor:
    return autoattack(model, x, y, eps=EPS["linf"], version="10", batch_size=BATCH, **settings)


def assert_same(found: SuiteResult, expected: SuiteResult) -> None:
    assert (found.x_adv is None) == (expected.x_adv is None)
    if found.x_adv is not None and expected.x_adv is not None:
        assert torch.equal(found.x_adv, expected.x_adv)
    assert torch.equal(found.predictions, expected.predictions)
    assert torch.equal(found.correct, expected.correct)
    assert found.parts.keys() == expected.parts.keys()
    assert all(torch.equal(mask, expected.parts[part]) for part, mask in found.parts.items())


@pytest.mark.sample(3)
@pytest.mark.usefixtures("few_queries")
@pytest.mark.parametrize(
    ("classes", "norm"),
    [(2, "linf"), (3, "l2"), (4, "linf"), pytest.param(5, "l2", marks=pytest.mark.full)],
)
def test_the_fast_suite_is_the_beginning_of_the_standard_one(classes: int, norm: Norm) -> None:
    model, (x, y) = train(classes), data(classes, count=BATCH + 1)
    y[:2] = (y[:2] + 1) % classes

    def run(version: Version, state: Memory) -> SuiteResult:
        return run_parts(model, x, y, eps=0.5 * EPS[norm], norm=norm, version=version, batch_size=BATCH, state=state)

    state = Memory({}, 99)
    fast = run("fast", state)
    standard = run("standard", state)  # goes on where the fast one ended
    assert not {key for key in state.keys if state.keys.count(key) > 1}
    attack = parse("autoattack-fast")
    assert isinstance(attack, Suite)
    masks = {part: mask.numpy() for part, mask in standard.parts.items()}
    parts, predictions = attack.beginning(masks, standard.predictions.numpy(), y.numpy(), classes)
    assert list(parts) == list(fast.parts) == list(plan(classes, "fast").parts)
    assert all(mask.tolist() == fast.parts[part].tolist() for part, mask in parts.items())
    assert predictions.tolist() == fast.predictions.tolist()
    assert 0 < int(fast.correct.sum()) < len(y)


Report = tuple[float, float, str]


class Threshold(nn.Module):
    """Four logits of which the mean value of an image decides the first two: above 1/2 it is of class 0."""

    def forward(self, x: Tensor) -> Tensor:
        above = 20 * (x.flatten(1).mean(1) - 0.5)
        return torch.stack([above, -above, torch.full_like(above, -20), torch.full_like(above, -21)], 1)


def watched(**settings: Any) -> list[Report]:
    """The progress of a suite of 24 images in three batches, of which the first part breaks 16, two thirds of each."""
    seen: list[Report] = []
    means = torch.where(torch.arange(24) % 3 < 2, 0.5 + EPS["linf"] / 4, 0.5 + 4 * EPS["linf"])
    noise = 0.01 * torch.randn(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    x = means.view(-1, 1, 1, 1) + noise - noise.mean((1, 2, 3), keepdim=True)
    outcome = run_parts(
        Threshold(),
        x,
        torch.zeros(24, dtype=torch.int64),
        eps=EPS["linf"],
        batch_size=BATCH,
        progress=lambda *report: seen.append(report),
        **settings,
    )
    assert [int(mask.sum()) for mask in outcome.parts.values()] == [8] * len(outcome.parts)
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert all(done <= total for done, total, _ in seen)
    return seen


@pytest.mark.usefixtures("few_queries")
def test_progress_ends_at_its_total_and_names_the_parts() -> None:
    seen = watched(version="10")
    assert seen[-1][0] == seen[-1][1]
    labels = [label for _, _, label in seen]
    assert labels[:4] == ["clean 1/3", "clean 2/3", "clean 3/3", "apgd-ce 1/3"]
    assert labels[-2:] == ["square 1/1", "done"]


class Mean(nn.Module):
    """Two logits: 1, and the sum of the values of an image over the root of their number, which begins at 0."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.start = x[:1].mean()

    def forward(self, x: Tensor) -> Tensor:
        values = (x - self.start).flatten(1)
        second = values.sum(1) / math.sqrt(values.shape[1])  # the L2 length of a shift of all values alike
        return torch.stack([torch.full_like(second, 0.1), second], 1)


@pytest.mark.parametrize("size", [(4, 4), (12, 12), (14, 20), (24, 24)])
def test_square_takes_the_sizes_in_l2_at_which_the_official_package_fails(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MODULE, "QUERIES", 100)
    x, y = torch.full((3, 1, *size), 0.5), torch.zeros(3, dtype=torch.int64)
    suite = _suite(Mean(x), x, y, plan(2, "standard", "l2"))
    with pytest.raises((RuntimeError, ZeroDivisionError)):
        stock(Mean(x), EPS["l2"], suite.plan).square.perturb(x, y)
    ((_, unit),) = suite.run("square", torch.arange(3), None, 0, 0)
    assert unit["predictions"].any()
    assert unit["x_adv"].shape[1:] == x.shape[1:]


def test_an_image_that_was_rounded_out_of_the_l2_ball_is_drawn_back_before_it_is_judged() -> None:
    x, y = torch.full((1, 3, 64, 64), 0.5), torch.zeros(1, dtype=torch.int64)  # all values are rounded alike
    eps = 1.0

    def length(x_adv: Tensor) -> float:
        return float((x_adv.double() - x.double()).norm())

    theirs = stock(Mean(x), eps, plan(2, "standard", "l2")).apgd
    with torch.no_grad(), torch.random.fork_rng():
        assert length(theirs.perturb(x, y)) > eps + 1e-6
    outcome = run_parts(Mean(x), x, y, eps=eps, norm="l2", version="fast")
    assert outcome.x_adv is not None
    assert eps - 1e-4 < length(outcome.x_adv) <= eps
    assert not outcome.correct.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 192)}, "shape"),
        ({"eps": 8.0}, "did you mean 8/255"),
        ({"eps": 0.0}, "eps: got 0; allowed: above 0"),
        ({"eps": torch.full((2,), 0.1)}, r"eps: got a tensor of shape \(2,\); allowed: one number"),
        ({"eps": 0.0, "norm": "l2"}, "eps: got 0; allowed: above 0"),
        ({"eps": float("inf"), "norm": "l2"}, "eps: got inf"),
        ({"eps": float("nan"), "norm": "l2"}, "eps: got nan"),
        ({"norm": "l3"}, "unknown norm 'l3'.*did you mean"),
        ({"natural": torch.zeros(3, dtype=torch.int64)}, "natural predictions: got torch.int64"),
        (
            {"model": lambda x: torch.zeros(len(x), 4) / 0},
            "model: logits or gradients not finite under clean on images 0 to 1",
        ),
        ({"batch_size": 0}, "batch size"),
    ],
)
def test_bad_input_is_one_line(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "model": train(4),
        "x": torch.zeros(2, 3, 8, 8),
        "y": torch.zeros(2, dtype=torch.int64),
        "eps": EPS["linf"],
    } | change
    with pytest.raises(UserError, match=message) as error:
        autoattack(arguments.pop("model"), arguments.pop("x"), arguments.pop("y"), **arguments)
    assert "\n" not in str(error.value)
