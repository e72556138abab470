"""The images of a run, from labels and groups alone: the long-tailed cut, and held-out images, in whole groups."""

import warnings
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from taet.data import long_tail
from taet.data.dataset import OfTraining, Part
from taet.errors import UserError
from taet.formatting import listed
from taet.settings import Data
from taet.statistics import Ints

BALANCED_SMALL = "-balanced-small"
VALIDATION = "validation"  # value of --data.test


def select(source: Mapping[str, Part], data: Data) -> tuple[dict[str, Part], list[str]]:
    """Return the chosen images of a source's "train", "test" and, given or held out, "validation", and notes."""
    train, test = source["train"], source["test"]
    train_counts, test_counts, notes = _class_counts(train, test, data)
    share = 0.0 if "validation" in source else data.validation
    kept, held = divided(train, train_counts, share, data.seed)
    chosen = {"train": train.choose(kept)}
    if data.train_share < 1:
        wanted = np.rint(data.train_share * chosen["train"].class_counts).clip(min=1).astype(int).tolist()
        positions = long_tail.long_tail_indices(chosen["train"].labels, wanted, data.seed)
        chosen["train"] = chosen["train"].choose(positions)
    if "validation" in source:
        chosen["validation"] = source["validation"]
        notes.append(OfTraining("the source's own validation split is kept"))
    elif held is not None:
        chosen["validation"] = train.choose(held)
    if "validation" in chosen:
        notes += map(OfTraining, _lacking("validation", train, chosen["validation"].class_counts.tolist()))
    if data.test != VALIDATION:
        chosen["test"] = test.choose(divided(test, test_counts, 0.0, data.seed)[0])
        return chosen, notes
    if "validation" not in chosen:
        raise UserError("test set: got validation, but no validation images; allowed: with --data.validation, e.g. 0.2")
    chosen["test"] = chosen["validation"]
    return chosen, [*notes, "the test images are not looked at: the validation images stand in their place"]


def _class_counts(train: Part, test: Part, data: Data) -> tuple[list[int], list[int], list[str]]:
    """Return the class counts of the training and the test set, and notes on how they were chosen."""
    ratio, profile, names = data.imbalance_ratio, data.profile or long_tail.PROFILES[0], train.class_names
    spread = data.name.endswith(BALANCED_SMALL) and ":" not in data.name  # not a path that ends like this
    caps = (train, data.max_count), (test, data.test_max_count)
    train_counts, test_counts = (np.minimum(of.class_counts, most or of.class_counts).tolist() for of, most in caps)
    if ratio is None:
        own_ratio = train.class_counts.max() / train.class_counts.min()
        cut = f"not cut to a long tail; before any limit or share its imbalance ratio is {own_ratio:.4g}"
        cut += f"; at most {data.max_count} images of a class are taken" if data.max_count else ""
    else:
        counts = long_tail.balanced_small_counts if spread else long_tail.long_tail_counts
        largest = _largest(train, "training set", ratio, profile, data.max_count)
        train_counts = counts(len(names), largest, ratio, profile)
        how = f"spread evenly, {sum(train_counts)} images as in" if spread else "cut to"
        cut = f"training set {how} the {profile} profile, imbalance ratio {ratio:g}, seed {data.seed}"
        if ":" in data.name and train_counts[0] > train_counts[-1]:  # the source may have another order of sizes
            cut += f"; '{names[0]}' is among its largest classes, '{names[-1]}' among its smallest"
        if 0 in train_counts:
            empty, allowed = names[train_counts.index(0)], f"allowed: up to {max(train_counts)}"
            raise UserError(f"class '{empty}' would get no training image: imbalance ratio {ratio:g}; {allowed}")
        if data.test == "long-tailed" and not spread:
            largest = _largest(test, "test set", ratio, profile, data.test_max_count)
            test_counts = counts(len(names), largest, ratio, profile)
    notes = _lacking("test", test, test_counts)
    if sum(test_counts) < len(test):
        notes.append(f"{sum(test_counts)} of {len(test)} test images are taken, at most {max(test_counts)} of a class")
    return train_counts, test_counts, [OfTraining(cut), *(notes if data.test != VALIDATION else ())]


def _largest(part: Part, what: str, ratio: float, profile: str, max_count: int | None) -> int:
    """Return the size of the largest class of a long-tailed split: `max_count`, or the largest that fits."""
    available = part.class_counts.tolist()
    largest = long_tail.largest_max_count(available, ratio, profile)
    if largest == 0:
        raise UserError(f"{what}: class '{part.class_names[0]}' has no image, but is to be the largest class")
    if max_count is not None and max_count > largest:
        why = f"at imbalance ratio {ratio:g} another class has too few images"
        raise UserError(f"{what}: got a largest class of {max_count}; allowed: up to {largest}, {why}")
    return max_count or largest


def _lacking(what: str, part: Part, counts: Sequence[int]) -> list[str]:
    """Return a note that names the classes without an image in a split, if there are any."""
    names = [name for name, count in zip(part.class_names, counts, strict=True) if count == 0]
    return [f"no {what} image of: {listed(names, most=10)}"] if names else []


def divided(part: Part, counts: list[int], share: float, seed: int) -> tuple[Ints | None, Ints | None]:
    """Return the positions of the kept and of the held-out images, a `share` of `counts` images of each class.

    If there are groups, whole groups are held out. None: all images in their own order, or none held out.
    """
    held_out, whole = long_tail.held_out_counts(counts, share), sum(counts) == len(part)
    if whole and not any(held_out):
        return None, None
    if part.groups is None or not share:
        fewer = [count - held for count, held in zip(counts, held_out, strict=True)]
        kept, chosen = (long_tail.long_tail_indices(part.labels, each, seed) for each in (fewer, counts))
        held = chosen[~np.isin(chosen, kept)]
    else:
        chosen = np.arange(len(part)) if whole else long_tail.long_tail_indices(part.labels, counts, seed)
        is_held = hold_out(part.labels[chosen], part.groups[chosen], share, seed)
        kept, held = chosen[~is_held], chosen[is_held]
    return kept, held if len(held) else None


def hold_out(labels: Ints, groups: Ints, share: float, seed: int) -> NDArray[np.bool_]:
    """Choose whole groups so that about `share` of the images of each class are held out; return which images, (N,).

    labels (N,): 0..C-1; images with equal numbers in groups (N,) stay together. Groups are chosen by scikit-learn's
    `StratifiedGroupKFold`. Then a class that is held out entirely gets its smallest group back; of a class with several
    groups and none held out, the smallest is held out if each of its classes keeps another.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    parts = Fraction(share).limit_denominator(10) if share >= 0.1 else Fraction(1, round(1 / share))
    codes = np.unique(groups, return_inverse=True)[1]
    held = np.zeros(codes.max() + 1, bool)  # by group
    folds = max(2, min(parts.denominator, len(held), int(np.bincount(labels).max())))
    if len(held) < 2 or np.bincount(labels).max() < 2:
        return held[codes]
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=np.random.RandomState(seed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes with fewer images than folds
        for _, test in islice(splitter.split(labels, labels, codes), max(1, round(share * folds))):
            held[codes[test]] = True
    sizes = np.bincount(codes)
    owners, classes = np.unique(np.stack([codes, labels]), axis=1)
    by_class = [owners[classes == label] for label in np.unique(labels)]
    for own in (own for own in by_class if held[own].all()):
        held[own[sizes[own].argmin()]] = False
    for own in (own for own in by_class if len(own) > 1 and not held[own].any()):
        left = np.bincount(classes[~held[owners]])
        free = np.setdiff1d(own, owners[left[classes] <= 1])
        held[free[sizes[free].argsort()[:1]]] = True
    return held[codes]
