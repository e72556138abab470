"""The images of a run, from labels and groups alone: the long-tailed cut, and held-out images, in
whole groups."""

import warnings
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from taet.data import long_tail
from taet.data.dataset import Part
from taet.data.notes import OfTraining
from taet.errors import UserError
from taet.formatting import join_words
from taet.metrics.accuracies import Ints
from taet.settings import Data

BALANCED_SMALL = "-balanced-small"
VALIDATION = "validation"  # value of --data.test


def select(source: Mapping[str, Part], data: Data) -> tuple[dict[str, Part], list[str]]:
    """Return the chosen images of a source's "train", "test" and, given or held out, "validation",
    and notes."""
    train, test = source["train"], source["test"]
    balanced_validation: Part | None = None
    if data.validation_per_class is not None:
        train, balanced_validation = _hold_out_per_class(source, data)
    if data.group_share < 1:
        train = _share_of_groups(train, data)
    train_counts, test_counts = _class_counts(train, test, data)
    notes = _notes_on_counts(source, train_counts, test_counts, data)
    share = 0.0 if "validation" in source else data.validation
    kept, held = divided(train, train_counts, share, data.seed)
    chosen = {"train": train.choose(kept)}
    if data.train_share < 1:
        chosen["train"] = _share_of_images(chosen["train"], data)
    if "validation" in source:
        chosen["validation"] = source["validation"]
        notes.append(OfTraining("the source's own validation split is kept"))
    elif balanced_validation is not None:
        chosen["validation"] = balanced_validation
        per_class = f"{data.validation_per_class} images of every class are validation images"
        notes.append(OfTraining(f"{per_class}, held out before the cut"))
    elif held is not None:
        chosen["validation"] = train.choose(held)
    if "validation" in chosen:
        validation_counts = chosen["validation"].class_counts.tolist()
        notes += map(OfTraining, _lacking("validation", train, validation_counts))
    if data.test != VALIDATION:
        chosen["test"] = test.choose(divided(test, test_counts, 0.0, test_seed(data))[0])
        return chosen, notes
    if "validation" not in chosen:
        raise UserError(
            "test set: got validation, but no validation images; allowed: with "
            "--data.validation, e.g. 0.2"
        )
    chosen["test"] = chosen["validation"]
    notes.append("the test images are not looked at: the validation images stand in their place")
    return chosen, notes


def test_seed(data: Data) -> int:
    """Return the seed of the choice of test images."""
    return data.seed if data.test_seed is None else data.test_seed


def class_order(num_classes: int, seed: int | None) -> Ints:
    """Return the labels from the largest class of a long-tailed cut to the smallest, (C,).

    `seed` None: the order of the labels; else one permutation by NumPy's legacy generator.
    """
    if seed is None:
        return np.arange(num_classes)
    return np.random.RandomState(seed).permutation(num_classes)


def _hold_out_per_class(source: Mapping[str, Part], data: Data) -> tuple[Part, Part]:
    """Return the training images without, and those of, a balanced validation set."""
    train, wanted = source["train"], data.validation_per_class or 0
    what = f"data validation per class: got {wanted}"
    if "validation" in source or data.validation:
        raise UserError(f"{what} beside other validation images; allowed: one of them")
    if train.groups is not None:
        raise UserError(f"{what} for data with groups; allowed: --data.validation, whole groups")
    available = train.class_counts
    if wanted >= available.min():
        smallest = train.class_names[int(available.argmin())]
        why = f"'{smallest}' has {available.min()} images, and one must be left for training"
        raise UserError(f"{what}; allowed: up to {available.min() - 1}: {why}")
    held = long_tail.long_tail_indices(train.labels, [wanted] * len(available), test_seed(data))
    left = np.setdiff1d(np.arange(len(train)), held)
    return train.choose(left), train.choose(np.sort(held))


def _share_of_groups(train: Part, data: Data) -> Part:
    """Return the images of a share of the groups, about evenly over the classes."""
    if train.groups is None:
        raise UserError(
            f"data group share: got {data.group_share:g} for data without groups; allowed: 1, or "
            "--data.train-share of the images"
        )
    left_out = hold_out(train.labels, train.groups, 1 - data.group_share, data.seed)
    return train.choose(np.flatnonzero(~left_out))


def _share_of_images(train: Part, data: Data) -> Part:
    """Return a share of the images of each class, at least one of a class."""
    wanted = np.rint(data.train_share * train.class_counts).clip(min=1).astype(int)
    return train.choose(long_tail.long_tail_indices(train.labels, wanted.tolist(), data.seed))


def _class_counts(train: Part, test: Part, data: Data) -> tuple[list[int], list[int]]:
    """Return the class counts of the training and the test set."""
    if data.imbalance_ratio is not None:
        return _cut_counts(train, test, data, data.imbalance_ratio)
    if data.class_order is not None:
        got = f"got {data.class_order} for data that are not cut"
        raise UserError(f"data class order: {got}; allowed: with --data.imbalance-ratio")
    return _capped(train, data.max_count), _capped(test, data.test_max_count)


def _notes_on_counts(
    source: Mapping[str, Part], train_counts: Sequence[int], test_counts: Sequence[int], data: Data
) -> list[str]:
    """Return notes on how the class counts were chosen."""
    train, test, ratio = source["train"], source["test"], data.imbalance_ratio
    if ratio is None:
        cut = _note_on_uncut(train, data)
    else:
        cut = _note_on_cut(train.class_names, train_counts, data, ratio)
    if data.test == VALIDATION:
        return [OfTraining(cut)]
    notes = _lacking("test", test, test_counts)
    if sum(test_counts) < len(test):
        notes.append(
            f"{sum(test_counts)} of {len(test)} test images are taken, at most {max(test_counts)} "
            "of a class"
        )
    return [OfTraining(cut), *notes]


def _is_spread(data: Data) -> bool:
    """Whether as many images as in the long-tailed set are spread evenly over the classes."""
    # not a path that ends like this
    return data.name.endswith(BALANCED_SMALL) and ":" not in data.name


def _capped(part: Part, most: int | None) -> list[int]:
    """Return the class counts of a part, each up to `most`."""
    counts = part.class_counts
    return counts.tolist() if most is None else np.minimum(counts, most).tolist()


def _cut_counts(train: Part, test: Part, data: Data, ratio: float) -> tuple[list[int], list[int]]:
    """Return the class counts of a training set that is cut to a profile, and of its test set."""
    names, profile = train.class_names, data.profile or long_tail.PROFILES[0]
    spread = _is_spread(data)
    counts = long_tail.balanced_small_counts if spread else long_tail.long_tail_counts
    order = class_order(len(names), data.class_order)

    def cut(part: Part, what: str, most: int | None) -> list[int]:
        largest = _largest(part, what, ratio, profile, most, order)
        by_label = np.empty(len(names), np.int64)
        by_label[order] = counts(len(names), largest, ratio, profile)
        return by_label.tolist()

    train_counts = cut(train, "training set", data.max_count)
    if 0 in train_counts:
        empty = names[train_counts.index(0)]
        allowed = f"allowed: up to {max(train_counts)}"
        raise UserError(
            f"class '{empty}' would get no training image: imbalance ratio {ratio:g}; {allowed}"
        )
    if data.test == "long-tailed" and not spread:
        return train_counts, cut(test, "test set", data.test_max_count)
    return train_counts, _capped(test, data.test_max_count)


def _note_on_uncut(train: Part, data: Data) -> str:
    own_ratio = train.class_counts.max() / train.class_counts.min()
    note = (
        f"not cut to a long tail; the training images have imbalance ratio {own_ratio:.4g}, before "
        "any limit or share"
    )
    if data.max_count:
        note += f"; at most {data.max_count} images of a class are taken"
    if data.group_share < 1:
        note += f"; a share of {data.group_share:g} of the groups is used, seed {data.seed}"
    return note


def _note_on_cut(
    names: Sequence[str], train_counts: Sequence[int], data: Data, ratio: float
) -> str:
    profile, total = data.profile or long_tail.PROFILES[0], sum(train_counts)
    how = f"spread evenly, {total} images as in" if _is_spread(data) else "cut to"
    note = f"training set {how} the {profile} profile, imbalance ratio {ratio:g}, seed {data.seed}"
    if data.class_order is not None:
        note += f", class order {data.class_order}"
    order = class_order(len(names), data.class_order)
    first, last = int(order[0]), int(order[-1])
    # the source may have another order of sizes
    if ":" in data.name and train_counts[first] > train_counts[last]:
        note += f"; '{names[first]}' is among its largest classes"
        note += f", '{names[last]}' among its smallest"
    return note


def _largest(
    part: Part, what: str, ratio: float, profile: str, max_count: int | None, order: Ints
) -> int:
    """Return the size of the largest class of a long-tailed split: `max_count`, or the largest that
    fits; `order` (C,): the labels from the largest class to the smallest."""
    available = part.class_counts[order].tolist()
    largest = long_tail.largest_max_count(available, ratio, profile)
    if largest == 0:
        name = part.class_names[int(order[0])]
        raise UserError(f"{what}: class '{name}' has no image, but is to be the largest class")
    if max_count is not None and max_count > largest:
        why = f"at imbalance ratio {ratio:g} another class has too few images"
        raise UserError(
            f"{what}: got a largest class of {max_count}; allowed: up to {largest}, {why}"
        )
    return max_count or largest


def _lacking(what: str, part: Part, counts: Sequence[int]) -> list[str]:
    """Return a note that names the classes without an image in a split, if there are any."""
    names = [name for name, count in zip(part.class_names, counts, strict=True) if count == 0]
    return [f"no {what} image of: {join_words(names, most=10)}"] if names else []


def divided(
    part: Part, counts: list[int], share: float, seed: int
) -> tuple[Ints | None, Ints | None]:
    """Return the positions of the kept and of the held-out images, a `share` of `counts` images of
    each class.

    If there are groups, whole groups are held out. None: all images in their own order, or none
    held out.
    """
    held_out, whole = long_tail.held_out_counts(counts, share), sum(counts) == len(part)
    if whole and not any(held_out):
        return None, None
    if part.groups is None or not share:
        fewer = [count - held for count, held in zip(counts, held_out, strict=True)]
        kept, chosen = (
            long_tail.long_tail_indices(part.labels, each, seed) for each in (fewer, counts)
        )
        held = chosen[~np.isin(chosen, kept)]
    else:
        chosen = (
            np.arange(len(part))
            if whole
            else long_tail.long_tail_indices(part.labels, counts, seed)
        )
        is_held = hold_out(part.labels[chosen], part.groups[chosen], share, seed)
        kept, held = chosen[~is_held], chosen[is_held]
    return kept, held if len(held) else None


def hold_out(labels: Ints, groups: Ints, share: float, seed: int) -> NDArray[np.bool_]:
    """Choose whole groups so that about `share` of the images of each class are held out; return
    which images, (N,).

    labels (N,): 0..C-1; images with equal numbers in groups (N,) stay together. Groups are chosen
    by scikit-learn's `StratifiedGroupKFold`. Then a class that is held out entirely gets its
    smallest group back; of a class with several groups and none held out, the smallest is held out
    if each of its classes keeps another.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    group_of_image = np.unique(groups, return_inverse=True)[1]
    num_groups = int(group_of_image.max()) + 1
    largest_class = int(np.bincount(labels).max())
    held = np.zeros(num_groups, bool)  # by group
    if num_groups < 2 or largest_class < 2:
        return held[group_of_image]
    tenths = Fraction(share).limit_denominator(10)
    wanted_folds = tenths.denominator if share >= 0.1 else round(1 / share)
    num_folds = max(2, min(wanted_folds, num_groups, largest_class))
    held_folds = max(1, round(share * num_folds))
    shuffled = np.random.RandomState(seed)
    splitter = StratifiedGroupKFold(num_folds, shuffle=True, random_state=shuffled)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes with fewer images than folds
        folds = splitter.split(labels, labels, group_of_image)
        for _, rows in islice(folds, held_folds):
            held[group_of_image[rows]] = True
    _leave_every_class_a_group(held, labels, group_of_image)
    return held[group_of_image]


def _leave_every_class_a_group(held: NDArray[np.bool_], labels: Ints, group_of_image: Ints) -> None:
    """Change which groups are `held` (G,), so that a class keeps one, and has one held where it
    can."""
    size_of_group = np.bincount(group_of_image)
    pairs = np.unique(np.stack([group_of_image, labels]), axis=1)  # each group with its classes
    group_of_pair, class_of_pair = pairs
    groups_of_classes = [group_of_pair[class_of_pair == label] for label in np.unique(labels)]
    for own in groups_of_classes:
        if held[own].all():
            smallest = own[size_of_group[own].argmin()]
            held[smallest] = False
    for own in groups_of_classes:
        if len(own) > 1 and not held[own].any():
            kept_groups = np.bincount(class_of_pair[~held[group_of_pair]])  # by class
            is_last = kept_groups[class_of_pair] <= 1
            free = np.setdiff1d(own, group_of_pair[is_last])
            smallest_first = free[size_of_group[free].argsort()]
            held[smallest_first[:1]] = True
