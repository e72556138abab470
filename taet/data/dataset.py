"""What a data set is: splits of uint8 images with labels, their checks, and how they are described."""

from __future__ import annotations

import hashlib
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from taet import metrics
from taet.data.store import Images, Stored, pieces
from taet.errors import UserError

MOST_ROWS = 40
"""Classes that the table of a data set has a row for, which a screen just holds."""


def images_sha256(images: NDArray[Any] | Stored, labels: NDArray[np.int64]) -> str:
    """SHA-256, in hexadecimal, of the images' shape as text, their bytes, and the labels as little-endian int64."""
    digest = hashlib.sha256(repr(images.shape).encode())
    for piece in pieces(images):
        digest.update(np.ascontiguousarray(piece).data)
    digest.update(np.ascontiguousarray(labels, "<i8").data)
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels of a split, without its images: see `Split`."""

    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    groups: NDArray[np.int64] | None = None

    @classmethod
    def of_counts(cls, class_names: Sequence[str], counts: Sequence[int]) -> Labels:
        """Return labels with `counts` (C,) images per class, class by class."""
        return cls(np.repeat(np.arange(len(counts)), counts), tuple(class_names))

    def choose(self, positions: NDArray[np.int64]) -> Labels:
        """Return the labels at `positions`, in that order."""
        groups = None if self.groups is None else self.groups[positions]
        return Labels(self.labels[positions], self.class_names, groups)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def class_counts(self) -> NDArray[np.int64]:
        """Number of images of each class, (C,)."""
        return np.bincount(self.labels, minlength=len(self.class_names)).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Outline:
    """What is known of a source without reading its images."""

    splits: Mapping[str, Labels]
    """Of the source's own splits: "train", "test" and, where it brings one, "validation"."""
    image_shape: tuple[int, int, int]
    """(C,H,W), before any resizing."""
    mirror: bool = True
    named: bool = True
    """Are the class names the real ones?"""

    def check(self, dataset: Dataset, where: str) -> None:
        """Refuse a data set with another shape or other class counts; the error begins with `where` it was read."""
        if dataset.image_shape != self.image_shape:
            raise UserError(f"{where}: got images of shape {dataset.image_shape}; allowed: {self.image_shape}")
        for part, labels in self.splits.items():
            found = dataset.splits[part].class_counts if part in dataset.splits else np.zeros_like(labels.class_counts)
            for name, got, expected in zip(labels.class_names, found, labels.class_counts, strict=True):
                if got != expected:
                    raise UserError(f"{where}: got {got} {part} images of '{name}'; allowed: {expected} of this class")


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """Images with their labels."""

    images: Images
    """(N,H,W,C), C 1 or 3, grey levels 0 to 255; an array, or a file whose images are read when they are indexed."""
    labels: NDArray[np.int64]
    """(N,), 0 to the number of classes less one."""
    class_names: tuple[str, ...]
    indices: NDArray[np.int64]
    """(N,): the position of each image in the source's own split."""
    groups: NDArray[np.int64] | None = None
    """(N,): equal numbers mark images (of a patient, a lesion, a track) that belong in one split; None: none do."""

    def __repr__(self) -> str:
        place = f", in '{self.images.path}'" if isinstance(self.images, Stored) else ""
        return f"Split({len(self)} images of {len(self.class_names)} classes, {_form(self.images)}{place})"

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def without_images(self) -> Labels:
        """The labels and groups alone."""
        return Labels(self.labels, self.class_names, self.groups)

    @property
    def class_counts(self) -> NDArray[np.int64]:
        """Number of images of each class, (C,)."""
        return self.without_images.class_counts

    @cached_property
    def sha256(self) -> str:
        """What identifies the images and labels: see `images_sha256`."""
        return images_sha256(self.images, self.labels)

    def channel_statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel, in image units [0, 1]; a channel without any spread gets 1/255.

        Whole numbers are added up, piece by piece, so that it is exact and takes no more memory than a few images.
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
        """Return the images at `positions`, in that order; those in a file stay there."""
        images = self.images.choose(positions) if isinstance(self.images, Stored) else self.images[positions]
        groups = None if self.groups is None else self.groups[positions]
        return replace(
            self, images=images, labels=self.labels[positions], indices=self.indices[positions], groups=groups
        )

    def manifest(self) -> dict[str, Any]:
        """Return what identifies the split, as plain JSON: indices, sha256, class_counts."""
        return {
            "indices": self.indices.tolist(),
            "sha256": self.sha256,
            "class_counts": self.class_counts.tolist(),
        }


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Training, validation and test images of one classification task."""

    name: str
    train: Split
    validation: Split | None
    test: Split
    mirror: bool = True
    """Does a mirrored image keep its label?"""
    notes: tuple[str, ...] = ()
    """What was decided when the set was made, in words."""
    resized: bool = False
    """Were the images brought to their size, so that others of any size can be, too?"""

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(split)} {name}" for name, split in self.splits.items())
        return f"Dataset({_headline(self)}; {sizes} images)"

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
        """Make a data set of arrays, as they are.

        Images are uint8, (N,H,W), (N,H,W,1) or (N,H,W,3), copied only where they are read-only or not in C's order;
        labels are whole numbers 0..C-1, (N,) or (N,1); `validation` is a pair (images, labels). Class names default to
        "0", "1", ... up to the largest training label. Every class needs a training image. Anything else is a
        `UserError` that names the array.
        """
        parts = {"train": (train_images, train_labels), "val": validation, "test": (test_images, test_labels)}
        arrays = {
            part: (_checked_images(f"{part}_images", pair[0]), checked_labels(f"{part}_labels", pair[1]))
            for part, pair in parts.items()
            if pair is not None
        }
        names = checked_names(arrays["train"][1], class_names)
        shape = arrays["train"][0].shape[1:]
        for part, (images, labels) in arrays.items():
            if len(images) != len(labels):
                raise UserError(f"{part}_images and {part}_labels: got {len(images)} images but {len(labels)} labels")
            if labels.max() >= len(names):
                raise UserError(f"{part}_labels: got label {labels.max()}; allowed: 0 to {len(names) - 1}")
            if images.shape[1:] != shape:
                raise UserError(
                    f"{part}_images: got images of shape {images.shape[1:]}; allowed: {shape}, as in training"
                )
        splits = {part: Split(*pair, names, np.arange(len(pair[1]))) for part, pair in arrays.items()}
        return cls(name, splits["train"], splits.get("val"), splits["test"], mirror)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels."""
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
        """Training images of the largest class over those of the smallest, >= 1."""
        counts = self.class_counts
        return float(counts.max() / counts.min())

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C,H,W), as a model takes it."""
        height, width, channels = self.train.images.shape[1:]
        return channels, height, width

    @property
    def ranks(self) -> NDArray[np.int64]:
        """Rank of each class by training count, (C,): see `taet.metrics.class_ranks`."""
        return np.asarray(metrics.class_ranks(self.class_counts), np.int64)

    @property
    def groups(self) -> dict[str, NDArray[np.int64]]:
        """Labels of the head, body and tail classes: see `taet.metrics.class_groups`."""
        return {name: np.asarray(labels, np.int64) for name, labels in metrics.class_groups(self.class_counts).items()}

    @property
    def splits(self) -> dict[str, Split]:
        """The splits that there are, by name."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in named.items() if split is not None}

    def manifest(self) -> dict[str, Any]:
        """Return what identifies the splits, as plain JSON: for each its indices, sha256 and class_counts."""
        return {name: split.manifest() for name, split in self.splits.items()}


def _form(images: Images) -> str:
    """Return width and height in pixels, and whether there is colour."""
    _, height, width, channels = images.shape
    return f"{width}x{height} pixels, {'grey' if channels == 1 else 'colour'}"


def _headline(dataset: Dataset) -> str:
    form, ratio = _form(dataset.train.images), dataset.imbalance_ratio
    return f"{dataset.name}: {dataset.num_classes} classes, {form}, imbalance ratio {ratio:.4g}"


def _checked_images(what: str, images: ArrayLike | Stored) -> Images:
    array = images if isinstance(images, Stored) else np.asarray(images)
    if array.dtype != np.uint8:
        nan = " with NaN" if array.dtype.kind == "f" and np.isnan(array).any() else ""
        raise UserError(f"{what}: got {array.dtype}{nan}; allowed: uint8, grey levels 0 to 255")
    if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[3] not in (1, 3)):
        raise UserError(f"{what}: got shape {array.shape}; allowed: (N,H,W), (N,H,W,1) or (N,H,W,3)")
    if 0 in array.shape:
        raise UserError(f"{what}: got shape {array.shape}; at least one image is needed")
    if isinstance(array, Stored):
        return array
    # A copy of what torch cannot share: arrays that are read-only, or whose colours or rows are turned round.
    array = np.require(array, requirements=("C", "W"))
    return array if array.ndim == 4 else array[..., np.newaxis]


def checked_labels(what: str, labels: ArrayLike) -> NDArray[np.int64]:
    """Return labels (N,) or (N,1) as int64 (N,); anything but whole numbers from 0 is a `UserError`."""
    array = np.asarray(labels)
    if array.dtype.kind not in "iu":
        nan = " with NaN" if array.dtype.kind == "f" and np.isnan(array).any() else ""
        raise UserError(f"{what}: got {array.dtype}{nan}; allowed: whole numbers from 0")
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or len(array) == 0:
        raise UserError(f"{what}: got shape {array.shape}; allowed: (N,) or (N,1), one label or more")
    if array.min() < 0:
        raise UserError(f"{what}: got label {array.min()}; allowed: whole numbers from 0")
    return array.astype(np.int64)


def checked_names(train_labels: NDArray[np.int64], class_names: Sequence[str] | None) -> tuple[str, ...]:
    """Return the class names, and refuse training labels that leave a class without an image."""
    found = set(np.unique(train_labels).tolist())
    if len(found if class_names is None else class_names) < 2:
        raise UserError("classes: got a single class; allowed: 2 or more")
    if class_names is not None and len(set(class_names)) < len(class_names):
        twice = next(name for i, name in enumerate(class_names) if name in class_names[:i])
        raise UserError(f"class names: got '{twice}' twice; allowed: a different name for each class")
    count = len(class_names) if class_names is not None else max(found) + 1
    # The smallest missing label is at most the number of those found, however large a stray label is.
    missing = next((label for label in range(min(count, len(found) + 1)) if label not in found), None)
    if missing is not None:
        name = class_names[missing] if class_names is not None else missing
        raise UserError(f"train_labels: class '{name}' has no training image; labels run from 0 to {count - 1}")
    return tuple(class_names) if class_names is not None else tuple(str(label) for label in range(count))


def describe(dataset: Dataset) -> dict[str, Any]:
    """Return counts per class and split, imbalance ratio, groups, ranks, checksums, notes and more, as plain JSON."""
    return {
        "name": dataset.name,
        "class_names": list(dataset.class_names),
        "image_shape": list(dataset.image_shape),
        "mirror": dataset.mirror,
        "resized": dataset.resized,
        "imbalance_ratio": dataset.imbalance_ratio,
        "images": {name: len(split) for name, split in dataset.splits.items()},
        "class_counts": {name: split.class_counts.tolist() for name, split in dataset.splits.items()},
        "ranks": dataset.ranks.tolist(),
        "groups": {name: labels.tolist() for name, labels in dataset.groups.items()},
        "sha256": {name: split.sha256 for name, split in dataset.splits.items()},
        "notes": list(dataset.notes),
    }


def render(dataset: Dataset) -> str:
    """Return a plain text table of `dataset`, at most 80 columns wide: a row and a bar of training images per class.

    Of many classes some have a row, from the largest to the smallest in even steps, so that the bars draw the profile.
    """
    about = describe(dataset)
    every = dataset.num_classes
    shown, some = list(range(every)), every > MOST_ROWS
    if some:
        shown = np.argsort(dataset.ranks)[np.linspace(0, every - 1, MOST_ROWS).round().astype(int)].tolist()
    group_of = {label: group for group in ("head", "body", "tail") for label in about["groups"][group]}
    names = [name if len(name) <= 20 else f"{name[:17]}..." for name in (dataset.class_names[i] for i in shown)]
    columns = [["class", *names, "all"], ["group", *(group_of[label] for label in shown), ""]]
    for split, counts in about["class_counts"].items():
        columns.append([split, *(str(counts[label]) for label in shown), str(sum(counts))])
    aligned = [
        [f"{cell:<{max(map(len, column))}}" if i < 2 else f"{cell:>{max(map(len, column))}}" for cell in column]
        for i, column in enumerate(columns)
    ]
    rows = ["  ".join(cells) for cells in zip(*aligned, strict=True)]
    room, train = 80 - len(rows[0]) - 2, about["class_counts"]["train"]
    bars = ["", *("#" * max(1, round(room * train[label] / max(train))) for label in shown), ""]
    lines = [
        _headline(dataset),
        *(f"{row}  {bar}".rstrip() for row, bar in zip(rows, bars, strict=True)),
        *([f"{MOST_ROWS} of {every} classes, by training images in even steps; --json has all"] if some else []),
        "SHA-256 of the image shape, images and labels:",
        *(f"  {name:<10} {digest}" for name, digest in about["sha256"].items()),
        *(line for note in dataset.notes for line in textwrap.wrap(f"- {note}", 80, subsequent_indent="  ")),
    ]
    return "\n".join(lines)
