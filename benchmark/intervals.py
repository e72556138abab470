"""The statistics of the benchmark: differences paired within a replicate, with a pooled variance.

y_mr is the balanced accuracy of row m in replicate r. All rows share the luck of a replicate, its
subset and its class order, so rows are compared within replicates, and what is left of the two-way
table after its row and replicate means is the noise of a single run.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2, t  # type: ignore[attr-defined]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
COLLAPSED_POINTS = 0.02
"""A row whose clean accuracy is this near to chance in a replicate gets no interval."""


@dataclass(frozen=True)
class Noise:
    """Residual standard deviation of a two-way table, with its degrees of freedom."""

    deviation: float
    degrees: int
    by_row: tuple[float, ...]
    """Each row's own residual standard deviation, beside the pooled one."""


@dataclass(frozen=True)
class Comparison:
    """A row minus the base row: mean over replicates, and an interval; nan where there is none."""

    difference: float
    low: float
    high: float
    replicates: int

    @property
    def significant(self) -> bool:
        """Whether the interval is without 0; there is no second test."""
        return self.low > 0 or self.high < 0


def residual_noise(table: Floats) -> Noise:
    """Return the noise of a table (M rows, R replicates); nan where a run is missing.

        s^2 = sum of squared residuals of row + replicate effects / nu,  nu = N - M - R + 1

    For a full table nu = (M - 1)(R - 1). Effects are least-squares estimates. A replicate without
    any run has no effect to estimate.
    """
    table = table[:, ~np.isnan(table).all(axis=0)]
    rows, replicates = table.shape
    known = ~np.isnan(table)
    row, replicate = np.nonzero(known)
    design = np.zeros((len(row), rows + replicates - 1))
    design[np.arange(len(row)), row] = 1
    later = replicate > 0
    design[np.flatnonzero(later), rows + replicate[later] - 1] = 1
    effects, *_ = np.linalg.lstsq(design, table[known], rcond=None)
    residuals = np.full(table.shape, np.nan)
    residuals[known] = table[known] - design @ effects
    degrees = len(row) - rows - replicates + 1
    if degrees < 1:
        return Noise(math.nan, 0, (math.nan,) * rows)
    squares = np.nansum(residuals**2)
    share = degrees / len(row)  # of the degrees of freedom that each run keeps
    counts = known.sum(1)
    by_row = np.sqrt(np.nansum(residuals**2, axis=1) / np.maximum(counts * share, 1e-12))
    return Noise(math.sqrt(squares / degrees), degrees, tuple(map(float, by_row)))


def image_variance(gains: Floats, labels: Ints, clusters: Ints | None = None) -> float:
    """Return the variance of a mean over classes of the mean gain of a class's test images.

        V = C^-2 sum_c var_{i in c}(u_i) / n_c

    gains (N,): u_i, the mean over replicates of what image i gains; labels (N,). With `clusters`
    (N,), such as lesions, the images of one cluster are not independent: the sums of their
    deviations are.
    """
    variances = []
    for label in np.unique(labels):
        own = labels == label
        deviations = gains[own] - gains[own].mean()
        count = int(own.sum())
        if clusters is None:
            sums = deviations
        else:
            codes = np.unique(clusters[own], return_inverse=True)[1]
            sums = np.bincount(codes, weights=deviations)
        number = len(sums)
        if number < 2:
            return math.nan
        variances.append(number / (number - 1) * float(np.sum(sums**2)) / count**2)
    return sum(variances) / len(variances) ** 2


def compare(
    row: Floats,
    base: Floats,
    noise: Noise,
    variance_of_images: float,
    comparisons: int,
) -> Comparison:
    """Return row minus base, (R,) each, with an interval that holds for all comparisons together.

        D +- t(nu, 1 - 0.05 / 2k) sqrt(2 s^2 / R + V)

    All replicates share their test images, so their part V does not average out.
    """
    differences = row - base
    differences = differences[~np.isnan(differences)]
    replicates = len(differences)
    if replicates == 0:
        return Comparison(math.nan, math.nan, math.nan, 0)
    mean = float(differences.mean())
    if noise.degrees < 1:
        return Comparison(mean, math.nan, math.nan, replicates)
    quantile = float(t.ppf(1 - 0.05 / (2 * comparisons), noise.degrees))
    error = math.sqrt(2 * noise.deviation**2 / replicates + variance_of_images)
    return Comparison(mean, mean - quantile * error, mean + quantile * error, replicates)


def deviation_interval(values: Floats, level: float = 0.95) -> tuple[float, float, float]:
    """Return the standard deviation of values and its chi-square interval: for the variance
    components."""
    degrees = len(values) - 1
    squares = float(np.var(values, ddof=1)) * degrees
    low, high = chi2.ppf([(1 + level) / 2, (1 - level) / 2], degrees)
    return math.sqrt(squares / degrees), math.sqrt(squares / low), math.sqrt(squares / high)
