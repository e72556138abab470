"""Tables of the report: values with 95 % intervals, or means over seeds with standard errors, all from result cards."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import compress
from typing import NamedTuple

import numpy as np

from taet import statistics
from taet.evaluation.summary import Interval, Summary
from taet.formatting import percent
from taet.report.differences import Compared, Pairs
from taet.report.measured import AttackKey, Measured, TextCell, heads
from taet.report.read import ReportedData
from taet.report.series import Series, baseline

LEVEL = 0.95
"""Confidence level of the interval of a mean over seeds."""
EXTRA = (TextCell("saw the removed tail", "extra images"),)
COSTS = (TextCell("training", "per run"), TextCell("flags", "kinds"))
NAMED = 6
"""Largest number of classes that are named in a cell."""
NUMBERED_CLASSES = 12
"""Largest number of classes for which the confusion matrix shows its numbers."""
MOST_MISTAKES = 10
"""Number of pairs of classes that are listed as most often confused."""


@dataclass(frozen=True)
class ScoreCell:
    """A value in [0, 1] with its interval; `mark` is best, second or empty, `tied`: possibly as good as the best."""

    value: float
    low: float
    high: float
    mark: str = ""
    tied: bool = False
    detail: str = ""
    error: float | None = None
    """Standard error of the mean over seeds; None with one seed."""
    count: int = 1
    """Number of seeds."""


def spread(values: Sequence[float], intervals: Sequence[Interval], detail: str = "") -> ScoreCell:
    """Return the value of one run with its interval, or the mean over several seeds with Student's interval."""
    if len(values) == 1:
        return ScoreCell(values[0], *intervals[0], detail=detail)
    mean, error = (float(number) for number in statistics.mean_and_standard_error(values))
    reach = statistics.student_quantile(LEVEL, len(values) - 1) * error
    low, high = max(mean - reach, 0.0), min(mean + reach, 1.0)
    return ScoreCell(mean, low, high, detail=detail, error=error, count=len(values))


@dataclass(frozen=True)
class MethodTable:
    """One row per series; a cell is None if it was not measured."""

    title: str
    heads: tuple[TextCell, ...]
    rows: tuple[tuple[Series, tuple[ScoreCell | TextCell | None, ...]], ...]
    note: str = ""


Apart = Callable[[int, int], bool]
"""Whether the best row, the first argument, is better beyond chance than the row in the second argument."""


def marked(cells: Sequence[ScoreCell | None], apart: Apart | None = None) -> list[ScoreCell | None]:
    """Mark the best and the second best value of a column, and every cell that may be as good as the best.

    Without `apart`, a cell counts as below the best if their intervals do not overlap. If all values are equal, there
    is no best; a second value that is 0 or shared by several rows is not marked.
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
    for row, cell in there.items():
        there[row] = dataclasses.replace(cell, mark=marks.get(cell.value, ""), tied=row in tied)
    return [there.get(row, cell) for row, cell in enumerate(cells)]


Score = Callable[[Sequence[Summary]], ScoreCell | None]
"""The number of a cell, from one summary per seed."""


@dataclass(frozen=True)
class Measure:
    """A column of a table: one number of each row under one attack."""

    head: TextCell
    attack: AttackKey
    score: Score
    apart: Callable[[Measured, Measured], bool] | None = None
    """Whether the first row is better than the second beyond chance; by default, if the intervals do not overlap."""
    ranked: bool = True
    """Whether the best value is marked."""

    def cells(self, runs: Sequence[Measured]) -> list[ScoreCell | None]:
        """Return the cell of every row, marked if the column is ranked."""
        found = [self.score(run.summaries[self.attack]) if self.attack in run.summaries else None for run in runs]
        if not self.ranked:
            return found
        apart = self.apart
        return marked(found, apart and (lambda best, other: apart(runs[best], runs[other])))


def table(title: str, measures: Sequence[Measure], runs: Sequence[Measured], note: str = "") -> MethodTable:
    """Build a table column by column; each column has its own marks."""
    columns = [measure.cells(runs) for measure in measures]
    rows = tuple((run.series, tuple(column[row] for column in columns)) for row, run in enumerate(runs))
    return MethodTable(title, tuple(measure.head for measure in measures), rows, note)


def headline(
    runs: Sequence[Measured], attacks: Sequence[AttackKey], hardest: AttackKey | None, data: ReportedData, pairs: Pairs
) -> MethodTable:
    """Return balanced accuracy under each attack, tail accuracy under the hardest one, plain accuracy, and cost.

    Plain accuracy is omitted if it equals the balanced one, the tail if the training counts are not known. A cell is
    tied with the best if the paired comparison does not decide between them.
    """

    def measure(head: TextCell, attack: AttackKey, score: Score, of: Compared) -> Measure:
        return Measure(head, attack, score, lambda best, other: pairs.is_better(best, other, attack, of), attack.ranked)

    named = zip(heads(attacks), attacks, strict=True)
    measures = [measure(head, attack, balanced_cell, "balanced") for head, attack in named]
    if hardest is not None and data.train_counts is not None:
        measures.append(measure(TextCell("tail", hardest.name), hardest, partial(group_cell, group="tail"), "tail"))
    clean = next((attack for attack in attacks if attack.norm is None), None)
    if clean is not None and not even(runs):
        measures.append(measure(TextCell("accuracy", "plain, clean"), clean, accuracy_cell, "plain"))
    scores, base = table("Balanced accuracy", measures, runs), baseline([run.series for run in runs])
    mixed = EXTRA if any(saw(run.series) for run in runs) else ()
    rows = tuple(
        (series, (*cells, *(TextCell(saw(series) or "–") for _ in mixed), *costs(series, base)))
        for series, cells in scores.rows
    )
    return dataclasses.replace(scores, heads=(*scores.heads, *mixed, *COSTS), rows=rows)


def saw(series: Series) -> str:
    """Return whether the source of the extra images saw the removed tail: no, yes, unknown, or "" if there are none."""
    found = (card.data["extra"]["saw_removed_tail"] for card in series.cards if "extra" in card.data)
    return next(iter(found), "")


def even(runs: Sequence[Measured]) -> bool:
    """Return whether all classes have the same number of test images, so that plain accuracy is the balanced one."""
    totals = [summary.total for run in runs for summaries in run.summaries.values() for summary in summaries]
    return all(len(set(total[total > 0].tolist())) <= 1 for total in totals)


def balanced_cell(summaries: Sequence[Summary]) -> ScoreCell:
    """Return balanced accuracy, for an attack that minimises the perturbation with the median distance."""
    reach = float(statistics.mean_and_standard_error([s.median_distance for s in summaries])[0])
    detail = "" if math.isnan(reach) else f"median {reach:.3g}"
    return spread([s.balanced for s in summaries], [s.balanced_interval for s in summaries], detail)


def accuracy_cell(summaries: Sequence[Summary]) -> ScoreCell:
    """Return plain accuracy."""
    return spread([s.accuracy for s in summaries], [s.accuracy_interval for s in summaries])


def group_cell(summaries: Sequence[Summary], group: str) -> ScoreCell | None:
    """Return balanced accuracy over a group of classes; None if a card lacks the training counts."""
    if not all(group in s.groups for s in summaries):
        return None
    return spread([s.groups[group] for s in summaries], [s.group_intervals[group] for s in summaries])


def costs(series: Series, base: Series | None) -> tuple[TextCell, TextCell]:
    """Return seconds of training, also relative to the baseline on the same machine, and the number of flags."""
    seconds = f"{series.seconds:.0f} s" if series.seconds >= 10 else f"{series.seconds:.1f} s"
    relative = ""
    if base is not None and base.seconds and base.machine == series.machine:
        relative = f"{series.seconds / base.seconds:.2f} × {base.label}"
    training = TextCell(seconds, relative) if series.seconds else TextCell("–", "not known")
    return training, TextCell(str(len(series.flags)))


def plain(runs: Sequence[Measured], attacks: Sequence[AttackKey]) -> MethodTable:
    """Return plain accuracy under each attack; no rows if it equals the balanced one."""
    if even(runs):
        note = "equal to the balanced one, since all classes have the same number of test images"
        return MethodTable("Plain accuracy", (), (), note)
    named = zip(heads(attacks), attacks, strict=True)
    return table(
        "Plain accuracy", [Measure(head, attack, accuracy_cell, ranked=attack.ranked) for head, attack in named], runs
    )


def by_group(runs: Sequence[Measured], attack: AttackKey, data: ReportedData) -> MethodTable:
    """Return accuracy of head, body, tail, the last half and the worst classes, and its spread, under one attack.

    The worst class is found by the mean over seeds, the worst tenth for each seed.
    """

    def worst(summaries: Sequence[Summary]) -> ScoreCell | None:
        recalls, _ = statistics.mean_and_standard_error([s.per_class for s in summaries])
        if np.isnan(recalls).all():
            return None
        index = int(np.nanargmin(recalls))
        return class_cell(summaries, index, named([index], data))

    groups = {} if data.train_counts is None else statistics.class_groups(data.train_counts)
    measures = [
        Measure(
            TextCell(name.replace("_", " "), "1 class" if len(members) == 1 else f"{len(members)} classes"),
            attack,
            partial(group_cell, group=name),
        )
        for name, members in groups.items()
        if members
    ]
    share = f"worst {100 * statistics.WORST_SHARE:g} %"
    measures += [
        Measure(TextCell("worst class"), attack, worst),
        Measure(TextCell(share, "of the classes"), attack, tenth),
    ]
    scores = table(attack.name, measures, runs, attack.threat)
    pairs = zip(runs, scores.rows, strict=True)
    rows = tuple((series, (*cells, unevenness(run, attack))) for run, (series, cells) in pairs)
    return dataclasses.replace(scores, heads=(*scores.heads, TextCell("deviation / mean", "of the classes")), rows=rows)


def tenth(summaries: Sequence[Summary]) -> ScoreCell | None:
    """Return the mean accuracy of the worst tenth of the classes of each seed; None without test images."""
    values = [s.worst_classes for s in summaries]
    return None if any(map(math.isnan, values)) else spread(values, [s.worst_classes_interval for s in summaries])


def unevenness(run: Measured, attack: AttackKey) -> TextCell:
    """Return the standard deviation of class accuracies over their mean; for several seeds with its standard error."""
    mean, error = statistics.mean_and_standard_error([s.relative_deviation for s in run.summaries.get(attack, ())])
    if math.isnan(mean):
        return TextCell("–")
    return TextCell(f"{mean:.2f}", "" if math.isnan(error) else f"± {error:.2f}")


def named(labels: Sequence[int], data: ReportedData) -> str:
    """Return names of classes, with a star for few test images; of many classes, only the first ones."""
    few = data.few
    names = [f"{data.class_names[label]}{' *' if label in few else ''}" for label in labels]
    return ", ".join(names if len(names) <= NAMED else [*names[: NAMED - 1], f"{len(names) - NAMED + 1} more"])


def behaviour(runs: Sequence[Measured], clean: AttackKey | None, attack: AttackKey, data: ReportedData) -> MethodTable:
    """Return flip rate, areas under the ROC curve, and the classes that are weak under the attack."""

    def mean(values: Sequence[float]) -> TextCell:
        return TextCell(percent(float(statistics.mean_and_standard_error(values)[0])))

    def cells(run: Measured) -> tuple[TextCell, ...]:
        found = run.summaries.get(attack, ())
        before = run.summaries.get(clean, ()) if clean is not None else ()
        correct = np.sum([s.correct for s in found], axis=0)
        weak = statistics.weak_classes(correct, np.sum([s.total for s in found], axis=0)) if found else []
        ordered = sorted(weak, key=lambda label: -data.ranks[label])
        return (
            mean([s.flip_rate for s in found]),
            mean([s.roc_auc for s in before]),
            mean([s.roc_auc for s in found]),
            TextCell(str(len(weak)) if found else "–", named(ordered, data)),
        )

    columns = [TextCell("answers changed", attack.name), TextCell("ROC-AUC", "clean"), TextCell("ROC-AUC", attack.name)]
    columns.append(TextCell("weak classes", attack.name))
    rows = [(run.series, cells(run)) for run in runs]
    # A column without any values is left out: an attack in parts has no scores.
    kept = [any(row[at].text != "–" for _, row in rows) for at in range(len(columns))]
    shown = tuple((series, tuple(compress(row, kept))) for series, row in rows)
    return MethodTable("Behaviour under attack", tuple(compress(columns, kept)), shown)


def class_cell(summaries: Sequence[Summary], index: int, detail: str = "") -> ScoreCell:
    """Return the accuracy of one class."""
    intervals = [(float(low[index]), float(high[index])) for low, high in (s.per_class_interval for s in summaries)]
    return spread([float(summary.per_class[index]) for summary in summaries], intervals, detail)


@dataclass(frozen=True)
class ClassTable:
    """One row per class, from the largest to the smallest; one column per attack and series."""

    heads: tuple[tuple[Series, str], ...]
    rows: tuple[tuple[int, tuple[ScoreCell | None, ...]], ...]


class Mistakes(NamedTuple):
    """The most frequent mistakes of a row."""

    series: Series
    rows: list[tuple[str, str, int, float]]
    """True class, predicted class, images, and their share of the true class."""


def mistakes(runs: Sequence[Measured], attacks: Sequence[AttackKey]) -> list[tuple[str, list[Mistakes]]]:
    """Return the most frequent mistakes under each attack, if a matrix of all classes would show no numbers."""
    found = []
    for attack in attacks:
        rows = []
        for run in runs:
            names = run.series.data.class_names
            if attack in run.summaries and len(names) > NUMBERED_CLASSES:
                pairs = run.mistakes(attack, MOST_MISTAKES)
                rows.append(Mistakes(run.series, [(names[t], names[p], n, share) for t, p, n, share in pairs]))
        found += [(attack.title, rows)] if rows else []
    return found


def per_class(runs: Sequence[Measured], attacks: Sequence[AttackKey], data: ReportedData) -> ClassTable:
    """Return the accuracy of every class under each of `attacks`, with the best series in each cell marked."""

    def cells(index: int, attack: AttackKey) -> list[ScoreCell | None]:
        found = [run.summaries.get(attack) for run in runs]
        return marked([class_cell(summaries, index) if summaries else None for summaries in found])

    columns = tuple((run.series, attack.name) for attack in attacks for run in runs)
    order = map(int, data.order)
    return ClassTable(columns, tuple((i, tuple(cell for one in attacks for cell in cells(i, one))) for i in order))
