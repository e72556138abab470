"""Tiny-ImageNet, from its official folder."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from taet.data.files import Listing
from taet.data.places import Download, find, not_found, official
from taet.data.source import DataSource
from taet.data.storage import reading
from taet.data.tables import Row
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


def _images(folder: Path, wnids: list[str]) -> list[Row]:
    """Return the images of both splits by WordNet id; training images in the order of class, then of name."""
    found = {wnid: sorted((folder / "train" / wnid / "images").glob("*.JPEG")) for wnid in wnids}
    train = [Row(file, wnid, "train") for wnid, files in found.items() for file in files]
    annotated = _rows(folder / "val" / "val_annotations.txt", 2)
    return [*train, *(Row(folder / "val" / "images" / name, wnid, "test") for name, wnid in annotated)]


def read(data: Data) -> DataSource:
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
        raise UserError(f"Tiny-ImageNet: '{folder}/wnids.txt' names {len(wnids)} classes; allowed: {CLASSES}; {AGAIN}")
    names = dict(zip(wnids, _class_names(folder, wnids), strict=True))
    rows = _images(folder, wnids)
    for part, expected in PER_CLASS.items():
        counts = Counter(row.label for row in rows if row.split == part)
        for wnid in [*wnids, *(counts.keys() - {*wnids})]:
            if counts[wnid] != expected or wnid not in names:
                got = f"got {counts[wnid]} {part} images of class {wnid} in '{folder}'"
                raise UserError(f"Tiny-ImageNet: {got}; allowed: {expected} of each class of wnids.txt; {AGAIN}")
    notes = (
        "classes are in the order of their WordNet ids",
        "the test images are the official validation images: those of the official test set have no labels",
    )
    named = [row._replace(label=names[row.label]) for row in rows]
    return Listing.of(named, f"'{folder}'", notes, [*names.values()]).source(data)
