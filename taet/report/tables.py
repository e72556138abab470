"""Tables of the report: values with 95 % intervals, or means over seeds with standard errors, all from result cards."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from taet import metrics
from taet.evaluation.summary import Interval, Summary
from taet.formatting import percent
from taet.report.differences import Of, Pairs
from taet.report.measured import AttackKey, Heading, Measured, heads
from taet.report.read import DataFacts
from taet.report.series import Series

ERRORS = 2
"""Standard errors to either side of a mean, where means over seeds are compared as intervals are."""
NAMED = 6
"""Up to so many classes are named in a cell."""


@dataclass(frozen=True)
class ScoreCell:
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


def spread(values: Sequence[float], intervals: Sequence[Interval], detail: str = "") -> ScoreCell:
    """Return one run's value with its interval, or the mean over the seeds of several with its standard error."""
    if len(values) == 1:
        return ScoreCell(values[0], *intervals[0], detail=detail)
    mean, error = (float(number) for number in metrics.mean_and_standard_error(values))
    low, high = max(mean - ERRORS * error, 0.0), min(mean + ERRORS * error, 1.0)
    return ScoreCell(mean, low, high, detail=detail, error=error, count=len(values))


@dataclass(frozen=True)
class TextCell:
    """A cell of words, which no other is compared with."""

    text: str
    detail: str = ""


@dataclass(frozen=True)
class MethodTable:
    """Rows of cells, one per method and its settings; a cell is None where nothing was measured."""

    title: str
    heads: tuple[Heading, ...]
    rows: tuple[tuple[Series, tuple[ScoreCell | TextCell | None, ...]], ...]
    note: str = ""

    def beside(self, heads: Sequence[Heading], facts: Sequence[Sequence[TextCell]]) -> MethodTable:
        """Return this table with columns of facts added, which are given by row."""
        rows = tuple((series, (*cells, *more)) for (series, cells), more in zip(self.rows, facts, strict=True))
        return dataclasses.replace(self, heads=(*self.heads, *heads), rows=rows)


Apart = Callable[[int, int], bool]
"""Is a cell, given by its row, known to be below the best one, which is given first?"""


def marked(cells: Sequence[ScoreCell | None], apart: Apart | None = None) -> list[ScoreCell | None]:
    """Mark the best and the second best value of a column, and every cell that is not known to be below the best.

    Without `apart` that is known where the intervals do not overlap. A column whose values are all equal has no best; a
    second value that several share, or that is 0, is no second best.
    """
    there = {row: cell for row, cell in enumerate(cells) if cell is not None and not math.isnan(cell.value)}
    values = [cell.value for cell in there.values()]
    ranking = sorted(set(values), reverse=True)
    if len(ranking) < 2:
        return list(cells)
    below = apart or (lambda best, other: there[other].high < there[best].low)
    tops = [row for row, cell in there.items() if cell.value == ranking[0]]
    near = [row for row in there if row not in tops and not all(below(top, row) for top in tops)]
    tied = {*near, *(tops if near or len(tops) > 1 else ())}
    has_second = values.count(ranking[0]) == values.count(ranking[1]) == 1 and ranking[1] > 0
    marks = {ranking[0]: "best", ranking[1]: "second" if has_second else ""}
    return [
        dataclasses.replace(cell, mark=marks.get(cell.value, ""), tied=row in tied)
        if row in there and cell is not None
        else cell
        for row, cell in enumerate(cells)
    ]


@dataclass(frozen=True)
class Measure:
    """A column of a table: how the number of a row is found, and when two of them are told apart."""

    head: Heading
    cell: Callable[[Measured], ScoreCell | None]
    apart: Callable[[Measured, Measured], bool] | None = None
    """Is the first known to be better than the second? Not given: where their intervals do not overlap."""
    ranked: bool = True
    """Is there a best?"""

    def cells(self, runs: Sequence[Measured]) -> list[ScoreCell | None]:
        """Return the cell of every row, marked."""
        cells, told = [self.cell(run) for run in runs], self.apart
        if not self.ranked:
            return cells
        return marked(cells, None if told is None else lambda best, other: told(runs[best], runs[other]))


def table(title: str, measures: Sequence[Measure], runs: Sequence[Measured], note: str = "") -> MethodTable:
    """Build a table column by column, each with its own marks."""
    columns = [measure.cells(runs) for measure in measures]
    rows = tuple((run.series, tuple(column[row] for column in columns)) for row, run in enumerate(runs))
    return MethodTable(title, tuple(measure.head for measure in measures), rows, note)


# --- what the headline says ------------------------------------------------------------------------------------------


def headline(
    runs: Sequence[Measured], attacks: Sequence[AttackKey], hardest: AttackKey | None, data: DataFacts, pairs: Pairs
) -> MethodTable:
    """Balanced accuracy and robustness, methods x attacks; that of the tail under the hardest, accuracy, and cost.

    A cell is tied with the best where the paired comparison leaves it undecided. Without a ball there is no best: what
    counts is the distance, which is below the value. Accuracy is left out where it is the balanced one, the tail where
    the training counts are not known.
    """
    clean = next((attack for attack in attacks if attack.norm is None), None)

    def measure(
        head: Heading, attack: AttackKey, cell: Callable[[Sequence[Summary]], ScoreCell | None], of: Of
    ) -> Measure:
        return Measure(
            head,
            lambda run: cell(run.summaries[attack]) if attack in run.summaries else None,
            lambda best, other: pairs.is_better(best, other, attack, of),
            ranked=attack.bounded or attack.norm is None,
        )

    named = zip(heads(attacks), attacks, strict=True)
    measures = [measure(head, attack, balanced_cell, "balanced") for head, attack in named]
    if hardest is not None and data.train_counts is not None:
        tail = Heading("tail", hardest.name)
        measures.append(measure(tail, hardest, partial(group_cell, group="tail"), "tail"))
    if clean is not None and not even(runs):
        measures.append(measure(Heading("accuracy", "plain, clean"), clean, accuracy_cell, "plain"))
    return table("Balanced accuracy", measures, runs).beside(*costs(runs))


def even(runs: Sequence[Measured]) -> bool:
    """Has every class that is tested as many test images as the others? Then plain accuracy is the balanced one."""
    totals = [summary.total for run in runs for summaries in run.summaries.values() for summary in summaries]
    return all(len(set(total[total > 0].tolist())) <= 1 for total in totals)


def balanced_cell(summaries: Sequence[Summary]) -> ScoreCell:
    """Balanced accuracy of one column of the cards; of an attack without a ball also how far it had to go."""
    reach = float(metrics.mean_and_standard_error([s.median_distance for s in summaries])[0])
    detail = "" if math.isnan(reach) else f"median {reach:.3g}"
    return spread([s.balanced for s in summaries], [s.balanced_interval for s in summaries], detail)


def accuracy_cell(summaries: Sequence[Summary]) -> ScoreCell:
    """Plain accuracy of one column of the cards."""
    return spread([s.accuracy for s in summaries], [s.accuracy_interval for s in summaries])


def group_cell(summaries: Sequence[Summary], group: str) -> ScoreCell | None:
    """Balanced accuracy inside a group of classes; None where a card does not know the training counts."""
    if not all(group in s.groups for s in summaries):
        return None
    return spread([s.groups[group] for s in summaries], [s.group_intervals[group] for s in summaries])


def costs(runs: Sequence[Measured]) -> tuple[list[Heading], list[list[TextCell]]]:
    """Seconds of training, also relative to AT on the same machine, and how many kinds of flag the cards raise."""
    plain_at = [run.series for run in runs if run.series.is_baseline]
    base = min(plain_at, key=lambda series: series.index, default=None)

    def training(series: Series) -> TextCell:
        if not series.seconds:
            return TextCell("–", "not known")
        seconds = f"{series.seconds:.0f} s" if series.seconds >= 10 else f"{series.seconds:.1f} s"
        if base is None or base.machine != series.machine or not base.seconds:
            return TextCell(seconds)
        return TextCell(seconds, f"{series.seconds / base.seconds:.2f} × {base.label}")

    heads = [Heading("training", "per run"), Heading("flags", "kinds")]
    return heads, [[training(run.series), TextCell(str(len(run.series.flags)))] for run in runs]


def plain(runs: Sequence[Measured], attacks: Sequence[AttackKey]) -> MethodTable:
    """Plain accuracy and robustness: methods x attacks; no columns and no rows where they are the balanced ones."""
    if even(runs):
        return MethodTable(
            "Plain accuracy", (), (), "the balanced one, since the test set has as many images of every class"
        )

    def measure(head: Heading, attack: AttackKey) -> Measure:
        return Measure(
            head,
            lambda run: accuracy_cell(run.summaries[attack]) if attack in run.summaries else None,
            ranked=attack.bounded or attack.norm is None,
        )

    return table("Plain accuracy", [measure(*pair) for pair in zip(heads(attacks), attacks, strict=True)], runs)


# --- classes and groups of them --------------------------------------------------------------------------------------


def by_group(runs: Sequence[Measured], attack: AttackKey, data: DataFacts) -> MethodTable:
    """Heading, body, tail, the last half of the classes and the worst class under one attack."""
    groups = {} if data.train_counts is None else metrics.class_groups(data.train_counts)

    def worst(summaries: Sequence[Summary]) -> ScoreCell | None:
        values = classes(summaries).values
        if np.isnan(values).all():
            return None
        index = int(np.nanargmin(values))
        return class_cell(summaries, index, named([index], data))

    def measure(name: str, detail: str, cell: Callable[[Sequence[Summary]], ScoreCell | None]) -> Measure:
        head = Heading(name.replace("_", " "), detail)
        return Measure(head, lambda run: cell(run.summaries[attack]) if attack in run.summaries else None)

    measures = [
        measure(name, _classes(len(members)), partial(group_cell, group=name))
        for name, members in groups.items()
        if members
    ]
    return table(attack.name, [*measures, measure("worst class", "", worst)], runs, attack.threat)


def _classes(count: int) -> str:
    return "1 class" if count == 1 else f"{count} classes"


def named(labels: Sequence[int], data: DataFacts) -> str:
    """Name classes, those with few test images with a star; of many the first few."""
    few = data.few
    names = [f"{data.class_names[label]}{' *' if label in few else ''}" for label in labels]
    return ", ".join(names if len(names) <= NAMED else [*names[: NAMED - 1], f"{len(names) - NAMED + 1} more"])


def behaviour(runs: Sequence[Measured], clean: AttackKey | None, attack: AttackKey, data: DataFacts) -> MethodTable:
    """How often an attack changes the answer, how well the scores rank, and which classes are weak under the attack."""

    def mean(values: Sequence[float]) -> str:
        return percent(float(metrics.mean_and_standard_error(values)[0]))

    def facts(run: Measured) -> tuple[TextCell, ...]:
        found = run.summaries.get(attack, ())
        before = run.summaries.get(clean, ()) if clean is not None else ()
        correct = np.sum([s.correct for s in found], axis=0)
        weak = metrics.weak_classes(correct, np.sum([s.total for s in found], axis=0)) if found else []
        ordered = sorted(weak, key=lambda label: -data.ranks[label])
        return (
            TextCell(mean([s.flip_rate for s in found])),
            TextCell(mean([s.roc_auc for s in before])),
            TextCell(mean([s.roc_auc for s in found])),
            TextCell(str(len(weak)) if found else "–", named(ordered, data)),
        )

    columns = (
        Heading("answers changed", attack.name),
        Heading("ROC-AUC", "clean"),
        Heading("ROC-AUC", attack.name),
        Heading("weak classes", attack.name),
    )
    rows = [(run.series, facts(run)) for run in runs]
    # An attack in parts knows no scores.
    kept = [at for at in range(len(columns)) if any(cells[at].text != "–" for _, cells in rows)]
    return MethodTable(
        "What the attack changes",
        tuple(columns[at] for at in kept),
        tuple((series, tuple(cells[at] for at in kept)) for series, cells in rows),
    )


@dataclass(frozen=True)
class ClassAccuracies:
    """Accuracy of every class with its interval, (C,) each: of one run, or the mean over seeds."""

    values: metrics.Floats
    low: metrics.Floats
    high: metrics.Floats


def classes(summaries: Sequence[Summary]) -> ClassAccuracies:
    """Return the accuracy of every class in one column of the cards."""
    cells = [class_cell(summaries, index) for index in range(len(summaries[0].per_class))]
    return ClassAccuracies(*(np.array([getattr(cell, name) for cell in cells]) for name in ("value", "low", "high")))


def class_cell(summaries: Sequence[Summary], index: int, detail: str = "") -> ScoreCell:
    """The accuracy of one class."""
    intervals = [(float(low[index]), float(high[index])) for low, high in (s.per_class_interval for s in summaries)]
    return spread([float(summary.per_class[index]) for summary in summaries], intervals, detail)


@dataclass(frozen=True)
class ClassTable:
    """Rows of classes, from the largest to the smallest; one column per attack and series."""

    heads: tuple[tuple[Series, str], ...]
    rows: tuple[tuple[int, tuple[ScoreCell | None, ...]], ...]


def per_class(runs: Sequence[Measured], attacks: Sequence[AttackKey], data: DataFacts) -> ClassTable:
    """Accuracy of every class under each of `attacks`, the best of each class and attack marked."""
    columns = tuple((run.series, attack.name) for attack in attacks for run in runs)
    rows = []
    for index in map(int, data.order):
        cells: list[ScoreCell | None] = []
        for attack in attacks:
            found = [run.summaries.get(attack) for run in runs]
            cells += marked([class_cell(summaries, index) if summaries else None for summaries in found])
        rows.append((index, tuple(cells)))
    return ClassTable(columns, tuple(rows))
