"""The interval of a mean over classes, from how often each class has each value."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

# images with the pooled recall, added to each class: a single own image shows nothing of the
# variance
PSEUDO = 2.0
# largest shift of a logit in the search for the ends: at 60 a recall differs from 0 or 1 by 1e-26
RANGE = 60.0
# grids and their points: they end in a cell of 2 RANGE / 16^4 = 0.002, where the tail is linear
POINTS, ROUNDS = 17, 4
MANY_CLASSES = 500  # of more, those with equal counts are computed once
SMALLEST = 1e-12  # probability: the logarithms and quotients of smaller ones would be lost


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
    frequency = np.asarray(counts, dtype=np.float64)
    value = np.asarray(values, dtype=np.float64)
    curve = _curve(frequency, value)
    low, high = _ends(curve, (1 - level) / 2)
    mean = curve.mean
    return np.where(mean <= value[0], value[0], low), np.where(mean >= value[-1], value[-1], high)


@dataclass(frozen=True)
class _Curve:
    """The distributions p(s) of `mean_value_limits`, and the moments of the mean under them."""

    value: Floats
    """(V,)."""
    mean: Floats
    """(...): observed."""
    log_r: Floats
    """(..., 1, C, V): logarithms of r, with an axis for the shifts."""
    share: Floats
    """(C, 1): min(n)/n_c."""
    step: Floats
    """(C,): by how much one image moves the mean, 1/(C n_c)."""
    squares: Floats
    """(C,): weights of the classes in the variance of the mean."""
    cubes: Floats
    """(C,): weights of the classes in its third moment."""
    repeats: Floats
    """(C,): how many classes have these counts."""
    classes: int
    """All classes, with their repetitions."""

    def at(self, shift: Floats) -> tuple[Floats, Floats]:
        """Return theta and the probability of a mean beyond the observed one, at some shifts.

        Shifts and both results are (2, ..., G).
        The first of the two rows is for means at least as large, the second at most as large.
        """
        from scipy import special  # imported here to keep the command line fast

        p = self._distributions(shift)
        centre = p @ self.value
        deviation = self.value - centre[..., None]
        theta = (self.repeats * centre).sum(-1) / self.classes
        variances = self.squares * (p * deviation**2).sum(-1)
        variance = variances.sum(-1)
        skewness = (self.cubes * (p * deviation**3).sum(-1)).sum(-1) / variance
        b = np.maximum(np.sqrt(variances @ self.step**2 / variance), np.abs(skewness))
        q = np.clip((1 - skewness / b) / 2, SMALLEST, 1 - SMALLEST)
        trials = variance / (b**2 * q * (1 - q))
        hits = (self.mean[..., None] - theta) / b + trials * q
        # At most x of M are right where at least M - x are wrong.
        hits[1], q[1] = trials[1] - hits[1], 1 - q[1]
        inside = np.clip(hits, SMALLEST, trials + 1 - SMALLEST)
        beyond = special.betainc(inside, trials - inside + 1, q)
        beyond = np.where(hits >= trials + 1, 0.0, beyond)
        return theta, np.where(hits <= 0, 1.0, beyond)

    def _distributions(self, shift: Floats) -> Floats:
        """Return p(s), (2, ..., G, C, V)."""
        tilted = self.log_r + shift[..., None, None] * self.share * self.value
        p = np.exp(tilted - tilted.max(-1, keepdims=True))
        return np.maximum(p / p.sum(-1, keepdims=True), SMALLEST)


def _curve(frequency: Floats, value: Floats) -> _Curve:
    """Return the curve through the observed distributions, (..., C, V)."""
    classes = frequency.shape[-2]
    repeats = np.ones(classes)
    if frequency.ndim == 2 and classes > MANY_CLASSES:
        frequency, numbers = np.unique(frequency, axis=0, return_counts=True)
        repeats = numbers.astype(np.float64)
    count = frequency.reshape(-1, *frequency.shape[-2:])[0].sum(-1)
    shares = frequency / count[:, None]
    pooled = _pooled(shares, 1 / count, repeats)
    r = (frequency + PSEUDO * pooled[..., None, :]) / (count + PSEUDO)[:, None]
    step = 1 / (classes * count)
    widened = 1 / (1 - (1 - 1 / classes) * count / (count + PSEUDO) ** 2)
    return _Curve(
        value,
        mean=(repeats * (shares @ value)).sum(-1) / classes,
        log_r=np.log(r)[..., None, :, :],
        share=(count.min() / count)[:, None],
        step=step,
        squares=step**2 * count * widened * repeats,
        cubes=step**3 * count * widened * repeats,
        repeats=repeats,
        classes=classes,
    )


def _pooled(shares: Floats, inverse: Floats, repeats: Floats) -> Floats:
    """Return the distribution pi, (..., V), of the classes together, weighted by 1/n_c, (C,)."""
    weights = repeats * inverse
    images = weights.sum() ** 2 / (weights * inverse).sum()
    counted = images * np.moveaxis(shares, -1, -2) @ weights / weights.sum()
    return (counted + PSEUDO / shares.shape[-1]) / (images + PSEUDO)


def _ends(curve: _Curve, tail: float) -> tuple[Floats, Floats]:
    """Return the theta below and above the observed mean where the probability beyond is `tail`.

    A grid of points is laid over the range, then over the cell of the grid in which the probability
    passes `tail`, and so on; within the last cell it is interpolated linearly.
    """
    # axis 0: the lower and the upper end
    low = np.full((2, *curve.mean.shape), -RANGE)
    high = -low
    for _ in range(ROUNDS):
        spacing = (high - low) / (POINTS - 1)
        grid = low[..., None] + spacing[..., None] * np.arange(POINTS)
        _, tails = curve.at(grid)
        is_before = np.stack([tails[0] < tail, tails[1] >= tail])
        points_before = np.cumprod(is_before, -1).sum(-1)
        left = np.clip(points_before - 1, 0, POINTS - 2)
        low, high = low + spacing * left, low + spacing * (left + 1)
    tail_at_left = np.take_along_axis(tails, left[..., None], -1)[..., 0]
    tail_at_right = np.take_along_axis(tails, left[..., None] + 1, -1)[..., 0]
    with np.errstate(invalid="ignore", divide="ignore"):
        share = (tail - tail_at_left) / (tail_at_right - tail_at_left)
    shift = low + (high - low) * np.nan_to_num(share, nan=0.5).clip(0, 1)
    theta, _ = curve.at(shift[..., None])
    below, above = theta[..., 0]
    return np.minimum(below, curve.mean), np.maximum(above, curve.mean)
