"""Differences between models on the same images: what they are, what their intervals cover, when they are decided."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from taet import statistics
from taet.intervals import mean_value_limits
from taet.statistics import Difference, difference

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
    spread = student * of_two.standard_error if runs > 1 else 0.0
    images = of_the_images(first, second, 0.975)
    assert (of_two.low, of_two.high) == pytest.approx(widened(images, of_two.value, spread), abs=1e-9)
    assert of_two.low < alone.low < alone.high < of_two.high


@pytest.mark.parametrize("runs", [1, 3])
def test_the_interval_is_that_of_the_images_and_of_the_seeds(runs: int) -> None:
    first, second = masks(0, runs), masks(1, runs)
    result = difference(first, second, LABELS, 3)
    # Student's quantile at two degrees of freedom
    spread = 4.302652729749462 * result.standard_error if runs > 1 else 0.0
    images = of_the_images(first, second, 0.95)
    assert (result.low, result.high) == pytest.approx(widened(images, result.value, spread), abs=1e-9)


def of_the_images(first: np.ndarray, second: np.ndarray, level: float) -> tuple[float, float]:
    """The interval of the mean gain over the classes, from how often each gain occurs in each class."""
    gain, runs = first.astype(int).sum(0) - second.astype(int).sum(0), len(first)
    possible = np.arange(-runs, runs + 1)
    counts = [[(gain[label == LABELS] == value).sum() for value in possible] for label in range(3)]
    low, high = mean_value_limits(counts, possible / runs, level)
    return float(low), float(high)


def widened(ends: tuple[float, float], value: float, spread: float) -> tuple[float, float]:
    return value - math.hypot(value - ends[0], spread), value + math.hypot(ends[1] - value, spread)


def test_many_images_have_the_interval_of_a_bootstrap() -> None:
    labels, generator = np.repeat([0, 1, 2], [900, 300, 200]), np.random.default_rng(2)
    first, second = generator.random((2, len(labels))) < 0.6
    gain = first.astype(int) - second
    drawn = [
        np.mean([generator.choice(gain[labels == label], (labels == label).sum()).mean() for label in range(3)])
        for _ in range(3000)
    ]
    result = difference(first, second, labels, 3)
    assert (result.low, result.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.004)


@pytest.mark.sample(4)
@pytest.mark.parametrize("images", [1, 2, 5])
@pytest.mark.parametrize("shares", [(0.05, 0.05), (0.4, 0.4), (0.2, 0.05), (0.0, 0.02)])
def test_the_interval_covers_with_few_images_in_each_class(images: int, shares: tuple[float, float]) -> None:
    """A percentile bootstrap has no width where no image differs, and covered 0.1 of the last one."""
    better, worse = shares
    truth = [worse, 1 - better - worse, better]
    drawn = np.random.default_rng(0).multinomial(np.full(10, images), truth, size=(400, 10))
    low, high = mean_value_limits(drawn, [-1, 0, 1])
    # 400 draws: a coverage of 0.95 gives less than 0.91 with a chance of 1 in 3,000.
    assert ((low <= better - worse + 1e-12) & (better - worse - 1e-12 <= high)).mean() >= 0.91


def test_p_is_mcnemars_where_classes_have_one_size() -> None:
    labels = np.arange(40) % 4
    first, second = masks(0, 1, 0.8)[0][:40], masks(1, 1, 0.5)[0][:40]
    expected = statistics.mcnemar(int((first & ~second).sum()), int((second & ~first).sum()))
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


def test_gains_of_two_questions_are_compared_image_by_image() -> None:
    """The gain in one answer less that in another: its mean, the interval of a bootstrap, and p by all signs."""
    labels, generator = np.repeat([0, 1, 2], [900, 300, 200]), np.random.default_rng(5)
    a, b, c, d = (generator.random((4, len(labels))) < 0.6).astype(int)
    gain = (a - b) - (c - d)
    result = difference(a + d, b + c, labels, 3, answers=2)
    assert result.value == pytest.approx(balanced(gain, labels))
    drawn = [
        np.mean([generator.choice(gain[labels == label], (labels == label).sum()).mean() for label in range(3)])
        for _ in range(3000)
    ]
    assert (result.low, result.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.006)
    few = np.arange(len(labels))[::140]
    reached = [
        abs(balanced(gain[few] * signs, labels[few])) >= abs(balanced(gain[few], labels[few])) - 1e-9
        for signs in itertools.product((-1, 1), repeat=len(few))
    ]
    own = difference((a + d)[few], (b + c)[few], labels[few], 3, answers=2)
    assert own.p == pytest.approx(np.mean(reached), abs=0.02)
    assert difference(np.full(6, 2), np.zeros(6), np.arange(6) % 2, 2, answers=2).value == 2


def test_equal_models_and_few_differing_images_are_undecided() -> None:
    same = masks(0, 1)[0]
    alike = difference(same, same, LABELS, 3)
    assert (alike.value, alike.p, alike.decided) == (0, 1, False)
    assert alike.low == pytest.approx(-alike.high, abs=1e-6)
    assert -0.3 < alike.low < 0  # other images may differ
    first = np.ones(100, dtype=bool)
    four = difference(first, np.arange(100) >= 4, np.zeros(100, dtype=int), 1)
    assert four.low > 0  # the interval alone would decide
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
