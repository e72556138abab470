"""Tiny-ImageNet, from its official folder."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from taet.data.dataset import DataSource
from taet.data.downloads import Download, find, not_found, official
from taet.data.files import of_rows
from taet.data.storage import reading
from taet.data.tables import Row
from taet.errors import located
from taet.settings import Data

NAMES = {
    "tiny-imagenet": "Tiny-ImageNet, 200 classes of 64x64 colour pixels, whole; the official folder tiny-imagenet-200",
    "tiny-imagenet-lt": "Tiny-ImageNet made long-tailed, as published: linear, 500 training images down to 5",
}
PUBLISHED = {"tiny-imagenet-lt": {"profile": "linear", "imbalance_ratio": 100.0}}
"""The cut of the set in REAT: Li et al., arXiv:2307.10205."""
SIZES = {"train": 100_000, "test": 10_000}
(ARCHIVE,) = official("tiny-imagenet")
NOTES = (
    "classes are in the order of their WordNet ids",
    "the test images are the official validation images: those of the official test set have no labels",
)


def downloads(_: Data) -> list[Download]:
    """Return the official archive."""
    return [ARCHIVE]


def _rows(path: Path) -> list[list[str]]:
    with reading(path, "the official table"):
        return [line.split("\t") for line in path.read_text("utf-8").splitlines() if line.strip()]


def read(data: Data) -> DataSource:
    """Return all of Tiny-ImageNet, balanced: 500 training and 50 test images of each of 200 classes, 64x64 pixels.

    Classes are in the order of their WordNet ids, as for class folders, not in that of wnids.txt; training images of a
    class are in the order of their file names. Greyscale files become colour. Source: Le and Yang, Tiny ImageNet visual
    recognition challenge, Stanford CS 231N, 2015.
    """
    folder = find(data, str(ARCHIVE.unpacks_to))
    if folder is None:
        raise not_found("Tiny-ImageNet", data, f"unpack {ARCHIVE.url}")
    with located(f"Tiny-ImageNet (delete the folder {folder.name} and run taet data prepare tiny-imagenet)"):
        words = {row[0]: row[-1].split(",")[0] for row in _rows(folder / "words.txt")}
        names = {wnid: words.get(wnid, wnid) for wnid in sorted(row[0].strip() for row in _rows(folder / "wnids.txt"))}
        shared = Counter(names.values())
        names = {wnid: name if shared[name] == 1 else f"{name} ({wnid})" for wnid, name in names.items()}
        rows = [
            Row(file, name, "train")
            for wnid, name in names.items()
            for file in sorted((folder / "train" / wnid / "images").glob("*.JPEG"))
        ]
        for file, wnid, *_ in _rows(folder / "val" / "val_annotations.txt"):
            rows.append(Row(folder / "val" / "images" / file, names.setdefault(wnid, wnid), "test"))
        source = of_rows(rows, data, f"'{folder}'", NOTES, [*names.values()])
        return source.check(SIZES, (data.size or 64, data.size or 64, 3))
