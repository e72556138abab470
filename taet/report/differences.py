"""Comparisons between the series of a page: paired differences on the same test images, and transferred examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from taet.evaluation.card import ResultCard
from taet.evaluation.column import Column
from taet.evaluation.transfer import Transfer, matrices
from taet.report import series
from taet.report.measured import AttackKey, Measured
from taet.report.series import Series
from taet.statistics import Difference, difference

Compared = Literal["balanced", "tail", "plain"]
"""Which accuracy is compared: balanced, balanced over the tail classes, or the share of all images."""


class Pairs:
    """Differences between series, each computed once."""

    def __init__(self, tail: Sequence[int] = ()) -> None:
        """Prepare comparisons of series on one data set with these tail classes."""
        self._tail = list(tail)
        self._known: dict[tuple[AttackKey, Compared, int, int], Difference] = {}

    def difference(self, first: Measured, second: Measured, attack: AttackKey, of: Compared = "balanced") -> Difference:
        """Return the difference of accuracies, first minus second, under an attack that both series have."""
        if first.series.index > second.series.index:
            return opposite(self.difference(second, first, attack, of))
        at = (attack, of, first.series.index, second.series.index)
        if at not in self._known:
            self._known[at] = self._compute(_in_pairs(first.columns[attack], second.columns[attack]), of)
        return self._known[at]

    def is_better(self, first: Measured, second: Measured, attack: AttackKey, of: Compared) -> bool:
        """Return whether the first is more accurate beyond chance."""
        found = self.difference(first, second, attack, of)
        return found.decided and found.value > 0  # the shared seeds may rank differently from all seeds

    def _compute(self, pairs: Sequence[tuple[ResultCard, Column, Column]], of: Compared) -> Difference:
        card = pairs[0][0]
        among = np.isin(card.labels, self._tail) if of == "tail" else np.ones(len(card.labels), dtype=bool)
        labels = card.labels[among]
        return difference(
            [first.correct[among] for _, first, _ in pairs],
            [second.correct[among] for _, _, second in pairs],
            np.zeros_like(labels) if of == "plain" else labels,
            card.num_classes,
        )


def opposite(found: Difference) -> Difference:
    """Return the difference with its two sides exchanged."""
    return replace(found, value=-found.value, low=-found.high, high=-found.low)


def _in_pairs(
    first: Sequence[tuple[ResultCard, Column]], second: Sequence[tuple[ResultCard, Column]]
) -> list[tuple[ResultCard, Column, Column]]:
    """Pair runs with equal seeds; if the sides share no seed, pair them in order."""
    by_seed = {card.seed: column for card, column in second}
    same = [(card, column, by_seed[card.seed]) for card, column in first if card.seed in by_seed]
    return same or [(card, mine, other) for (card, mine), (_, other) in zip(first, second, strict=False)]


@dataclass(frozen=True)
class PairedTable:
    """Differences under one attack, row minus column; None if there is nothing to compare."""

    attack: AttackKey
    heads: tuple[Series, ...]
    rows: tuple[tuple[Series, tuple[Difference | None, ...]], ...]


def paired_table(runs: Sequence[Measured], attack: AttackKey, pairs: Pairs) -> PairedTable | None:
    """Compare every two series under an attack; if there are many, only with the baseline and with the first.

    `runs` are in the order of the rows; for fewer than two runs the result is None.
    """
    there = [run for run in runs if attack in run.summaries]
    if len(there) < 2:
        return None
    many = len(there) > series.MANY
    common = series.baseline([run.series for run in there])
    base = next((run for run in there if run.series is common), there[0])
    against = list(dict.fromkeys((base, there[0]))) if many else there[1:]

    def cell(row: int, other: Measured) -> Difference | None:
        done = other is there[row] if many else other in there[: row + 1]
        return None if done else pairs.difference(there[row], other, attack)

    rows = [(run.series, tuple(cell(row, other) for other in against)) for row, run in enumerate(there)]
    kept = rows if many else rows[:-1]  # the last row would be empty
    return PairedTable(attack, tuple(other.series for other in against), tuple(kept))


def transfers(all_series: Sequence[Series]) -> list[Transfer]:
    """Return the matrix of each attack whose examples were transferred between these models, without other models."""
    cards = {
        one.label if len(one.runs) == 1 else f"{one.label}, seed {run.seed}": run.card
        for one in all_series
        for run in one.runs
        if run.card is not None
    }
    found = []
    for matrix in matrices(cards):
        there = ~np.isnan(matrix.balanced) & ~np.eye(len(matrix.names), dtype=bool)
        part = np.flatnonzero(there.any(0) | there.any(1))
        names, both = tuple(matrix.names[row] for row in part), np.ix_(part, part)
        clean, balanced, accuracy = matrix.clean[part], matrix.balanced[both], matrix.accuracy[both]
        found.append(replace(matrix, names=names, clean=clean, balanced=balanced, accuracy=accuracy))
    return found
