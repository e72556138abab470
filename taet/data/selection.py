"""Selection of the images of a run: class counts of each split, the long-tailed cut, and held-out images.

It depends on labels and groups only, so it is the same with and without the images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from taet.data.groups import hold_out
from taet.data.long_tail import (
    PROFILES,
    balanced_small_counts,
    divide,
    held_out_counts,
    largest_max_count,
    long_tail_counts,
    long_tail_indices,
)
from taet.data.source import Labelled, Labels
from taet.errors import UserError
from taet.settings import Data
from taet.statistics import Ints

BALANCED_SMALL = "-balanced-small"
VALIDATION = "validation"
"""Value of --data.test."""
MOST_NAMES = 10
"""Most classes that a note names."""


class Choice(NamedTuple):
    """The selected images of one split."""

    origin: str
    """The split of the source that they come from."""
    positions: Ints | None
    """Positions in that split; None: all images, in their own order."""

    def of(self, source: Mapping[str, Labels]) -> Labels:
        """Return the labels of the selected images, given those of the source's own splits."""
        return source[self.origin].choose(self.positions)


def _largest(labels: Labelled, part: str, ratio: float, profile: str, max_count: int | None) -> int:
    """Return the size of the largest class of a long-tailed split: `max_count`, or the largest that fits."""
    available = labels.class_counts.tolist()
    largest = largest_max_count(available, ratio, profile)
    if largest == 0:
        raise UserError(f"{part}: class '{labels.class_names[0]}' has no image, but is to be the largest class")
    if max_count is not None and max_count > largest:
        counts = long_tail_counts(len(available), max_count, ratio, profile)
        short = next(c for c, count in enumerate(counts) if count > available[c])
        raise UserError(
            f"{part}: a largest class of {max_count} at imbalance ratio {ratio:g} needs {counts[short]} images "
            f"of class '{labels.class_names[short]}', which has {available[short]}; the largest that fits: {largest}"
        )
    return max_count or largest


def _capped(labels: Labelled, max_count: int | None) -> list[int]:
    counts: list[int] = labels.class_counts.tolist()
    return counts if max_count is None else [min(count, max_count) for count in counts]


def _lacking(part: str, class_names: Sequence[str], counts: Sequence[int]) -> list[str]:
    """Return a note that names the classes without an image in a split, if there are any."""
    names = [name for name, count in zip(class_names, counts, strict=True) if count == 0]
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return [f"no {part} image of: {', '.join(names[:MOST_NAMES])}{more}"] if names else []


def _class_counts(train: Labelled, test: Labelled, data: Data) -> tuple[list[int], list[int], list[str]]:
    """Return the class counts of the training and the test set, and notes on how they were chosen."""
    ratio, profile, names = data.imbalance_ratio, data.profile or PROFILES[0], train.class_names
    spread = data.name.endswith(BALANCED_SMALL) and ":" not in data.name  # not a path that ends so
    train_counts, test_counts = _capped(train, data.max_count), _capped(test, data.test_max_count)
    if ratio is None:
        capped = ", but for the caps on its classes" if data.max_count or data.test_max_count else ""
        own_ratio = train.class_counts.max() / train.class_counts.min()
        notes = [f"taken as it is{capped}: the source's imbalance ratio is {own_ratio:.4g}"]
    else:
        largest = _largest(train, "training set", ratio, profile, data.max_count)
        train_counts = (balanced_small_counts if spread else long_tail_counts)(len(names), largest, ratio, profile)
        cut = f"{profile} profile, imbalance ratio {ratio:g}"
        notes = [
            f"as many training images as in the {cut}, {sum(train_counts)}, spread evenly, seed {data.seed}"
            if spread
            else f"training set cut to the {cut}, seed {data.seed}"
        ]
        if data.test == "long-tailed" and not spread:
            largest = _largest(test, "test set", ratio, profile, data.test_max_count)
            test_counts = long_tail_counts(len(names), largest, ratio, profile)
            notes.append("test set cut to the same profile and ratio")
        elif data.test != VALIDATION:
            most = "all images" if data.test_max_count is None else f"at most {data.test_max_count} images"
            notes.append(f"test set not made long-tailed: {most} of each class")
    if 0 in train_counts:
        empty, largest = names[train_counts.index(0)], max(train_counts)
        raise UserError(
            f"class '{empty}' would get no training image: imbalance ratio {ratio:g} with {largest} images in the "
            f"largest class; allowed: up to {largest}"
        )
    if data.test != VALIDATION:
        notes += _lacking("test", names, test_counts)
    return train_counts, test_counts, notes


def divided(labels: Labelled, counts: list[int], share: float, seed: int) -> tuple[Ints | None, Ints | None]:
    """Return the positions of the kept and of the held-out images, a `share` of `counts` images of each class.

    If there are groups, whole groups are held out. None: all images in their own order, or none held out.
    """
    held_out = held_out_counts(counts, share)
    whole = sum(counts) == len(labels)
    if whole and not any(held_out):
        return None, None
    if labels.groups is None or not share:
        kept, held = divide(labels.labels, counts, held_out, seed)
    else:
        chosen = np.arange(len(labels)) if whole else long_tail_indices(labels.labels, counts, seed)
        apart = hold_out(labels.labels[chosen], labels.groups[chosen], share, seed)
        kept, held = chosen[~apart], chosen[apart]
    return kept, held if len(held) else None


def _part_of(labels: Ints, kept: Ints, data: Data) -> Ints:
    """Return a share of the training positions of each class, at least one position."""
    counts = np.bincount(labels[kept])
    wanted = np.where(counts > 0, np.maximum(np.rint(data.train_share * counts), 1), 0).astype(int).tolist()
    return kept[long_tail_indices(labels[kept], wanted, data.seed)]


def select(source: Mapping[str, Labelled], data: Data) -> tuple[dict[str, Choice], list[str]]:
    """Choose the images of each split from the labels of a source's own splits.

    `source` has "train", "test" and, if the source has one, "validation". Return the choice for each split of the
    result, and notes about it.
    """
    train, test = source["train"], source["test"]
    train_counts, test_counts, notes = _class_counts(train, test, data)
    share = 0.0 if "validation" in source else data.validation
    if "validation" in source:
        also = ", nothing else is held out" if data.validation else ""
        notes.append(f"the source's own validation split is kept{also}")
    elif share:
        rounded = "rounded" if train.groups is None else "as near as whole groups come"
        notes.append(
            f"{data.validation:.3g} of each training class, {rounded}, at least 1 of 2, is held out for validation"
        )
    kept, held = divided(train, train_counts, share, data.seed)
    if data.train_share < 1:
        kept = _part_of(train.labels, np.arange(len(train)) if kept is None else kept, data)
        notes.append(f"{data.train_share:.3g} of each training class is used, at least 1 image")
    chosen = {"train": Choice("train", kept)}
    if held is not None:
        counts = np.bincount(train.labels[held], minlength=len(train_counts)).tolist()
        notes += _lacking("validation", train.class_names, counts)
        chosen["validation"] = Choice("train", held)
    if "validation" in source:
        chosen["validation"] = Choice("validation", None)
    if data.test != VALIDATION:
        chosen["test"] = Choice("test", divided(test, test_counts, 0.0, data.seed)[0])
        return chosen, notes
    if "validation" not in chosen:
        raise UserError("test set: got validation, but no validation images; allowed: with --data.validation, e.g. 0.2")
    chosen["test"] = chosen["validation"]
    return chosen, [*notes, "the test images are not looked at: the validation images stand in their place"]
