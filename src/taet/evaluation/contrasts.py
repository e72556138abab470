"""Contrasts: an attack that breaks more images than one that should be at least as strong."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import permutations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from taet.attacks.autoattack import AutoAttack
from taet.attacks.pgd import WHOLE_RANGE, ProjectedAscent
from taet.card.card import Card
from taet.card.column import Column
from taet.formatting import percent

Z = 1.96  # two-sided 95 %
THOROUGH_STEPS = 20  # steps of the shorter PGD in the papers
# Share of the images broken by a stronger attack that PGD on the cross-entropy may leave correct.
# It hardly depends on radius, training length or accuracy. Honest models: median 0.16, 95th
# percentile 0.27; of the broken defences 0.38 to 1 (results/honest_gaps.json). Chance hides more in
# the few images of the probe, whose limit is therefore lower.
USUAL_MISS, PROBED_MISS = 0.3, 0.25


class Contrast(NamedTuple):
    """An attack that breaks more images than it should, and one that breaks fewer."""

    stronger: Column
    weaker: Column

    @property
    def gap(self) -> float:
        """Share of the images that only counts for the stronger attack, minus the reverse."""
        return float(self.weaker.correct.mean() - self.stronger.correct.mean())

    @property
    def values(self) -> dict[str, object]:
        """Return what the sentence of a flag says about this pair."""
        low, high = correct_share(self.stronger), correct_share(self.weaker)
        return {
            "stronger": self.stronger,
            "weaker": self.weaker,
            "low": low,
            "high": high,
            "gap": f"{low} against {high}",
        }


class BrokenCounts(NamedTuple):
    """Numbers of images that two attacks break."""

    only_stronger: int
    only_weaker: int
    broken: int  # by the stronger attack


def correct_share(column: Column) -> str:
    """Return the share of images that an attack leaves correct, in words."""
    return f"{percent(float(column.correct.mean()))} %"


def is_plain(column: Column) -> bool:
    """Return whether an attack ascends the unscaled cross-entropy."""
    return not column.parameters.keys() & {"objective", "factor", "target"}


def crosses(column: Column) -> bool:
    """Return whether the steps of a PGD can cross the part of its ball in the image range."""
    attack = column.attack
    if not isinstance(attack, ProjectedAscent):
        return False
    width = 2 * attack.radius
    if attack.norm == "linf":
        width = min(width, WHOLE_RANGE)
    return attack.steps * attack.step_size >= width - 1e-9


def is_thorough(column: Column) -> bool:
    """Return whether an attack follows the gradients far enough to judge how useful they are."""
    attack = column.attack
    if isinstance(attack, AutoAttack) or attack.bound:
        return True
    return (
        isinstance(attack, ProjectedAscent) and attack.steps >= THOROUGH_STEPS and crosses(column)
    )


def on_the_model(card: Card) -> list[Column]:
    """Return the columns whose examples were made on the evaluated model, points of curves too."""
    return [column for column in card.columns if not column.is_transfer]


def ordinary(card: Card) -> list[Column]:
    """Return the attacks on the model itself that are not only points of a curve."""
    return [column for column in card.columns if column.ordinary]


def plain_pgds(card: Card) -> list[Column]:
    """Return the PGD on the unscaled cross-entropy whose steps can cross their ball."""
    return [column for column in ordinary(card) if is_plain(column) and crosses(column)]


def differing(columns: Sequence[Column], setting: str) -> Iterator[Contrast]:
    """Yield all pairs of attacks in one ball that differ only in this setting."""
    for first, second in permutations(columns, 2):
        if first.parameters.get("seed") != second.parameters.get("seed"):
            continue
        if list(first.identity.differences(second.identity)) == [setting]:
            yield Contrast(first, second)


def exceeds(only_stronger: int, only_weaker: int, usual: float = 0.0) -> bool:
    """Return whether b - c > u + 1 + 1.96 sqrt(b + c), for images that only one attack breaks.

    b images are broken by the stronger attack alone, c by the weaker alone, and u is the `usual`
    difference; the rest is McNemar's test with correction (Psychometrika 12, 1947; 13, 1948).
    """
    chance = 1 + Z * math.sqrt(only_stronger + only_weaker)
    return only_stronger - only_weaker > usual + chance


def misses_too_many(counts: BrokenCounts, share: float = USUAL_MISS) -> bool:
    """Return whether an attack misses more than a share of the images that a stronger one breaks.

    b - c > s k + 1 + 1.96 sqrt(b (1 - s)^2 + (k - b) s^2 + c), for k images that the stronger
    attack breaks, b of them that the weaker one leaves correct, c that only the weaker one breaks,
    and s the share. With s = 0 this is `exceeds`.
    """
    missed, reverse, broken = counts
    variance = missed * (1 - share) ** 2 + (broken - missed) * share**2 + reverse
    return missed - reverse > share * broken + 1 + Z * math.sqrt(variance)


def count(pair: Contrast, card: Card) -> BrokenCounts:
    """Count what two attacks break, among the images that are classified correctly without one."""
    known = np.ones(len(card.labels), bool) if card.clean is None else card.clean.correct
    stronger, weaker = ~pair.stronger.correct & known, ~pair.weaker.correct & known
    return BrokenCounts(
        only_stronger=_number(stronger & ~weaker),
        only_weaker=_number(weaker & ~stronger),
        broken=_number(stronger),
    )


def _number(mask: NDArray[np.bool_]) -> int:
    return int(mask.sum())


def worst_beyond(pairs: Iterable[Contrast], usual: float = 0.0) -> dict[str, object] | None:
    """Return the values of the largest gap beyond chance and a usual share of all images."""
    found = []
    for pair in pairs:
        stronger, weaker = pair.stronger.correct, pair.weaker.correct
        only_stronger, only_weaker = _number(weaker & ~stronger), _number(stronger & ~weaker)
        if exceeds(only_stronger, only_weaker, usual * len(stronger)):
            found.append(pair)
    return _largest(found)


def worst_miss(pairs: Iterable[Contrast], card: Card) -> dict[str, object] | None:
    """Return the values of the largest gap in which the weaker attack misses too many images."""
    return _largest([pair for pair in pairs if misses_too_many(count(pair, card))])


def _largest(pairs: Sequence[Contrast]) -> dict[str, object] | None:
    if not pairs:
        return None
    return max(pairs, key=lambda pair: pair.gap).values
