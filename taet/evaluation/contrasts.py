"""Attacks on one model held against each other: which may be, and whether one is stronger by more than chance."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from taet.evaluation.card import ResultCard
from taet.evaluation.column import Column
from taet.evaluation.curves import WHOLE

Z = 1.96  # two-sided 95 %

Pair = tuple[Column, Column]
"""(lower, upper): an attack that breaks more images than it should, and the one that it is held against."""


def own(card: ResultCard) -> list[Column]:
    """Attacks on the model itself."""
    return [column for column in card.columns if "source" not in column.parameters]


def asked(card: ResultCard) -> list[Column]:
    """Attacks on the model itself that are more than a point of a curve."""
    return [column for column in card.columns if column.ordinary]


def one_steps(card: ResultCard) -> list[Column]:
    """Every FGSM on plain cross-entropy."""
    return [column for column in asked(card) if _is_fgsm(column) and _is_plain(column)]


def chains(card: ResultCard) -> list[Column]:
    """Every PGD on plain cross-entropy that can cross its ball."""
    return [column for column in asked(card) if is_chain(column) and _is_plain(column) and crosses(column)]


def is_chain(column: Column) -> bool:
    """Is it a PGD, whatever it ascends?"""
    return "step_size" in column.parameters and not _is_fgsm(column)


def crosses(chain: Column) -> bool:
    """Can the steps of a PGD lead from one side of the ball, of which images are the inside, to the other?"""
    width = 2 * (chain.eps or 0)
    if chain.norm == "linf":
        width = min(width, WHOLE)
    return bool(chain.parameters["steps"] * chain.parameters["step_size"] >= width - 1e-9)


def same_ball(one: Column, other: Column) -> bool:
    """Have they the same norm and radius?"""
    return (one.norm, one.eps) == (other.norm, other.eps)


def differing(columns: Sequence[Column], setting: str) -> Iterator[Pair]:
    """All (one, other) in one ball that differ in this setting and in no other."""
    for one in columns:
        for other in columns:
            first, second = ({**column.parameters, setting: None} for column in (one, other))
            differ = one.parameters.get(setting) != other.parameters.get(setting)
            if differ and first == second and same_ball(one, other):
                yield one, other


def strongest(pairs: Iterable[Pair], usual: float = 0.0) -> Pair | None:
    """Return the (lower, upper) that are farthest apart, of those farther than `usual` by more than chance."""
    found = [pair for pair in pairs if _below(*pair, usual)]
    return max(found, key=lambda pair: accuracy(pair[1]) - accuracy(pair[0]), default=None)


def _below(lower: Column, upper: Column, usual: float = 0.0) -> bool:
    """Is `lower` less accurate than `upper` on the same images, by more than `usual` and chance explain?"""
    only_upper, only_lower = (upper.correct & ~lower.correct).sum(), (lower.correct & ~upper.correct).sum()
    return exceeds(int(only_upper), int(only_lower), usual * len(lower.correct))


def exceeds(only_upper: int, only_lower: int, usual: float = 0.0) -> bool:
    """With b and c the images that only one of two gets right, and u as many as are usual: b - c > u + chance.

    Chance is 1 + 1.96 sqrt(b + c): McNemar's test (Psychometrika 12, 1947) with the continuity correction of Edwards
    (Psychometrika 13, 1948).
    """
    return only_upper - only_lower > usual + 1 + Z * float(np.sqrt(only_upper + only_lower))


def accuracy(column: Column) -> float:
    """Share of all images that are still correct."""
    return float(column.correct.mean())


def _is_fgsm(column: Column) -> bool:
    return column.name.partition(":")[0] == "fgsm"


def _is_plain(column: Column) -> bool:
    return not column.parameters.keys() & {"objective", "factor", "target"}
