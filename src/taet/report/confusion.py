"""What a row takes for what: counts of true and predicted classes."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from taet.metrics.accuracies import Floats, Ints
from taet.report.results import Results


class Mistake(NamedTuple):
    """A class that is taken for another, and the share of its images for which that happens."""

    true: int
    taken: int
    share: float


def mistakes_of(results: Results, row: str, attack: str) -> list[Mistake]:
    """Return what a row takes for what, over all its seeds, the most frequent mistake first.

    Nothing is kept for pairs of classes that are not mistaken, of which there are millions.
    """
    card = results.cards[0]
    codes = list(_codes(results, row, attack))
    if not codes:  # the row was not attacked in this way
        return []
    pairs, numbers = np.unique(np.concatenate(codes), return_counts=True)
    images = len(codes) * card.test_class_counts
    mistakes = []
    for pair, number in zip(pairs.tolist(), numbers.tolist(), strict=True):
        true, taken = divmod(pair, card.num_classes)
        if true != taken:
            mistakes.append(Mistake(true, taken, number / int(images[true])))
    return sorted(mistakes, key=lambda mistake: (-mistake.share, mistake.true, mistake.taken))


def confusion_counts(results: Results, row: str, attack: str) -> Ints:
    """Return how many images of each class (first index) a row takes for each class (second), over
    all its seeds, (C, C); the row was attacked in this way."""
    num_classes = results.cards[0].num_classes
    codes = np.concatenate(list(_codes(results, row, attack)))
    counts = np.bincount(codes, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def confusion_shares(results: Results, row: str, attack: str) -> Floats:
    """Return `confusion_counts` as shares of the images of the true class, (C, C); 0 for a class
    without images."""
    counts = confusion_counts(results, row, attack)
    shares: Floats = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    return shares


def _codes(results: Results, row: str, attack: str) -> Iterator[Ints]:
    """Yield, for each seed of a row, C times the true class plus the predicted one of each image,
    (N,)."""
    card = results.cards[0]
    for predicted in results.predictions_by_seed(row, attack).values():
        yield card.labels * card.num_classes + predicted
