"""Learning curves per class: what twice the images are worth beside another method, and how sure that is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from taet.data import load
from taet.errors import UserError
from taet.experiments import Comparison, parse, what_if
from taet.experiments.comparison import CellOutcome
from taet.experiments.what_if import SHARES, Worth, estimate, gain_of, slope_weights, with_shares

SPEC = {"methods": ["at", "taet"], "data": ["digits-lt"], "seeds": [0, 1], "settings": {"model": "resnet8"}}


def test_smaller_parts_of_the_training_set_lie_in_larger_ones() -> None:
    whole, half, quarter = (load("digits-lt", validation=0.2, train_share=share) for share in (1.0, 0.5, 0.25))
    assert {*quarter.train.indices} < {*half.train.indices} < {*whole.train.indices}
    np.testing.assert_array_equal(half.class_counts, np.maximum(np.rint(0.5 * whole.class_counts), 1))
    for split in ("test", "validation"):
        assert whole.splits[split].sha256 == half.splits[split].sha256 == quarter.splits[split].sha256
    assert load("digits-lt", train_share=0.001).class_counts.tolist() == [1] * 10
    with pytest.raises(UserError, match=r"data train share: got 0; allowed: above 0, up to 1"):
        load("digits-lt", train_share=0.0)


def test_the_grid_is_repeated_on_parts_of_the_images() -> None:
    variant = {"name": "bsl", "settings": {"outer.name": "balanced-softmax"}}
    made = with_shares(parse({**SPEC, "variants": [variant]}))
    assert [one.name for one in made.variants] == ["", "bsl", "x0.25", "bsl+x0.25", "x0.5", "bsl+x0.5"]
    assert made.variants[3].settings == {"outer.name": "balanced-softmax", "data.train_share": 0.25}
    assert len(made.points) == 3 * len(parse({**SPEC, "variants": [variant]}).points)
    with pytest.raises(UserError, match=r"what-if: got 1 seed; allowed: 2 or more in seeds"):
        with_shares(parse({**SPEC, "seeds": [3]}))
    with pytest.raises(UserError, match=r"what-if: got data\.train_share in the specification"):
        with_shares(parse({**SPEC, "settings": {"data.train_share": 0.5}}))


@pytest.mark.parametrize("images", [[25, 50, 100], [3, 6, 11], [10, 20, 39]])
def test_the_slope_of_a_straight_line_in_the_logarithm_is_found(images: list[int]) -> None:
    recalls = 0.2 + 0.07 * np.log2(images)
    assert slope_weights(images) @ recalls == pytest.approx(0.07)
    assert np.isnan(slope_weights([1, 1, 1])).all()


def test_nothing_is_claimed_where_nothing_varies_or_little_is_known() -> None:
    for values in (np.zeros((3, 20)), np.ones((3, 20)), np.zeros((1, 20)), np.zeros((3, 1)), np.full((2, 5), np.nan)):
        assert math.isnan(estimate(values).value)
    assert str(what_if.UNKNOWN) == "-"


@pytest.mark.parametrize(("of_seeds", "of_images"), [(0.1, 0.3), (0.0, 0.4), (0.2, 0.05)])
def test_intervals_cover(of_seeds: float, of_images: float) -> None:
    """Values of crossed seeds and images in closed form, of mean 0.1."""
    draws, covered = np.random.default_rng(0), 0
    for _ in range(1500):
        values = 0.1 + of_seeds * draws.normal(size=(3, 1)) + of_images * draws.normal(size=(1, 40))
        found = estimate(values + 0.1 * draws.normal(size=(3, 40)))
        covered += found.low <= 0.1 <= found.high
    assert covered / 1500 > 0.935


class Card:
    """As much of a result card as a learning curve needs."""

    num_classes, class_names = 2, ("a", "b")
    labels = np.repeat([0, 1], 100)

    def __init__(self, counts: tuple[int, int], recalls: tuple[float, float], shift: int) -> None:
        self.data = {"train_class_counts": counts}
        places = np.arange(200) % 100
        self.correct = (places + shift) % 100 < 100 * np.repeat(recalls, 100)

    def column(self, name: str) -> Any:
        assert name == "worst-case"
        return self


def runs(gain: float, above: float = 0.0) -> dict[int, list[Any]]:
    """Two seeds whose recall of class a rises by `gain` per doubling; that of class b is 0."""
    return {
        seed: [Card((40 * k, 4 * k), (0.3 + above + gain * place, 0.0), 7 * seed) for place, k in enumerate((1, 2, 4))]
        for seed in (0, 1)
    }


def test_gains_of_a_class() -> None:
    first, second = runs(0.1), runs(0.1, above=0.2)
    name, images, recall, last, line, against = gain_of(second, first, 0)  # type: ignore[arg-type]
    assert (name, images) == ("a", 160)
    assert recall == pytest.approx(0.7)
    for found, value in ((last, 0.1), (line, 0.1), (against, 0.2)):
        assert found.value == pytest.approx(value)
        assert found.low < value < found.high
    _, images, _, last, line, against = gain_of(second, first, 1)  # type: ignore[arg-type]
    assert images == 16
    assert all(math.isnan(one.value) for one in (last, line, against))  # recall 0 everywhere: no interval
    name, images, recall, last, *_ = gain_of(first, first, None)  # type: ignore[arg-type]
    assert (name, images) == ("all classes", 176)
    assert (recall, last.value) == (pytest.approx(0.25), pytest.approx(0.05))
    gains = gain_of(first, first, 0)  # type: ignore[arg-type]
    worth = Worth("at", "digits-lt", None, *gains)
    assert worth.to_json()["against_first"] == [None] * 3
    assert "at, a" in what_if.table([worth])


@pytest.mark.parametrize(("gain", "above", "cut"), [(0.3, 0.05, "high"), (-0.13, 0.01, "low")])
def test_a_recall_stays_between_0_and_1(gain: float, above: float, cut: str) -> None:
    """Recalls of 0.35, 0.65, 0.95, whose line goes on to 1.25; and of 0.31, 0.18, 0.05, whose line goes on below 0."""
    _, _, recall, last, line, _ = gain_of(runs(gain, above), {}, 0)  # type: ignore[arg-type]
    limits = {"low": -recall, "high": 1 - recall}
    assert line.value == getattr(line, cut) == pytest.approx(limits[cut])
    assert limits["low"] <= line.low <= line.value <= line.high <= limits["high"]
    assert last.value == pytest.approx(gain)  # measured, and as it was


def test_a_measured_difference_stays_within_100_points() -> None:
    """Two seeds that disagree: Student's quantile of 12.7 leads far beyond."""
    apart = {seed: [Card((k, k), (recall, 0.0), 0) for k in (1, 2, 4)] for seed, recall in enumerate((0.1, 0.9))}
    other = {seed: [Card((k, k), (0.5, 0.0), 0) for k in (1, 2, 4)] for seed in (0, 1)}
    for label in (0, None):
        against = gain_of(apart, other, label)[-1]  # type: ignore[arg-type]
        assert against.value == pytest.approx(0)
        assert (against.low, against.high) == (-1, 1)
    assert what_if.UNKNOWN.within(-1, 1) is what_if.UNKNOWN


def test_the_first_row_is_that_of_the_first_method(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from taet.experiments.cells import cells

    made = [CellOutcome(cell, "missing", "", ()) for cell in cells(with_shares(parse(SPEC)), tmp_path)]
    comparison = Comparison("x", tmp_path, tuple(made))
    held = {("digits-lt", None, "taet"): runs(0.1, above=0.2), ("digits-lt", None, "at"): runs(0.1)}
    monkeypatch.setattr(what_if, "_rows", lambda _: held)
    against = {(one.row, one.label): one.against_first.value for one in what_if.worth(comparison)}
    assert against["taet", "a"] == pytest.approx(0.2)
    assert math.isnan(against["at", "a"])
    del held["digits-lt", None, "at"]  # too few of its seeds are done
    assert {str(one.against_first) for one in what_if.worth(comparison)} == {"-"}


@pytest.mark.parametrize("shared", [[], [0]])
def test_with_too_few_shared_seeds_nothing_is_said_of_a_difference(shared: list[int]) -> None:
    base = {seed: cards for seed, cards in runs(0.1).items() if seed in shared}
    for label in (0, None):
        assert str(gain_of(runs(0.1, above=0.2), base, label)[-1]) == "-"  # type: ignore[arg-type]


def test_unfinished_comparisons_are_refused(tmp_path: Any) -> None:
    from taet.experiments.cells import cells

    made = [CellOutcome(cell, "missing", "", ()) for cell in cells(with_shares(parse(SPEC)), tmp_path)]
    assert {what_if._base(one.cell) for one in made} == {"at", "taet"}
    assert {one.cell.row for one in made} == {f"{m}{v}" for m in ("at", "taet") for v in ("", " + x0.25", " + x0.5")}
    with pytest.raises(UserError, match="what-if: no row has 2 seeds done at every share; continue the comparison"):
        what_if.worth(Comparison("x", tmp_path, tuple(made)))
    assert len(SHARES) == 3


@pytest.mark.full
def test_from_the_command_line(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from taet.cli import main

    spec = tmp_path / "study.toml"
    spec.write_text(
        'methods = ["at"]\ndata = ["digits-lt"]\nseeds = [0, 1]\n[settings]\nmodel = "resnet8"\n'
        'epochs = 1\nprecision = "float32"\nthreat.steps = 1\nthreat.eps = 0.05\nthreat.step-size = 0.05\n'
        "data.max-count = 60\ndata.test-max-count = 10\nmonitor-every = 0\n"
        'evaluation.attacks = ["clean", "fgsm"]\n'
    )
    assert main(["compare", str(spec), "--out", str(tmp_path / "out"), "--what-if"]) == 0
    printed = capsys.readouterr().out
    assert "at, all classes" in printed
    assert "at, 9" in printed
    assert (tmp_path / "out" / "what-if.json").exists()
    assert main(["compare", str(spec), "--out", str(tmp_path / "out"), "--what-if", "--until", "decided"]) == 2
