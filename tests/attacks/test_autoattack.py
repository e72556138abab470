"""AutoAttack gives what the official package gives, unit by unit, and leaves everything else as it
was."""

import copy
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

from taet.attacks import catalogue
from taet.attacks.autoattack import NAMES, AutoAttack, Version
from taet.attacks.ball import Norm
from taet.attacks.batch_store import Unit
from taet.attacks.counting_model import CountingModel
from taet.attacks.suite import Plan, SuiteResult, SuiteRun
from taet.data.augmentation import to_unit

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


def options(
    norm: Norm = "linf", version: Version = "10", eps: float | None = None, seed: int = 0
) -> AutoAttack:
    return AutoAttack(
        name="autoattack",
        norm=norm,
        eps=EPS[norm] if eps is None else eps,
        version=version,
        seed=seed,
    )


def run(model: nn.Module, x: Tensor, y: Tensor, attack: AutoAttack, **work: Any) -> SuiteResult:
    return attack.run_parts(model, x, y, **{"batch_size": BATCH, "keep_examples": True, **work})


def train(classes: int, channels: int = 3) -> nn.Module:
    """A small network with batch normalisation that some perturbations of size EPS break and others
    do not."""
    return copy.deepcopy(_trained(classes, channels))


@functools.cache
def _trained(classes: int, channels: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(channels, 8, 3, stride=2),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(72, classes),
        )
        x, y = data(classes, channels, 40 * min(classes, 30))
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        for _ in range(30):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def stock(model: nn.Module, attack: AutoAttack, chosen: Plan) -> pyautoattack.AutoAttack:
    """The official package as its users set it up; fewer classes, iterations and queries are set by
    hand."""
    name = {"linf": "Linf", "l2": "L2"}[attack.norm or "linf"]
    official = pyautoattack.AutoAttack(
        model, norm=name, eps=attack.eps, seed=0, version="standard", device="cpu"
    )
    if chosen.iterations != 100:
        common = {
            "norm": name,
            "n_restarts": 1,
            "n_iter": chosen.iterations,
            "eps": attack.eps,
            "device": "cpu",
        }
        official.apgd = APGDAttack(model, rho=0.75, logger=official.logger, **common)
        official.apgd_targeted = APGDAttack_targeted(
            model, rho=0.75, logger=official.logger, **common
        )
        official.fab = FABAttack_PT(model, **common)
    if chosen.note:
        official.apgd_targeted.n_target_classes = official.fab.n_target_classes = (
            chosen.target_classes
        )
        official.attacks_to_run = list(chosen.parts)
    official.square.n_queries = chosen.queries
    return official


def assert_official(model: nn.Module, x: Tensor, y: Tensor, attack: AutoAttack) -> None:
    """Flag by flag and image by image what the official package gives; every part can only break
    more."""
    outcome, trace = run(model, x, y, attack), sys.gettrace()
    try:
        theirs = stock(model, attack, attack.plan(model(x[:1]).shape[1]))
        expected, _ = theirs.run_standard_evaluation(x, y, batch_size=BATCH)
    finally:
        sys.settrace(trace)
    assert torch.equal(outcome.x_adv, expected)
    before = clean = model(x).argmax(1) == y
    assert torch.equal(outcome.correct, clean & (expected == x).flatten(1).all(1))
    assert torch.equal(outcome.correct, outcome.predictions == y)
    assert 0 < int(outcome.correct.sum()) < int(clean.sum())
    for mask in outcome.parts.values():
        assert not (mask & ~before).any()
        before = mask
    assert torch.equal(before, outcome.correct)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_standard_suite_is_set_as_the_official_package_sets_it(norm: Norm) -> None:
    model, attack, (x, y) = train(10), options(norm, "standard"), data(10)
    ours = SuiteRun(
        CountingModel(model), attack, attack.plan(10), x, y, len(y), x.device, None, True
    )
    theirs = stock(model, attack, attack.plan(10))
    assert theirs.attacks_to_run == list(ours.plan.parts)
    theirs.fab.targeted, theirs.fab.n_restarts = True, 1  # as its run sets it
    left_out = {"model", "predict", "logger", "device", "seed"}
    for part, official in zip(
        ours.plan.parts, (theirs.apgd, theirs.apgd_targeted, theirs.fab, theirs.square), strict=True
    ):
        set_by_us = vars(ours.part(part).__self__)  # type: ignore[attr-defined]
        for name in (set_by_us.keys() | vars(official).keys()) - left_out:
            assert set_by_us[name] == vars(official)[name], (part, name)


@pytest.mark.full
def test_equals_the_official_package_example_by_example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "QUERIES", 300)
    assert_official(train(10, 1), *data(10, 1, 5), options(version="standard"))


@pytest.mark.sample(3)
@pytest.mark.usefixtures("few_queries")
@pytest.mark.diagonal("norm", "classes")
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(
    "classes",
    [
        2,
        3,
        4,
        10,
        11,
        100,
        *(pytest.param(number, marks=pytest.mark.full) for number in (5, 7, 8, 9, 200)),
    ],
)
def test_equals_the_official_suite_for_any_number_of_classes(classes: int, norm: Norm) -> None:
    # many classes are close to each other
    radius = EPS[norm] * (1 if classes < 10 else 0.4 if classes < 100 else 0.2)
    assert_official(train(classes), *data(classes, count=14), options(norm, "10", radius))


def test_the_plan_follows_the_number_of_classes() -> None:
    whole, fast = options(version="standard"), options(version="fast")
    facts = {
        "parts": ["apgd-ce", "apgd-t", "fab-t", "square"],
        "iterations": 100,
        "target_classes": 9,
        "queries": 5000,
    }
    assert whole.plan(10).facts() == facts
    assert options().plan(10).facts() == {**facts, "iterations": 10}
    assert fast.plan(10).parts == ("apgd-ce", "apgd-t")
    assert whole.plan(4).target_classes == 3
    assert whole.plan(7).note == "attacks all 6 other classes; the standard suite attacks 9"
    assert whole.plan(3).parts == ("apgd-ce", "apgd-dlr", "fab-t", "square")
    assert whole.plan(2).parts == ("apgd-ce", "fab-t", "square")
    assert fast.plan(3).facts() == {
        "parts": ["apgd-ce", "apgd-dlr"],
        "iterations": 100,
        "note": whole.plan(3).note,
    }


def test_the_list_says_what_each_version_costs() -> None:
    for name in AutoAttack.names:
        assert f" {catalogue.parse(name).passes(10)} passes" in NAMES[name]


class Memory:
    """A state that is killed after a number of units."""

    def __init__(self, units: dict[str, Unit] | None = None, lives: int = 99) -> None:
        self.units, self.lives, self.keys = {} if units is None else units, lives, list[str]()

    def get(self, key: str) -> Unit | None:
        return self.units.get(key)

    def put(self, key: str, arrays: Unit) -> None:
        if self.lives == 0:
            raise KeyboardInterrupt
        self.lives -= 1
        self.keys.append(key)
        self.units[key] = arrays


def assert_same(found: SuiteResult, expected: SuiteResult) -> None:
    assert (found.x_adv is None) == (expected.x_adv is None)
    if found.x_adv is not None and expected.x_adv is not None:
        assert torch.equal(found.x_adv, expected.x_adv)
    assert torch.equal(found.predictions, expected.predictions)
    assert torch.equal(found.correct, expected.correct)
    assert found.parts.keys() == expected.parts.keys()
    assert all(torch.equal(mask, expected.parts[part]) for part, mask in found.parts.items())


@pytest.mark.full
@pytest.mark.usefixtures("few_queries")
def test_resumes_at_the_unit_that_was_not_finished() -> None:
    model, (x, y) = train(4), data(4)
    whole = Memory()
    expected = run(model, x, y, options(), state=whole)
    for kills in (1, 5, len(whole.keys) - 1):
        units: dict[str, Unit] = {}
        with pytest.raises(KeyboardInterrupt):
            run(model, x, y, options(), state=Memory(units, kills))
        second = Memory(units)
        resumed = run(model, x, y, options(), state=second)
        assert second.keys == whole.keys[kills:]
        assert_same(resumed, expected)
        assert (resumed.forwards, resumed.backwards) == (expected.forwards, expected.backwards)


@pytest.mark.full
@pytest.mark.usefixtures("few_queries")
def test_units_of_other_images_are_not_trusted() -> None:
    model, (x, y), state = train(4), data(4), Memory()
    half = torch.where(torch.arange(len(y)) % 2 == 0, y, (y + 1) % 4)  # the others are not attacked
    run(model, x, y, options(), natural=half, state=state)
    expected = run(model, x, y, options(), natural=y)
    assert_same(run(model, x, y, options(), natural=y, state=state), expected)


@pytest.mark.full
@pytest.mark.usefixtures("few_queries")
@pytest.mark.diagonal("keep_examples", "dtype")
@pytest.mark.parametrize("keep_examples", [True, False])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64])
def test_8_bit_images_are_attacked_as_training_divides_them(
    dtype: torch.dtype, keep_examples: bool
) -> None:
    model, (x, y) = train(4), data(4)
    pixels = (255 * x).round().byte().permute(0, 2, 3, 1).contiguous()
    unit = to_unit(pixels)
    expected = run(model, unit, y, options(), keep_examples=keep_examples)
    given = pixels.permute(0, 3, 1, 2) if dtype == torch.uint8 else unit.double()
    before = given.clone()
    assert_same(run(model, given, y, options(), keep_examples=keep_examples), expected)
    assert torch.equal(given, before)


class Mean(nn.Module):
    """Two logits: 1, and the sum of the values of an image over the root of their number, which
    begins at 0."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.start = x[:1].mean()

    def forward(self, x: Tensor) -> Tensor:
        values = (x - self.start).flatten(1)
        # the L2 length of a shift of all values alike
        second = values.sum(1) / math.sqrt(values.shape[1])
        return torch.stack([torch.full_like(second, 0.1), second], 1)


def test_an_image_that_was_rounded_out_of_the_l2_ball_is_drawn_back_before_it_is_judged() -> None:
    # all values are rounded alike
    x, y = torch.full((1, 3, 64, 64), 0.5), torch.zeros(1, dtype=torch.int64)
    attack = options("l2", "fast", 1.0)

    def length(x_adv: Tensor) -> float:
        return float((x_adv.double() - x.double()).norm())

    theirs = stock(Mean(x), attack, attack.plan(2)).apgd
    with torch.no_grad(), torch.random.fork_rng():
        assert length(theirs.perturb(x, y)) > 1 + 1e-6
    outcome = run(Mean(x), x, y, attack)
    assert 1 - 1e-4 < length(outcome.x_adv) <= 1
    assert not outcome.correct.any()
