"""Tables of the report: values with 95 % intervals, all recomputed from the masks of the result cards."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from taet import metrics

if TYPE_CHECKING:
    from taet.evaluation.result import Column, ResultCard, Summary
    from taet.report.figures import Series
    from taet.report.read import Data

NORMS = {"linf": "L∞", "l2": "L2", "l1": "L1", "l0": "L0"}


@dataclass(frozen=True)
class Cell:
    """A value in [0, 1] with its interval; `mark` is best, second or nothing, `tied` says that best is within reach."""

    value: float
    low: float
    high: float
    mark: str = ""
    tied: bool = False
    detail: str = ""


@dataclass(frozen=True)
class Head:
    """A column: its name as the card has it and, below, what it is."""

    name: str
    detail: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells, one row per run; a cell is None where the run was not measured."""

    title: str
    heads: tuple[Head, ...]
    rows: tuple[tuple[Series, tuple[Cell | None, ...]], ...]
    note: str = ""


def marked(cells: Sequence[Cell | None]) -> list[Cell | None]:
    """Mark the best and the second best value of a column, and every cell whose interval overlaps that of the best.

    A column whose values are all equal has no best.
    """
    values = sorted({cell.value for cell in cells if cell is not None and not math.isnan(cell.value)}, reverse=True)
    if len(values) < 2:
        return list(cells)
    best = [cell for cell in cells if cell is not None and cell.value == values[0]]
    floor = min(cell.low for cell in best)

    def mark(cell: Cell | None) -> Cell | None:
        if cell is None or math.isnan(cell.value):
            return cell
        is_best = cell.value == values[0]
        second = len(best) == 1 and cell.value == values[1]
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
    """An evaluated run with the numbers of each of its columns."""

    series: Series
    card: ResultCard
    summaries: Mapping[AttackKey, Summary]


def measured(all_series: Sequence[Series]) -> list[Measured]:
    """Return the evaluated runs among `all_series`, every number recomputed from the masks."""
    return [
        Measured(series, card, {key(column): card.summary(column.name) for column in card.columns})
        for series in all_series
        if (card := series.run.card) is not None
    ]


def strongest(runs: Sequence[Measured]) -> AttackKey | None:
    """Return the bounded attack with the lowest mean balanced robustness, of those that most runs have."""

    def order(attack: AttackKey) -> tuple[int, float]:
        values = [run.summaries[attack].balanced for run in runs if attack in run.summaries]
        return -len(values), sum(values) / len(values)

    bounded = [attack for run in runs for attack in run.summaries if attack.norm is not None and attack.bounded]
    return min(bounded, key=order, default=None)


# --- the tables ------------------------------------------------------------------------------------------------------


def headline(runs: Sequence[Measured], attacks: Sequence[AttackKey]) -> Table:
    """Balanced accuracy and balanced robustness: methods x attacks."""

    def cell(run: Measured, column: int) -> Cell | None:
        summary = run.summaries.get(attacks[column])
        return Cell(summary.balanced, *summary.balanced_interval) if summary else None

    return table("Balanced accuracy", heads(attacks), runs, cell)


def plain(runs: Sequence[Measured], attacks: Sequence[AttackKey]) -> Table:
    """Plain accuracy and robustness: methods x attacks."""

    def cell(run: Measured, column: int) -> Cell | None:
        summary = run.summaries.get(attacks[column])
        return Cell(summary.accuracy, *summary.accuracy_interval) if summary else None

    return table("Plain accuracy", heads(attacks), runs, cell)


def by_group(runs: Sequence[Measured], attack: AttackKey, data: Data) -> Table:
    """Head, body, tail, the last half of the classes and the worst class under one attack."""
    groups = {name: members for name, members in metrics.class_groups(data.train_counts).items() if members}
    names = [*groups, "worst class"]

    def cell(run: Measured, column: int) -> Cell | None:
        summary = run.summaries.get(attack)
        if summary is None:
            return None
        if names[column] != "worst class":
            return Cell(summary.groups[names[column]], *summary.group_intervals[names[column]])
        index, value = summary.worst_class
        return class_cell(summary, index, data.class_names[index]) if not math.isnan(value) else None

    columns = [Head(name.replace("_", " "), _classes(len(groups.get(name, ())))) for name in names]
    return table(attack.name, columns, runs, cell, attack.threat)


def _classes(count: int) -> str:
    return "" if count == 0 else "1 class" if count == 1 else f"{count} classes"


def class_cell(summary: Summary, index: int, detail: str = "") -> Cell:
    """The accuracy of one class."""
    low, high = summary.per_class_interval
    return Cell(float(summary.per_class[index]), float(low[index]), float(high[index]), detail=detail)


@dataclass(frozen=True)
class ClassTable:
    """Rows of classes, from the largest to the smallest; one column per attack and run."""

    heads: tuple[tuple[Series, str], ...]
    rows: tuple[tuple[int, tuple[Cell | None, ...]], ...]


def per_class(runs: Sequence[Measured], attacks: Sequence[AttackKey], data: Data) -> ClassTable:
    """Accuracy of every class under each of `attacks`, the best run of each class and attack marked."""
    columns = tuple((run.series, attack.name) for attack in attacks for run in runs)
    rows = []
    for index in map(int, data.order):
        cells: list[Cell | None] = []
        for attack in attacks:
            found = [run.summaries.get(attack) for run in runs]
            cells += marked([class_cell(summary, index) if summary else None for summary in found])
        rows.append((index, tuple(cells)))
    return ClassTable(columns, tuple(rows))
