"""Intervals of means over classes and of paired differences: what they cover, and when a difference
is decided."""

import itertools
import math
import tracemalloc

import numpy as np
import pytest
from scipy import stats

from taet.metrics import mean_limits, paired
from taet.metrics.intervals import balanced_interval, exact_interval, mean_recall_limits
from taet.metrics.mean_limits import mean_value_limits
from taet.metrics.paired import _balanced, _draws_for, _p_value, difference, mcnemar

LABELS = np.repeat([0, 1, 2], [30, 12, 4])


@pytest.mark.parametrize("count", [1, 2, 5, 30, 1000])
def test_one_class_has_the_interval_of_clopper_and_pearson(count: int) -> None:
    right = np.unique(np.linspace(0, count, 7).round())
    low, high = mean_recall_limits(right[:, None], [count])
    exact = [stats.binomtest(int(k), count).proportion_ci() for k in right]
    for of in ((low, high), exact_interval(right, count)):
        np.testing.assert_allclose(np.transpose(of), exact, atol=1e-5)
    assert np.isnan(exact_interval(0, 0)).all()
    # without an empty class
    assert balanced_interval([0, 0], [count, 0]) == pytest.approx((low[0], high[0]))


@pytest.mark.parametrize(
    "total", [(1, 1), (1, 2), (2, 3), (1, 10), (1, 30), (3, 30), (1, 1, 1), (1, 2, 4), (1, 1, 12)]
)
def test_it_covers_all_recalls_of_few_images(total: tuple[int, ...]) -> None:
    outcomes = np.array(list(itertools.product(*(range(count + 1) for count in total))))
    low, high = mean_recall_limits(outcomes, total)
    grid = np.linspace(0.02, 0.98, 33 if len(total) == 2 else 13)
    for recalls in itertools.product(grid, repeat=len(total)):
        chance = stats.binom.pmf(outcomes, total, recalls).prod(1)
        covered = chance[(low <= np.mean(recalls)) & (np.mean(recalls) <= high)].sum()
        assert covered >= 0.94, (recalls, covered)


def test_large_classes_have_the_interval_of_the_normal_distribution() -> None:
    total, recall = np.full(10, 1000), np.linspace(0.2, 0.9, 10)
    low, high = mean_recall_limits(total * recall, total)
    half = 1.96 * math.sqrt((recall * (1 - recall) / total).sum()) / 10
    assert (low, high) == pytest.approx(
        (recall.mean() - half, recall.mean() + half), abs=0.02 * half
    )
    ends = [mean_recall_limits([3, 1], [4, 2], level) for level in (0.8, 0.95, 0.99)]
    assert ends[2][0] < ends[1][0] < ends[0][0] < ends[0][1] < ends[1][1] < ends[2][1]


def masks(seed: int, runs: int, share: float = 0.6) -> np.ndarray:
    return np.random.default_rng(seed).random((runs, len(LABELS))) < share


def balanced(mask: np.ndarray, labels: np.ndarray = LABELS) -> float:
    return float(np.mean([mask[labels == label].mean() for label in np.unique(labels)]))


def reached(gain: np.ndarray, labels: np.ndarray) -> float:
    """The share of all signs of the gains that reach as far from 0."""
    signs = itertools.product((-1, 1), repeat=len(gain))
    return float(
        np.mean(
            [abs(balanced(gain * of, labels)) >= abs(balanced(gain, labels)) - 1e-9 for of in signs]
        )
    )


@pytest.mark.parametrize("comparisons", [1, 2])
@pytest.mark.parametrize(
    ("runs", "student"), [(1, (0.0, 0.0)), (3, (4.302652729749462, 6.205346816570714))]
)
def test_the_interval_is_that_of_the_images_and_of_the_seeds(
    runs: int, student: tuple[float, float], comparisons: int
) -> None:
    """Each of two comparisons errs in 2.5 of 100 cases; value and p are those of one comparison."""
    first, second = masks(0, runs), masks(1, runs)
    result, alone = (
        difference(first, second, LABELS, 5, comparisons=number) for number in (comparisons, 1)
    )
    each = [balanced(a) - balanced(b) for a, b in zip(first, second, strict=True)]
    assert (result.value, result.p, result.runs) == (pytest.approx(np.mean(each)), alone.p, runs)
    error = np.std(each, ddof=1) / math.sqrt(3) if runs > 1 else math.nan
    assert result.standard_error == pytest.approx(error, nan_ok=True)
    gain, possible = (
        first.astype(int).sum(0) - second.astype(int).sum(0),
        np.arange(-runs, runs + 1),
    )
    counts = [[(gain[label == LABELS] == value).sum() for value in possible] for label in range(3)]
    low, high = mean_value_limits(counts, possible / runs, 1 - 0.05 / comparisons)
    spread = student[comparisons - 1] * error if runs > 1 else 0.0
    ends = (
        result.value - math.hypot(result.value - low, spread),
        result.value + math.hypot(high - result.value, spread),
    )
    assert (result.low, result.high) == pytest.approx(ends, abs=1e-9)
    swapped = difference(second, first, LABELS, 5, comparisons=comparisons)
    assert (swapped.value, swapped.low) == (-result.value, pytest.approx(-result.high, abs=0.01))


@pytest.mark.parametrize("answers", [1, 2])
def test_many_images_have_the_interval_of_a_bootstrap(answers: int) -> None:
    """Of two answers: the gain in one less that in another."""
    labels, generator = np.repeat([0, 1, 2], [900, 300, 200]), np.random.default_rng(5)
    first, second = (generator.random((answers, 2, len(labels))) < 0.6).astype(int).sum(0)
    gain = first - second
    own = [gain[labels == label] for label in range(3)]
    drawn = [np.mean([generator.choice(one, len(one)).mean() for one in own]) for _ in range(3000)]
    result = difference(first, second, labels, 3, answers=answers)
    assert result.value == pytest.approx(balanced(gain, labels))
    ends = tuple(np.quantile(drawn, [0.025, 0.975]))
    assert (result.low, result.high) == pytest.approx(ends, abs=0.002 + 0.002 * answers)
    few = np.arange(len(labels))[::140]
    sampled = difference(first[few], second[few], labels[few], 3, answers=answers)
    assert sampled.p == pytest.approx(reached(gain[few], labels[few]), abs=0.02)


@pytest.mark.sample(4)
@pytest.mark.parametrize("images", [1, 2, 5])
@pytest.mark.parametrize("shares", [(0.05, 0.05), (0.4, 0.4), (0.2, 0.05), (0.0, 0.02)])
def test_the_interval_covers_with_few_images_in_each_class(
    images: int, shares: tuple[float, float]
) -> None:
    """A percentile bootstrap has no width where no image differs, and covered 0.1 of the last
    one."""
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
    expected = mcnemar(int((one & ~other).sum()), int((other & ~one).sum()))
    assert difference(one, other, np.arange(40) % 4, 6).p == expected < 0.1


def test_equal_models_and_few_differing_images_are_not_significant() -> None:
    same = masks(0, 1)[0]
    alike = difference(same, same, LABELS, 3)
    assert (alike.value, alike.p, alike.significant) == (0, 1, False)
    assert -0.3 < alike.low < 0  # other images may differ
    first = np.ones(100, dtype=bool)
    four, six = (
        difference(first, np.arange(100) >= few, np.zeros(100, dtype=int), 1) for few in (4, 6)
    )
    assert four.low > 0  # the interval alone would decide
    assert (four.p, four.significant) == (0.125, False)
    assert (six.p, six.significant) == (pytest.approx(2 / 2**6), True)


def test_an_interval_without_0_that_is_not_significant_says_why() -> None:
    first, one_class = np.ones(100, dtype=bool), np.zeros(100, dtype=int)
    four = difference(first, np.arange(100) >= 4, one_class, 1)
    assert four.low > 0
    assert four.verdict == "not significant by the randomisation test, p = 0.12"
    assert difference(first, np.arange(100) >= 6, one_class, 1).verdict == "significant"
    assert difference(first, first, one_class, 1).verdict == "not significant"


def test_the_draws_of_a_randomisation_test_are_those_of_its_content() -> None:
    """With one seed for all tests, the chance deviation of its draws entered every p alike."""
    changed = np.array([[30, 0], [12, 4]])
    first, again, other = (
        _draws_for(content).random(4) for content in (changed, changed.copy(), changed[::-1])
    )
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


def test_p_does_not_depend_on_how_many_signs_are_drawn_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draws = np.random.default_rng(0)
    labels = np.repeat(np.arange(40), draws.integers(1, 9, 40))
    first, second = draws.random((2, len(labels))) < [[0.6], [0.5]]
    whole = difference(first, second, labels, 40).p
    monkeypatch.setattr(paired, "DRAWN_AT_ONCE", 1000)
    assert difference(first, second, labels, 40).p == whole


def test_a_difference_of_many_classes_takes_little_memory() -> None:
    draws = np.random.default_rng(0)
    labels = np.repeat(np.arange(3000), draws.integers(1, 5, 3000))
    first, second = draws.random((2, len(labels))) < 0.5
    tracemalloc.start()
    difference(first, second, labels, 3000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100e6


def test_many_classes_with_equal_counts_have_the_interval_of_each_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draws = np.random.default_rng(0)
    total = draws.integers(1, 4, mean_limits.MANY_CLASSES + 1)
    correct = draws.binomial(total, 0.6)
    together = mean_recall_limits(correct, total)
    monkeypatch.setattr(mean_limits, "MANY_CLASSES", len(total))
    np.testing.assert_allclose(together, mean_recall_limits(correct, total), rtol=1e-12)


def test_p_is_not_too_small_on_average() -> None:
    """The sampled p of many tests, beside the exact p of the same signs: 2^m cases are counted."""
    draws, deviations = np.random.default_rng(5), list[float]()
    for _ in range(200):
        changed = draws.integers(1, 4, size=(3, 1))
        totals, gains = np.array([20, 10, 5]), np.array([-1.0, 0.0, 1.0])
        better = draws.binomial(changed, 0.7)
        counts = np.concatenate([changed - better, totals[:, None] - changed, better], 1)
        value = _balanced(counts, gains, totals)
        cases = itertools.product(*(range(n + 1) for n in changed.ravel()))
        reached = sum(
            math.prod(math.comb(n, k) for n, k in zip(changed.ravel().tolist(), case, strict=True))
            for case in cases
            if abs(_mean_gain(case, changed.ravel(), totals)) >= abs(value) - 1e-9
        )
        exact = reached / 2 ** int(changed.sum())
        deviations.append(_p_value(counts, gains, value) - exact)
    error = np.std(deviations) / math.sqrt(len(deviations))
    assert abs(np.mean(deviations)) < 3 * error


def _mean_gain(better: tuple[int, ...], changed: np.ndarray, totals: np.ndarray) -> float:
    return float(np.mean((2 * np.array(better) - changed) / totals))
