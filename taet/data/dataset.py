"""Data sets: splits of uint8 images with labels, and what is derived from them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from taet.data.source import Labelled, Part, to_source
from taet.data.storage import Pixels, pieces
from taet.errors import printable
from taet.statistics import Ints


def images_sha256(images: NDArray[np.generic], labels: Ints) -> str:
    """Return the SHA-256 of the images' shape as text, their bytes, and the labels as little-endian int64."""
    digest = hashlib.sha256(repr(images.shape).encode())
    for piece in pieces(images):
        digest.update(np.ascontiguousarray(piece).data)
    digest.update(np.ascontiguousarray(labels, "<i8").data)
    return digest.hexdigest()


def fingerprints(images: Pixels) -> NDArray[np.uint64]:
    """Return a hash of 64 bits of each image's pixels, (N,)."""
    every = (np.ascontiguousarray(image).data for piece in pieces(images) for image in piece)
    return np.frombuffer(b"".join(hashlib.blake2b(one, digest_size=8).digest() for one in every), np.uint64)


@dataclass(frozen=True, eq=False, repr=False)
class Split(Labelled):
    """Images with their labels."""

    images: Pixels
    """(N,H,W,C), C 1 or 3, pixel values 0 to 255; mapped into memory if they are kept on disk."""
    labels: Ints
    class_names: tuple[str, ...]
    indices: Ints
    groups: Ints | None = None

    def __repr__(self) -> str:
        return f"Split(images {self.images.shape} of {len(self.class_names)} classes)"

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

    def choose(self, positions: Ints) -> Split:
        """Return the images at `positions`, in that order."""
        groups = None if self.groups is None else self.groups[positions]
        chosen = np.asarray(self.images[positions]), self.labels[positions]
        return Split(*chosen, self.class_names, self.indices[positions], groups)

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
    """With extra images, which are compared with them: all test images of the source, if `test` is a part of them."""

    def __post_init__(self) -> None:
        # Notes are printed and stored, and name files.
        object.__setattr__(self, "notes", tuple(map(printable, self.notes)))

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
    ) -> Dataset:
        """Make a data set from arrays, without a long-tailed cut.

        Images are uint8, (N,H,W), (N,H,W,1) or (N,H,W,3), copied only if they are read-only or not in C order; labels
        are whole numbers 0..C-1, (N,) or (N,1); `validation` is a pair (images, labels). Class names default to "0",
        "1", ... up to the largest training label. Every class needs a training image. Anything else raises a
        `UserError` that names the array.
        """
        arrays = {"train_images": train_images, "train_labels": train_labels}
        arrays |= {} if validation is None else dict(zip(("val_images", "val_labels"), validation, strict=True))
        arrays |= {"test_images": test_images, "test_labels": test_labels}
        splits = {
            part: Split(of.images, of.labels, of.class_names, of.indices)  # type: ignore[arg-type]
            for part, of in to_source(arrays, class_names=class_names, name=name).splits.items()
        }
        return cls(name, splits["train"], splits.get("validation"), splits["test"], mirror)

    def about(self) -> dict[str, Any]:
        """Return the entry about the test images for result cards."""
        return {"name": self.name, "imbalance_ratio": self.imbalance_ratio, "notes": list(self.notes)}

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the labels."""
        return self.train.class_names

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def class_counts(self) -> Ints:
        """Training images of each class, (C,)."""
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
        return f"{self.name}: {self.num_classes} classes, {form}, imbalance ratio {self.imbalance_ratio:.4g}"

    @property
    def splits(self) -> dict[str, Split]:
        """The splits, by name."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in named.items() if split is not None}

    def manifest(self) -> dict[str, Any]:
        """Return `Split.manifest` of each split."""
        return {name: split.manifest() for name, split in self.splits.items()}


@dataclass(frozen=True)
class DataFacts:
    """What a run knows of its data set after cut, split and resizing, without the images; counts by class."""

    class_counts: tuple[int, ...]
    image_shape: tuple[int, int, int]
    """(C,H,W), as a model takes it."""
    sizes: Mapping[str, int]
    """Images of each split: "train", "test" and, if there is one, "validation"."""
    class_names: tuple[str, ...] | None = None
    mirror: bool = True
    test_counts: tuple[int, ...] = ()

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return len(self.class_counts)

    @classmethod
    def of(cls, dataset: Dataset) -> DataFacts:
        """Return the facts of a data set that is loaded."""
        return cls.of_splits(dataset.splits, dataset.image_shape, dataset.mirror)

    @classmethod
    def of_splits(cls, splits: Mapping[str, Split | Part], shape: tuple[int, int, int], mirror: bool) -> DataFacts:
        """Return the facts of the chosen splits."""
        counts = {part: tuple(split.class_counts.tolist()) for part, split in splits.items()}
        sizes = {part: len(split) for part, split in splits.items()}
        return cls(counts["train"], shape, sizes, splits["train"].class_names, mirror, counts["test"])
