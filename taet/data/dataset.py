"""Data sets: splits of uint8 images with labels, and their checks."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from taet import statistics
from taet.data.image_store import Images, Stored, pieces
from taet.errors import UNPRINTABLE, UserError, printable


def images_sha256(images: NDArray[np.generic] | Stored, labels: NDArray[np.int64]) -> str:
    """Return the SHA-256 of the images' shape as text, their bytes, and the labels as little-endian int64."""
    digest = hashlib.sha256(repr(images.shape).encode())
    for piece in pieces(images):
        digest.update(np.ascontiguousarray(piece).data)
    digest.update(np.ascontiguousarray(labels, "<i8").data)
    return digest.hexdigest()


class Labelled:
    """The common base of `Labels` and `Split`."""

    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    groups: NDArray[np.int64] | None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def class_counts(self) -> NDArray[np.int64]:
        """Number of images of each class, (C,)."""
        return np.bincount(self.labels, minlength=len(self.class_names)).astype(np.int64)

    def _groups_at(self, positions: NDArray[np.int64]) -> NDArray[np.int64] | None:
        return None if self.groups is None else self.groups[positions]


@dataclass(frozen=True, eq=False)
class Labels(Labelled):
    """The labels of a split, without its images: see `Split`."""

    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    groups: NDArray[np.int64] | None = None

    @classmethod
    def of_counts(cls, class_names: Sequence[str], counts: int | Sequence[int]) -> Labels:
        """Return labels with `counts` images per class, one number for all or (C,), class by class."""
        return cls(np.repeat(np.arange(len(class_names)), counts), tuple(class_names))

    def choose(self, positions: NDArray[np.int64]) -> Labels:
        """Return the labels at `positions`, in that order."""
        return Labels(self.labels[positions], self.class_names, self._groups_at(positions))


@dataclass(frozen=True, eq=False)
class Outline:
    """Facts about a source that are known without reading its images."""

    splits: Mapping[str, Labels]
    """Labels of the source's own splits: "train", "test" and, if it has one, "validation"."""
    image_shape: tuple[int, int, int]
    """(C,H,W), before any resizing."""
    mirror: bool = True
    named: bool = True
    """Whether these are the real class names."""

    @classmethod
    def of_counts(
        cls,
        class_names: Sequence[str],
        counts: Mapping[str, int | Sequence[int]],
        image_shape: tuple[int, int, int],
        *,
        mirror: bool = True,
        named: bool = True,
    ) -> Outline:
        """Return the outline of splits with these `counts` of images per class: see `Labels.of_counts`."""
        splits = {part: Labels.of_counts(class_names, each) for part, each in counts.items()}
        return cls(splits, image_shape, mirror, named)

    def check(self, dataset: Dataset) -> None:
        """Refuse a data set with another shape or other class counts."""
        if dataset.image_shape != self.image_shape:
            raise UserError(f"got images of shape {dataset.image_shape}; allowed: {self.image_shape}")
        for part, labels in self.splits.items():
            found = dataset.splits[part].class_counts if part in dataset.splits else np.zeros_like(labels.class_counts)
            for name, got, expected in zip(labels.class_names, found, labels.class_counts, strict=True):
                if got != expected:
                    raise UserError(f"got {got} {part} images of '{name}'; allowed: {expected} of this class")


@dataclass(frozen=True, eq=False, repr=False)
class Split(Labelled):
    """Images with their labels."""

    images: Images
    """(N,H,W,C), C 1 or 3, pixel values 0 to 255; an array, or a file from which images are read when indexed."""
    labels: NDArray[np.int64]
    """(N,), 0 to the number of classes less one."""
    class_names: tuple[str, ...]
    indices: NDArray[np.int64]
    """(N,): the position of each image in the source's own split."""
    groups: NDArray[np.int64] | None = None
    """(N,): images with equal numbers (from one patient, lesion or track) are kept in one split; None: no groups."""

    def __repr__(self) -> str:
        place = f", in '{self.images.path}'" if isinstance(self.images, Stored) else ""
        return f"Split({len(self)} images of {len(self.class_names)} classes, {_form(self.images)}{place})"

    @cached_property
    def sha256(self) -> str:
        """Checksum of the images and labels: see `images_sha256`."""
        return images_sha256(self.images, self.labels)

    def channel_statistics(self) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation of each channel, in image units [0, 1]; the deviation is at least 1/255.

        The sums are integers, added piece by piece: exact, and with little memory.
        """
        sums, squares = np.zeros((2, self.images.shape[3]), np.int64)
        for piece in pieces(self.images):  # of at most 2^16 images: the sums stay below 2^32
            flat = piece.reshape(len(piece), -1)
            for total, values in ((sums, flat), (squares, np.square(flat, dtype=np.uint16))):
                total += values.sum(0, dtype=np.uint32).reshape(-1, len(total)).sum(0, dtype=np.int64)
        pixels = math.prod(self.images.shape[:3])
        mean = sums / (255 * pixels)
        spread = np.sqrt((squares / (255**2 * pixels) - mean**2).clip(min=1 / 255**2))
        return mean.tolist(), spread.tolist()

    def choose(self, positions: NDArray[np.int64]) -> Split:
        """Return the images at `positions`, in that order; images on disk are not read."""
        images = self.images.choose(positions) if isinstance(self.images, Stored) else self.images[positions]
        labels, indices = self.labels[positions], self.indices[positions]
        return Split(images, labels, self.class_names, indices, self._groups_at(positions))

    def manifest(self) -> dict[str, Any]:
        """Return indices, sha256 and class_counts, which identify the split, as plain JSON."""
        counts = self.class_counts.tolist()
        return {"indices": self.indices.tolist(), "sha256": self.sha256, "class_counts": counts}


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Training, validation and test images of one classification task."""

    name: str
    train: Split
    validation: Split | None
    test: Split
    mirror: bool = True
    """Whether a mirrored image keeps its label."""
    notes: tuple[str, ...] = ()
    """Notes on how the set was made, one sentence each."""
    resized: bool = False
    """Whether the images were resized, so that other images of any size can be resized as well."""
    whole_test: Split | None = None
    """All test images of the source, not resized, if `test` is a part of them; extra images are compared with these."""

    def __post_init__(self) -> None:
        # Notes are printed and stored, and name files.
        object.__setattr__(self, "notes", tuple(map(printable, self.notes)))

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(split)} {name}" for name, split in self.splits.items())
        return f"Dataset({self.headline}; {sizes} images)"

    @classmethod
    def from_arrays(
        cls,
        train_images: ArrayLike | Stored,
        train_labels: ArrayLike,
        test_images: ArrayLike | Stored,
        test_labels: ArrayLike,
        *,
        validation: tuple[ArrayLike | Stored, ArrayLike] | None = None,
        class_names: Sequence[str] | None = None,
        name: str = "arrays",
        mirror: bool = True,
    ) -> Dataset:
        """Make a data set from arrays, without a long-tailed cut.

        Images are uint8, (N,H,W), (N,H,W,1) or (N,H,W,3), copied only if they are read-only or not in C order; labels
        are whole numbers 0..C-1, (N,) or (N,1); `validation` is a pair (images, labels). Class names default to "0",
        "1", ... up to the largest training label. Every class needs a training image. Anything else raises a
        `UserError` that names the array.
        """
        arrays: dict[str, Any] = {"train_images": train_images, "train_labels": train_labels}
        arrays |= {} if validation is None else dict(zip(("val_images", "val_labels"), validation, strict=True))
        arrays |= {"test_images": test_images, "test_labels": test_labels}
        return to_dataset(arrays, class_names=class_names, name=name, mirror=mirror)

    def about(self) -> dict[str, Any]:
        """Return the entry about the test images for result cards."""
        return {"name": self.name, "imbalance_ratio": self.imbalance_ratio, "notes": list(self.notes)}

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the labels."""
        return self.train.class_names

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return len(self.class_names)

    @property
    def class_counts(self) -> NDArray[np.int64]:
        """Training images of each class, (C,)."""
        return self.train.class_counts

    @property
    def imbalance_ratio(self) -> float:
        """Training images of the largest class divided by those of the smallest, >= 1."""
        counts = self.class_counts
        return float(counts.max() / counts.min())

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C,H,W), as a model takes it."""
        height, width, channels = self.train.images.shape[1:]
        return channels, height, width

    @property
    def headline(self) -> str:
        """Name, classes, size of the images and imbalance ratio in words."""
        form, ratio = _form(self.train.images), self.imbalance_ratio
        return f"{self.name}: {self.num_classes} classes, {form}, imbalance ratio {ratio:.4g}"

    @property
    def ranks(self) -> NDArray[np.int64]:
        """Rank of each class by training count, (C,): see `taet.statistics.class_ranks`."""
        return statistics.class_ranks(self.class_counts)

    @property
    def groups(self) -> dict[str, NDArray[np.int64]]:
        """Labels of the head, body and tail classes: see `taet.statistics.class_groups`."""
        return {
            name: np.asarray(labels, np.int64) for name, labels in statistics.class_groups(self.class_counts).items()
        }

    @property
    def splits(self) -> dict[str, Split]:
        """The splits, by name."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in named.items() if split is not None}

    def manifest(self) -> dict[str, Any]:
        """Return `Split.manifest` of each split."""
        return {name: split.manifest() for name, split in self.splits.items()}


def _form(images: Images) -> str:
    """Return width and height in pixels, and grey or colour."""
    _, height, width, channels = images.shape
    return f"{width}x{height} pixels, {'grey' if channels == 1 else 'colour'}"


def _kind(array: NDArray[np.generic] | Stored) -> str:
    return f"{array.dtype}{' with NaN' if array.dtype.kind == 'f' and np.isnan(array).any() else ''}"


PARTS = {"train": "train", "validation": "val", "test": "test"}
"""Names of the splits in MedMNIST's keys (train_images, val_labels, ...)."""
CLASS_NAMES = "class_names"
Arrays: TypeAlias = Mapping[str, ArrayLike | Stored]
"""Arrays under MedMNIST's keys; those of a validation split and class_names are optional."""


def to_labels(arrays: Arrays, class_names: Sequence[str] | None = None, group: str | None = None) -> dict[str, Labels]:
    """Return the labels of each split; no array of images is needed. Invalid labels raise a `UserError`.

    With `group`, the arrays train_`group` and so on, if present, hold the group of each image, as numbers or text.
    """
    keys = {part: f"{key}_labels" for part, key in PARTS.items() if f"{key}_labels" in arrays}
    found = {part: checked_labels(key, arrays[key]) for part, key in keys.items()}
    names = _checked_names(found["train"], arrays, class_names)
    for part, labels in found.items():
        if labels.max() >= len(names):
            raise UserError(f"{keys[part]}: got label {labels.max()}; allowed: 0 to {len(names) - 1}")
    groups = {} if group is None else _groups(found, arrays, group)
    return {part: Labels(labels, names, groups.get(part)) for part, labels in found.items()}


def to_dataset(
    arrays: Arrays,
    *,
    name: str,
    class_names: Sequence[str] | None = None,
    mirror: bool = True,
    group: str | None = None,
) -> Dataset:
    """Make a data set from arrays, without a cut; invalid arrays raise a `UserError`. `group`: see `to_labels`."""
    splits: dict[str, Split] = {}
    for part, labels in to_labels(arrays, class_names, group).items():
        key = f"{PARTS[part]}_images"
        images = checked_images(key, arrays[key])
        if len(images) != len(labels):
            raise UserError(f"{key} and {PARTS[part]}_labels: got {len(images)} images but {len(labels)} labels")
        splits[part] = Split(images, labels.labels, labels.class_names, np.arange(len(labels)), labels.groups)
        shape = splits["train"].images.shape[1:]
        if images.shape[1:] != shape:
            raise UserError(f"{key}: got images of shape {images.shape[1:]}; allowed: {shape}, as in training")
    return Dataset(name, splits["train"], splits.get("validation"), splits["test"], mirror)


def _groups(labels: Mapping[str, NDArray[np.int64]], arrays: Arrays, group: str) -> dict[str, NDArray[np.int64]]:
    """Return the groups of the images of each split as numbers."""
    keys = {part: f"{PARTS[part]}_{group}" for part in labels if f"{PARTS[part]}_{group}" in arrays}
    found = {part: np.asarray(arrays[key]) for part, key in keys.items()}
    for part, values in found.items():
        count = len(labels[part])
        if values.size != count or values.dtype.kind not in "iuSU":
            allowed = f"whole numbers or text, ({count},), one for each image"
            raise UserError(f"{keys[part]}: got {values.dtype} of shape {values.shape}; allowed: {allowed}")
    _, numbers = np.unique(np.concatenate([values.ravel() for values in found.values()]), return_inverse=True)
    ends = np.cumsum([values.size for values in found.values()])[:-1]
    return dict(zip(found, np.split(numbers.astype(np.int64), ends), strict=True))


def checked_images(what: str, images: ArrayLike | Stored) -> Images:
    """Return images as uint8 (N,H,W,C), copied only if necessary; anything else raises a `UserError`."""
    array = images if isinstance(images, Stored) else np.asarray(images)
    if array.dtype != np.uint8:
        raise UserError(f"{what}: got {_kind(array)}; allowed: uint8, pixel values 0 to 255")
    if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[3] not in (1, 3)):
        raise UserError(f"{what}: got shape {array.shape}; allowed: (N,H,W), (N,H,W,1) or (N,H,W,3)")
    if 0 in array.shape:
        raise UserError(f"{what}: got shape {array.shape}; at least one image is needed")
    if isinstance(array, Stored):
        return array
    # torch cannot share arrays that are read-only or have negative strides: these are copied.
    array = np.require(array, requirements=("C", "W"))
    return array if array.ndim == 4 else array[..., np.newaxis]


def checked_labels(what: str, labels: ArrayLike) -> NDArray[np.int64]:
    """Return labels (N,) or (N,1) as int64 (N,); anything but whole numbers from 0 raises a `UserError`."""
    array = np.asarray(labels)
    if array.dtype.kind not in "iu":
        raise UserError(f"{what}: got {_kind(array)}; allowed: whole numbers from 0")
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or len(array) == 0:
        raise UserError(f"{what}: got shape {array.shape}; allowed: (N,) or (N,1), one label or more")
    if array.min() < 0:
        raise UserError(f"{what}: got label {array.min()}; allowed: whole numbers from 0")
    if array.max() > np.iinfo(np.int64).max:
        raise UserError(f"{what}: got label {array.max()}; allowed: numbers of classes")
    return array.astype(np.int64)


def _checked_names(
    train_labels: NDArray[np.int64], arrays: Arrays, class_names: Sequence[str] | None
) -> tuple[str, ...]:
    """Return the class names, given or from the arrays; a class without a training image raises a `UserError`."""
    if class_names is None and CLASS_NAMES in arrays:
        given = np.asarray(arrays[CLASS_NAMES])
        if given.dtype.kind != "U" or given.ndim != 1:
            raise UserError(f"class_names: got {given.dtype} of shape {given.shape}; allowed: text of shape (C,)")
        class_names = given.tolist()
    found = np.unique(train_labels)
    if len(found if class_names is None else class_names) < 2:
        raise UserError("classes: got a single class; allowed: 2 or more")
    for name, times in Counter(class_names or ()).items():
        if UNPRINTABLE.search(name):
            raise UserError(f"class names: got {name[:40]!a}; allowed: text of characters that can be printed")
        if times > 1:
            raise UserError(f"class names: got '{name}' twice; allowed: a different name for each class")
    count = int(found[-1]) + 1 if class_names is None else len(class_names)
    # The smallest missing label is at most the number of labels found, however large a wrong label is.
    for label in np.setdiff1d(np.arange(min(count, len(found) + 1)), found)[:1]:
        name = label if class_names is None else class_names[label]
        raise UserError(f"train_labels: class '{name}' has no training image; labels run from 0 to {count - 1}")
    return tuple(map(str, range(count))) if class_names is None else tuple(class_names)
