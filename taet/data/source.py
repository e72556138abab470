"""What a source of data holds: labels, class names and images under MedMNIST's keys, and their checks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from taet.data.storage import Images, Unread
from taet.errors import UNPRINTABLE, UserError
from taet.statistics import Ints

PARTS = {"train": "train", "validation": "val", "test": "test"}
"""Names of the splits in MedMNIST's keys (train_images, val_labels, ...)."""
GivenArray: TypeAlias = ArrayLike | Unread
Arrays: TypeAlias = Mapping[str, GivenArray]
"""Arrays under MedMNIST's keys; those of a validation split and class_names are optional."""


class Labelled:
    """The common base of `Labels` and `Split`."""

    labels: Ints
    """(N,), 0 to the number of classes less one."""
    class_names: tuple[str, ...]
    groups: Ints | None
    """(N,): images with equal numbers (of one patient, lesion or track) are kept in one split; None: no groups."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def class_counts(self) -> Ints:
        """Number of images of each class, (C,)."""
        return np.bincount(self.labels, minlength=len(self.class_names)).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Labels(Labelled):
    """The labels of a split, without its images."""

    labels: Ints
    class_names: tuple[str, ...]
    groups: Ints | None = None
    indices: Ints | None = None
    """As in `Split`; None: 0 to N - 1."""

    def choose(self, positions: Ints | None) -> Labels:
        """Return the labels at `positions`, in that order; None: all."""
        rows = slice(None) if positions is None else positions
        indices = np.arange(len(self)) if self.indices is None else self.indices
        groups = None if self.groups is None else self.groups[rows]
        return Labels(self.labels[rows], self.class_names, groups, indices[rows])


@dataclass(frozen=True, eq=False)
class DataSource:
    """What a source holds: the labels of its own splits, and their images, which are read when they are chosen."""

    name: str
    splits: Mapping[str, Labels]
    """ "train", "test" and, if it has one, "validation"."""
    images: Mapping[str, Images]
    mirror: bool = True
    notes: tuple[str, ...] = ()
    resized: bool = False

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C,H,W), before any resizing."""
        _, height, width, channels = self.images["train"].shape
        return channels, height, width

    def check(self, counts: Mapping[str, int], image_shape: tuple[int, int, int]) -> DataSource:
        """Return self; another shape, and other `counts` of images of each class in each split, are refused."""
        if self.image_shape != image_shape:
            raise UserError(f"got images of shape {self.image_shape}; allowed: {image_shape}")
        for part, expected in counts.items():
            for name, got in zip(self.splits[part].class_names, self.splits[part].class_counts, strict=True):
                if got != expected:
                    raise UserError(f"got {got} {part} images of '{name}'; allowed: {expected} of this class")
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
    groups = {} if group is None else _groups(labels, arrays, group)
    splits, images = dict[str, Labels](), dict[str, Images]()
    for part, key in there.items():
        own, pixels = labels[part], checked_images(f"{key}_images", arrays[f"{key}_images"])
        if own.max() >= len(names):
            raise UserError(f"{key}_labels: got label {own.max()}; allowed: 0 to {len(names) - 1}")
        if pixels.shape[0] != len(own):
            raise UserError(f"{key}_images and {key}_labels: got {pixels.shape[0]} images but {len(own)} labels")
        splits[part], images[part] = Labels(own, names, groups.get(part)), pixels
        if pixels.shape[1:] != (shape := images["train"].shape[1:]):
            raise UserError(f"{key}_images: got images of shape {pixels.shape[1:]}; allowed: {shape}, as in training")
    return DataSource(name, splits, images, mirror)


def _groups(labels: Mapping[str, Ints], arrays: Arrays, group: str) -> dict[str, Ints]:
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


def _kind(array: NDArray[np.generic]) -> str:
    return f"{array.dtype}{' with NaN' if array.dtype.kind == 'f' and np.isnan(array).any() else ''}"


def checked_images(what: str, images: GivenArray) -> Images:
    """Return images as uint8 (N,H,W,C), copied only if necessary; anything else raises a `UserError`."""
    if not isinstance(images, np.ndarray) and hasattr(images, "read"):
        return images  # type: ignore[return-value]
    array = images if isinstance(images, np.memmap) else np.asarray(images)
    if array.dtype != np.uint8:
        raise UserError(f"{what}: got {_kind(array)}; allowed: uint8, pixel values 0 to 255")
    if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[3] not in (1, 3)):
        raise UserError(f"{what}: got shape {array.shape}; allowed: (N,H,W), (N,H,W,1) or (N,H,W,3)")
    if 0 in array.shape:
        raise UserError(f"{what}: got shape {array.shape}; at least one image is needed")
    if not isinstance(images, np.memmap):  # torch cannot share arrays that are read-only or have negative strides
        array = np.require(array, requirements=("C", "W"))
    return array if array.ndim == 4 else array[..., np.newaxis]


def checked_labels(what: str, labels: GivenArray) -> Ints:
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


def _checked_names(labels: Ints, stored: GivenArray | None, given: Sequence[str] | None) -> tuple[str, ...]:
    """Return the class names, given or `stored`; a class without a training image raises a `UserError`."""
    if given is None and stored is not None:
        names = np.asarray(stored)
        if names.dtype.kind != "U" or names.ndim != 1:
            raise UserError(f"class_names: got {names.dtype} of shape {names.shape}; allowed: text of shape (C,)")
        given = names.tolist()
    found = np.unique(labels)
    if len(found if given is None else given) < 2:
        raise UserError("classes: got a single class; allowed: 2 or more")
    check_names(given or ())
    count = int(found[-1]) + 1 if given is None else len(given)
    # The smallest missing label is at most the number of labels found, however large a wrong label is.
    for label in np.setdiff1d(np.arange(min(count, len(found) + 1)), found)[:1]:
        name = label if given is None else given[label]
        raise UserError(f"train_labels: class '{name}' has no training image; labels run from 0 to {count - 1}")
    return tuple(map(str, range(count))) if given is None else tuple(given)


def check_names(names: Sequence[str]) -> None:
    """Refuse class names that are empty, cannot be printed as they are, or occur twice."""
    for name, times in Counter(names).items():
        if not name.strip():
            raise UserError("class names: got an empty name; allowed: text that can be printed")
        if UNPRINTABLE.search(name):
            raise UserError(f"class names: got {name[:40]!a}; allowed: text of characters that can be printed")
        if times > 1:
            raise UserError(f"class names: got '{name}' twice; allowed: a different name for each class")
