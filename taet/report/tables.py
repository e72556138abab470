"""Tables of the report: values with 95 % intervals, or means over seeds with standard errors, all from result cards."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from taet import metrics

if TYPE_CHECKING:
    from taet.evaluation.result import Column, Interval, Summary
    from taet.report.figures import Series
    from taet.report.read import Data

NORMS = {"linf": "L∞", "l2": "L2", "l1": "L1", "l0": "L0"}


ERRORS = 2
"""Standard errors to either side of a mean, where means over seeds are compared as intervals are."""


@dataclass(frozen=True)
class Cell:
    """A value in [0, 1] with its interval; `mark` is best, second or nothing, `tied` says that best is within reach."""

    value: float
    low: float
    high: float
    mark: str = ""
    tied: bool = False
    detail: str = ""
    error: float | None = None
    """Standard error over seeds; None where there is one."""
    count: int = 1
    """Seeds."""


def spread(values: Sequence[float], intervals: Sequence[Interval], detail: str = "") -> Cell:
    """Return one run's value with its interval, or the mean over the seeds of several with its standard error."""
    if len(values) == 1:
        return Cell(values[0], *intervals[0], detail=detail)
    mean, error = (float(number) for number in metrics.mean_and_standard_error(values))
    low, high = max(mean - ERRORS * error, 0.0), min(mean + ERRORS * error, 1.0)
    return Cell(mean, low, high, detail=detail, error=error, count=len(values))


@dataclass(frozen=True)
class Head:
    """A column: its name as the card has it and, below, what it is."""

    name: str
    detail: str = ""


@dataclass(frozen=True)
class Fact:
    """A cell of words, which no other is compared with."""

    text: str
    detail: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells, one per method and its settings; a cell is None where nothing was measured."""

    title: str
    heads: tuple[Head, ...]
    rows: tuple[tuple[Series, tuple[Cell | Fact | None, ...]], ...]
    note: str = ""

    def beside(self, heads: Sequence[Head], facts: Sequence[Sequence[Fact]]) -> Table:
        """Return this table with columns of facts added, which are given by row."""
        rows = tuple((series, (*cells, *more)) for (series, cells), more in zip(self.rows, facts, strict=True))
        return dataclasses.replace(self, heads=(*self.heads, *heads), rows=rows)


def marked(cells: Sequence[Cell | None]) -> list[Cell | None]:
    """Mark the best and the second best value of a column, and every cell whose interval overlaps that of the best.

    A column whose values are all equal has no best; a second value that several share, or that is 0, is no second best.
    """
    there = [cell.value for cell in cells if cell is not None and not math.isnan(cell.value)]
    values = sorted(set(there), reverse=True)
    if len(values) < 2:
        return list(cells)
    best = [cell for cell in cells if cell is not None and cell.value == values[0]]
    has_second = there.count(values[0]) == there.count(values[1]) == 1 and values[1] > 0
    floor = min(cell.low for cell in best)

    def mark(cell: Cell | None) -> Cell | None:
        if cell is None or math.isnan(cell.value):
            return cell
        is_best = cell.value == values[0]
        second = has_second and cell.value == values[1]
        within = (
            sum(other is not None and other.high >= floor for other in cells) > 1 if is_best else cell.high >= floor
        )
        return dataclasses.replace(cell, mark="best" if is_best else "second" if second else "", tied=within)

    return [mark(cell) for cell in cells]


def table(
    title: str,
    columns: Sequence[Head],
    runs: Sequence[Measured],
    cell: Callable[[Measured, int], Cell | None],
    note: str = "",
) -> Table:
    """Build a table column by column, each column marked; `cell` gives the value of a run in a column."""
    cells = [marked([cell(run, column) for run in runs]) for column in range(len(columns))]
    rows = tuple((run.series, tuple(column[row] for column in cells)) for row, run in enumerate(runs))
    return Table(title, tuple(columns), rows, note)


# --- which columns are the same attack -------------------------------------------------------------------------------


def size(eps: float) -> str:
    """Write a perturbation size as grey levels where it is a whole number of them: 8/255."""
    levels = round(eps * 255)
    return f"{levels}/255" if levels > 0 and math.isclose(eps * 255, levels, abs_tol=1e-4) else f"{eps:.4g}"


@dataclass(frozen=True)
class AttackKey:
    """What makes two columns of two cards comparable: name, threat model and settings, the random seed aside."""

    name: str
    norm: str | None
    eps: float | None
    bounded: bool
    settings: str

    @property
    def threat(self) -> str:
        """The threat model in words; nothing for clean images."""
        if self.norm is None:
            return ""
        ball = f"ε {size(self.eps)}" if self.bounded and self.eps is not None else "unbounded"
        return f"{NORMS.get(self.norm, self.norm)}, {ball}"


def heads(attacks: Sequence[AttackKey]) -> list[Head]:
    """Name each attack; two that differ in nothing but their settings carry these as well."""
    names = Counter((attack.name, attack.threat) for attack in attacks)

    def detail(attack: AttackKey) -> str:
        settings = (f"{name} {value}" for name, value in json.loads(attack.settings).items())
        return attack.threat if names[attack.name, attack.threat] == 1 else ", ".join([attack.threat, *settings])

    return [Head(attack.name, detail(attack)) for attack in attacks]


def key(column: Column) -> AttackKey:
    """Return what a column of a card is compared by."""
    settings = {name: value for name, value in column.parameters.items() if name != "seed"}
    return AttackKey(column.name, column.norm, column.eps, column.bounded, json.dumps(settings, sort_keys=True))


@dataclass(frozen=True)
class Measured:
    """Evaluated runs of one series with the numbers of each of their columns, one summary per seed."""

    series: Series
    summaries: Mapping[AttackKey, tuple[Summary, ...]]

    def balanced(self, attack: AttackKey) -> float:
        """Mean balanced accuracy under an attack; nan where it was not measured."""
        found = self.summaries.get(attack, ())
        return float(metrics.mean_and_standard_error([summary.balanced for summary in found])[0])


def measured(all_series: Sequence[Series]) -> list[Measured]:
    """Return the evaluated ones among `all_series`, every number recomputed from the masks."""
    runs = []
    for series in all_series:
        summaries: dict[AttackKey, tuple[Summary, ...]] = {}
        for card in series.cards:
            for column in card.columns:
                summaries[key(column)] = (*summaries.get(key(column), ()), card.summary(column.name))
        if summaries:
            runs.append(Measured(series, summaries))
    return runs


def strongest(runs: Sequence[Measured]) -> AttackKey | None:
    """Return the bounded attack with the lowest mean balanced robustness, of those that most runs have."""

    def order(attack: AttackKey) -> tuple[int, float]:
        values = [run.balanced(attack) for run in runs if attack in run.summaries]
        return -len(values), sum(values) / len(values)

    bounded = [attack for run in runs for attack in run.summaries if attack.norm is not None and attack.bounded]
    return min(bounded, key=order, default=None)


def ranked(runs: Sequence[Measured]) -> list[Measured]:
    """Return the runs by balanced accuracy under the strongest attack, highest first; those without it are last."""
    attack = strongest(runs)
    if attack is None:
        return list(runs)
    return sorted(runs, key=lambda run: -np.nan_to_num(run.balanced(attack), nan=-1.0))


# --- the tables ------------------------------------------------------------------------------------------------------


def headline(runs: Sequence[Measured], attacks: Sequence[AttackKey], hardest: AttackKey | None) -> Table:
    """Balanced accuracy and robustness, methods x attacks; that of the tail under the hardest, accuracy, and cost.

    Accuracy is left out where it is the balanced one.
    """
    clean = next((attack for attack in attacks if attack.norm is None), None)
    columns: list[tuple[Head, AttackKey, Callable[[Sequence[Summary]], Cell | None]]]
    columns = [(head, attack, balanced_cell) for head, attack in zip(heads(attacks), attacks, strict=True)]
    if hardest is not None:
        columns.append((Head("tail", hardest.name), hardest, tail_cell))
    if clean is not None and not even(runs):
        columns.append((Head("accuracy", "plain, clean"), clean, accuracy_cell))

    def cell(run: Measured, column: int) -> Cell | None:
        _, attack, value = columns[column]
        return value(run.summaries[attack]) if attack in run.summaries else None

    return table("Balanced accuracy", [head for head, _, _ in columns], runs, cell).beside(*costs(runs))


def even(runs: Sequence[Measured]) -> bool:
    """Has every class that is tested as many test images as the others? Then plain accuracy is the balanced one."""
    totals = [summary.total for run in runs for summaries in run.summaries.values() for summary in summaries]
    return all(len(set(total[total > 0].tolist())) <= 1 for total in totals)


def balanced_cell(summaries: Sequence[Summary]) -> Cell:
    """Balanced accuracy of one column of the cards."""
    return spread([s.balanced for s in summaries], [s.balanced_interval for s in summaries])


def accuracy_cell(summaries: Sequence[Summary]) -> Cell:
    """Plain accuracy of one column of the cards."""
    return spread([s.accuracy for s in summaries], [s.accuracy_interval for s in summaries])


def tail_cell(summaries: Sequence[Summary]) -> Cell | None:
    """Balanced accuracy of the tail in one column of the cards; None where the training counts are not known."""
    return group_cell(summaries, "tail") if all("tail" in s.groups for s in summaries) else None


def group_cell(summaries: Sequence[Summary], group: str) -> Cell:
    """Balanced accuracy inside a group of classes."""
    return spread([s.groups[group] for s in summaries], [s.group_intervals[group] for s in summaries])


def costs(runs: Sequence[Measured]) -> tuple[list[Head], list[list[Fact]]]:
    """Seconds of training, also relative to AT on the same machine, and how many kinds of flag the cards raise."""
    plain_at = [run.series for run in runs if run.series.method == "at"]
    base = min(plain_at, key=lambda series: series.index, default=None)

    def training(series: Series) -> Fact:
        seconds = f"{series.seconds:.0f} s" if series.seconds >= 10 else f"{series.seconds:.1f} s"
        if base is None or base.machine != series.machine or not base.seconds:
            return Fact(seconds)
        return Fact(seconds, f"{series.seconds / base.seconds:.2f} × {base.label}")

    heads = [Head("training", "per run"), Head("flags", "kinds")]
    return heads, [[training(run.series), Fact(str(len(run.series.flags)))] for run in runs]


def plain(runs: Sequence[Measured], attacks: Sequence[AttackKey]) -> Table:
    """Plain accuracy and robustness: methods x attacks; no columns and no rows where they are the balanced ones."""
    if even(runs):
        return Table("Plain accuracy", (), (), "the balanced one, since the test set has as many images of every class")

    def cell(run: Measured, column: int) -> Cell | None:
        return accuracy_cell(run.summaries[attacks[column]]) if attacks[column] in run.summaries else None

    return table("Plain accuracy", heads(attacks), runs, cell)


def by_group(runs: Sequence[Measured], attack: AttackKey, data: Data) -> Table:
    """Head, body, tail, the last half of the classes and the worst class under one attack."""
    groups = {name: members for name, members in metrics.class_groups(data.train_counts).items() if members}
    names = [*groups, "worst class"]

    def cell(run: Measured, column: int) -> Cell | None:
        summaries = run.summaries.get(attack)
        if summaries is None:
            return None
        if names[column] != "worst class":
            return group_cell(summaries, names[column])
        values = classes(summaries).values
        if np.isnan(values).all():
            return None
        index = int(np.nanargmin(values))
        return class_cell(summaries, index, data.class_names[index])

    columns = [Head(name.replace("_", " "), _classes(len(groups.get(name, ())))) for name in names]
    return table(attack.name, columns, runs, cell, attack.threat)


def _classes(count: int) -> str:
    return "" if count == 0 else "1 class" if count == 1 else f"{count} classes"


@dataclass(frozen=True)
class Classes:
    """Accuracy of every class with its interval, (C,) each: of one run, or the mean over seeds."""

    values: metrics.Floats
    low: metrics.Floats
    high: metrics.Floats


def classes(summaries: Sequence[Summary]) -> Classes:
    """Return the accuracy of every class in one column of the cards."""
    cells = [class_cell(summaries, index) for index in range(len(summaries[0].per_class))]
    return Classes(*(np.array([getattr(cell, name) for cell in cells]) for name in ("value", "low", "high")))


def class_cell(summaries: Sequence[Summary], index: int, detail: str = "") -> Cell:
    """The accuracy of one class."""
    intervals = [(float(low[index]), float(high[index])) for low, high in (s.per_class_interval for s in summaries)]
    return spread([float(summary.per_class[index]) for summary in summaries], intervals, detail)


@dataclass(frozen=True)
class ClassTable:
    """Rows of classes, from the largest to the smallest; one column per attack and series."""

    heads: tuple[tuple[Series, str], ...]
    rows: tuple[tuple[int, tuple[Cell | None, ...]], ...]


def per_class(runs: Sequence[Measured], attacks: Sequence[AttackKey], data: Data) -> ClassTable:
    """Accuracy of every class under each of `attacks`, the best of each class and attack marked."""
    columns = tuple((run.series, attack.name) for attack in attacks for run in runs)
    rows = []
    for index in map(int, data.order):
        cells: list[Cell | None] = []
        for attack in attacks:
            found = [run.summaries.get(attack) for run in runs]
            cells += marked([class_cell(summaries, index) if summaries else None for summaries in found])
        rows.append((index, tuple(cells)))
    return ClassTable(columns, tuple(rows))
