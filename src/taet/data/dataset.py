"""Data sets: labelled images in splits, their checks, and what is derived from them."""

import hashlib
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from taet.data.class_names import check_names
from taet.data.image_files import ImageFiles
from taet.data.notes import OfTraining, printable_note
from taet.data.storage import Pixels, pieces
from taet.errors import UserError, wrapping_user_code
from taet.files import Json
from taet.metrics.accuracies import Ints, class_groups

# in MedMNIST's keys: train_images, val_labels, ...
PARTS = {"train": "train", "validation": "val", "test": "test"}
# under MedMNIST's keys; a validation split and class_names are optional
Arrays: TypeAlias = Mapping[str, ArrayLike]


def dark(images: NDArray[np.uint8]) -> tuple[OfTraining, ...]:
    """Return a note if no pixel of the training images is bright."""
    most = int(images.max())
    note = f"dark: no training pixel is above {most} of 255; do the images use all of this range?"
    return (OfTraining(note),) if most < 64 else ()


def images_sha256(images: NDArray[np.generic], labels: Ints) -> str:
    """Return the SHA-256 of images and labels.

    It is taken over the images' shape as text, their bytes, and the labels as little-endian int64.
    """
    digest = hashlib.sha256(repr(images.shape).encode())
    for piece in pieces(images):
        digest.update(np.ascontiguousarray(piece).data)
    digest.update(np.ascontiguousarray(labels, "<i8").data)
    return digest.hexdigest()


def fingerprints(images: Pixels) -> NDArray[np.uint64]:
    """Return a hash of 64 bits of each image's pixels, (N,)."""
    every = (np.ascontiguousarray(image).data for piece in pieces(images) for image in piece)
    return np.frombuffer(
        b"".join(hashlib.blake2b(one, digest_size=8).digest() for one in every), np.uint64
    )


@dataclass(frozen=True, eq=False)
class Part:
    """N labelled images that need not be read yet: `rows` of `images`, or all of them in their own
    order."""

    images: Pixels | ImageFiles
    labels: Ints
    """(N,), 0 to the number of classes less one."""
    class_names: tuple[str, ...]
    indices: Ints
    """(N,): the position of each image in the source's own split."""
    groups: Ints | None = None
    """(N,): images with equal numbers (of one patient, lesion or track) are kept in one split;
    None: no groups."""
    rows: Ints | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def class_counts(self) -> Ints:
        """Number of images of each class, (C,)."""
        return np.bincount(self.labels, minlength=len(self.class_names)).astype(np.int64)

    def choose(self, positions: Ints | None) -> Self:
        """Return the part at `positions`, in that order; None: all."""
        if positions is None:
            return self
        groups = None if self.groups is None else self.groups[positions]
        rows = positions if self.rows is None else self.rows[positions]
        return replace(
            self,
            labels=self.labels[positions],
            indices=self.indices[positions],
            groups=groups,
            rows=rows,
        )


def _channel_sums(flat: NDArray[np.unsignedinteger], channels: int) -> Ints:
    """Return the sum of each channel, (C,), of at most 2^16 flattened images, (N, H W C)."""
    of_each_pixel = flat.sum(0, dtype=np.uint32)
    return of_each_pixel.reshape(-1, channels).sum(0, dtype=np.int64)


@dataclass(frozen=True, eq=False, repr=False)
class Split(Part):
    """Images with their labels: (N,H,W,C), C 1 or 3, pixel values 0 to 255.

    Images that are kept on disk are mapped into memory.

    Example:
        >>> import taet
        >>> train = taet.data.load("digits-lt", max_count=60).train
        >>> train.images.shape, train.images.dtype, train.labels.shape
        ((240, 8, 8, 1), dtype('uint8'), (240,))
    """

    images: Pixels

    @cached_property
    def sha256(self) -> str:
        """Checksum of the images and labels: see `images_sha256`."""
        return images_sha256(self.images, self.labels)

    @cached_property
    def fingerprints(self) -> NDArray[np.uint64]:
        return fingerprints(self.images)

    def channel_statistics(self) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation of each channel, in image units [0, 1].

        The deviation is at least 1/255. The sums are integers, added piece by piece: exact, and
        with little memory.
        """
        sums, squares = np.zeros((2, self.images.shape[3]), np.int64)
        for piece in pieces(self.images):  # of at most 2^16 images: the sums stay below 2^32
            flat = piece.reshape(len(piece), -1)
            sums += _channel_sums(flat, len(sums))
            squares += _channel_sums(np.square(flat, dtype=np.uint16), len(sums))
        pixels = math.prod(self.images.shape[:3])
        mean = sums / (255 * pixels)
        spread = np.sqrt((squares / (255**2 * pixels) - mean**2).clip(min=1 / 255**2))
        return mean.tolist(), spread.tolist()

    def choose(self, positions: Ints | None) -> Self:
        """Return the images at `positions`, in that order; None: all."""
        chosen = super().choose(positions)
        return (
            self
            if positions is None
            else replace(chosen, images=np.asarray(self.images[positions]), rows=None)
        )

    def manifest(self) -> Json:
        """Return indices, sha256 and class_counts, which identify the split, as plain JSON."""
        counts = self.class_counts.tolist()
        return {"indices": self.indices.tolist(), "sha256": self.sha256, "class_counts": counts}


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Training, validation and test images of one classification task.

    Example:
        >>> import numpy as np
        >>> from taet.data import Dataset
        >>> images = np.zeros((30, 8, 8), np.uint8)
        >>> labels = np.repeat([0, 1], [20, 10])
        >>> data = Dataset.from_arrays(images, labels, images, labels, class_names=["cat", "dog"])
        >>> data.class_counts
        array([20, 10])
        >>> len(data.test), data.num_classes, data.imbalance_ratio
        (30, 2, 2.0)
    """

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
    """With extra images, which are compared with them: all test images of the source, if `test` is
    a part of them."""
    only_test: bool = False
    """Whether there are no training images; `train` is then `test`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "notes", tuple(map(printable_note, self.notes)))

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(split)} {name}" for name, split in self.splits.items())
        return f"Dataset({self.headline}; {sizes} images)"

    @classmethod
    def from_arrays(
        cls,
        train_images: ArrayLike,
        train_labels: ArrayLike,
        test_images: ArrayLike,
        test_labels: ArrayLike,
        *,
        validation: tuple[ArrayLike, ArrayLike] | None = None,
        class_names: Sequence[str] | None = None,
        name: str = "arrays",
        mirror: bool = True,
    ) -> Self:
        """Make a data set from arrays, without a long-tailed cut.

        Images are uint8, (N,H,W), (N,H,W,1) or (N,H,W,3), copied only if they are read-only or not
        in C order; labels are whole numbers 0..C-1, (N,) or (N,1); `validation` is a pair (images,
        labels). Class names default to "0", "1", ... up to the largest training label. Every class
        needs a training image. Anything else is a `UserError` that names the array.
        """
        arrays = {"train_images": train_images, "train_labels": train_labels}
        if validation is not None:
            if not isinstance(validation, tuple | list) or len(validation) != 2:
                got = f"a {type(validation).__name__}"
                raise UserError(f"validation: got {got}; allowed: images and labels, a pair")
            arrays |= {"val_images": validation[0], "val_labels": validation[1]}
        arrays |= {"test_images": test_images, "test_labels": test_labels}
        splits = {
            part: Split(of.images, of.labels, of.class_names, of.indices)  # type: ignore[arg-type]
            for part, of in splits_of(arrays, class_names).items()
        }
        train = splits["train"]
        return cls(
            name, train, splits.get("validation"), splits["test"], mirror, dark(train.images)
        )

    def about(self, of_training: bool = True) -> Json:
        """Return the entry on the data for result cards.

        With `of_training` it has the notes on training images as well.
        """
        ratio = None if self.only_test else self.imbalance_ratio
        notes = [note for note in self.notes if of_training or not isinstance(note, OfTraining)]
        return {"name": self.name, "imbalance_ratio": ratio, "notes": notes}

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.train.class_names

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def class_counts(self) -> Ints:
        return self.train.class_counts

    @property
    def imbalance_ratio(self) -> float:
        """Training images of the largest class divided by those of the smallest, >= 1."""
        return float(self.class_counts.max() / self.class_counts.min())

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C,H,W), as a model takes it."""
        height, width, channels = self.train.images.shape[1:]
        return channels, height, width

    @property
    def headline(self) -> str:
        """Name, classes, size of the images and imbalance ratio in words."""
        channels, height, width = self.image_shape
        form = f"{width}x{height} pixels, {'grey' if channels == 1 else 'colour'}"
        return (
            f"{self.name}: {self.num_classes} classes, {form}, imbalance ratio "
            f"{self.imbalance_ratio:.4g}"
        )

    @property
    def splits(self) -> dict[str, Split]:
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in named.items() if split is not None}

    def manifest(self) -> Json:
        """Return `Split.manifest` of each split."""
        return {name: split.manifest() for name, split in self.splits.items()}


def render(dataset: Dataset) -> str:
    """Return the classes as a table of at most 80 columns, the checksums and the notes of a set."""
    lines = [dataset.headline, *_class_table(dataset)]
    lines.append("SHA-256 of the image shape, images and labels:")
    for name, split in dataset.splits.items():
        lines.append(f"  {name:<10} {split.sha256}")
    for note in dataset.notes:
        lines += textwrap.wrap(f"- {note}", 80, subsequent_indent="  ")
    return "\n".join(lines)


def _class_table(dataset: Dataset) -> list[str]:
    """Return a row for each class, with a bar for its training images."""
    counts = [split.class_counts for split in dataset.splits.values()]
    groups = class_groups(counts[0]) if dataset.imbalance_ratio > 1 else {}
    rows = [["class", "group", *dataset.splits]]
    for label, name in enumerate(dataset.class_names):
        shown = name if len(name) <= 20 else f"{name[:17]}..."
        group = next((group for group, labels in groups.items() if label in labels), "")
        rows.append([shown, f"{group} ", *(str(of_split[label]) for of_split in counts)])
    rows.append(["all", "", *(str(of_split.sum()) for of_split in counts)])

    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = []
    for class_name, *cells in rows:
        right = [cell.rjust(width) for cell, width in zip(cells, others, strict=True)]
        lines.append("  ".join([class_name.ljust(first), *right]))

    widest = 78 - len(lines[0])
    bars = np.rint(widest * counts[0] / counts[0].max()).astype(int).clip(min=1)
    heading, *of_classes, total = (line.rstrip() for line in lines)
    with_bars = [f"{line}  {'#' * bar}" for line, bar in zip(of_classes, bars, strict=True)]
    return [heading, *with_bars, total]


@dataclass(frozen=True)
class DataFacts:
    """What a run knows of its data set after cut, split and resizing, without the images.

    Example:
        >>> import taet
        >>> facts = taet.data.facts(taet.settings.Data(name="digits-lt", max_count=60))
        >>> facts.image_shape, sum(facts.class_counts) == facts.sizes["train"]
        ((1, 8, 8), True)
    """

    class_counts: tuple[int, ...]
    image_shape: tuple[int, int, int]
    """(C,H,W), as a model takes it."""
    sizes: Mapping[str, int]
    """Images of each split: "train", "test" and, if there is one, "validation"."""

    @classmethod
    def of(cls, splits: Mapping[str, Split | Part], shape: tuple[int, int, int]) -> Self:
        """Return the facts of the chosen splits."""
        sizes = {part: len(split) for part, split in splits.items()}
        return cls(tuple(splits["train"].class_counts.tolist()), shape, sizes)


@dataclass(frozen=True, eq=False)
class DataSource:
    """What a source holds: its own splits "train", "test" and, if it has one, "validation", before
    any cut."""

    splits: Mapping[str, Part]
    mirror: bool = True
    notes: tuple[str, ...] = ()
    resized: bool = False


def splits_of(
    arrays: Arrays, class_names: Sequence[str] | None = None, group: str | None = None
) -> dict[str, Part]:
    """Return the splits of arrays under MedMNIST's keys; invalid arrays raise a `UserError`.

    With `group`, the arrays train_`group` and so on, if present, hold the group of each image, as
    numbers or text.
    """
    keys = {part: key for part, key in PARTS.items() if f"{key}_labels" in arrays}
    labels = {
        part: checked_labels(f"{key}_labels", arrays[f"{key}_labels"]) for part, key in keys.items()
    }
    names = _checked_names(
        labels["train"], arrays.get("class_names") if class_names is None else class_names
    )
    groups, splits = _groups(labels, arrays, group), dict[str, Part]()
    for part, key in keys.items():
        part_labels, images = labels[part], checked_images(f"{key}_images", arrays[f"{key}_images"])
        shape = splits["train"].images.shape[1:] if splits else images.shape[1:]
        if part_labels.max() >= len(names):
            raise UserError(
                f"{key}_labels: got label {part_labels.max()}; allowed: 0 to {len(names) - 1}"
            )
        if len(images) != len(part_labels):
            raise UserError(
                f"{key}_images and {key}_labels: got {len(images)} images but {len(part_labels)} "
                "labels"
            )
        if images.shape[1:] != shape:
            raise UserError(
                f"{key}_images: got images of shape {images.shape[1:]}; allowed: {shape}, as in "
                "training"
            )
        splits[part] = Part(
            images, part_labels, names, np.arange(len(part_labels)), groups.get(part)
        )
    return splits


def _groups(labels: Mapping[str, Ints], arrays: Arrays, group: str | None) -> dict[str, Ints]:
    """Return the groups of the images of each split as numbers."""
    keys = {part: f"{PARTS[part]}_{group}" for part in labels}
    found = {part: np.asarray(arrays[key]).ravel() for part, key in keys.items() if key in arrays}
    if not found:
        return {}
    for part, values in found.items():
        if len(values) != len(labels[part]) or values.dtype.kind not in "iuSU":
            got, allowed = (
                f"{len(values)} of {values.dtype}",
                (f"{len(labels[part])} whole numbers or texts"),
            )
            raise UserError(f"{keys[part]}: got {got}; allowed: {allowed}, one for each image")
    values = np.concatenate([*found.values()])
    numbers = np.unique(values, return_inverse=True)[1].astype(np.int64)
    alone = values.astype(str) == ""  # an image without a group gets a number of its own, below 0
    numbers[alone] = -1 - np.arange(alone.sum())
    return dict(
        zip(
            found,
            np.split(numbers, np.cumsum([len(each) for each in found.values()])[:-1]),
            strict=True,
        )
    )


def as_array(what: str, given: object) -> NDArray[Any]:
    """Return an array, a tensor or a list of numbers as an array.

    Anything else, e.g. a torch Dataset, is refused.
    """
    if (
        isinstance(given, Sequence)
        or hasattr(given, "__array__")
        or hasattr(given, "__array_interface__")
    ):
        with wrapping_user_code(f"{what}: no array"):
            return np.asanyarray(given.detach().cpu() if hasattr(given, "detach") else given)
    raise UserError(f"{what}: got a {type(given).__name__}; allowed: arrays and tensors")


def checked_images(what: str, images: ArrayLike) -> Pixels:
    """Return images as uint8 (N,H,W,C), copied only if necessary.

    Anything else raises a `UserError`.
    """
    array = as_array(what, images)
    if (
        array.dtype != np.uint8
        or array.ndim not in (3, 4)
        or array.shape[3:] not in ((), (1,), (3,))
        or not array.size
    ):
        allowed = "uint8 (N,H,W), (N,H,W,1) or (N,H,W,3), pixel values 0 to 255, N at least 1"
        got = f"{array.dtype} {array.shape}"
        raise UserError(f"{what}: got {got}; allowed: {allowed}{_conversion(array)}")
    # torch cannot share arrays that are read-only or have negative strides
    if not isinstance(array, np.memmap):
        array = np.require(array, requirements=("C", "W"))
    return array if array.ndim == 4 else array[..., np.newaxis]


def _conversion(array: NDArray[Any]) -> str:
    """Return how images of another usual form become those that are allowed; "" if unknown."""
    steps = ["images"]
    if array.ndim == 4 and array.shape[1] in (1, 3) and array.shape[3] not in (1, 3):
        steps = ["images.transpose(0, 2, 3, 1)"]
    elif array.ndim not in (3, 4) or array.shape[3:] not in ((), (1,), (3,)) or not array.size:
        return ""
    if array.dtype != np.uint8:
        if array.dtype.kind not in "fiu" or array.min() < 0 or array.max() > 255:
            return ""
        if array.dtype.kind == "f" and array.max() <= 1:
            steps = [f"(255 * {steps[0]})"]
        steps.append("round().astype('uint8')")
    return f"; these are {'.'.join(steps)}"


def checked_labels(what: str, labels: ArrayLike) -> Ints:
    """Return labels (N,) or (N,1) as int64 (N,).

    Anything but whole numbers from 0 raises a `UserError`.
    """
    array = as_array(what, labels)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.dtype.kind not in "iu" or array.ndim != 1 or len(array) == 0:
        got = f"{array.dtype} of shape {array.shape}"
        raise UserError(f"{what}: got {got}; allowed: whole numbers from 0, (N,) or (N,1)")
    array = array.astype(np.int64)
    if array.min() < 0:
        raise UserError(f"{what}: got label {array.min()}; allowed: whole numbers from 0")
    return array


def _checked_names(labels: Ints, given: ArrayLike | None) -> tuple[str, ...]:
    """Return the class names, by default the numbers; a class without a training image raises a
    `UserError`."""
    names = None if given is None else np.asarray(given)
    if names is not None and (names.dtype.kind != "U" or names.ndim != 1):
        raise UserError(
            f"class_names: got {names.dtype} of shape {names.shape}; allowed: text of shape (C,)"
        )
    count, present = int(labels.max()) + 1 if names is None else len(names), {*labels.tolist()}
    if (label := next((label for label in range(count) if label not in present), None)) is not None:
        name = label if names is None else names[label]
        raise UserError(
            f"train_labels: class '{name}' has no training image; labels run from 0 to {count - 1}"
        )
    return check_names(map(str, range(count)) if names is None else names.tolist())
