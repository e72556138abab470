"""The interval of a mean of proportions covers the truth, by enumeration where classes are few and small."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import special, stats

from taet.intervals import balanced_interval, mean_recall_limits

SIMULATED = Path(__file__).parents[1] / "benchmarks" / "results"


@pytest.mark.parametrize("count", [1, 2, 5, 30, 1000])
def test_one_class_has_the_interval_of_clopper_and_pearson(count: int) -> None:
    right = np.unique(np.linspace(0, count, 7).round())
    low, high = mean_recall_limits(right[:, None], [count])
    inner = np.clip(right, 0.5, count - 0.5)  # at 0 and at all the ends are 0 and 1
    exact_low = np.where(right > 0, special.betaincinv(np.maximum(right, 1), count - inner + 1, 0.025), 0)
    exact_low = np.where(right == count, 0.025 ** (1 / count), exact_low)
    np.testing.assert_allclose(low, np.where(right > 0, exact_low, 0), atol=1e-5)
    np.testing.assert_allclose(high, 1 - low[::-1], atol=1e-5)
    assert balanced_interval([0, 0], [count, 0]) == pytest.approx((low[0], high[0]))  # without an empty class


@pytest.mark.parametrize("total", [(1, 1), (1, 2), (2, 3), (1, 10), (1, 30), (3, 30), (1, 1, 1), (1, 2, 4), (1, 1, 12)])
def test_it_covers_all_recalls_of_few_images(total: tuple[int, ...]) -> None:
    outcomes = np.array(list(itertools.product(*(range(count + 1) for count in total))))
    low, high = mean_recall_limits(outcomes, total)
    grid = np.linspace(0.02, 0.98, 33 if len(total) == 2 else 13)
    for recalls in itertools.product(grid, repeat=len(total)):
        chance = stats.binom.pmf(outcomes, total, recalls).prod(1)
        covered = chance[(low <= np.mean(recalls)) & (np.mean(recalls) <= high)].sum()
        assert covered >= 0.94, (recalls, covered)


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("total", "recall"),
    [
        (np.ones(100, int), np.full(100, 0.5)),  # covered 0.74 by Wilson's intervals combined
        (np.round(100 ** (1 - np.arange(100) / 99)).astype(int), np.full(100, 0.5)),  # CIFAR-100-LT's
        (np.repeat([1000, 1], 50), np.repeat([0.98, 0.5], 50)),
        (np.full(10, 3), np.linspace(0.98, 0.02, 10)),
    ],
    ids=["one each", "long tail", "halves", "three each"],
)
def test_it_covers_where_classes_are_many_and_small(total: np.ndarray, recall: np.ndarray) -> None:
    drawn = np.random.default_rng(0).binomial(total, recall, size=(300, len(total)))
    low, high = mean_recall_limits(drawn, total)
    covered = ((low <= recall.mean()) & (recall.mean() <= high)).mean()
    # 300 draws: a coverage of 0.95 gives less than 0.9 with a chance of 1 in 10,000.
    assert covered >= 0.9
    scatter = math.sqrt((recall * (1 - recall) / total).sum()) / len(total)
    assert (high - low).mean() <= 1.35 * 2 * 1.96 * scatter


def test_large_classes_have_the_interval_of_the_normal_distribution() -> None:
    total, recall = np.full(10, 1000), np.linspace(0.2, 0.9, 10)
    low, high = mean_recall_limits(total * recall, total)
    half = 1.96 * math.sqrt((recall * (1 - recall) / total).sum()) / 10
    assert (low, high) == pytest.approx((recall.mean() - half, recall.mean() + half), abs=0.02 * half)
    ends = [mean_recall_limits([3, 1], [4, 2], level) for level in (0.8, 0.95, 0.99)]
    assert ends[2][0] < ends[1][0] < ends[0][0] < ends[0][1] < ends[1][1] < ends[2][1]


@pytest.mark.parametrize(("name", "settings"), [("coverage", 900), ("coverage-paired", 500)])
def test_the_committed_simulation_covers(name: str, settings: int) -> None:
    result = json.loads((SIMULATED / f"{name}.json").read_text(encoding="utf-8"))
    again, first = (math.sqrt(0.95 * 0.05 / result[draws]) for draws in ("again", "draws"))
    assert result["settings"] > settings
    # Of so many settings at 0.95 the least is five standard errors lower at most.
    assert result["now"]["least"] >= 0.95 - 5 * first
    assert min(row["covers"] for row in result["least"]) >= 0.95 - 3 * again
