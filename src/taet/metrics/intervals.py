"""Intervals of proportions, and of the balanced accuracy."""

import functools
import math
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from taet.errors import UserError
from taet.metrics.mean_limits import Floats, mean_value_limits

Ints = NDArray[np.int64]


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

    Example:
        >>> from taet.metrics import wilson_interval
        >>> low, high = wilson_interval(90, 100)
        >>> round(float(low), 3), round(float(high), 3)
        (0.826, 0.945)
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

    Example:
        >>> from taet.metrics import exact_interval
        >>> low, high = exact_interval(90, 100)
        >>> round(float(low), 3), round(float(high), 3)
        (0.824, 0.951)
    """
    from scipy import special

    k, n = counts_of(correct, total)
    n = np.where(n > 0, n, np.nan)
    tail = (1 - level) / 2
    low = special.betaincinv(k, n - k + 1, tail)
    high = special.betaincinv(k + 1, n - k, 1 - tail)
    return np.where(k == 0, 0 * n, low), np.where(k == n, 1.0, high)


def balanced_interval(
    correct: ArrayLike, total: ArrayLike, level: float = 0.95
) -> tuple[float, float]:
    """Return the interval `(low, high)` of the balanced accuracy, in [0, 1].

    It is `mean_recall_limits` of the classes with images; without any, both ends are nan. `correct`
    and `total` are counts by class, (C,); a mask is a `UserError`. The interval covers the true
    mean recall also with 1 to 10 images in a class (`performance/coverage.py`), but not where a
    class of one or two images beside large ones is always right or always wrong.

    Example:
        >>> from taet.metrics import balanced_interval
        >>> low, high = balanced_interval([90, 40, 3], [100, 50, 10])
        >>> low < 0.6667 < high
        True
    """
    right, count = counts_of(correct, total)
    right = right.ravel().astype(np.int64)
    count = count.ravel().astype(np.int64)
    known = count > 0
    if not known.any():
        return math.nan, math.nan
    return _balanced_interval(right[known].tobytes(), count[known].tobytes(), level)


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


def student_quantile(level: float, degrees: int) -> float:
    """Return the two-sided quantile of Student's t distribution.

    It is 4.303, for example, for level 0.95 and 2 degrees of freedom.
    """
    from scipy import special

    return float(special.stdtrit(degrees, (1 + level) / 2))
