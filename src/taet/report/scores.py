"""The numbers of result cards as a tidy table, by group of classes, and their means over seeds."""

import functools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd

from taet.card.card import Card
from taet.card.column import Column
from taet.card.summary import Summary
from taet.errors import unknown
from taet.metrics import accuracies, intervals
from taet.metrics.accuracies import Floats, Ints
from taet.metrics.intervals import student_quantile
from taet.metrics.paired import LEVEL
from taet.report.entries import TableEntry

ABOUT = (
    "card",
    "row",
    "method",
    "data",
    "test_sha256",
    "imbalance_ratio",
    "model",
    "protocol",
    "seed",
)
COLUMNS = (
    *ABOUT,
    "attack",
    "group",
    "n",
    "correct",
    "accuracy",
    "low",
    "high",
    "precision",
    "f1",
)
"""Columns of `Results.table()`; precision and F1 are those of a class, and the F1 of `balanced` is
the mean over the classes."""
THIRDS = ("head", "body", "tail")
GROUPS = ("balanced", "plain", *THIRDS, "worst")
"""Groups of classes in `Results.table()`, before the classes themselves."""
SHORT_SHA256 = 8  # digits that tell the test sets of a table apart


def class_names(card: Card) -> list[str]:
    """Return the names of the classes as groups of the table.

    A class called "tail" is not the tail: then all are called "class NAME".
    """
    if {*GROUPS} & {*card.class_names}:
        return [f"class {name}" for name in card.class_names]
    return [*card.class_names]


def labels_in(card: Card, group: str) -> Ints:
    """Return the labels of a group of classes that have test images.

    Head, body and tail are empty where the training counts are not known or equal.
    """
    present = np.flatnonzero(card.test_class_counts)
    if group in ("balanced", "plain"):
        return present
    if group in THIRDS:
        counts = card.data.get("train_class_counts")
        if counts is None or len({*counts}) == 1:
            return np.array([], dtype=np.int64)
        labels = np.array(accuracies.class_groups(counts)[group], dtype=np.int64)
        return labels[np.isin(labels, present)]
    names = class_names(card)
    if group not in names:
        raise unknown("group", group, [*GROUPS[:-1], *names])
    return np.array([names.index(group)])


def table_of(entries: Iterable[TableEntry]) -> pd.DataFrame:
    """Return one line for each card, attack and group of classes, with the columns `COLUMNS`."""
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for entry in entries:
        about = _about(entry)
        for attack, column in entry.columns.items():
            numbers = _numbers(entry.card, column)
            lines = len(numbers["group"])
            for name, value in {**about, "attack": attack}.items():
                columns[name] += [value] * lines
            for name, values in numbers.items():
                columns[name] += values
    return pd.DataFrame(columns).astype({"seed": "Int64", "n": "Int64", "correct": "Int64"})


def _about(entry: TableEntry) -> dict[str, object]:
    card = entry.card
    return {
        "card": entry.name,
        "row": entry.row,
        "method": card.method,
        "data": card.data["name"],
        "test_sha256": card.data["test_sha256"][:SHORT_SHA256],
        "imbalance_ratio": card.data.get("imbalance_ratio"),
        "model": card.model["name"],
        "protocol": card.protocol,
        "seed": card.seed,
    }


def _numbers(card: Card, column: Column) -> dict[str, list[Any]]:
    """Return the numbers of an attack for each group of classes, and then for each class, by the
    names of their columns."""
    summary = card.summary_of(column)
    predicted = np.bincount(column.predictions, minlength=card.num_classes)
    precision = accuracies.class_precision(summary.correct, predicted)
    f1 = accuracies.class_f1(summary.correct, summary.total, predicted)
    low, high = summary.per_class_interval
    of_classes: dict[str, list[Any]] = {
        "group": class_names(card),
        "n": summary.total.tolist(),
        "correct": summary.correct.tolist(),
        "accuracy": summary.per_class.tolist(),
        "low": low.tolist(),
        "high": high.tolist(),
        "precision": precision.tolist(),
        "f1": f1.tolist(),
    }
    of_groups = [*_lines(card, summary, float(np.nanmean(f1)))]
    return {
        name: [line.get(name, math.nan) for line in of_groups] + values
        for name, values in of_classes.items()
    }


def _lines(card: Card, summary: Summary, mean_f1: float) -> Iterator[dict[str, object]]:
    """Yield the numbers of an attack for each group of classes."""
    images = summary.total.sum()
    balanced = _line("balanced", images, None, summary.balanced, *summary.balanced_interval)
    yield {**balanced, "f1": mean_f1}
    right = summary.correct.sum()
    yield _line("plain", images, right, summary.accuracy, *summary.accuracy_interval)
    for group in THIRDS:
        labels = labels_in(card, group)
        if len(labels):
            interval = summary.group_intervals[group]
            yield _line(group, summary.total[labels].sum(), None, summary.groups[group], *interval)
    yield _worst_line(summary)


def _worst_line(summary: Summary) -> dict[str, object]:
    """Return the line of the class with the lowest accuracy.

    That class is chosen by chance too, so the intervals of all classes must hold together
    (Bonferroni); its own are the lowest ends of these.
    """
    label, accuracy = summary.worst_class
    level = 1 - LEVEL / np.count_nonzero(summary.total)
    lows, highs = intervals.exact_interval(summary.correct, summary.total, level)
    counts = summary.total[label], summary.correct[label]
    return _line("worst", *counts, accuracy, np.nanmin(lows), np.nanmin(highs))


def _line(
    group: str, n: int, correct: int | None, accuracy: float, low: float, high: float
) -> dict[str, object]:
    count = pd.NA if correct is None else correct
    numbers = {"accuracy": accuracy, "low": low, "high": high}
    return {"group": group, "n": n, "correct": count, **numbers}


def over_seeds(scores: pd.DataFrame, *keys: str) -> pd.DataFrame:
    """Return mean and 95 % interval over the seeds for equal values of `keys`.

    Each seed counts once. The columns are the keys, accuracy, low, high, error (the standard error
    over the seeds) and seeds. Of one seed the interval is that over the test images; of R >= 2, an
    end at distance q from the mean moves to sqrt(q^2 + (t error)^2), with q from the mean interval
    and t the Student quantile at R - 1 degrees of freedom.
    """
    scores = scores.drop_duplicates([*keys, "seed"])
    groups = scores.groupby([*keys], sort=False)
    means = groups[["accuracy", "low", "high"]].agg("mean")
    seeds = groups["accuracy"].size()
    in_groups = np.argsort(groups.ngroup(), kind="stable")
    accuracies_in_groups = scores["accuracy"].to_numpy()[in_groups]
    mean = pd.Series(_means_of_runs(accuracies_in_groups, seeds.to_numpy()), seeds.index)
    error = groups["accuracy"].sem()
    of_seeds = error * seeds.map(_student_quantile)
    low = (mean - np.hypot(mean - means["low"], of_seeds)).clip(lower=0)
    high = (mean + np.hypot(means["high"] - mean, of_seeds)).clip(upper=1)
    several = seeds > 1
    return means.assign(
        accuracy=mean,
        low=means["low"].mask(several, low),
        high=means["high"].mask(several, high),
        error=error,
        seeds=seeds,
    ).reset_index()


def _means_of_runs(values: Floats, lengths: Ints) -> Floats:
    """Return the mean of each run of values, which have these lengths, as numpy computes it; that
    of pandas has another last digit."""
    means = np.empty(len(lengths))
    ends = lengths.cumsum()
    for length in np.unique(lengths):
        chosen = np.flatnonzero(lengths == length)
        places = (ends[chosen] - length)[:, None] + np.arange(length)
        means[chosen] = values[places].mean(1)
    return means


@functools.cache
def _student_quantile(seeds: int) -> float:
    return student_quantile(1 - LEVEL, seeds - 1) if seeds > 1 else math.nan
