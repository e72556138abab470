"""Differences between models on the same images: what they are, what their intervals cover, when they are decided."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from taet import statistics
from taet.intervals import mean_value_limits
from taet.statistics import difference

LABELS = np.repeat([0, 1, 2], [30, 12, 4])


def masks(seed: int, runs: int, share: float = 0.6) -> np.ndarray:
    return np.random.default_rng(seed).random((runs, len(LABELS))) < share


def balanced(mask: np.ndarray, labels: np.ndarray = LABELS) -> float:
    return float(np.mean([mask[labels == label].mean() for label in np.unique(labels)]))


def reached(gain: np.ndarray, labels: np.ndarray) -> float:
    """The share of all signs of the gains that reach as far from 0."""
    signs = itertools.product((-1, 1), repeat=len(gain))
    return float(np.mean([abs(balanced(gain * of, labels)) >= abs(balanced(gain, labels)) - 1e-9 for of in signs]))


@pytest.mark.parametrize("comparisons", [1, 2])
@pytest.mark.parametrize(("runs", "student"), [(1, (0.0, 0.0)), (3, (4.302652729749462, 6.205346816570714))])
def test_the_interval_is_that_of_the_images_and_of_the_seeds(
    runs: int, student: tuple[float, float], comparisons: int
) -> None:
    """Each of two comparisons errs in 2.5 of 100 cases; value and p are those of one comparison."""
    first, second = masks(0, runs), masks(1, runs)
    result, alone = (difference(first, second, LABELS, 5, comparisons=number) for number in (comparisons, 1))
    each = [balanced(a) - balanced(b) for a, b in zip(first, second, strict=True)]
    assert (result.value, result.p, result.runs) == (pytest.approx(np.mean(each)), alone.p, runs)
    error = np.std(each, ddof=1) / math.sqrt(3) if runs > 1 else math.nan
    assert result.standard_error == pytest.approx(error, nan_ok=True)
    gain, possible = first.astype(int).sum(0) - second.astype(int).sum(0), np.arange(-runs, runs + 1)
    counts = [[(gain[label == LABELS] == value).sum() for value in possible] for label in range(3)]
    low, high = mean_value_limits(counts, possible / runs, 1 - 0.05 / comparisons)
    spread = student[comparisons - 1] * error if runs > 1 else 0.0
    ends = result.value - math.hypot(result.value - low, spread), result.value + math.hypot(high - result.value, spread)
    assert (result.low, result.high) == pytest.approx(ends, abs=1e-9)
    swapped = difference(second, first, LABELS, 5, comparisons=comparisons)
    assert (swapped.value, swapped.low) == (-result.value, pytest.approx(-result.high, abs=0.01))


@pytest.mark.parametrize("answers", [1, 2])
def test_many_images_have_the_interval_of_a_bootstrap(answers: int) -> None:
    """Of two answers: the gain in one less that in another."""
    labels, generator = np.repeat([0, 1, 2], [900, 300, 200]), np.random.default_rng(5)
    first, second = (generator.random((answers, 2, len(labels))) < 0.6).astype(int).sum(0)
    gain = first - second
    drawn = [
        np.mean([generator.choice(gain[labels == label], (labels == label).sum()).mean() for label in range(3)])
        for _ in range(3000)
    ]
    result = difference(first, second, labels, 3, answers=answers)
    assert result.value == pytest.approx(balanced(gain, labels))
    assert (result.low, result.high) == pytest.approx(
        tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.002 + 0.002 * answers
    )
    few = np.arange(len(labels))[::140]
    own = difference(first[few], second[few], labels[few], 3, answers=answers)
    assert own.p == pytest.approx(reached(gain[few], labels[few]), abs=0.02)


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


@pytest.mark.parametrize("runs", [1, 2])
def test_p_is_the_share_of_signs_that_reach_as_far(runs: int) -> None:
    labels = np.repeat([0, 1], [7, 3])
    first, second = masks(3, runs, 0.9)[:, :10], masks(4, runs, 0.4)[:, :10]
    result = difference(first, second, labels, 2)
    assert 0.001 < result.p < 0.5
    assert result.p == pytest.approx(reached(first.mean(0) - second.mean(0), labels), abs=0.01)
    # McNemar's test where classes have one size
    one, other = masks(0, 1, 0.8)[0][:40], masks(1, 1, 0.5)[0][:40]
    expected = statistics.mcnemar(int((one & ~other).sum()), int((other & ~one).sum()))
    assert difference(one, other, np.arange(40) % 4, 6).p == expected < 0.1


def test_equal_models_and_few_differing_images_are_undecided() -> None:
    same = masks(0, 1)[0]
    alike = difference(same, same, LABELS, 3)
    assert (alike.value, alike.p, alike.decided) == (0, 1, False)
    assert -0.3 < alike.low < 0  # other images may differ
    first = np.ones(100, dtype=bool)
    four, six = (difference(first, np.arange(100) >= few, np.zeros(100, dtype=int), 1) for few in (4, 6))
    assert four.low > 0  # the interval alone would decide
    assert (four.p, four.decided) == (0.125, False)
    assert (six.p, six.decided) == (pytest.approx(2 / 2**6), True)


def test_seeds_that_scatter_make_undecided_what_the_images_alone_decide() -> None:
    labels = np.zeros(400, dtype=int)
    first = np.stack([np.arange(400) < right for right in (260, 300, 340)])
    second = np.stack([np.arange(400) < 270] * 3)
    assert difference(first[1], second[1], labels, 1).decided
    scattered = difference(first, second, labels, 1)
    assert (scattered.value, scattered.decided) == (pytest.approx(30 / 400), False)
    assert scattered.p < 0.001
    steady = difference(np.stack([first[1]] * 3), second, labels, 1)
    assert (steady.decided, steady.standard_error) == (True, 0)


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
