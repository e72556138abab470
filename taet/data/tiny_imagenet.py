"""Tiny-ImageNet, from its official folder."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from taet.data.images import Files, survey
from taet.data.places import Download, find, not_found, official
from taet.data.source import Ints, Labels, Source
from taet.data.storage import Images, reading
from taet.errors import UserError
from taet.settings import Data

NAMES = {
    "tiny-imagenet": "Tiny-ImageNet, 200 classes of 64x64 colour pixels, whole; the official folder tiny-imagenet-200",
    "tiny-imagenet-lt": "Tiny-ImageNet made long-tailed, as published: linear, 500 training images down to 5",
}
PUBLISHED = {"tiny-imagenet-lt": {"profile": "linear", "imbalance_ratio": 100.0}}
"""The cut of the set in REAT: Li et al., arXiv:2307.10205."""
FOLDER = "tiny-imagenet-200"
CLASSES = 200
PER_CLASS = {"train": 500, "test": 50}
(ARCHIVE,) = official("tiny-imagenet")
AGAIN = f"delete the folder {FOLDER} and run taet data prepare tiny-imagenet"


def downloads(data: Data) -> tuple[Download, ...]:  # noqa: ARG001 - there is one version
    """Return the official archive."""
    return (ARCHIVE,)


def _rows(path: Path, columns: int) -> list[list[str]]:
    """Return the first fields of each line of a tab-separated table."""
    with reading(path, f"the official table; {AGAIN}"):
        rows = [line.split("\t")[:columns] for line in path.read_text("utf-8").splitlines() if line.strip()]
    short = next((number for number, row in enumerate(rows, 1) if len(row) < columns), None)
    if short is not None:
        raise UserError(f"Tiny-ImageNet: line {short} of '{path}' has fewer than {columns} columns; {AGAIN}")
    return rows


def _class_names(folder: Path, wnids: list[str]) -> tuple[str, ...]:
    """Return the first word of each class, followed by its WordNet id if two classes share it."""
    words = dict(_rows(folder / "words.txt", 2))
    names = [words.get(wnid, wnid).split(",")[0] for wnid in wnids]
    shared = Counter(names)
    return tuple(name if shared[name] == 1 else f"{name} ({wnid})" for name, wnid in zip(names, wnids, strict=True))


def _labelled_files(folder: Path, wnids: list[str]) -> dict[str, list[tuple[Path, int]]]:
    """Return the image files of both splits with their labels; training files in the order of class, then of name."""
    numbers = {wnid: label for label, wnid in enumerate(wnids)}
    train = [
        (file, label)
        for wnid, label in numbers.items()
        for file in sorted((folder / "train" / wnid / "images").glob("*.JPEG"))
    ]
    rows = _rows(folder / "val" / "val_annotations.txt", 2)
    test = [(folder / "val" / "images" / name, numbers.get(wnid, CLASSES)) for name, wnid in rows]
    return {"train": train, "test": test}


def _check(folder: Path, wnids: list[str], part: str, labels: Ints) -> None:
    """Refuse a split in which a class has a wrong number of images; label CLASSES means an unknown class."""
    counts = np.bincount(labels, minlength=CLASSES + 1)
    wrong = np.flatnonzero(counts != [PER_CLASS[part]] * CLASSES + [0])
    if len(wrong):
        wnid = [*wnids, "that wnids.txt does not name"][wrong[0]]
        raise UserError(
            f"Tiny-ImageNet: class {wnid} has {counts[wrong[0]]} {part} images in '{folder}'; "
            f"allowed: {PER_CLASS[part]} of each; {AGAIN}"
        )


def read(data: Data) -> Source:
    """Return all of Tiny-ImageNet, balanced: 500 training and 50 test images of each of 200 classes, 64x64 pixels.

    The test images are the official validation images, since the official test images have no labels. Classes are in
    the order of their WordNet ids, as for class folders, not in that of wnids.txt; training images
    of a class are in the order of their file names. Greyscale files become colour. Source: Le and Yang, Tiny ImageNet
    visual recognition challenge, Stanford CS 231N, 2015.
    """
    folder = find(data, FOLDER)
    if folder is None:
        raise not_found("Tiny-ImageNet", data, f"unpack {ARCHIVE.url}")
    wnids = sorted({wnid.strip() for (wnid,) in _rows(folder / "wnids.txt", 1)})
    if len(wnids) != CLASSES:
        raise UserError(
            f"Tiny-ImageNet: '{folder / 'wnids.txt'}' names {len(wnids)} classes; allowed: {CLASSES}; {AGAIN}"
        )
    names = _class_names(folder, wnids)
    splits, images = dict[str, Labels](), dict[str, Images]()
    for part, files in _labelled_files(folder, wnids).items():
        labels = np.array([label for _, label in files], np.int64)
        _check(folder, wnids, part, labels)
        splits[part], images[part] = (
            Labels(labels, names),
            Files(survey([path for path, _ in files]), data.size, data.fit),
        )
    notes = (
        "classes are in the order of their WordNet ids",
        "the test images are the official validation images: those of the official test set have no labels",
    )
    return Source(data.name, splits, images, notes=notes)
