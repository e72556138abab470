"""Any data set in one `.npz` file with MedMNIST's keys."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from taet.config import Data
from taet.data.dataset import Dataset, Labels, Outline
from taet.data.named_arrays import GROUP, PARTS, Arrays, keys, to_dataset, to_labels
from taet.data.places import locate
from taet.data.store import Stored, open_member, shape_of_member
from taet.errors import UserError

NAMES = {"npz": "npz:PATH, a file with train_images, train_labels, test_images, test_labels (MedMNIST's keys)"}


def _names(path: Path) -> list[str]:
    """Return the names of the arrays in an .npz file."""
    if not path.is_file():
        raise UserError(f"no such file: '{path}'")
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile) as error:
        with path.open("rb") as file:
            if file.read(len(npy.MAGIC_PREFIX)) == npy.MAGIC_PREFIX:
                raise UserError(f"'{path}' holds a single array; allowed: an .npz file") from error
        raise UserError(f"cannot read '{path}': {error}; allowed: an .npz file of plain arrays") from error


def _keys(path: Path, group: str | None) -> list[str]:
    there = _names(path)
    wanted, missing = keys(there, group)
    if missing:
        raise UserError(f"'{path}' has no {', '.join(missing)}; it has: {', '.join(there) or 'nothing'}")
    return wanted


def read_arrays(path: Path, storage: str = "auto", group: str | None = None) -> dict[str, NDArray[np.generic] | Stored]:
    """Return the arrays of MedMNIST's keys that are in the file; one that is required and missing is a `UserError`.

    Images may lie on disk: see `taet.data.store.open_member`. `group`: see `taet.data.named_arrays.keys`.
    """
    return {key: open_member(path, key, storage) for key in _keys(path, group)}


def read_labels(path: Path, class_names: Sequence[str] | None = None, group: str | None = None) -> dict[str, Labels]:
    """Return the labels of each split of the file, with the groups of its training images; no image is read."""
    wanted = [key for key in _keys(path, group) if not key.endswith("_images")]
    labels = {key: open_member(path, key, "memory") for key in wanted}
    return to_labels(labels, where=f"'{path}'", class_names=class_names, group=group)


def _group(data: Data, path: Path) -> str | None:
    """Return what the arrays of groups are called, if groups are asked for or there are such arrays."""
    return data.group or (GROUP if f"train_{GROUP}" in _names(path) else None)


def outline(data: Data) -> Outline | None:
    """Return the labels of the file and the shape of its images; None if their header does not tell it."""
    path = locate(data)
    splits, shape = read_labels(path, group=_group(data, path)), shape_of_member(path, "train_images")
    if shape is None:
        return None
    _, height, width, channels = shape
    return Outline(splits, (channels, height, width))


def read(data: Data) -> Dataset:
    """Return the file's splits as they are; its optional array `class_names` names the classes.

    With `data.group` G, train_G, val_G and test_G hold what images have in common, numbers or text (N,); train_group
    and so on are used without being asked for.
    Format: Yang et al., MedMNIST v2, Scientific Data 2023, arXiv:2110.14795.
    """
    path = locate(data)
    group = _group(data, path)
    arrays = read_arrays(path, data.storage, group)
    dataset = to_dataset(arrays, name=data.name, where=f"'{path}'")
    return dataset if group is None else _grouped(dataset, arrays, group, path)


def _grouped(dataset: Dataset, arrays: Arrays, group: str, path: Path) -> Dataset:
    """Return the data set with the groups of its images, and notes: how many, and where one is in two splits."""
    named = {split: f"{PARTS[split]}_{group}" for split in dataset.splits}
    found = {split: np.asarray(arrays[name]) for split, name in named.items() if name in arrays}
    for split, values in found.items():
        count = len(dataset.splits[split])
        if values.size != count or values.dtype.kind not in "iuSU":
            allowed = f"whole numbers or text, ({count},), one for each image"
            raise UserError(f"'{path}': {named[split]}: got {values.dtype} of shape {values.shape}; allowed: {allowed}")
    _, numbers = np.unique(np.concatenate([values.ravel() for values in found.values()]), return_inverse=True)
    ends = np.cumsum([values.size for values in found.values()])[:-1]
    groups = dict(zip(found, np.split(numbers.astype(np.int64), ends), strict=True))
    splits = {split: replace(part, groups=groups.get(split)) for split, part in dataset.splits.items()}
    shared = {split: len(np.intersect1d(groups["train"], groups[split])) for split in groups if split != "train"}
    text = ", ".join(f"{number} in training and {split}" for split, number in shared.items() if number)
    return replace(
        dataset,
        train=splits["train"],
        validation=splits.get("validation"),
        test=splits["test"],
        notes=(
            *dataset.notes,
            f"{len(np.unique(groups['train']))} groups in {named['train']}; a validation split holds out whole ones",
            *([f"the file's own splits divide groups of {group}: {text}"] if text else []),
        ),
    )
