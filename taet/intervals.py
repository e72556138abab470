"""The interval of a mean over classes, of proportions or differences, also of few images in many classes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

PSEUDO = 2.0
"""Images that each class borrows from the pooled recall: one image of its own says nothing of its variance."""
RANGE = 60.0
"""Largest shift of a logit in the search for the ends: at 60 a recall differs from 0 or 1 by 1e-26."""
POINTS, ROUNDS = 17, 4
"""A search by ROUNDS grids of POINTS ends in a cell of 2 RANGE / 16^4 = 0.002, where the tail is nearly linear."""


def mean_recall_limits(correct: ArrayLike, total: ArrayLike, level: float = 0.95) -> tuple[Floats, Floats]:
    """Return the interval `(low, high)` of the mean recall (1/C) sum_c p_c, in the shape (...) of `correct` (..., C).

    With k_c ~ Bin(n_c, p_c) correct of n_c > 0 images, total (C,): `mean_value_limits` of the values 0 and 1. For
    C = 1 this is Clopper and Pearson's interval, and nearly so for classes of one image each: sums of Bernoulli
    variables scatter most where their p are equal (Hoeffding). `benchmarks/coverage.py` simulates how often it covers.

    Source: Clopper, Pearson, Biometrika 26, 1934; Hoeffding, Annals of Mathematical Statistics 27, 1956; the rest as
    `mean_value_limits`.
    """
    right, count = np.asarray(correct, dtype=np.float64), np.asarray(total, dtype=np.float64)
    return mean_value_limits(np.stack([count - right, right], -1), [0, 1], level)


def mean_value_limits(counts: ArrayLike, values: ArrayLike, level: float = 0.95) -> tuple[Floats, Floats]:
    """Return the interval `(low, high)` of (1/C) sum_c E[v | class c] from how often each class has each value.

    With k_cv of the n_c > 0 images of class c at the value v, counts (..., C, V) with the same n_c throughout and
    values (V,) ascending, the ends are the means theta of distributions at which the observed mean lies at a tail of
    (1 - level)/2, as in the interval of Clopper and Pearson for a single class:

        p_cv(s) = r_cv exp(s v min(n)/n_c) / sum_w r_cw exp(s w min(n)/n_c),   r_cv = (k_cv + 2 pi_v)/(n_c + 2)

    and theta(s) = (1/C) sum_cv v p_cv(s). The curve p(s) moves each class in proportion to what its images leave open,
    so that theta changes at the least cost in likelihood. pi is the pooled distribution, weighted by 1/n_c as the
    variance is, and counted as one of

        m = (sum_c 1/n_c)^2 / sum_c 1/n_c^2   images:   pi_v = (m sum_c (k_cv/n_c)/n_c / sum_c 1/n_c + 2/V) / (m + 2)

    The mean then has the variance sum_c f_c var_c/n_c / C^2, where f_c = 1/(1 - (1 - 1/C) n_c/(n_c + 2)^2) undoes the
    scatter of r_c. Its distribution is that of a + b X, X ~ Bin(M, q), with the same mean, variance and skewness, and
    with b the root of the mean square of the steps 1/(C n_c), by variance, or more where the skewness asks for it.

    Source: Clopper, Pearson, Biometrika 26, 1934; Stein's least favourable curve, 3rd Berkeley Symposium, 1956; Efron,
    "Nonparametric standard errors and confidence intervals", Canadian Journal of Statistics 9, 1981, for tilting; the
    rest is ours.
    """
    held, value = np.asarray(counts, dtype=np.float64), np.asarray(values, dtype=np.float64)
    count = held.reshape(-1, *held.shape[-2:])[0].sum(-1)
    weights = 1 / count
    shares = held / count[:, None]
    mean = (shares @ value).mean(-1)
    images = weights.sum() ** 2 / (weights**2).sum()
    pooled = images * np.moveaxis(shares, -1, -2) @ weights / weights.sum()
    pooled = (pooled + PSEUDO / len(value)) / (images + PSEUDO)
    base = np.log((held + PSEUDO * pooled[..., None, :]) / (count + PSEUDO)[:, None])[..., None, :, :]
    share = (count.min() / count)[:, None]

    def at(shift: Floats) -> tuple[Floats, Floats]:
        """Return theta and the chance of a mean at least (0) or at most (1) as observed; shift (2, ..., G)."""
        slopes = base + shift[..., None, None] * share * value
        p = np.exp(slopes - slopes.max(-1, keepdims=True))
        p = np.maximum(p / p.sum(-1, keepdims=True), 1e-12)
        return _tails(p, value, count, mean)

    return _ends(at, mean, (1 - level) / 2, (float(value[0]), float(value[-1])))


def _tails(p: Floats, value: Floats, count: Floats, mean: Floats) -> tuple[Floats, Floats]:
    """Return theta and the chance of a mean at least (0) or at most (1) as observed, under p (2, ..., G, C, V)."""
    from scipy import special  # imported here to keep the command line fast

    classes, step = len(count), 1 / (len(count) * count)
    widened = 1 / (1 - (1 - 1 / classes) * count / (count + PSEUDO) ** 2)
    centre = p @ value
    apart = value - centre[..., None]
    theta = centre.mean(-1)
    parts = step**2 * count * widened * (p * apart**2).sum(-1)
    third = step**3 * count * widened * (p * apart**3).sum(-1)
    variance = parts.sum(-1)
    lean = third.sum(-1) / variance
    lump = np.maximum(np.sqrt(parts @ step**2 / variance), np.abs(lean))
    chance = np.clip((1 - lean / lump) / 2, 1e-12, 1 - 1e-12)
    trials = variance / (lump**2 * chance * (1 - chance))
    hits = (mean[..., None] - theta) / lump + trials * chance
    # At most x of M are right where at least M - x are wrong.
    found = np.stack([hits[0], trials[1] - hits[1]])
    inner = np.clip(found, 1e-12, trials + 1 - 1e-12)
    beyond = special.betainc(inner, trials - inner + 1, np.stack([chance[0], 1 - chance[1]]))
    return theta, np.where(found <= 0, 1.0, np.where(found >= trials + 1, 0.0, beyond))


def _ends(
    at: Callable[[Floats], tuple[Floats, Floats]], mean: Floats, tail: float, within: tuple[float, float]
) -> tuple[Floats, Floats]:
    """Return theta where the chance of `at` is `tail`, below and above the observed mean."""
    low, high = np.full((2, *mean.shape), -RANGE), np.full((2, *mean.shape), RANGE)  # of the lower and the upper end
    for _ in range(ROUNDS):
        shifts = low[..., None] + (high - low)[..., None] * np.linspace(0, 1, POINTS)
        _, chances = at(shifts)
        before = np.stack([chances[0] < tail, chances[1] >= tail])
        last = np.clip(np.cumprod(before, -1).sum(-1) - 1, 0, POINTS - 2)[..., None]
        low, high = (np.take_along_axis(shifts, last + one, -1)[..., 0] for one in (0, 1))
        first, second = (np.take_along_axis(chances, last + one, -1)[..., 0] for one in (0, 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        place = np.nan_to_num((tail - first) / (second - first), nan=0.5).clip(0, 1)
    below, above = at((low + (high - low) * place)[..., None])[0][..., 0]
    least, most = within
    low, high = np.minimum(below, mean), np.maximum(above, mean)
    return np.where(mean <= least, least, low), np.where(mean >= most, most, high)
