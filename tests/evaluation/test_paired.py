"""Differences between models on the same images: what they are, what their intervals cover, when they are decided."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from taet import metrics
from taet.errors import UserError
from taet.evaluation import Column, ResultCard
from taet.evaluation.card import compare_runs
from taet.evaluation.paired import Difference, difference

LABELS = np.repeat([0, 1, 2], [30, 12, 4])


def masks(seed: int, runs: int, share: float = 0.6) -> np.ndarray:
    return np.random.default_rng(seed).random((runs, len(LABELS))) < share


def balanced(mask: np.ndarray, labels: np.ndarray = LABELS) -> float:
    return float(np.mean([mask[labels == label].mean() for label in np.unique(labels)]))


def test_the_value_is_the_difference_of_the_balanced_accuracies() -> None:
    first, second = masks(0, 1)[0], masks(1, 1)[0]
    result = difference(first, second, LABELS, 5)
    assert result.value == pytest.approx(balanced(first) - balanced(second))
    assert result.low < result.value < result.high
    assert (result.runs, math.isnan(result.standard_error)) == (1, True)
    swapped = difference(second, first, LABELS, 5)
    assert swapped.value == -result.value
    assert swapped.low == pytest.approx(-result.high, abs=0.01)


def test_several_runs_are_averaged_over_their_pairs() -> None:
    first, second = masks(0, 3), masks(1, 3)
    result = difference(first, second, LABELS, 3)
    each = [balanced(a) - balanced(b) for a, b in zip(first, second, strict=True)]
    assert result.value == pytest.approx(np.mean(each))
    assert result.standard_error == pytest.approx(np.std(each, ddof=1) / math.sqrt(3))
    assert result.runs == 3


@pytest.mark.parametrize(("runs", "student"), [(1, 0.0), (3, 6.205346816570714)])
def test_intervals_of_two_comparisons_cover_together(runs: int, student: float) -> None:
    """Each errs in 2.5 of 100 cases, by 1.25 on a side; value and p are those of one comparison."""
    first, second = masks(0, runs), masks(1, runs)
    alone, of_two = (difference(first, second, LABELS, 3, comparisons=number) for number in (1, 2))
    assert (of_two.value, of_two.p) == (alone.value, alone.p)
    gain, generator = first.mean(0) - second.mean(0), np.random.default_rng(2)
    rows = [np.flatnonzero(label == LABELS) for label in range(3)]
    drawn = np.mean([gain[generator.choice(own, (40000, len(own)))].mean(1) for own in rows], axis=0)
    low, high = np.quantile(drawn, [0.0125, 0.9875])
    spread = student * of_two.standard_error if runs > 1 else 0.0
    low, high = (
        of_two.value - math.hypot(of_two.value - low, spread),
        of_two.value + math.hypot(high - of_two.value, spread),
    )
    assert (of_two.low, of_two.high) == pytest.approx((low, high), abs=0.015)


@pytest.mark.parametrize("runs", [1, 3])
def test_the_interval_is_that_of_drawing_the_images(runs: int) -> None:
    first, second, generator = masks(0, runs), masks(1, runs), np.random.default_rng(2)
    rows = [np.flatnonzero(label == LABELS) for label in range(3)]
    gain = first.mean(0) - second.mean(0)
    drawn = [np.mean([gain[generator.choice(own, len(own))].mean() for own in rows]) for _ in range(4000)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    result = difference(first, second, LABELS, 3)
    if runs > 1:  # Student's quantile at two degrees of freedom
        value, spread = result.value, 4.302652729749462 * result.standard_error
        low, high = value - math.hypot(value - low, spread), value + math.hypot(high - value, spread)
    assert (result.low, result.high) == pytest.approx((low, high), abs=0.015)


def test_p_is_mcnemars_where_classes_have_one_size() -> None:
    labels = np.arange(40) % 4
    first, second = masks(0, 1, 0.8)[0][:40], masks(1, 1, 0.5)[0][:40]
    expected = metrics.mcnemar(int((first & ~second).sum()), int((second & ~first).sum()))
    assert expected < 0.1
    assert difference(first, second, labels, 6).p == expected


@pytest.mark.parametrize("runs", [1, 2])
def test_p_is_the_share_of_signs_that_reach_as_far(runs: int) -> None:
    labels = np.repeat([0, 1], [7, 3])
    first, second = masks(3, runs, 0.9)[:, :10], masks(4, runs, 0.4)[:, :10]
    gain = first.mean(0) - second.mean(0)
    value = abs(balanced(gain, labels))
    reached = [abs(balanced(gain * signs, labels)) >= value - 1e-9 for signs in itertools.product((-1, 1), repeat=10)]
    result = difference(first, second, labels, 2)
    assert 0.001 < result.p < 0.5
    assert result.p == pytest.approx(np.mean(reached), abs=0.01)


def test_equal_models_and_few_differing_images_are_undecided() -> None:
    same = masks(0, 1)[0]
    alike = difference(same, same, LABELS, 3)
    assert (alike.value, alike.low, alike.high, alike.p, alike.decided) == (0, 0, 0, 1, False)
    first = np.ones(100, dtype=bool)
    four = difference(first, np.arange(100) >= 4, np.zeros(100, dtype=int), 1)
    assert four.low > 0  # the bootstrap alone would decide
    assert four.p == 0.125
    assert not four.decided
    six = difference(first, np.arange(100) >= 6, np.zeros(100, dtype=int), 1)
    assert six.p == pytest.approx(2 / 2**6)
    assert six.decided


@pytest.mark.parametrize(
    ("low", "high", "p", "decided"),
    [(0.01, 0.05, 0.01, True), (-0.05, -0.01, 0.01, True), (0.0, 0.05, 0.01, False), (-0.01, 0.05, 0.01, False),
     (0.01, 0.05, 0.05, False)],
)  # fmt: skip
def test_decided_takes_the_interval_and_p(low: float, high: float, p: float, decided: bool) -> None:
    assert Difference((low + high) / 2, low, high, p).decided == decided


def test_seeds_that_scatter_make_undecided_what_the_images_alone_decide() -> None:
    labels = np.zeros(400, dtype=int)
    first = np.stack([np.arange(400) < right for right in (260, 300, 340)])
    second = np.stack([np.arange(400) < 270] * 3)
    assert difference(first[1], second[1], labels, 1).decided
    scattered = difference(first, second, labels, 1)
    assert scattered.value == pytest.approx(30 / 400)
    assert scattered.p < 0.001
    assert not scattered.decided
    steady = difference(np.stack([first[1]] * 3), second, labels, 1)
    assert steady.decided
    assert steady.standard_error == 0


def test_the_interval_covers_the_truth_and_equal_models_are_rarely_told_apart() -> None:
    generator, labels = np.random.default_rng(0), np.repeat([0, 1, 2], [150, 60, 30])
    easy = np.array([0.8, 0.6, 0.4])[labels]
    covered = decided = 0
    for _ in range(200):
        base = generator.random(len(labels))
        better = (base < easy) | (generator.random(len(labels)) < 0.2)  # right where the other is, and on a fifth more
        truth = 0.2 * (1 - np.array([0.8, 0.6, 0.4])).mean()
        result = difference(better, base < easy, labels, 3, draws=500)
        covered += result.low <= truth <= result.high
        alike = generator.random((2, len(labels))) < easy
        decided += difference(alike[0], alike[1], labels, 3, draws=500).decided
    assert 180 <= covered <= 199
    assert decided <= 16


@pytest.mark.parametrize(
    ("first", "second"), [(np.ones(46), np.ones(45)), (np.ones((2, 46)), np.ones(46)), (np.ones(3), np.ones(3))]
)
def test_masks_of_other_shapes_are_refused(first: np.ndarray, second: np.ndarray) -> None:
    with pytest.raises(ValueError, match="masks"):
        difference(first, second, LABELS, 3)


def card(seed: int, *, sha256: str = "ab" * 32, steps: int = 20, eps: float = 8 / 255) -> ResultCard:
    predictions = np.where(masks(seed, 1)[0], LABELS, (LABELS + 1) % 3)
    parameters: dict[str, Any] = {"steps": steps, "start": "uniform", "seed": seed}
    column = Column("pgd-20", "linf", eps, True, parameters, predictions == LABELS, predictions)
    data = {"name": "toy", "class_names": ["a", "b", "c"], "test_sha256": sha256}
    model = {"name": "small", "weights_sha256": "0" * 64}
    return ResultCard("at", "AT", "taet", {"norm": "linf", "eps": eps}, seed, model, data, 250, LABELS, (column,))


def test_cards_are_compared_by_their_masks() -> None:
    first, second = card(0), card(1)
    expected = difference(first.column("pgd-20").correct, second.column("pgd-20").correct, LABELS, 3)
    found = first.compare(second, "pgd-20")
    assert (found.value, found.low, found.high, found.p) == (expected.value, expected.low, expected.high, expected.p)
    worst = first.compare(second, "worst-case")  # of one attack
    assert (worst.value, worst.p) == (expected.value, expected.p)
    several = compare_runs([card(0), card(2)], [card(1), card(3)], "pgd-20")
    assert several.runs == 2
    assert several.value == pytest.approx((found.value + card(2).compare(card(3), "pgd-20").value) / 2)


@pytest.mark.parametrize(
    ("first", "second", "column", "message"),
    [
        ([card(0)], [card(1, sha256="cd" * 32)], "pgd-20", "got test images 'abab.* and 'cdcd"),
        ([card(0)], [card(1, steps=10)], "pgd-20", "'pgd-20' was measured with steps 20 and 10"),
        ([card(0)], [card(1, eps=4 / 255)], "pgd-20", "measured with eps 0.03.* and 0.01"),
        ([card(0)], [card(1, steps=10)], "worst-case", "'worst-case' was measured with attacks"),
        ([card(0)], [card(1)], "pgd-2", "did you mean 'pgd-20'"),
        ([card(0), card(1)], [card(2)], "pgd-20", "got 2 and 1 cards"),
        ([], [], "pgd-20", "got 0 and 0 cards"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    first: list[ResultCard], second: list[ResultCard], column: str, message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        compare_runs(first, second, column)
    assert "\n" not in str(error.value)
