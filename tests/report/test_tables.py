"""Which cell of a column is best, which ties with it, and which columns are one attack."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np
import pytest

from taet.evaluation.card import ResultCard
from taet.report import figures, measured, tables
from taet.report.differences import Pairs
from taet.report.measured import Measured
from taet.report.read import ReportedData
from taet.report.tables import ScoreCell


def marks(*cells: ScoreCell | None) -> list[tuple[str, bool] | None]:
    return [cell and (cell.mark, cell.tied) for cell in tables.marked(cells)]


def test_one_value_keeps_its_interval_and_several_become_a_mean() -> None:
    assert tables.spread([0.5], [(0.4, 0.6)]) == ScoreCell(0.5, 0.4, 0.6)
    cell = tables.spread([0.40, 0.42], [(0.3, 0.5), (0.3, 0.5)], "words")
    assert (cell.value, cell.count, cell.detail) == (pytest.approx(0.41), 2, "words")
    assert cell.error == pytest.approx(0.01)
    assert (cell.low, cell.high) == (pytest.approx(0.41 - 0.12706, abs=1e-5), pytest.approx(0.41 + 0.12706, abs=1e-5))
    assert tables.spread([0.0, 1.0], [(0.0, 0.1), (0.9, 1.0)]).low == 0.0
    assert math.isnan(tables.spread([math.nan, 0.5], [(0, 1), (0, 1)]).value)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_the_interval_of_a_mean_over_seeds_covers_it_as_often_as_it_says(n: int) -> None:
    values = np.random.default_rng(0).normal(0.5, 0.01, (2000, n))
    cells = [tables.spread(row.tolist(), [(0, 1)] * n) for row in values]
    share = np.mean([cell.low <= 0.5 <= cell.high for cell in cells])
    assert share == pytest.approx(0.95, abs=0.02)  # four standard errors


def test_best_alone_where_no_interval_reaches_it() -> None:
    assert marks(ScoreCell(0.3, 0.2, 0.4), ScoreCell(0.9, 0.8, 0.95), ScoreCell(0.1, 0, 0.2)) == [
        ("second", False),
        ("best", False),
        ("", False),
    ]


def test_ties_are_those_that_are_not_known_to_be_below_the_best() -> None:
    cells = [ScoreCell(0.9, 0.8, 0.95), ScoreCell(0.85, 0.8, 0.9), None, ScoreCell(0.1, 0, 0.2)]
    asked = []

    def apart(best: int, other: int) -> bool:
        asked.append((best, other))
        return other == 1

    assert [cell and (cell.mark, cell.tied) for cell in tables.marked(cells, apart)] == [
        ("best", True),
        ("second", False),
        None,
        ("", True),
    ]
    assert asked == [(0, 1), (0, 3)]


def test_best_is_a_tie_where_an_interval_overlaps() -> None:
    cells = ScoreCell(0.5, 0.4, 0.6), ScoreCell(0.55, 0.45, 0.65), ScoreCell(0.2, 0.1, 0.44)
    assert marks(*cells) == [("second", True), ("best", True), ("", False)]


def test_equal_values_are_best_together_and_leave_no_second() -> None:
    cells = ScoreCell(0.5, 0.4, 0.6), ScoreCell(0.5, 0.4, 0.6), ScoreCell(0.3, 0.2, 0.35)
    assert marks(*cells) == [("best", True), ("best", True), ("", False)]


def test_a_second_value_that_is_shared_or_nothing_is_not_marked() -> None:
    best, second, none = ScoreCell(0.5, 0.4, 0.6), ScoreCell(0.3, 0.2, 0.35), ScoreCell(0.0, 0.0, 0.1)
    assert [mark and mark[0] for mark in marks(best, second, second, none)] == ["best", "", "", ""]
    assert [mark and mark[0] for mark in marks(best, none)] == ["best", ""]


def test_a_column_of_equal_values_has_no_best() -> None:
    assert marks(ScoreCell(0.0, 0.0, 0.1), ScoreCell(0.0, 0.0, 0.1)) == [("", False), ("", False)]


def test_missing_and_empty_cells_are_never_marked() -> None:
    empty = ScoreCell(math.nan, math.nan, math.nan)
    assert marks(None, ScoreCell(0.5, 0.4, 0.6)) == [None, ("", False)]
    assert marks(None, empty, ScoreCell(0.5, 0.4, 0.6), ScoreCell(0.2, 0.1, 0.3)) == [
        None,
        ("", False),
        ("best", False),
        ("second", False),
    ]
    assert marks(empty, empty) == [("", False), ("", False)]


def test_columns_are_one_attack_whatever_the_seed_but_not_the_radius(card: ResultCard) -> None:
    def key(**changes: object) -> measured.AttackKey:
        column = card.column("pgd-20").changed(parameters={"seed": 0, "steps": 20})
        return measured.key(column.changed(**changes))

    same = key(parameters={"seed": 7, "steps": 20})
    assert same == key()
    assert key(eps=4 / 255) != same
    assert key(parameters={"steps": 40}) != same
    assert [head.detail for head in measured.heads([same, key(parameters={"steps": 40})])] == [
        "L∞, ε 8/255, steps 20",
        "L∞, ε 8/255, steps 40",
    ]
    assert measured.heads([same, key(eps=4 / 255)])[1].detail == "L∞, ε 4/255"


def of_balanced_images(card: ResultCard) -> ResultCard:
    count = np.bincount(card.labels).min()
    kept = np.concatenate([np.flatnonzero(card.labels == c)[:count] for c in np.unique(card.labels)])
    columns = tuple(
        column.changed(correct=column.correct[kept], predictions=column.predictions[kept], parts={})
        for column in card.columns
    )
    return card.changed(labels=card.labels[kept], columns=columns)


def test_plain_accuracy_is_left_out_where_the_test_set_is_balanced(
    card: ResultCard, measure: Callable[[ResultCard], Measured]
) -> None:
    for balanced, found in ((False, card), (True, of_balanced_images(card))):
        run = measure(found)
        attacks, data = measured.attacks_of([run]), run.series.data
        headline = tables.headline([run], attacks, measured.strongest([run]), data, Pairs(data.groups["tail"]))
        assert ("accuracy" in [head.text for head in headline.heads]) == (not balanced)
        plain = tables.plain([run], attacks)
        assert (len(plain.rows), len(plain.heads)) == ((0, 0) if balanced else (1, len(attacks)))
        assert bool(plain.note) == balanced
        summary = found.summary("clean")
        assert (summary.accuracy == pytest.approx(summary.balanced)) == balanced


def test_classes_are_compared_by_their_worst_and_by_their_spread(
    card: ResultCard, measure: Callable[[ResultCard], Measured]
) -> None:
    run = measure(card)
    (attack,) = [one for one in measured.attacks_of([run]) if one.name == "pgd-20"]
    table = tables.by_group([run], attack, run.series.data)
    ((_, cells),) = table.rows
    shown = dict(zip([head.text for head in table.heads], cells, strict=True))
    recalls = card.summary("pgd-20").per_class
    worst, spread = shown["worst 10 %"], shown["deviation / mean"]
    assert isinstance(worst, ScoreCell)
    assert worst.value == recalls.min()  # a tenth of ten classes
    assert spread == measured.TextCell(f"{recalls.std() / recalls.mean():.2f}")


@pytest.mark.drawn
@pytest.mark.parametrize(("count", "named"), [(12, 12), (43, 43), (100, 100), (1000, 41)])
def test_rows_of_figures_carry_the_names_of_their_classes(count: int, named: int) -> None:
    """Of more classes than have room for their names, the names of some, the largest and the smallest among them."""
    names = [f"class {label}" for label in range(count)]
    data = ReportedData("x", tuple(names), tuple(range(count, 0, -1)), (5,) * count, "0" * 64, ())
    with figures.style():
        svg = figures.histogram(data, "h").svg
    shown = re.findall(r"class (\d+) · \d+", svg)
    assert len(shown) == named
    assert {"0", str(count - 1)} <= set(shown)
