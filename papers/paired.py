"""Paired differences between the cards of two runs on the same test images, seed by seed."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from taet.evaluation import ResultCard
from taet.formatting import points
from taet.metrics.accuracies import class_ranks
from taet.metrics.paired import Difference, difference

Cards = Mapping[int, ResultCard]
"""Cards of runs that differ in their seed, by seed."""


def attacks_on(card: ResultCard) -> set[str]:
    """Return the attacks that a card has."""
    return {column.name for column in card.columns}


def paired(
    first: Cards,
    second: Cards,
    attacks: tuple[str, str],
    *,
    ranks: tuple[int, int] | None = None,
    less: str = "",
    comparisons: int = 1,
) -> Difference | None:
    """Return balanced accuracy of the first minus that of the second, over their common seeds.

    None without a common seed, or if test images or settings of an attack differ.

    Args:
        attacks: the attack on the first and on the second.
        ranks: first and last rank of the classes that count, by training images from 1; None: all.
        less: the attack under which the same difference is subtracted, image by image.
        comparisons: this many differences share the error of 5 % of their intervals.
    """
    needed = [{attack, less or attack} for attack in attacks]
    seeds = [
        seed
        for seed in sorted(first.keys() & second.keys())
        if needed[0] <= attacks_on(first[seed]) and needed[1] <= attacks_on(second[seed])
    ]
    left, right = [first[seed] for seed in seeds], [second[seed] for seed in seeds]
    if not seeds or not comparable(left, right, needed):
        return None
    labels = left[0].labels
    kept = in_ranks(left[0], ranks)
    gained, lost = answers(left, attacks[0], kept), answers(right, attacks[1], kept)
    if less:
        gained, lost = (
            gained + answers(right, less, kept),
            lost + answers(left, less, kept),
        )
    return difference(
        gained,
        lost,
        labels[kept],
        left[0].num_classes,
        answers=2 if less else 1,
        comparisons=comparisons,
    )


def comparable(
    first: Sequence[ResultCard], second: Sequence[ResultCard], needed: Sequence[set[str]]
) -> bool:
    """Return whether all cards have the same test images, and each attack the same settings."""
    settings: dict[str, set[object]] = {}
    for cards, attacks in zip((first, second), needed, strict=True):
        for card in cards:
            for attack in attacks:
                settings.setdefault(attack, set()).add(card.column(attack).identity)
    test_sets = {card.data["test_sha256"] for card in (*first, *second)}
    return len(test_sets) == 1 and all(len(of) == 1 for of in settings.values())


def in_ranks(card: ResultCard, ranks: tuple[int, int] | None) -> NDArray[np.bool_]:
    """Return which test images are of the classes of these ranks."""
    if ranks is None:
        return np.ones(len(card.labels), dtype=bool)
    rank = class_ranks(card.data["train_class_counts"])[card.labels] + 1
    return np.asarray((rank >= ranks[0]) & (rank <= ranks[1]))


def answers(cards: Sequence[ResultCard], attack: str, kept: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return which images each card classifies correctly under an attack, (runs, images)."""
    return np.array([card.column(attack).correct[kept] for card in cards], dtype=np.int64)


def text(found: Difference, comparisons: int = 1) -> str:
    """Return a difference in points with its interval, and the number of seeds if several.

    An interval that shares its error with other comparisons is marked as corrected.
    """
    seeds = f", {found.runs} seeds" if found.runs > 1 else ""
    corrected = ", corrected" if comparisons > 1 else ""
    return f"{points(found.value)} ({points(found.low)} to {points(found.high)}{seeds}{corrected})"
