"""Paired differences between the cards of two rows, seed by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from taet import statistics
from taet.evaluation.card import ResultCard
from taet.formatting import points
from taet.reproduce.cell_store import attacks_on
from taet.statistics import Difference, difference


def difference_text(found: Difference) -> str:
    """Format a difference in points with its interval."""
    return f"{points(found.value)} ({points(found.low)} to {points(found.high)})"


def paired_cards(
    first: Mapping[int, ResultCard],
    second: Mapping[int, ResultCard],
    attacks: Sequence[str | None],
    of: int | str | None = None,
    comparisons: int = 1,
    less: str | None = None,
) -> Difference | None:
    """Return the paired difference of two sets of cards by seed, each under its attack.

    Seeds count whose runs were both attacked so. `of` is a class, or a group of classes (head, body, tail) by training
    images; by default all classes count. `comparisons` differences share the error of their intervals. With `less`, the
    difference under this attack is subtracted, image by image.
    """
    ours, theirs = attacks
    if ours is None or theirs is None:
        return None
    subtracted = () if less is None else (less,)
    held = _attacked(first, ours, *subtracted), _attacked(second, theirs, *subtracted)
    seeds = sorted(held[0].keys() & held[1].keys())
    if not seeds:
        return None
    left, right = ([cards[seed] for seed in seeds] for cards in held)
    sides = [(left, ours), (right, theirs), *((cards, name) for name in subtracted for cards in (left, right))]
    settings = {(name, card.column(name).identity) for cards, name in sides for card in cards}  # one per attack
    if len({card.data["test_sha256"] for card in (*left, *right)}) > 1 or len(settings) > len(dict(settings)):
        return None
    labels, classes = left[0].labels, left[0].num_classes
    keep = np.ones(len(labels), dtype=bool) if of is None else np.isin(labels, _labels(left[0], of))
    first_right, second_right, *lesser = (
        np.array([card.column(name).correct[keep] for card in cards], dtype=int) for cards, name in sides
    )
    if lesser:
        first_right, second_right = first_right + lesser[1], second_right + lesser[0]
    return difference(
        first_right, second_right, labels[keep], classes, answers=1 + bool(lesser), comparisons=comparisons
    )


def _attacked(cards: Mapping[int, ResultCard], *names: str) -> dict[int, ResultCard]:
    return {seed: card for seed, card in cards.items() if attacks_on(card).issuperset(names)}


def _labels(card: ResultCard, of: int | str) -> list[int]:
    if isinstance(of, int):
        return [of]
    return [int(label) for label in statistics.class_groups(card.data["train_class_counts"] or [])[of]]
