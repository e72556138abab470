"""Paired differences of two models, or of two methods over several seeds, on the same images."""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from taet.metrics.intervals import Ints, student_quantile
from taet.metrics.mean_limits import Floats, mean_value_limits

LEVEL = 0.05
DRAWS = 10_000  # of the signs in a randomisation test: p = 2.5 % is known to within 0.3 points
DRAWN_AT_ONCE = 2**20  # signs in memory: with 8,142 classes all of them take 3 GB


@dataclass(frozen=True, repr=False)
class Difference:
    """A paired difference of balanced accuracy, first side minus second, in [-1, 1]."""

    value: float
    low: float
    """Lower end of the interval, of 95 % for one comparison."""
    high: float
    p: float
    """Probability of a difference at least as large if the two sides were exchangeable, image by
    image."""
    runs: int = 1
    """Pairs of runs, of which it is the mean."""
    standard_error: float = math.nan
    """Over the pairs of runs; nan with one pair."""

    def __repr__(self) -> str:
        value, low, high = (f"{100 * share:+.1f}" for share in (self.value, self.low, self.high))
        runs = f"; interval over {self.runs} pairs of runs as well" if self.runs > 1 else ""
        return (
            f"Difference({value} points [{low}, {high}], p = {self.p:.2g} over test images{runs})"
        )

    @property
    def significant(self) -> bool:
        """Whether 0 is outside the interval and p below 5 %; each alone errs too often."""
        return self.p < LEVEL and not self.low <= 0 <= self.high

    @property
    def decided(self) -> bool:
        """`significant`, its new name; this one leaves with the next version."""
        return self.significant

    @property
    def verdict(self) -> str:
        """Whether it is significant, in words; where the interval excludes 0 and it is not, why."""
        if self.significant:
            return "significant"
        if self.low <= 0 <= self.high:
            return "not significant"
        return f"not significant by the randomisation test, p = {self.p:.2g}"


def difference(
    first: ArrayLike,
    second: ArrayLike,
    labels: ArrayLike,
    num_classes: int,
    *,
    answers: int = 1,
    comparisons: int = 1,
) -> Difference:
    """Compare two masks on the same images, or several pairs of masks, one pair per seed.

    With a_ri and b_ri whether run r of the first and of the second side gets image i right, d_i =
    mean_r(a_ri - b_ri):

        value = (1/K) sum_c (1/n_c) sum_{i: y_i = c} d_i        over the K classes with images

    The interval is `mean_value_limits` of the d_i of each class. p is that of a randomisation test,
    which flips the sign of each d_i with probability 1/2: McNemar's exact test for one pair of runs
    and classes of one size, otherwise sampled, (1 + k)/(1 + DRAWS) with k draws at least as far
    from 0 as the value.

    With one pair of runs the interval covers the choice of the test images only: it tells which of
    two models is better, not which method. With R >= 2 pairs it covers the training seeds too: an
    end at distance q from the value moves to sqrt(q^2 + (t SE)^2), with SE the standard error of
    the R differences and t the Student quantile at R - 1 degrees of freedom: 12.7 for two seeds, so
    use three or more.

    Args:
        first: whether each image is classified correctly, (N,) or (R, N).
        second: the same for the other side; its run r is compared with run r of `first`.
        labels: true classes of the images, (N,), 0 to num_classes - 1.
        num_classes: number of classes C.
        answers: what a_ri and b_ri count up to, if each is the number of correct answers to several
            questions.
        comparisons: number k of differences whose intervals shall cover together with 95 %: each
            errs with 5 %/k (Bonferroni).

    Raises:
        ValueError: masks of different shapes, without images, or with other values.

    Source: Fisher, "The Design of Experiments", 1935, section 21; Phipson, Smyth, Statistical
    Applications in Genetics and Molecular Biology 9, 2010.

    Example:
        >>> from taet.metrics import difference
        >>> first, second = [True] * 90 + [False] * 10, [True] * 60 + [False] * 40
        >>> found = difference(first, second, labels=[0] * 100, num_classes=1)
        >>> round(found.value, 2), found.significant
        (0.3, True)
    """
    left = np.atleast_2d(np.asarray(first, dtype=int))
    right = np.atleast_2d(np.asarray(second, dtype=int))
    classes = np.asarray(labels, dtype=np.int64)
    _check_masks(left, right, classes, answers)
    runs, level = len(left), LEVEL / comparisons
    counts = _gains(left, right, classes, num_classes, answers)
    gains = np.arange(-runs * answers, runs * answers + 1) / runs
    value = _balanced(counts, gains, counts.sum(1))
    low, high = mean_value_limits(counts, gains, 1 - level)
    low, high = np.minimum(low, value), np.maximum(high, value)  # the value is rounded
    standard_error = math.nan
    if runs > 1:
        values = [
            _of_pair(a, b, classes, num_classes, answers) for a, b in zip(left, right, strict=True)
        ]
        standard_error = float(np.std(values, ddof=1) / math.sqrt(runs))
        of_seeds = student_quantile(1 - level, runs - 1) * standard_error
        low = value - np.hypot(value - low, of_seeds)
        high = value + np.hypot(high - value, of_seeds)
    return Difference(
        float(value),
        max(float(low), -answers),
        min(float(high), answers),
        _p_value(counts, gains, value),
        runs,
        standard_error,
    )


def _check_masks(left: Ints, right: Ints, labels: Ints, answers: int) -> None:
    """Refuse masks of different shapes, without images, or with other values."""
    if left.shape != right.shape or left.shape[1:] != labels.shape or not left.size:
        raise ValueError(
            f"masks: got {left.shape} and {right.shape}; allowed: (runs, {len(labels)}) on both "
            "sides"
        )
    if min(left.min(), right.min()) < 0 or max(left.max(), right.max()) > answers:
        raise ValueError(f"masks: allowed: from 0 to {answers}, the number of answers of an image")


def _of_pair(left: Ints, right: Ints, labels: Ints, num_classes: int, answers: int) -> Floats:
    """Return the difference of one pair of runs, (N,) each."""
    counts = _gains(left[None], right[None], labels, num_classes, answers)
    return _balanced(counts, np.arange(-answers, answers + 1.0), counts.sum(1))


def _gains(left: Ints, right: Ints, labels: Ints, num_classes: int, answers: int) -> Ints:
    """Return, for each class with images, a histogram of the correct answers of all runs, left
    minus right, (K, W)."""
    most = len(left) * answers
    width = 2 * most + 1
    gain = (left - right).sum(0) + most
    cells = labels * width + gain
    counts = np.bincount(cells, minlength=num_classes * width).reshape(num_classes, width)
    return counts[counts.any(1)]


def _balanced(counts: Ints, gains: Floats, total: Ints) -> Floats:
    """Return the mean over classes of the mean gain of each class, given counts (..., K, W) of
    gains (W,)."""
    means: Floats = (counts @ gains / total).mean(-1)
    # equal values, and 0, then do not differ by rounding; + 0.0 turns -0.0 into 0
    return means.round(12) + 0.0


def _draws_for(changed: Ints) -> np.random.Generator:
    """Return a random generator whose seed is the content that is tested.

    So a test gives the same p each time, and a chance deviation of one set of draws does not enter
    every p alike.
    """
    content = np.ascontiguousarray(changed, "<i8").tobytes()
    seed = np.frombuffer(hashlib.sha256(content).digest(), "<u4")
    return np.random.default_rng(seed.tolist())


def _p_value(counts: Ints, gains: Floats, value: Floats) -> float:
    """Return the p-value of the randomisation test in `difference`."""
    most = len(gains) // 2
    total = counts.sum(1)
    better, worse = counts[:, most + 1 :], counts[:, most - 1 :: -1]
    if most == 1 and (total == total[0]).all():
        return mcnemar(int(better.sum()), int(worse.sum()))
    changed = better + worse
    draws = _draws_for(changed)
    at_once = max(1, DRAWN_AT_ONCE // changed.size)
    beyond = 0
    for first in range(0, DRAWS, at_once):
        number = min(at_once, DRAWS - first)
        heads = draws.binomial(changed, 0.5, size=(number, *changed.shape))
        signs = 2 * heads - changed
        null = _balanced(signs, gains[most + 1 :], total)
        beyond += int((np.abs(null) >= abs(value)).sum())
    return (1 + beyond) / (1 + DRAWS)


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of McNemar's exact test, in [0, 1].

    It tests whether two classifiers are equally accurate.

        p = min(1, 2 sum_{i <= min(b, c)} binom(m, i) / 2^m),   m = b + c

    with b and c the images that only one classifies correctly. Source: McNemar, Psychometrika 12,
    1947; exact form.
    """
    from scipy import special

    fewer = min(only_first, only_second)
    one_sided = float(special.bdtr(fewer, only_first + only_second, 0.5))
    return min(1.0, 2 * one_sided)
