"""Comparable pairs of attacks on one model, and tests of whether one attack is stronger by more than chance."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import permutations

import numpy as np

from taet.attacks.pgd import ProjectedAscent
from taet.attacks.suite import Suite
from taet.evaluation.card import ResultCard
from taet.evaluation.column import Column
from taet.evaluation.curves import WHOLE

THOROUGH_STEPS = 20  # steps of the shorter PGD in the papers
Z = 1.96  # two-sided 95 %

Contrast = tuple[Column, Column]
"""(lower, upper): an attack that breaks more images than it should, and the attack that it is compared with."""


def own(card: ResultCard) -> list[Column]:
    """Return the attacks on the model itself."""
    return [column for column in card.columns if not column.is_transfer]


def asked(card: ResultCard) -> list[Column]:
    """Return the attacks on the model itself that are not only points of a curve."""
    return [column for column in card.columns if column.ordinary]


def one_steps(card: ResultCard) -> list[Column]:
    """Return every one-step attack, e.g. FGSM, on unscaled cross-entropy."""
    return [column for column in asked(card) if column.attack.one_step and _is_plain(column)]


def chains(card: ResultCard) -> list[Column]:
    """Return every PGD on unscaled cross-entropy whose steps can cross its ball."""
    return [column for column in asked(card) if is_chain(column) and _is_plain(column) and crosses(column)]


def is_chain(column: Column) -> bool:
    """Return whether the attack is a PGD, with any objective."""
    return isinstance(column.attack, ProjectedAscent)


def crosses(chain: Column) -> bool:
    """Return whether the steps of a PGD can cross the part of the ball that lies in the image range."""
    attack = chain.attack
    width = min(2 * attack.radius, WHOLE) if attack.norm == "linf" else 2 * attack.radius
    return isinstance(attack, ProjectedAscent) and attack.steps * attack.step_size >= width - 1e-9


def is_thorough(column: Column) -> bool:
    """Return whether an attack follows the gradients far enough to judge how useful they are.

    True for a suite, a bound such as `quick`, and an untargeted PGD of 20 steps or more that can cross its ball.
    """
    attack = column.attack
    if isinstance(attack, Suite) or attack.bound:
        return True
    long = isinstance(attack, ProjectedAscent) and attack.steps >= THOROUGH_STEPS and attack.target is None
    return long and crosses(column)


def same_ball(one: Column, other: Column) -> bool:
    """Return whether both attacks have the same norm and radius."""
    return (one.norm, one.eps) == (other.norm, other.eps)


def differing(columns: Sequence[Column], setting: str) -> Iterator[Contrast]:
    """Yield all pairs of attacks in one ball that differ only in this setting."""
    for one, other in permutations(columns, 2):
        if [*one.identity.differences(other.identity, seeds=True)] == [setting]:
            yield one, other


def strongest(pairs: Iterable[Contrast], usual: float = 0.0) -> Contrast | None:
    """Return the pair with the largest difference of accuracies beyond `usual` and chance; None if there is none."""

    def explained(lower: Column, upper: Column) -> bool:
        only_upper, only_lower = (upper.correct & ~lower.correct).sum(), (lower.correct & ~upper.correct).sum()
        return not exceeds(int(only_upper), int(only_lower), usual * len(lower.correct))

    found = (pair for pair in pairs if not explained(*pair))
    return max(found, key=lambda pair: accuracy(pair[1]) - accuracy(pair[0]), default=None)


def exceeds(only_upper: int, only_lower: int, usual: float = 0.0) -> bool:
    """Return whether b - c > u + 1 + 1.96 sqrt(b + c), for b and c images that only one of two attacks leaves correct.

    u is the `usual` difference; the rest is McNemar's test (Psychometrika 12, 1947) with the continuity
    correction of Edwards (Psychometrika 13, 1948).
    """
    return only_upper - only_lower > usual + 1 + Z * float(np.sqrt(only_upper + only_lower))


def accuracy(column: Column) -> float:
    """Return the share of all images that are still correct."""
    return float(column.correct.mean())


def _is_plain(column: Column) -> bool:
    return not column.parameters.keys() & {"objective", "factor", "target"}
