"""Paired comparison of two models, or two methods, on the same test images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from taet import metrics
from taet.intervals import mean_value_limits

LEVEL = 0.05
DRAWS = 10_000
"""Of the signs in a randomisation test: p = 2.5 % is known to within 0.3 points, 1.96 sqrt(.025 * .975 / DRAWS)."""


@dataclass(frozen=True, repr=False)
class Difference:
    """Balanced accuracy of the first side minus that of the second on the same test images, in [-1, 1].

    Of several answers an image (`difference`) it lies between - answers and + answers.
    """

    value: float
    low: float
    """Lower end of the interval, of 95 % for one comparison."""
    high: float
    p: float
    """Probability of a difference at least as large if the two sides were exchangeable, image by image. It is about the
    choice of test images, with the trained weights as they are, also with several pairs of runs."""
    runs: int = 1
    """Pairs of runs, of which it is the mean."""
    standard_error: float = math.nan
    """Over the pairs of runs; nan with one pair."""

    def __repr__(self) -> str:
        ends = f"[{100 * self.low:+.1f}, {100 * self.high:+.1f}]"
        runs = f"; interval over {self.runs} pairs of runs as well" if self.runs > 1 else ""
        return f"Difference({100 * self.value:+.1f} points {ends}, p = {self.p:.2g} over test images{runs})"

    @property
    def decided(self) -> bool:
        """Whether the sides can be told apart: 0 is outside the interval, and p is below 5 %.

        Each condition alone decides too early: the interval if only four images differ, all in one direction (p is
        then 12.5 %), and p, which covers the images only, if the seeds vary much.
        """
        return self.p < LEVEL and not self.low <= 0 <= self.high


def difference(
    first: ArrayLike,
    second: ArrayLike,
    labels: ArrayLike,
    num_classes: int,
    *,
    answers: int = 1,
    comparisons: int = 1,
    draws: int = DRAWS,
    seed: int = 0,
) -> Difference:
    """Compare two masks on the same images, or several pairs of masks, one pair per seed.

    With a_ri and b_ri whether run r of the first and of the second side gets image i right, d_i = mean_r(a_ri - b_ri):

        value = (1/K) sum_c (1/n_c) sum_{i: y_i = c} d_i        over the K classes with images

    The interval inverts tests, as Clopper and Pearson's does, with the d_i of each class as its values
    (`taet.intervals.mean_value_limits`). It covers also with one image in each class, where a bootstrap does not, and
    has a width where no image differs; `benchmarks/coverage.py --paired` simulates it. p is that of a randomisation
    test, which flips the sign of each d_i with probability 1/2. For one pair of runs and classes of equal size this is
    McNemar's exact test; otherwise it is sampled, and p is (1 + k)/(1 + draws) with k draws at least as far from 0 as
    the value.

    With one pair of runs the interval covers the choice of the test images only: it tells which of these two models is
    better, not which method, since another seed may give another answer. With R >= 2 pairs it covers the training seeds
    too: an end at distance q from the value moves to sqrt(q^2 + (t SE)^2), with SE the standard error of the R
    differences and t the Student quantile at R - 1 degrees of freedom (`metrics.balanced_interval` combines independent
    parts in the same way). For two seeds t is 12.7, so use three or more.

    Args:
        first: (N,) or (R, N), whether each image is classified correctly.
        second: the same shape; its run r is compared with run r of `first`.
        labels: (N,) true classes.
        num_classes: C.
        answers: what a_ri and b_ri count up to, if each is the number of correct answers to several questions about
            image i; the value is then in [-answers, answers].
        comparisons: k differences whose intervals shall cover together with 95 %: each errs with 5 %/k (Bonferroni).
        draws: number of draws of the signs.
        seed: seed of these draws.

    Source: Fisher, "The Design of
    Experiments", 1935, section 21; Phipson, Smyth, "Permutation p-values should never be zero", Statistical
    Applications in Genetics and Molecular Biology 9, 2010.
    """
    left, right = np.atleast_2d(np.asarray(first, dtype=int)), np.atleast_2d(np.asarray(second, dtype=int))
    classes = np.asarray(labels, dtype=np.int64)
    if left.shape != right.shape or left.shape[1:] != classes.shape or not left.size:
        raise ValueError(f"masks: got {left.shape} and {right.shape}; allowed: (runs, {len(classes)}) on both sides")
    if min(left.min(), right.min()) < 0 or max(left.max(), right.max()) > answers:
        raise ValueError(f"masks: allowed: from 0 to {answers}, the number of answers of an image")
    runs, generator, level = len(left), np.random.default_rng(seed), LEVEL / comparisons
    counts = _gains(left, right, classes, num_classes, answers)
    total = counts.sum(1)
    gains = np.arange(-runs * answers, runs * answers + 1) / runs
    value = _balanced(counts, gains, total)
    low, high = mean_value_limits(counts, gains, 1 - level)
    low, high = np.minimum(low, value), np.maximum(high, value)  # which is rounded
    each = (_gains(a[None], b[None], classes, num_classes, answers) for a, b in zip(left, right, strict=True))
    of_one = np.arange(-answers, answers + 1.0)
    _, error = metrics.mean_and_standard_error([_balanced(one, of_one, total) for one in each])
    if runs > 1:
        seeds = metrics.student_quantile(1 - level, runs - 1) * error
        low, high = value - np.hypot(value - low, seeds), value + np.hypot(high - value, seeds)
    return Difference(
        value=float(value),
        low=max(float(low), -answers),
        high=min(float(high), answers),
        p=_p_value(counts, gains, value, draws, generator),
        runs=runs,
        standard_error=float(error),
    )


def _gains(
    left: metrics.Ints, right: metrics.Ints, labels: metrics.Ints, num_classes: int, answers: int
) -> metrics.Ints:
    """Histogram per class of the images by the difference of correct answers of all runs, left minus right."""
    most = len(left) * answers
    width = 2 * most + 1
    gain = (left - right).sum(0) + most
    counts = np.bincount(labels * width + gain, minlength=num_classes * width).reshape(num_classes, width)
    return counts[counts.any(1)]


def _balanced(counts: metrics.Ints, gains: metrics.Floats, total: metrics.Ints) -> metrics.Floats:
    """Return the mean over classes of the mean gain of a class, over the last two axes of `counts`, (..., K, 2R+1)."""
    means: metrics.Floats = (counts @ gains / total).mean(-1)
    return means.round(12) + 0.0  # so that equal values, and 0, do not differ by rounding; + 0.0 turns -0.0 into 0


def _p_value(
    counts: metrics.Ints, gains: metrics.Floats, value: metrics.Floats, draws: int, generator: np.random.Generator
) -> float:
    most, total = len(gains) // 2, counts.sum(1)
    better, worse = counts[:, most + 1 :], counts[:, most - 1 :: -1]
    if most == 1 and (total == total[0]).all():
        return metrics.mcnemar(int(better.sum()), int(worse.sum()))
    changed = better + worse
    signs = 2 * generator.binomial(changed, 0.5, size=(draws, *changed.shape)) - changed
    null = _balanced(signs, gains[most + 1 :], total)
    beyond = int((np.abs(null) >= abs(value)).sum())
    return (1 + beyond) / (1 + draws)
