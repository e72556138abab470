"""Any data set as a folder of class folders of image files."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np

from taet.config import Data
from taet.data.dataset import Dataset, Split
from taet.data.images import SUFFIXES, decode_all
from taet.data.long_tail import divide, held_out_counts
from taet.data.places import locate
from taet.errors import UserError, unknown

NAMES = {"folder": "folder:PATH, a folder of class folders, or one with train/ and test/ that hold the class folders"}
VALIDATION = ("val", "valid", "validation")
TEST_SHARE = 0.2


def _class_folders(folder: Path) -> dict[str, list[Path]]:
    """Return the image files of each class folder, both in the order of the alphabet."""
    classes = {
        child.name: sorted(
            file
            for file in child.rglob("*")
            if file.suffix.lower() in SUFFIXES
            and file.is_file()
            and not any(part.startswith(".") for part in file.relative_to(child).parts)
        )
        for child in sorted(folder.iterdir())
        if child.is_dir() and not child.name.startswith(".")
    }
    if len(classes) < 2:
        got = f"only '{next(iter(classes))}'" if classes else "none"
        raise UserError(f"class folders in '{folder}': got {got}; allowed: 2 or more")
    for name, files in classes.items():
        if not files:
            raise UserError(f"class folder '{folder / name}' holds no image; allowed: {', '.join(sorted(SUFFIXES))}")
    return classes


def _split_folders(path: Path) -> dict[str, Path]:
    """Return the folder of each split; `path` itself is one called "all" where it holds the class folders directly."""
    named = {child.name: child for child in path.iterdir() if child.is_dir()}
    missing = [name for name in ("train", "test") if name not in named]
    nested = any(child.is_dir() for name in ("train", "test") if name in named for child in named[name].iterdir())
    if missing and not nested:  # where only one is there and holds images, it is a class of that name
        return {"all": path}
    if missing:
        raise UserError(f"'{path}' has no folder '{missing[0]}'; allowed: both train and test, or only class folders")
    splits = {"train": named["train"], "test": named["test"]}
    validation = [name for name in VALIDATION if name in named]
    if len(validation) > 1:
        raise UserError(f"'{path}' has two validation folders, '{validation[0]}' and '{validation[1]}'; keep one")
    if validation:
        splits["validation"] = named[validation[0]]
    return splits


def read(data: Data) -> Dataset:
    """Return the folder's images; without train/ and test/, a fifth of each class, chosen by the seed, is for testing.

    Classes are the names of the class folders in the order of the alphabet. Images are grey where all of them are,
    else RGB; palettes, CMYK and transparency are turned into RGB.
    """
    path = locate(data)
    if not path.is_dir():
        raise UserError(f"no such folder: '{path}'")
    folders = _split_folders(path)
    classes = {split: _class_folders(folder) for split, folder in folders.items()}
    names = tuple(next(iter(classes.values())))
    for split, found in classes.items():
        for name in found:
            if name not in names:
                raise unknown(f"class folder in '{folders[split]}':", name, names)
    files = {
        split: [(file, names.index(name)) for name in found for file in found[name]] for split, found in classes.items()
    }
    images = decode_all([file for file, _ in chain.from_iterable(files.values())], data.size)
    splits, start = {}, 0
    for split, pairs in files.items():
        labels = np.array([label for _, label in pairs], np.int64)
        splits[split] = Split(images[start : start + len(pairs)], labels, names, np.arange(len(pairs)))
        start += len(pairs)
    if "all" not in splits:
        return Dataset(data.name, splits["train"], splits.get("validation"), splits["test"])
    whole = splits["all"]
    counts = whole.class_counts.tolist()
    train, test = divide(whole.labels, counts, held_out_counts(counts, TEST_SHARE), data.seed)
    note = (
        f"no folder 'test': {TEST_SHARE:.0%} of each class, rounded, at least 1 of 2, is for testing (seed {data.seed})"
    )
    return Dataset(data.name, whole.choose(np.sort(train)), None, whole.choose(np.sort(test)), notes=(note,))
