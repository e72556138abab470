"""A data set as arrays under MedMNIST's keys: train_images, train_labels, val_images and so on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from taet.data.dataset import Dataset, Labels, check_range, checked_labels, checked_names
from taet.data.store import Stored
from taet.errors import UserError

REQUIRED = ("train_images", "train_labels", "test_images", "test_labels")
VALIDATION = ("val_images", "val_labels")
CLASS_NAMES = "class_names"
PARTS = {"train": "train", "validation": "val", "test": "test"}
"""What the keys call the splits."""
GROUP = "group"
"""The groups of images are in train_group and so on, if no other name is given."""

Arrays: TypeAlias = Mapping[str, NDArray[np.generic] | Stored]


def keys(there: Iterable[str], group: str | None = None) -> tuple[list[str], list[str]]:
    """Return which of the arrays that are `there` make the data set, and which required ones are missing.

    With `group`, train_`group` is required, and those of the other splits are taken if they are there.
    """
    there = set(there)
    groups = [] if group is None else [f"{part}_{group}" for part in PARTS.values()]
    required = [*REQUIRED, *(VALIDATION if there & set(VALIDATION) else ()), *groups[:1]]
    wanted = [*required, *(key for key in (*groups[1:], CLASS_NAMES) if key in there)]
    return wanted, [key for key in required if key not in there]


def _class_names(arrays: Arrays, class_names: Sequence[str] | None) -> Sequence[str] | None:
    """Return `class_names` or, where not given, those in the array `class_names`, if there is one."""
    if class_names is not None or CLASS_NAMES not in arrays:
        return class_names
    names = np.asarray(arrays[CLASS_NAMES])
    if names.dtype.kind != "U" or names.ndim != 1:
        raise UserError(f"class_names: got {names.dtype} of shape {names.shape}; allowed: text of shape (C,)")
    return list(map(str, names.tolist()))


def to_dataset(
    arrays: Arrays, *, name: str, where: str, class_names: Sequence[str] | None = None, mirror: bool = True
) -> Dataset:
    """Make a data set of the arrays, as they are; mistakes in them are a `UserError` that begins with `where`."""
    try:
        return Dataset.from_arrays(
            *(arrays[key] for key in REQUIRED),
            validation=(arrays["val_images"], arrays["val_labels"]) if "val_images" in arrays else None,
            class_names=_class_names(arrays, class_names),
            name=name,
            mirror=mirror,
        )
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def to_labels(
    arrays: Arrays, *, where: str, class_names: Sequence[str] | None = None, group: str | None = None
) -> dict[str, Labels]:
    """Return the labels of each split, with the groups of the training images; no array of images is needed.

    Mistakes in them are a `UserError` that begins with `where`.
    """
    there = {part: f"{key}_labels" for part, key in PARTS.items() if f"{key}_labels" in arrays}
    try:
        found = {part: checked_labels(key, np.asarray(arrays[key])) for part, key in there.items()}
        names = checked_names(found["train"], _class_names(arrays, class_names))
        for part, labels in found.items():
            check_range(there[part], labels, len(names))
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    groups = None
    if group is not None:
        _, numbers = np.unique(np.asarray(arrays[f"train_{group}"]).ravel(), return_inverse=True)
        groups = numbers.astype(np.int64)
    return {part: Labels(labels, names, groups if part == "train" else None) for part, labels in found.items()}
