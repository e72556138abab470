"""The numbers of result cards: one line for each card, attack and group of classes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taet import statistics
from taet.errors import unknown
from taet.evaluation.card import ResultCard
from taet.evaluation.column import Column
from taet.intervals import mean_recall_limits
from taet.report.rows import Setting
from taet.report.sources import StoredCard
from taet.statistics import Ints

COLUMNS = (
    *("card", "row", "method", "data", "imbalance_ratio", "model", "protocol", "seed"),
    *("attack", "group", "n", "correct", "accuracy", "low", "high"),
)
GROUPS = ("balanced", "plain", "head", "body", "tail", "worst")
"""Groups of classes in the table, before the classes themselves."""
LEVEL = 0.95


@dataclass(frozen=True, eq=False)
class NamedCard:
    """One card of a table, with the name of its row and its columns by the names of their attacks, in order."""

    source: StoredCard
    row: str
    setting: Setting
    columns: Mapping[str, Column]

    @property
    def card(self) -> ResultCard:
        return self.source.card


def lines(cards: Sequence[NamedCard]) -> Iterator[tuple[object, ...]]:
    """Yield one line of `COLUMNS` for each card, attack and group of classes; the cards are of one test set."""
    columns = [(card, attack, column) for card in cards for attack, column in card.columns.items()]
    first = cards[0].card
    masks = [column.correct for _, _, column in columns]
    right = np.stack([statistics.class_counts(mask, first.labels, first.num_classes)[0] for mask in masks])
    total = first.test_class_counts
    means = {group: of for group in ("balanced", "head", "body", "tail") if len(of := members(first, group))}
    limits = {group: mean_recall_limits(right[:, of], total[of], LEVEL) for group, of in means.items()}
    single = statistics.wilson_interval(right, total, LEVEL)
    plain = statistics.wilson_interval(right.sum(1), total.sum(), LEVEL)
    classes = class_names(first)
    for at, (card, attack, _) in enumerate(columns):
        head, k = (*about(card).values(), attack), right[at]
        numbers: dict[str, tuple[object, ...]] = {}
        for group, of in means.items():
            ends = (end[at] for end in limits[group])
            numbers[group] = (total[of].sum(), None, statistics.balanced_accuracy(k[of], total[of]), *ends)
        numbers["plain"] = (total.sum(), k.sum(), statistics.accuracy(k, total), plain[0][at], plain[1][at])
        recalls = statistics.per_class_accuracy(k, total)
        each = list(zip(total, k, recalls, single[0][at], single[1][at], strict=True))
        numbers["worst"] = each[statistics.worst_class(k, total)[0]]
        yield from ((*head, group, *numbers[group]) for group in GROUPS if group in numbers)
        yield from ((*head, name, *one) for name, one in zip(classes, each, strict=True))


def over_seeds(numbers: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """Return mean, interval and standard error of seeds, whose accuracy, low and high are the rows of `numbers`."""
    if len(numbers) == 1:
        accuracy, low, high = map(float, numbers[0])
        return accuracy, low, high, math.nan
    mean, error = (float(value) for value in statistics.mean_and_standard_error(numbers[:, 0]))
    reach = statistics.student_quantile(LEVEL, len(numbers) - 1) * error
    return mean, max(mean - reach, 0.0), min(mean + reach, 1.0), error


def about(card: NamedCard) -> dict[str, object]:
    """Return what the table says of a card, from its name to its seed, by column."""
    of = card.card
    ratio = of.data.get("imbalance_ratio")
    values = (card.source.name, card.row, of.method, of.data["name"], ratio, of.model["name"], of.protocol, of.seed)
    return dict(zip(COLUMNS, values, strict=False))


def class_names(card: ResultCard) -> list[str]:
    """Return the names of the classes as groups of the table: a class called "tail" is not the tail."""
    return [f"class {name}" if name in GROUPS else name for name in card.class_names]


def members(card: ResultCard, group: str) -> Ints:
    """Return the labels of a group of classes that have test images; none if its training counts are not known."""
    counts, present = card.data.get("train_class_counts"), np.flatnonzero(card.test_class_counts)
    if group in ("balanced", "plain"):
        return present
    if group in ("head", "body", "tail"):
        found = [] if counts is None else statistics.class_groups(counts)[group]
        return np.array([label for label in found if label in present], dtype=np.int64)
    if group not in (names := class_names(card)):
        raise unknown("group", group, [*GROUPS[:-1], *names])
    return np.array([names.index(group)])
