"""Intervals of means over classes, and tests and intervals of the paired difference of two
models."""

import functools
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from taet.errors import UserError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LEVEL = 0.05
DRAWS = 10_000  # of the signs in a randomisation test: p = 2.5 % is known to within 0.3 points
# images with the pooled recall, added to each class: a single own image shows nothing of the
# variance
PSEUDO = 2.0
# largest shift of a logit in the search for the ends: at 60 a recall differs from 0 or 1 by 1e-26
RANGE = 60.0
# grids and their points: they end in a cell of 2 RANGE / 16^4 = 0.002, where the tail is linear
POINTS, ROUNDS = 17, 4


def counts_of(correct: ArrayLike, total: ArrayLike) -> tuple[Floats, Floats]:
    """Return the counts as floats.

    A mask, or predictions and labels, would give wrong accuracies: they are a `UserError`.
    """
    right, count = np.asarray(correct, dtype=np.float64), np.asarray(total, dtype=np.float64)
    if np.asarray(correct).dtype == bool or (right > count).any():
        raise UserError(
            "correct: got a mask, or more than the total; allowed: counts by class, from "
            "class_counts"
        )
    return right, count


def wilson_interval(
    correct: ArrayLike, total: ArrayLike, level: float = 0.95
) -> tuple[Floats, Floats]:
    """Return Wilson's score interval `(low, high)` of a proportion.

    With p = correct/total, n = total and z the normal quantile of (1 + level)/2:

        (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)

    `correct` and `total` are counts of one shape, for example (C,) for all classes at once; both
    ends have that shape, in [0, 1], and are nan where the total is 0. A mask in place of counts is
    a `UserError`. Source: Wilson, JASA 22, 1927.
    """
    z2 = NormalDist().inv_cdf((1 + level) / 2) ** 2
    right, count = counts_of(correct, total)
    n = np.where(count > 0, count, np.nan)
    p = right / n
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n**2))) / (1 + z2 / n)
    # At p = 0 and p = 1 the exact bounds are 0 and 1; rounding must not push them past p.
    return np.clip(centre - half, 0, p), np.clip(centre + half, p, 1)


def exact_interval(
    correct: ArrayLike, total: ArrayLike, level: float = 0.95
) -> tuple[Floats, Floats]:
    """Return the exact interval `(low, high)` of Clopper and Pearson for a proportion.

    It is never too narrow, where Wilson's covers less than `level` near 0 and 1, by far at the
    levels that many classes together need. Shapes, ranges and errors are those of
    `wilson_interval`. Source: Clopper, Pearson, Biometrika 26, 1934.
    """
    from scipy import special

    (k, n), tail = counts_of(correct, total), (1 - level) / 2
    n = np.where(n > 0, n, np.nan)
    low, high = special.betaincinv(k, n - k + 1, tail), special.betaincinv(k + 1, n - k, 1 - tail)
    return np.where(k == 0, 0 * n, low), np.where(k == n, 1.0, high)


def balanced_interval(
    correct: ArrayLike, total: ArrayLike, level: float = 0.95
) -> tuple[float, float]:
    """Return the interval `(low, high)` of the balanced accuracy, in [0, 1].

    It is `mean_recall_limits` of the classes with images; without any, both ends are nan. `correct`
    and `total` are counts by class, (C,); a mask is a `UserError`. The interval covers the true
    mean recall also with 1 to 10 images in a class (`performance/coverage.py`), but not where a
    class of one or two images beside large ones is always right or always wrong.
    """
    right, count = (of.ravel().astype(np.int64) for of in counts_of(correct, total))
    known = count > 0
    return (
        _balanced_interval(right[known].tobytes(), count[known].tobytes(), level)
        if known.any()
        else (math.nan,) * 2
    )


# the intervals of a thousand cards, which are read more than once
@functools.lru_cache(maxsize=2**14)
def _balanced_interval(correct: bytes, total: bytes, level: float) -> tuple[float, float]:
    low, high = mean_recall_limits(
        np.frombuffer(correct, np.int64), np.frombuffer(total, np.int64), level
    )
    return float(low), float(high)


def mean_recall_limits(
    correct: ArrayLike, total: ArrayLike, level: float = 0.95
) -> tuple[Floats, Floats]:
    """Return the interval `(low, high)` of the mean recall (1/C) sum_c p_c.

    `correct` is (..., C), and both ends have its shape (...). With k_c ~ Bin(n_c, p_c) correct of
    n_c > 0 images, total (C,), the ends are `mean_value_limits` of the values 0 and 1. For C = 1
    this is Clopper and Pearson's interval, and nearly so for classes of one image each: sums of
    Bernoulli variables scatter most where their p are equal (Hoeffding, Annals of Mathematical
    Statistics 27, 1956).
    """
    right, count = np.asarray(correct, dtype=np.float64), np.asarray(total, dtype=np.float64)
    return mean_value_limits(np.stack([count - right, right], -1), [0, 1], level)


def mean_value_limits(
    counts: ArrayLike, values: ArrayLike, level: float = 0.95
) -> tuple[Floats, Floats]:
    """Return the interval `(low, high)` of a mean over classes, (1/C) sum_c E[v | class c].

    The counts (..., C, V) say how often each class has each of the values (V,), which ascend: k_cv
    of the n_c > 0 images of class c have the value v, with the same n_c throughout. The ends are
    the means theta of distributions at which the observed mean lies at a tail of (1 - level)/2, as
    in the interval of Clopper and Pearson for a single class:

        p_cv(s) = r_cv exp(s v min(n)/n_c) / sum_w r_cw exp(s w min(n)/n_c)
        r_cv = (k_cv + 2 pi_v)/(n_c + 2)

    and theta(s) = (1/C) sum_cv v p_cv(s). The curve p(s) moves each class in proportion to what its
    images leave open, so that theta changes at the least cost in likelihood. pi is the pooled
    distribution, weighted by 1/n_c as the variance is, and counted as one of m images:

        m = (sum_c 1/n_c)^2 / sum_c 1/n_c^2
        pi_v = (m sum_c (k_cv/n_c)/n_c / sum_c 1/n_c + 2/V) / (m + 2)

    The mean then has the variance sum_c f_c var_c/n_c / C^2, f_c = 1/(1 - (1 - 1/C) n_c/(n_c +
    2)^2), which undoes the scatter of r_c, and f_c likewise in its third moment. Its distribution
    is that of a + b X, X ~ Bin(M, q), with the same mean, variance and skewness; b is the root mean
    square of the steps 1/(C n_c), by variance, or more.

    Source: Clopper, Pearson, Biometrika 26, 1934; Stein's least favourable curve, 3rd Berkeley
    Symposium, 1956; for tilting Efron, Canadian Journal of Statistics 9, 1981; the rest is ours.
    """
    from scipy import special  # imported here to keep the command line fast

    held, value = np.asarray(counts, dtype=np.float64), np.asarray(values, dtype=np.float64)
    count = held.reshape(-1, *held.shape[-2:])[0].sum(-1)
    weights = 1 / count
    shares = held / count[:, None]
    mean = (shares @ value).mean(-1)
    images = weights.sum() ** 2 / (weights**2).sum()
    pooled = images * np.moveaxis(shares, -1, -2) @ weights / weights.sum()
    pooled = (pooled + PSEUDO / len(value)) / (images + PSEUDO)
    base = np.log((held + PSEUDO * pooled[..., None, :]) / (count + PSEUDO)[:, None])[
        ..., None, :, :
    ]
    share = (count.min() / count)[:, None]
    classes, step = len(count), 1 / (len(count) * count)
    widened = 1 / (1 - (1 - 1 / classes) * count / (count + PSEUDO) ** 2)
    squares, cubes = (step**power * count * widened for power in (2, 3))

    def at(shift: Floats) -> tuple[Floats, Floats]:
        """Return theta and the probability of a mean beyond the observed one, at some shifts.

        Shifts and both results are (2, ..., G).
        The first of the two rows is for means at least as large, the second at most as large.
        """
        tilted = base + shift[..., None, None] * share * value
        p = np.exp(tilted - tilted.max(-1, keepdims=True))
        p = np.maximum(p / p.sum(-1, keepdims=True), 1e-12)
        centre = p @ value
        deviation = value - centre[..., None]
        theta = centre.mean(-1)
        parts = squares * (p * deviation**2).sum(-1)
        variance = parts.sum(-1)
        skewness = (cubes * (p * deviation**3).sum(-1)).sum(-1) / variance
        b = np.maximum(np.sqrt(parts @ step**2 / variance), np.abs(skewness))
        q = np.clip((1 - skewness / b) / 2, 1e-12, 1 - 1e-12)
        trials = variance / (b**2 * q * (1 - q))
        hits = (mean[..., None] - theta) / b + trials * q
        # At most x of M are right where at least M - x are wrong.
        hits[1], q[1] = trials[1] - hits[1], 1 - q[1]
        inner = np.clip(hits, 1e-12, trials + 1 - 1e-12)
        beyond = special.betainc(inner, trials - inner + 1, q)
        return theta, np.where(hits <= 0, 1.0, np.where(hits >= trials + 1, 0.0, beyond))

    low, high = _ends(at, mean, (1 - level) / 2)
    return np.where(mean <= value[0], value[0], low), np.where(mean >= value[-1], value[-1], high)


def _ends(
    at: Callable[[Floats], tuple[Floats, Floats]], mean: Floats, tail: float
) -> tuple[Floats, Floats]:
    """Return the theta below and above the observed mean where the probability of `at` is `tail`.

    A grid of points is laid over the range, then over the cell of the grid in which the probability
    passes `tail`, and so on; within the last cell it is interpolated linearly.
    """
    # axis 0: the lower and the upper end
    low, high = np.full((2, *mean.shape), -RANGE), np.full((2, *mean.shape), RANGE)
    for _ in range(ROUNDS):
        spacing = (high - low) / (POINTS - 1)
        grid = low[..., None] + spacing[..., None] * np.arange(POINTS)
        _, tails = at(grid)
        is_before = np.stack([tails[0] < tail, tails[1] >= tail])
        points_before = np.cumprod(is_before, -1).sum(-1)
        left = np.clip(points_before - 1, 0, POINTS - 2)
        low, high = low + spacing * left, low + spacing * (left + 1)
    at_left = np.take_along_axis(tails, left[..., None], -1)[..., 0]
    at_right = np.take_along_axis(tails, left[..., None] + 1, -1)[..., 0]
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.nan_to_num((tail - at_left) / (at_right - at_left), nan=0.5).clip(0, 1)
    thetas = low + (high - low) * share
    found, _ = at(thetas[..., None])
    below, above = found[..., 0]
    return np.minimum(below, mean), np.maximum(above, mean)


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of McNemar's exact test, in [0, 1].

    It tests whether two classifiers are equally accurate.

        p = min(1, 2 sum_{i <= min(b, c)} binom(m, i) / 2^m),   m = b + c

    with b and c the images that only one classifies correctly. Source: McNemar, Psychometrika 12,
    1947; exact form.
    """
    from scipy import special

    return min(
        1.0, 2 * float(special.bdtr(min(only_first, only_second), only_first + only_second, 0.5))
    )


def student_quantile(level: float, degrees: int) -> float:
    """Return the two-sided quantile of Student's t distribution.

    It is 4.303, for example, for level 0.95 and 2 degrees of freedom.
    """
    from scipy import special

    return float(special.stdtrit(degrees, (1 + level) / 2))


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
    """
    left, right = (
        np.atleast_2d(np.asarray(first, dtype=int)),
        np.atleast_2d(np.asarray(second, dtype=int)),
    )
    classes = np.asarray(labels, dtype=np.int64)
    if left.shape != right.shape or left.shape[1:] != classes.shape or not left.size:
        raise ValueError(
            f"masks: got {left.shape} and {right.shape}; allowed: (runs, {len(classes)}) on both "
            "sides"
        )
    if min(left.min(), right.min()) < 0 or max(left.max(), right.max()) > answers:
        raise ValueError(f"masks: allowed: from 0 to {answers}, the number of answers of an image")
    runs, level = len(left), LEVEL / comparisons
    counts = _gains(left, right, classes, num_classes, answers)
    total = counts.sum(1)
    gains = np.arange(-runs * answers, runs * answers + 1) / runs
    value = _balanced(counts, gains, total)
    low, high = mean_value_limits(counts, gains, 1 - level)
    low, high = np.minimum(low, value), np.maximum(high, value)  # the value is rounded
    error = math.nan
    if runs > 1:
        each = (
            _gains(a[None], b[None], classes, num_classes, answers)
            for a, b in zip(left, right, strict=True)
        )
        values = [_balanced(run, np.arange(-answers, answers + 1.0), total) for run in each]
        error = float(np.std(values, ddof=1) / math.sqrt(runs))
        seeds = student_quantile(1 - level, runs - 1) * error
        low, high = value - np.hypot(value - low, seeds), value + np.hypot(high - value, seeds)
    p = _p_value(counts, gains, value)
    return Difference(
        float(value), max(float(low), -answers), min(float(high), answers), p, runs, error
    )


def _gains(left: Ints, right: Ints, labels: Ints, num_classes: int, answers: int) -> Ints:
    """Return, for each class with images, a histogram of the correct answers of all runs, left
    minus right, (K, W)."""
    most = len(left) * answers
    width, gain = 2 * most + 1, (left - right).sum(0) + most
    counts = np.bincount(labels * width + gain, minlength=num_classes * width).reshape(
        num_classes, width
    )
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
    most, total = len(gains) // 2, counts.sum(1)
    better, worse = counts[:, most + 1 :], counts[:, most - 1 :: -1]
    if most == 1 and (total == total[0]).all():
        return mcnemar(int(better.sum()), int(worse.sum()))
    changed = better + worse
    heads = _draws_for(changed).binomial(changed, 0.5, size=(DRAWS, *changed.shape))
    signs = 2 * heads - changed
    null = _balanced(signs, gains[most + 1 :], total)
    beyond = int((np.abs(null) >= abs(value)).sum())
    return (1 + beyond) / (1 + DRAWS)
