"""AutoAttack gives what the official package gives, unit by unit, and leaves everything else as it was."""

from __future__ import annotations

import copy
import functools
import sys
from typing import Any

import pyautoattack
import pytest
import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from torch import Tensor, nn

from taet.attacks.autoattack import Arrays, Outcome, Version, _attack, autoattack, plan, run_parts
from taet.attacks.counted import Counted
from taet.attacks.progress import ticking
from taet.errors import UserError

EPS = 0.06
BATCH = 9  # does not divide the number of examples


def data(classes: int, channels: int = 3, count: int = 24) -> tuple[Tensor, Tensor]:
    """Noisy copies of one random pattern per class."""
    generator = torch.Generator().manual_seed(classes)
    patterns = torch.rand(classes, channels, 8, 8, generator=generator)
    y = torch.arange(count) % classes
    noise = 0.25 * torch.randn(count, channels, 8, 8, generator=generator)
    return (0.5 + 0.4 * (patterns[y] - 0.5) + noise).clamp(0, 1), y


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
        x, y = data(classes, channels, 40 * classes)
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        for _ in range(30):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def official(model: nn.Module, x: Tensor, y: Tensor, classes: int, iterations: int) -> Tensor:
    """The official package, called as its users call it; fewer classes and iterations are set by hand."""
    suite = pyautoattack.AutoAttack(model, norm="Linf", eps=EPS, seed=0, version="standard", device="cpu")
    if iterations != 100:
        common = {"norm": "Linf", "n_restarts": 1, "n_iter": iterations, "eps": EPS, "device": "cpu", "verbose": False}
        suite.apgd = APGDAttack(model, rho=0.75, logger=suite.logger, **common)
        suite.apgd_targeted = APGDAttack_targeted(model, rho=0.75, logger=suite.logger, **common)
        suite.fab = FABAttack_PT(model, **common)
    suite.apgd_targeted.n_target_classes = suite.fab.n_target_classes = min(9, classes - 1)
    suite.attacks_to_run = list(plan(classes).parts)
    trace = sys.gettrace()
    try:
        x_adv, _ = suite.run_standard_evaluation(x, y, batch_size=BATCH)
    finally:
        sys.settrace(trace)
    return x_adv


@pytest.mark.parametrize(
    ("classes", "channels", "version"),
    [(10, 1, "standard"), (2, 3, "10"), (3, 3, "10"), (4, 3, "10"), (10, 3, "10")],
)
def test_equals_the_official_package_example_by_example(classes: int, channels: int, version: Version) -> None:
    model = train(classes, channels)
    x, y = data(classes, channels, 24 if classes > 3 else 13)
    outcome = run_parts(model, x, y, eps=EPS, version=version, batch_size=BATCH)
    expected = official(model, x, y, classes, 100 if version == "standard" else 10)
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


def test_ten_iterations_have_the_checkpoints_of_ten() -> None:
    attack = _attack("apgd-t", plan(10, "10"), nn.Identity(), EPS, 0, torch.device("cpu")).__self__  # type: ignore[attr-defined]
    assert (attack.n_iter, attack.n_iter_2, attack.n_iter_min, attack.size_decr) == (10, 2, 1, 1)
    assert attack.n_target_classes == 9


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
    with pytest.raises(UserError, match="1 class"):
        plan(1)
    with pytest.raises(UserError, match="did you mean 'fast'"):
        plan(10, "fasst")  # type: ignore[arg-type]


class Memory:
    """A state that is killed after a number of units."""

    def __init__(self, units: dict[str, Arrays], lives: int) -> None:
        self.units, self.lives, self.keys = units, lives, list[str]()

    def get(self, key: str) -> Arrays | None:
        return self.units.get(key)

    def put(self, key: str, arrays: Arrays) -> None:
        if self.lives == 0:
            raise KeyboardInterrupt
        self.lives -= 1
        self.keys.append(key)
        self.units[key] = arrays


@pytest.fixture
def few_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["taet.attacks.autoattack"], "QUERIES", 50)


@pytest.mark.usefixtures("few_queries")
def test_resumes_at_the_unit_that_was_not_finished() -> None:
    model, (x, y) = train(4), data(4)

    def run(state: Memory) -> Outcome:
        return run_parts(model, x, y, eps=EPS, version="10", batch_size=BATCH, state=state)

    whole = Memory({}, 99)
    expected = run(whole)
    for kills in (1, 5, len(whole.keys) - 1):
        units: dict[str, Arrays] = {}
        with pytest.raises(KeyboardInterrupt):
            run(Memory(units, kills))
        second = Memory(units, 99)
        resumed = run(second)
        assert second.keys == whole.keys[kills:]
        assert resumed.x_adv is not None
        assert expected.x_adv is not None
        assert torch.equal(resumed.x_adv, expected.x_adv)
        assert torch.equal(resumed.predictions, expected.predictions)
        assert (resumed.forwards, resumed.backwards) == (expected.forwards, expected.backwards)


@pytest.mark.usefixtures("few_queries")
def test_units_about_other_images_are_not_trusted() -> None:
    model, (x, y) = train(4), data(4)
    state = Memory({}, 99)
    run_parts(model, x.flip(0), y.flip(0), eps=EPS, version="10", batch_size=BATCH, state=state)
    expected = run_parts(model, x, y, eps=EPS, version="10", batch_size=7)
    found = run_parts(model, x, y, eps=EPS, version="10", batch_size=7, state=state)
    assert torch.equal(found.correct, expected.correct)


@pytest.mark.usefixtures("few_queries")
def test_nothing_but_the_result_changes() -> None:
    model, (x, y) = train(4).train(), data(4)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    before, generator_state = x.clone(), torch.random.get_rng_state()
    precision = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]

    def tracer(*_: object) -> None:
        return None

    outer = sys.gettrace()
    sys.settrace(tracer)
    try:
        x_adv = autoattack(model, x, y, eps=EPS, version="10", batch_size=BATCH)
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(outer)
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), generator_state)
    assert torch.equal(x, before)
    assert torch.backends.mkldnn.matmul.fp32_precision == precision  # type: ignore[attr-defined]
    assert float((x_adv - x).abs().max()) <= EPS + 1e-6
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(autoattack(model, x, y, eps=EPS, version="10", batch_size=BATCH), x_adv)


@pytest.mark.usefixtures("few_queries")
def test_a_model_that_returns_a_view_of_its_input_is_not_written_into() -> None:
    x = torch.rand(6, 4, 1, 1, generator=torch.Generator().manual_seed(0))
    y = x.flatten(1).argmax(1)
    before = x.clone()
    x_adv = autoattack(nn.Flatten(), x, y, eps=0.01, version="10")
    assert torch.equal(x, before)
    assert x_adv.isfinite().all()


@pytest.mark.usefixtures("few_queries")
def test_progress_ends_at_its_total_and_names_the_parts() -> None:
    model, (x, y) = train(4), data(4)
    seen: list[tuple[float, float, str]] = []
    run_parts(model, x, y, eps=EPS, version="10", batch_size=BATCH, progress=lambda *report: seen.append(report))
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert [total for _, total, _ in seen] == sorted((total for _, total, _ in seen), reverse=True)
    assert seen[-1][0] == seen[-1][1]
    assert seen[0][2] == "apgd-ce 1/3"


@pytest.mark.usefixtures("few_queries")
def test_progress_moves_inside_a_unit_but_not_beyond_what_it_was_expected_to_cost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("taet.attacks.progress.TICK_SECONDS", 0.0)
    model, (x, y) = train(4), data(4)
    seen: list[tuple[float, float, str]] = []
    run_parts(model, x, y, eps=EPS, version="10", batch_size=BATCH, progress=lambda *report: seen.append(report))
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert all(done <= total for done, total, _ in seen)
    for label in {label for _, _, label in seen} - {"done"}:
        unit = [done for done, _, name in seen if name == label]
        assert len(set(unit)) > 5
        assert unit[-1] - unit[0] <= BATCH * plan(4, "10").cost(label.partition(" ")[0])


def test_ticks_are_rare() -> None:
    model, (x, _) = Counted(train(4)), data(4)
    seen: list[float] = []
    with ticking(model, 1000, seen.append):
        for _ in range(20):
            model(x)
    assert seen == []


def test_a_model_that_is_wrong_everywhere_is_done_at_once() -> None:
    model, (x, y) = train(4), data(4)
    wrong = (model(x).argmax(1) + 1) % 4
    outcome = run_parts(model, x, wrong, eps=EPS)
    assert not outcome.correct.any()
    assert outcome.x_adv is not None
    assert torch.equal(outcome.x_adv, x)
    assert outcome.backwards == 0
    assert (y >= 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}, "divide uint8 by 255"),
        ({"x": torch.full((2, 3, 8, 8), 255.0)}, "values from 255 to 255"),
        ({"x": torch.full((2, 3, 8, 8), float("nan"))}, "NaN"),
        ({"x": torch.zeros(2, 192)}, "shape"),
        ({"y": torch.zeros(2)}, "int64"),
        ({"y": torch.tensor([0, 4])}, "labels: got up to 4; allowed: 0 to 3"),
        ({"y": torch.tensor([0, -1])}, "labels: got -1"),
        ({"eps": 8.0}, "did you mean 8/255"),
        ({"batch_size": 0}, "batch size"),
        ({"model": nn.Flatten(0)}, "model output: got shape"),
    ],
)
def test_bad_input_is_one_line(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "model": train(4),
        "x": torch.zeros(2, 3, 8, 8),
        "y": torch.zeros(2, dtype=torch.int64),
        "eps": EPS,
    } | change
    with pytest.raises(UserError, match=message) as error:
        autoattack(arguments.pop("model"), arguments.pop("x"), arguments.pop("y"), **arguments)
    assert "\n" not in str(error.value)
