"""What the columns of a card show: comparable pairs of attacks, and which one is stronger by more than chance."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise, permutations
from typing import NamedTuple

import numpy as np

from taet.attacks.autoattack import AutoAttack
from taet.attacks.pgd import ProjectedAscent
from taet.evaluation.bundles import WHOLE, curves
from taet.evaluation.card import Card
from taet.evaluation.column import Column
from taet.evaluation.facts import DeepFacts, ModelFacts
from taet.formatting import percent

# Largest decrease from PGD-20 to PGD-100 in the two papers' tables: 1.5 points in the L-infinity ball (TAET, table 1),
# 2.1 in the L2 ball (REAT, table 12).
CONVERGENCE_GAP = {"linf": 0.015, "l2": 0.022}
# Largest decrease from PGD-20 to AutoAttack in REAT's tables: 4.4 points (table 2), except for RoBal, whose scaled
# logits mask its gradients: 6.7 to 7.4 (tables 3 and 5, CIFAR-10-LT). Also used for L2, for lack of other numbers.
AUTOATTACK_GAP = 0.045
# Largest decrease from PGD to CW-100, which ascends the margin, there: 2.5 points (table 2), except RoBal: 4.5 to 5.5.
# Cross-entropy approaches the margin as logits grow: scaling them may cost as much. It costs RoBal 4.7 to 5.7.
MARGIN_GAP = 0.025
# Without a bound an attack must break every image, and a larger ball cannot be safer (Athalye, Carlini, Wagner, ICML
# 2018, arXiv:1802.00420, section 3.1). One image in a hundred is tolerated because the number of steps is finite.
REMAINDER = 0.01
# Least decrease by a stronger attack on a few images: between the usual `MARGIN_GAP` and the 4.7 points of RoBal.
SAMPLE_GAP = 0.04
THOROUGH_STEPS = 20  # steps of the shorter PGD in the papers
SQUARE_GAP = 0.002  # threshold of the warning of the official AutoAttack about Square
Z = 1.96  # two-sided 95 %

Contrast = tuple[Column, Column]
"""(lower, upper): an attack that breaks more images than it should, and the attack that it is compared with."""


def own(card: Card) -> list[Column]:
    """Return the attacks on the model itself."""
    return [column for column in card.columns if not column.is_transfer]


def asked(card: Card) -> list[Column]:
    """Return the attacks on the model itself that are not only points of a curve."""
    return [column for column in card.columns if column.ordinary]


def is_plain(column: Column) -> bool:
    """Return whether an attack ascends the unscaled cross-entropy."""
    return not column.parameters.keys() & {"objective", "factor", "target"}


def chains(card: Card) -> list[Column]:
    """Return every PGD on unscaled cross-entropy whose steps can cross its ball."""
    return [column for column in asked(card) if is_plain(column) and crosses(column)]


def crosses(column: Column) -> bool:
    """Return whether the steps of a PGD can cross the part of the ball that lies in the image range."""
    attack = column.attack
    width = min(2 * attack.radius, WHOLE) if attack.norm == "linf" else 2 * attack.radius
    return isinstance(attack, ProjectedAscent) and attack.steps * attack.step_size >= width - 1e-9


def is_thorough(column: Column) -> bool:
    """Return whether an attack follows the gradients far enough to judge how useful they are.

    True for a suite, a bound such as `quick`, and a PGD of 20 steps or more that can cross its ball.
    """
    attack = column.attack
    if isinstance(attack, AutoAttack) or attack.bound:
        return True
    long = isinstance(attack, ProjectedAscent) and attack.steps >= THOROUGH_STEPS
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


def beaten(facts: ModelFacts | DeepFacts, strong: str, weak: str = "pgd") -> str:
    """Return the shares of the images that two attacks leave correct, if `strong` wins by over 4 points and chance."""
    left, kept, only = (getattr(facts, f"{name}_correct") for name in (strong, weak, f"only_{strong}"))
    if (kept - left) / facts.images <= SAMPLE_GAP or not exceeds(kept - left + only, only):
        return ""
    shares = percent(left / facts.images), percent(kept / facts.images)
    return f"{shares[0]} % of {facts.images} images correct, otherwise {shares[1]} %"


def accuracy(column: Column) -> float:
    """Return the share of all images that are still correct."""
    return float(column.correct.mean())


def one_steps(card: Card) -> Iterator[Contrast]:
    """Yield every one-step attack on unscaled cross-entropy with each PGD in its ball."""
    singles = [one for one in asked(card) if one.attack.one_step and is_plain(one)]
    return ((one, many) for one in singles for many in chains(card) if same_ball(one, many))


def longer(card: Card, norm: str) -> Iterator[Contrast]:
    """Yield pairs of PGD that differ only in the number of steps or starts, the one with more first."""

    def work(column: Column) -> tuple[int, int]:
        return column.attack.ascent_steps, column.parameters.get("restarts", 1)

    columns = [column for column in chains(card) if column.norm == norm]
    every = (pair for setting in ("steps", "restarts") for pair in differing(columns, setting))
    return ((one, other) for one, other in every if work(one) > work(other))


def suites(card: Card) -> Iterator[Contrast]:
    """Yield every suite with the strongest PGD in its ball."""
    for suite in (column for column in asked(card) if isinstance(column.attack, AutoAttack)):
        if inside := [chain for chain in chains(card) if same_ball(suite, chain)]:
            yield suite, min(inside, key=accuracy)


def transfers(card: Card) -> Iterator[Contrast]:
    """Yield every attack whose examples were made on another model with the same attack on this one."""
    pairs = ((one, other) for one in card.columns if one.is_transfer for other in own(card))
    return ((one, other) for one, other in pairs if one.attack.typed == other.name and same_ball(one, other))


def larger_balls(card: Card) -> Iterator[Contrast]:
    """Yield pairs of points of the curve over eps, that in the smaller ball first."""
    points = curves(card)["eps"].items()
    return ((small, large) for eps, small in points for radius, large in points if 0 < eps < radius)


class Unguided(NamedTuple):
    """An attack, or the part of a suite, that uses no gradient and breaks images that those with gradients miss."""

    name: str
    share: float
    """Per cent of all images."""
    suite: str = ""


def unguided(card: Card) -> Unguided | None:
    """Return what breaks more images without gradients than chance allows; first of the parts of suites."""
    every = len(card.labels)
    for column in card.columns:
        attack = column.attack
        for (_, before), (part, after) in pairwise(column.parts.items()):
            broken = int(before.sum() - after.sum())
            # Attacks that are no suites may use no gradients before either.
            free = isinstance(attack, AutoAttack) and part in attack.gradient_free_parts
            if free and exceeds(broken, 0, SQUARE_GAP * every):
                return Unguided(part.capitalize(), 100 * broken / every, column.name)
    guided = [column for column in asked(card) if column.norm is not None and not column.attack.gradient_free]
    missed: dict[str, int] = {}
    for column in (one for one in asked(card) if one.attack.gradient_free):
        inside = [one for one in guided if same_ball(one, column)]
        if any(map(is_thorough, inside)):
            left = np.logical_and.reduce([one.correct for one in inside])
            missed[column.name] = int((left & ~column.correct).sum())
    name = max(missed, key=lambda one: missed[one], default="")
    found = name and exceeds(missed[name], 0, SQUARE_GAP * every)
    return Unguided(name, 100 * missed[name] / every) if found else None
