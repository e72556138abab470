"""Data sets in one `.npz` file with MedMNIST's keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from taet.data.array_file import array_names, open_array, read_array
from taet.data.dataset import CLASS_NAMES, PARTS, Arrays, Dataset, Labels, Outline, to_dataset, to_labels
from taet.data.places import locate
from taet.errors import UserError, cut, located
from taet.settings import Data

NAMES = {"npz": "npz:PATH, a file with train_images, train_labels, test_images, test_labels (MedMNIST's keys)"}
REQUIRED = ("train_images", "train_labels", "test_images", "test_labels")
VALIDATION = ("val_images", "val_labels")
GROUP = "group"
"""The groups of images are in train_group and so on, if no other name is given."""


def keys(path: Path, there: Sequence[str], group: str | None = None) -> list[str]:
    """Return which of the arrays in `path`, called `there`, make up the data set; refuse a set that lacks one.

    With `group`, train_`group` is required; the arrays of the other splits are optional.
    """
    groups = [] if group is None else [f"{part}_{group}" for part in PARTS.values()]
    required = [*REQUIRED, *(VALIDATION if {*there} & {*VALIDATION} else ()), *groups[:1]]
    if missing := [key for key in required if key not in there]:
        raise UserError(f"'{path}' has no {', '.join(missing)}; it has: {cut(', '.join(there)) or 'nothing'}")
    return [*required, *(key for key in (*groups[1:], CLASS_NAMES) if key in there)]


def read_arrays(path: Path, storage: str = "auto", group: str | None = None) -> Arrays:
    """Return the arrays of MedMNIST's keys in the file; a missing required one raises a `UserError`.

    Images may stay on disk: see `taet.data.array_file.read_array`. `group`: see `keys`.
    """
    return {key: read_array(path, key, storage) for key in keys(path, array_names(path), group)}


def read_labels(path: Path, class_names: Sequence[str] | None = None, group: str | None = None) -> dict[str, Labels]:
    """Return the labels and groups of each split of the file; no image is read."""
    found = keys(path, array_names(path), group)
    arrays = {key: read_array(path, key) for key in found if not key.endswith("_images")}
    with located(f"'{path}'"):
        return to_labels(arrays, class_names, group)


def _group(data: Data, path: Path) -> str | None:
    """Return the name of the group arrays, if groups were requested or such arrays exist."""
    return data.group or (GROUP if f"train_{GROUP}" in array_names(path) else None)


def outline(data: Data) -> Outline | None:
    """Return the labels of the file and the shape of its images; None if their header does not determine it."""
    path = locate(data)
    splits = read_labels(path, group=_group(data, path))
    with open_array(path, "train_images") as found:
        shape = found.image_shape
    if shape is None:
        return None
    _, height, width, channels = shape
    return Outline(splits, (channels, height, width))


def read(data: Data) -> Dataset:
    """Return the file's splits as they are; its optional array `class_names` names the classes.

    With `data.group` G, train_G, val_G and test_G hold the group of each image, as numbers or text (N,); train_group
    and so on are used by default. Notes say how many groups there are, and where one is in two splits. Format: Yang et
    al., MedMNIST v2, Scientific Data 2023, arXiv:2110.14795.
    """
    path = locate(data)
    group = _group(data, path)
    arrays = read_arrays(path, data.storage, group)
    with located(f"'{path}'"):
        dataset = to_dataset(arrays, name=data.name, group=group)
    train = dataset.train.groups
    if train is None:
        return dataset
    notes = [f"{len(np.unique(train))} groups in train_{group}; a validation split holds out whole ones"]
    others = {part: split.groups for part, split in dataset.splits.items() if part != "train"}
    shared = {part: len(np.intersect1d(train, own)) for part, own in others.items() if own is not None}
    text = ", ".join(f"{number} in training and {part}" for part, number in shared.items() if number)
    notes += [f"the file's own splits divide groups of {group}: {text}"] if text else []
    return replace(dataset, notes=(*dataset.notes, *notes))
