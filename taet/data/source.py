"""Labelled images of a source, which are chosen before they are read, and the checks of arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from taet.data.images import Files
from taet.data.storage import Pixels
from taet.errors import UNPRINTABLE, UserError
from taet.statistics import Ints

PARTS = {"train": "train", "validation": "val", "test": "test"}
"""Names of the splits in MedMNIST's keys (train_images, val_labels, ...)."""
Arrays: TypeAlias = Mapping[str, ArrayLike]
"""Arrays under MedMNIST's keys; those of a validation split and class_names are optional."""


class Labelled:
    """The common base of `Part` and `Split`: N labelled images."""

    labels: Ints
    """(N,), 0 to the number of classes less one."""
    class_names: tuple[str, ...]
    indices: Ints
    """(N,): the position of each image in the source's own split."""
    groups: Ints | None
    """(N,): images with equal numbers (of one patient, lesion or track) are kept in one split; None: no groups."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def class_counts(self) -> Ints:
        """Number of images of each class, (C,)."""
        return np.bincount(self.labels, minlength=len(self.class_names)).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Part(Labelled):
    """Labelled images that are not read yet: `rows` of `images`, or all of them in their own order."""

    images: Pixels | Files
    labels: Ints
    class_names: tuple[str, ...]
    indices: Ints
    groups: Ints | None = None
    rows: Ints | None = None

    def choose(self, positions: Ints | None) -> Part:
        """Return the part at `positions`, in that order; None: all."""
        if positions is None:
            return self
        groups = None if self.groups is None else self.groups[positions]
        rows = positions if self.rows is None else self.rows[positions]
        return Part(self.images, self.labels[positions], self.class_names, self.indices[positions], groups, rows)


@dataclass(frozen=True, eq=False)
class DataSource:
    """What a source holds: its own splits "train", "test" and, if it has one, "validation", before any cut."""

    name: str
    splits: Mapping[str, Part]
    mirror: bool = True
    notes: tuple[str, ...] = ()
    resized: bool = False

    def check(self, sizes: Mapping[str, int], shape: tuple[int, int, int]) -> DataSource:
        """Return self; other `sizes` of the splits, and another shape (H,W,C) of the images, are refused."""
        got, own = {part: len(of) for part, of in self.splits.items()}, self.splits["train"].images.shape[1:]
        if got != sizes or own != shape:
            raise UserError(f"got {got} images of shape {own}; allowed: {dict(sizes)} of {shape}")
        return self


def to_source(
    arrays: Arrays,
    *,
    name: str,
    class_names: Sequence[str] | None = None,
    mirror: bool = True,
    group: str | None = None,
) -> DataSource:
    """Return the source of arrays under MedMNIST's keys; invalid arrays raise a `UserError`.

    With `group`, the arrays train_`group` and so on, if present, hold the group of each image, as numbers or text.
    """
    there = {part: key for part, key in PARTS.items() if f"{key}_labels" in arrays}
    labels = {part: checked_labels(f"{key}_labels", arrays[f"{key}_labels"]) for part, key in there.items()}
    names = _checked_names(labels["train"], arrays.get("class_names"), class_names)
    groups, splits = _groups(labels, arrays, group), dict[str, Part]()
    for part, key in there.items():
        own, images = labels[part], checked_images(f"{key}_images", arrays[f"{key}_images"])
        shape = splits["train"].images.shape[1:] if splits else images.shape[1:]
        if own.max() >= len(names):
            raise UserError(f"{key}_labels: got label {own.max()}; allowed: 0 to {len(names) - 1}")
        if len(images) != len(own):
            raise UserError(f"{key}_images and {key}_labels: got {len(images)} images but {len(own)} labels")
        if images.shape[1:] != shape:
            raise UserError(f"{key}_images: got images of shape {images.shape[1:]}; allowed: {shape}, as in training")
        splits[part] = Part(images, own, names, np.arange(len(own)), groups.get(part))
    return DataSource(name, splits, mirror)


def _groups(labels: Mapping[str, Ints], arrays: Arrays, group: str | None) -> dict[str, Ints]:
    """Return the groups of the images of each split as numbers."""
    keys = {part: f"{PARTS[part]}_{group}" for part in labels}
    found = {part: np.asarray(arrays[key]).ravel() for part, key in keys.items() if key in arrays}
    if not found:
        return {}
    for part, values in found.items():
        if len(values) != len(labels[part]) or values.dtype.kind not in "iuSU":
            got, allowed = f"{len(values)} of {values.dtype}", f"{len(labels[part])} whole numbers or texts"
            raise UserError(f"{keys[part]}: got {got}; allowed: {allowed}, one for each image")
    numbers = np.unique(np.concatenate([*found.values()]), return_inverse=True)[1].astype(np.int64)
    return dict(zip(found, np.split(numbers, np.cumsum([len(each) for each in found.values()])[:-1]), strict=True))


def checked_images(what: str, images: ArrayLike) -> Pixels:
    """Return images as uint8 (N,H,W,C), copied only if necessary; anything else raises a `UserError`."""
    array: NDArray[np.generic] = images if isinstance(images, np.memmap) else np.asarray(images)
    if array.dtype != np.uint8:
        raise UserError(f"{what}: got {array.dtype}; allowed: uint8, pixel values 0 to 255")
    if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[3] not in (1, 3)) or 0 in array.shape:
        raise UserError(f"{what}: got shape {array.shape}; allowed: (N,H,W), (N,H,W,1) or (N,H,W,3), N at least 1")
    if not isinstance(images, np.memmap):  # torch cannot share arrays that are read-only or have negative strides
        array = np.require(array, requirements=("C", "W"))
    return array if array.ndim == 4 else array[..., np.newaxis]  # type: ignore[return-value]


def checked_labels(what: str, labels: ArrayLike) -> Ints:
    """Return labels (N,) or (N,1) as int64 (N,); anything but whole numbers from 0 raises a `UserError`."""
    array = np.asarray(labels)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.dtype.kind not in "iu" or array.ndim != 1 or len(array) == 0:
        got = f"{array.dtype} of shape {array.shape}"
        raise UserError(f"{what}: got {got}; allowed: whole numbers from 0, (N,) or (N,1)")
    if array.min() < 0 or array.max() > np.iinfo(np.int64).max:
        raise UserError(f"{what}: got label {min(array.min(), 0) or array.max()}; allowed: whole numbers from 0")
    return array.astype(np.int64)


def _checked_names(labels: Ints, stored: ArrayLike | None, given: Sequence[str] | None) -> tuple[str, ...]:
    """Return the class names, given or `stored`; a class without a training image raises a `UserError`."""
    found = np.unique(labels)
    if given is None and stored is not None:
        names = np.asarray(stored)
        if names.dtype.kind != "U" or names.ndim != 1:
            raise UserError(f"class_names: got {names.dtype} of shape {names.shape}; allowed: text of shape (C,)")
        given = names.tolist()
    count = int(found[-1]) + 1 if given is None else len(given)
    if len(found if given is None else given) < 2:
        raise UserError("classes: got a single class; allowed: 2 or more")
    # The smallest missing label is at most the number of labels found, however large a wrong label is.
    for label in np.setdiff1d(np.arange(min(count, len(found) + 1)), found)[:1]:
        name = label if given is None else given[label]
        raise UserError(f"train_labels: class '{name}' has no training image; labels run from 0 to {count - 1}")
    return check_names(map(str, range(count)) if given is None else given)


def check_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return class names; those that are empty, cannot be printed as they are, or occur twice are refused."""
    names = tuple(names)
    for name, times in Counter(names).items():
        if not name.strip() or UNPRINTABLE.search(name) or times > 1:
            got = f"'{name}' twice" if times > 1 else f"{name[:40]!a}"
            raise UserError(f"class names: got {got}; allowed: a different name for each, text that can be printed")
    return names
