"""Paired differences between the cards of two runs on the same test images, seed by seed."""

from collections.abc import Mapping

import numpy as np

from taet.evaluation import ResultCard
from taet.formatting import points
from taet.statistics import Difference, class_ranks, difference

Cards = Mapping[int, ResultCard]
"""Cards of runs that differ in their seed, by seed."""


def attacks_on(card: ResultCard) -> set[str]:
    """The attacks that a card has."""
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
    """Return balanced accuracy of the first minus that of the second, each under its attack, over their common seeds.

    None without a common seed, or if test images or settings of an attack differ.

    Args:
        ranks: the classes that count, ranked by training images from 1, as (first, last); by default all.
        less: the attack under which the same difference is subtracted, image by image.
        comparisons: this many differences share the error of 5 % of their intervals.
    """
    names = (*attacks, less, less) if less else attacks
    both = (first, second)
    seeds = [
        seed
        for seed in sorted(first.keys() & second.keys())
        if all(name in attacks_on(both[place % 2][seed]) for place, name in enumerate(names))
    ]
    sides = [[both[place % 2][seed] for seed in seeds] for place in range(len(names))]
    cards = [card for side in sides for card in side]
    asked = {(name, card.column(name).identity) for name, side in zip(names, sides, strict=True) for card in side}
    if not cards or len({card.data["test_sha256"] for card in cards}) > 1 or len(asked) > len(dict(asked)):
        return None
    labels, keep = cards[0].labels, np.ones(len(cards[0].labels), dtype=bool)
    if ranks is not None:
        keep = np.isin(class_ranks(cards[0].data["train_class_counts"])[labels] + 1, range(ranks[0], ranks[1] + 1))
    right = [
        np.array([card.column(name).correct[keep] for card in side], dtype=int)
        for name, side in zip(names, sides, strict=True)
    ]
    if less:
        right = [right[0] + right[3], right[1] + right[2]]
    return difference(*right, labels[keep], cards[0].num_classes, answers=1 + bool(less), comparisons=comparisons)


def text(found: Difference) -> str:
    """Return a difference in points with its interval, and the number of seeds if there are several."""
    seeds = f", {found.runs} seeds" if found.runs > 1 else ""
    return f"{points(found.value)} ({points(found.low)} to {points(found.high)}{seeds})"
