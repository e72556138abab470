"""The benchmark's statistics against their formulas written out, and their coverage."""

import math

import numpy as np
import pytest
from scipy import stats

from intervals import Noise, compare, deviation_interval, image_variance, residual_noise


def test_the_noise_of_a_full_table_is_what_row_and_replicate_means_leave() -> None:
    table = np.random.default_rng(0).normal(size=(4, 3))
    left = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    noise = residual_noise(table)
    assert noise.degrees == 6
    assert noise.deviation == pytest.approx(math.sqrt((left**2).sum() / 6))


def test_a_missing_run_costs_one_degree_of_freedom() -> None:
    table = np.random.default_rng(0).normal(size=(4, 3))
    table[2, 1] = np.nan
    assert residual_noise(table).degrees == 5


def test_one_replicate_has_no_noise_that_could_be_known() -> None:
    noise = residual_noise(np.ones((4, 1)))
    assert noise.degrees == 0
    found = compare(np.ones(1), np.zeros(1), noise, 0.0, 3)
    assert (found.difference, found.replicates, found.significant) == (1.0, 1, False)


def test_luck_that_all_rows_share_is_no_noise() -> None:
    table = np.random.default_rng(0).normal(size=(5, 3))
    shared = table + np.array([0.0, 5.0, -3.0])
    assert residual_noise(shared).deviation == pytest.approx(residual_noise(table).deviation)


def test_the_variance_of_images_is_that_of_the_formula() -> None:
    draws = np.random.default_rng(1)
    labels = np.repeat([0, 1, 2], [30, 12, 5])
    gains = draws.normal(size=len(labels))
    formula = sum(gains[labels == c].var(ddof=1) / (labels == c).sum() for c in range(3)) / 9
    assert image_variance(gains, labels) == pytest.approx(formula)
    alone = np.arange(len(labels))
    assert image_variance(gains, labels, alone) == pytest.approx(formula)


def test_equal_images_of_one_cluster_count_as_one() -> None:
    draws = np.random.default_rng(1)
    gains, labels = draws.normal(size=20), np.repeat([0, 1], 10)
    twice, clusters = np.repeat(gains, 3), np.repeat(np.arange(20), 3)
    once = image_variance(gains, labels)
    assert image_variance(twice, np.repeat(labels, 3), clusters) == pytest.approx(once)


def test_an_interval_is_that_of_the_formula() -> None:
    row, base = np.array([0.3, 0.4, 0.5]), np.array([0.2, 0.35, 0.3])
    noise = Noise(0.02, 12, ())
    found = compare(row, base, noise, 1e-4, 17)
    half = stats.t.ppf(1 - 0.05 / 34, 12) * math.sqrt(2 * 0.02**2 / 3 + 1e-4)
    assert found.difference == pytest.approx(0.35 / 3)
    assert (found.low, found.high) == pytest.approx(
        (found.difference - half, found.difference + half)
    )


def test_intervals_cover_the_truth_together_in_95_of_100_draws() -> None:
    """18 rows without a difference, three replicates that share their luck: an interval without 0
    is wrong."""
    draws, wrong, rounds = np.random.default_rng(2), 0, 400
    for _ in range(rounds):
        table = draws.normal(0, 0.012, (18, 3)) + draws.normal(0, 0.027, 3)
        noise = residual_noise(table)
        found = [compare(row, table[0], noise, 0.0, 17) for row in table[1:]]
        wrong += any(one.significant for one in found)
    assert wrong / rounds < 0.05 + 3 * math.sqrt(0.05 * 0.95 / rounds)


def test_a_standard_deviation_has_its_chi_square_interval() -> None:
    values = np.array([1.0, 2.0, 4.0, 3.0, 7.0])
    deviation, low, high = deviation_interval(values)
    assert deviation == pytest.approx(values.std(ddof=1))
    assert low == pytest.approx(deviation * math.sqrt(4 / stats.chi2.ppf(0.975, 4)))
    assert low < deviation < high


def test_a_replicate_without_any_run_costs_no_degree_of_freedom() -> None:
    table = np.random.default_rng(0).normal(size=(18, 3))
    table[:, 2] = np.nan
    assert residual_noise(table) == residual_noise(table[:, :2])
