"""Verdicts: by rule, against slow computations from the same cards; the oracle holds every word and interval."""

from __future__ import annotations

import itertools
from pathlib import Path

import findings
import numpy as np
import pytest
import rules
import runs
from items import items, scale
from runs import RESULTS, Measured, Runs
from scipy import stats

from taet.errors import UserError
from taet.statistics import Difference


@pytest.fixture(scope="module")
def committed() -> Runs:
    return Runs()


def test_the_page_is_in_step_with_the_cards(committed: Runs) -> None:
    page = (Path(findings.__file__).parents[1] / "docs" / "findings.md").read_text(encoding="utf-8")
    assert findings.page(committed) == page, "run: python papers/findings.py --write"
    assert len(page.split()) < 4000


def test_there_are_46_claims(committed: Runs) -> None:
    names = [*findings.verdicts(committed)]
    assert names == [f"C{n}" for n in range(1, 27)] + [f"R{n}" for n in range(1, 21)]


@pytest.mark.parametrize(
    ("low", "high", "size", "rule", "word"),
    [
        (1, 3, 4, rules.above, "holds"),
        (-1, 3, 4, rules.above, "undecided"),
        (1, 1.9, 4, rules.above, "does not hold"),
        (-3, -1, 0, rules.above, "does not hold"),
        (-3, 4, 4, rules.within, "holds"),
        (-3, 4.1, 4, rules.within, "undecided"),
        (4.1, 5, 4, rules.within, "does not hold"),
        (-6, -5, 4, rules.within, "does not hold"),
    ],
)
def test_a_difference_is_decided_by_its_interval(low: float, high: float, size: float, rule: object, word: str) -> None:
    assert callable(rule)
    assert rule(Difference((low + high) / 200, low / 100, high / 100, p=1.0), size) == word


def test_one_part_that_fails_is_enough() -> None:
    assert rules.together(["holds", "holds"]) == "holds"
    assert rules.together(["holds", "undecided", "does not hold"]) == "does not hold"
    assert rules.together(["holds", "not tested", "undecided"]) == "not tested"
    assert rules.together([]) == "not tested"


def test_correlations_are_those_of_all_possible_orders() -> None:
    published, below = [3.0, 1.0, 4.0, 1.0, 5.0], [0b10, 0, 0b1, 0, 0]  # row 0 above row 1, row 2 above row 0
    found = [
        stats.spearmanr(published, places).statistic
        for places in itertools.permutations(range(5))
        if places[0] > places[1] and places[2] > places[0]
    ]
    assert rules.correlations(published, below) == pytest.approx((min(found), max(found)))


def test_reversed_orders_are_those_of_normal_intervals(committed: Runs) -> None:
    at, item = rules.Study(committed, scale("mini")), items()["taet/table1"]
    cards = [at.cards(row)[0] for row in item.rows]
    pairs, level = [*itertools.combinations(cards, 2)], 1 - 0.05 / (2 * 2 * 55)  # two averages in two columns
    count, shares = 0, np.array(cards[0].data["train_class_counts"]) / sum(cards[0].data["train_class_counts"])
    for one, other in pairs:
        gain = one.column("clean").correct * 1.0 - other.column("clean").correct
        groups = [gain[one.labels == label] for label in range(10)]
        ends = []
        for weights in (shares, np.full(10, 0.1)):
            mean = sum(w * g.mean() for w, g in zip(weights, groups, strict=True))
            error = sum(w**2 * g.var(ddof=1) / len(g) for w, g in zip(weights, groups, strict=True)) ** 0.5
            ends.append(stats.norm.interval(level, mean, error))
        (low, high), (least, most) = ends
        count += (high < 0 < least) or (most < 0 < low)
    found = rules.orders_reversed(at, item, ("clean", "autoattack"))
    assert f"clean {count} of 55" in found.evidence[0]


def test_nothing_is_tested_without_runs(tmp_path: Path) -> None:
    for name, test in findings.claims().items():
        if name != "R18":
            assert test(rules.Study(Runs(tmp_path, tmp_path), scale("mini"))).word == "not tested", name


def test_two_cards_of_one_run_must_have_equal_weights() -> None:
    one, other = (Measured(RESULTS / name, frozenset(), name) for name in ("a.json", "b.json"))
    with pytest.raises(UserError, match="are one run with other weights"):
        runs._best([one, other], ())
