"""Extra training images, real or generated: reading them, leaving out held-out images, and their source.

They fill a share of every training batch (`taet.data.mixture`) and never enter validation or test. Images that are,
exactly or nearly, validation images or any test images of the source (in the cut or not) are left out and counted.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from taet.data import repeats
from taet.data.array_file import array_names, read_array
from taet.data.dataset import Dataset, Split, checked_images, checked_labels
from taet.data.folder import class_files
from taet.data.image_store import Images, keep
from taet.data.images import decode_all
from taet.data.mixture import Mixture
from taet.data.places import locate
from taet.data.rows import NUMBER, read_rows
from taet.data.sources import MOST_PAIRS, sized
from taet.errors import UserError, located, unknown
from taet.settings import EXTRA_COPIES, Data

KEYS = (("images", "labels"), ("image", "label"))
"""Arrays of an .npz; the second pair is that of the public files of generated CIFAR images."""
MOST_REPEATS = 0.1
"""Largest share of extra images that may repeat validation or test images; a set with more is refused."""
NEAR, EXACT = 1, 2
"""Kinds of repeated images."""
SAW = {"this-set": "no", "balanced-original": "yes", "other": "unknown"}
"""Whether a generator saw the removed tail, by what it was trained on."""


@dataclass(frozen=True)
class Extra:
    """The extra images that can be drawn, and how many were left out."""

    split: Split
    copies: bool = False
    """Whether these are the training images themselves."""
    repeats: tuple[tuple[str, int, int], ...] = ()
    """For validation and test: the split, and how many images were left out, exact and nearly equal ones."""
    test_sha256: str | None = None
    """SHA-256 of the test images that they were compared with."""
    judge_sha256: str | None = None
    """SHA-256 of the weights by which they were filtered."""


def distinct_counts(extra: Extra, train: Split) -> tuple[int, ...]:
    """Return the number of different images of each class, (C,), that are no training images of it.

    Images with equal pixels count once.
    """
    if extra.copies:
        return (0,) * len(train.class_names)
    own, real = (
        np.stack([split.labels.astype(np.uint64), repeats.fingerprints(split.images)]) for split in (extra.split, train)
    )
    every, firsts = np.unique(np.concatenate([real, own], axis=1), axis=1, return_index=True)
    labels = every[0, firsts >= len(train)].astype(np.int64)
    return tuple(np.bincount(labels, minlength=len(train.class_names)).tolist())


def read_extra(data: Data, dataset: Dataset) -> Extra:
    """Return the extra images that `data.extra` names, without held-out images; mistakes raise a `UserError`.

    Classes are those of the data set: folders and labels by name or number, in an .npz by number. Pixels and channels
    must be those of the training images.
    """
    assert data.extra is not None
    if data.extra == EXTRA_COPIES:
        return Extra(dataset.train, copies=True)
    kind = data.extra.partition(":")[0]
    path = locate(data.replace(name=data.extra))
    with located("data extra"):
        images, labels = READERS[kind](path, data, dataset.class_names)
        if labels.max() >= dataset.num_classes:
            raise UserError(f"'{path}': got label {labels.max()}; allowed: 0 to {dataset.num_classes - 1}")
        found = Split(images, labels, dataset.class_names, np.arange(len(labels)))
        whole = sized(found, data.size, data.storage, data.fit)
        shapes = whole.images.shape[1:], dataset.train.images.shape[1:]
        if shapes[0] != shapes[1]:
            got, wanted = (f"{w}x{h} pixels, {c} channels" for h, w, c in shapes)
            raise UserError(f"'{path}': got {got}; allowed: {wanted}, as the training images")
        return _without_repeats(whole, dataset, data.storage)


def check_classes(extra: Extra, mixture: Mixture) -> None:
    """Refuse a class that should be drawn but has no extra image."""
    counts, names = extra.split.class_counts, extra.split.class_names
    for name, count, share in zip(names, counts, mixture.draw, strict=True):
        if share and not count:
            hint = "all classes, or --data.extra-classes inverse if it needs none"
            if mixture.rule == "inverse":
                hint = "every class that inverse draws"
            raise UserError(f"data extra: got no image of class '{name}'; allowed: images of {hint}")


def saw_removed_tail(data: Data) -> str:
    """Return whether the generator of a run's extra images saw the removed tail images: no, yes or unknown."""
    return "no" if data.extra == EXTRA_COPIES else SAW[data.extra_trained_on]


def _read_npz(path: Path, data: Data, _: Sequence[str]) -> tuple[Images, NDArray[np.int64]]:
    there = array_names(path)
    keys = next((pair for pair in KEYS if set(pair) <= set(there)), None)
    if keys is None:
        raise UserError(f"'{path}': got the arrays {', '.join(there) or 'none'}; allowed: images and labels")
    images = checked_images(keys[0], read_array(path, keys[0], data.storage))
    labels = checked_labels(keys[1], read_array(path, keys[1]))
    if len(images) != len(labels):
        raise UserError(f"'{path}': got {len(images)} images but {len(labels)} labels")
    return images, labels


def _read_folder(path: Path, data: Data, names: Sequence[str]) -> tuple[Images, NDArray[np.int64]]:
    if not path.is_dir():
        raise UserError(f"no such folder: '{path}'")
    found = class_files(path, 1, Counter())
    files = [file for each in found.values() for file in each]
    labels = [_label(name, names, f"'{path}'") for name, each in found.items() for _ in each]
    return decode_all(files, data.size, data.storage, fit=data.fit), np.array(labels, np.int64)


def _read_csv(path: Path, data: Data, names: Sequence[str]) -> tuple[Images, NDArray[np.int64]]:
    rows = read_rows(path).rows
    folder = Path(os.path.expanduser(data.root)) if data.root is not None else path.parent
    labels = [_label(row.label, names, row.place) for row in rows]
    images = decode_all([folder / row.path for row in rows], data.size, data.storage, fit=data.fit)
    return images, np.array(labels, np.int64)


READERS = {"npz": _read_npz, "folder": _read_folder, "csv": _read_csv}


def _label(name: str, names: Sequence[str], where: str) -> int:
    """Return the class that a folder or a row gives by name or number."""
    if name in names:
        return names.index(name)
    if NUMBER.fullmatch(name) and 0 <= int(name) < len(names):
        return int(name)
    raise unknown(f"class in {where}:", name, names)


def _held_out(dataset: Dataset, storage: str) -> dict[str, Split]:
    """Return the images that are never trained on: validation images, and all test images of the source."""
    found = {name: split for name, split in dataset.splits.items() if name != "train"}
    if dataset.whole_test is not None:
        height = dataset.train.images.shape[1]
        found["test"] = sized(dataset.whole_test, height if dataset.resized else None, storage)
    return found


def _likeness(whole: Split, split: Split, mirror: bool, storage: str) -> NDArray[np.uint8]:
    """Return for each image (N,) whether `split` holds it exactly or nearly, else 0.

    The result is cached, so that resumed runs and other processes need not search again.
    """

    def search() -> Iterator[NDArray[np.uint8]]:
        close = repeats.near(whole.images, split.images, mirror=mirror)
        yield np.where(repeats.exact(whole.images, split.images), EXACT, close * NEAR).astype(np.uint8)

    if storage == "memory" or len(whole) * len(split) <= MOST_PAIRS:
        return next(search())
    rule = f"{repeats.SIDE} x {repeats.SIDE} means within {repeats.NEAR}, {'also' if mirror else 'not'} mirrored"
    shape = 1, len(whole), 1, 1  # as one image, whose checksum is compared when it is read
    return keep(search(), shape, f"repeats of {whole.sha256} in {split.sha256}, {rule}")[0].ravel()


def _without_repeats(whole: Split, dataset: Dataset, storage: str) -> Extra:
    """Leave out held-out images; refuse a set that was made from them."""
    kept, found, held_out = np.ones(len(whole), bool), [], _held_out(dataset, storage)
    for name, split in held_out.items():
        likeness = _likeness(whole, split, dataset.mirror, storage)
        same, close = (kept & (likeness == degree) for degree in (EXACT, NEAR))
        kept &= ~(same | close)
        found.append((name, int(same.sum()), int(close.sum())))
    left_out = int((~kept).sum())
    if left_out > MOST_REPEATS * len(whole):
        where = " and ".join(f"{exact} + {near} of {name}" for name, exact, near in found)
        raise UserError(
            f"{left_out} of {len(whole)} images are exactly or nearly held-out ones ({where}); "
            f"allowed: up to {100 * MOST_REPEATS:g} %, which are left out"
        )
    split = whole if kept.all() else whole.choose(np.flatnonzero(kept))
    return Extra(split, repeats=tuple(found), test_sha256=held_out["test"].sha256)
