"""Data sets as folders of class folders with image files."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from taet.data import table
from taet.data.images import SUFFIXES, are_copies, files_below, is_image
from taet.data.listing import Listing
from taet.data.places import locate
from taet.data.rows import NUMBER, read_rows
from taet.errors import UNPRINTABLE, UserError, cut, unknown
from taet.settings import Data

NAMES = {"folder": "folder:PATH, a folder of class folders, or one with train/ and test/ that hold the class folders"}
SPLITS = {
    "train": ("train", "training", "final_training"),
    "test": ("test", "testing", "final_test"),
    "validation": ("val", "valid", "validation"),
}
"""Names of the split folders, in upper or lower case; GTSRB's own names come last."""
MOST_NESTED = 3
"""Most levels of folders around the split folders."""
INNER = "images"
"""Name of a single folder inside a split folder, as in GTSRB's archives: it holds the class folders."""
GROUP = "folder"


def class_files(folder: Path, least: int, left_out: Counter[str]) -> dict[str, list[Path]]:
    """Return the image files of each of `least` or more class folders, in alphabetical order; count the other files."""
    classes: dict[str, list[Path]] = {}
    for child in sorted(folder.iterdir()):
        if child.name.startswith("."):
            continue
        if not child.is_dir():
            left_out["outside of the class folders"] += is_image(child)
            continue
        files = files_below(child)
        classes[child.name] = list(filter(is_image, files))
        left_out.update(file.suffix or "no ending" for file in files if not is_image(file))
    for name in filter(UNPRINTABLE.search, classes):
        raise UserError(f"class folder in '{folder}': got {name!a}; allowed: names that can be printed, in UTF-8")
    if len(classes) < least:
        got = f"only '{next(iter(classes))}'" if classes else "none"
        raise UserError(f"class folders in '{folder}': got {got}; allowed: {least} or more")
    for name, found in classes.items():
        if not found:
            raise UserError(f"class folder '{folder / name}' holds no image; allowed: {', '.join(sorted(SUFFIXES))}")
    return classes


def _folders(path: Path) -> list[Path]:
    return sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))


def _tables(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.[cC][sS][vV]"))


def _inner(folder: Path) -> Path:
    inner = _folders(folder)
    return inner[0] if len(inner) == 1 and inner[0].name.lower() == INNER else folder


def _unpacked(path: Path) -> Path:
    """Return the folder with the split folders if `path` holds only that folder, as an archive does; else `path`."""
    below = path
    for _ in range(MOST_NESTED):
        if len(inner := _folders(below)) != 1:
            break
        below = inner[0]
        if {"train", "test"} <= _by_split(below).keys():
            return below
    return _inner(path)


def _half(path: Path) -> list[str]:
    """Return a note if only the training folder was named, so that the test folder beside it is not read."""
    for folder in (path, path.parent):
        if folder.name.lower() in SPLITS["train"] and "test" in (found := _by_split(folder.parent)):
            return [f"'{found['test'][0]}' is not read; --data {folder.parent} reads it as well"]
    return []


def _by_split(path: Path) -> dict[str, list[Path]]:
    """Return the folders with the name of a split."""
    found = {split: [one for one in _folders(path) if one.name.lower() in names] for split, names in SPLITS.items()}
    return {split: folders for split, folders in found.items() if folders}


def _split_folders(path: Path) -> dict[str, Path]:
    """Return the folder of each split; {"all": path} if `path` holds the class folders itself."""
    found = _by_split(path)
    missing = [name for name in ("train", "test") if name not in found]
    nested = any(_folders(folder) for name in {"train", "test"} - {*missing} for folder in found[name])
    if missing and not nested:  # where only one is there and holds images, it is a class of that name
        return {"all": path}
    if missing:
        raise UserError(f"'{path}' has no folder '{missing[0]}'; allowed: both train and test, or only class folders")
    for split, folders in found.items():
        if len(folders) > 1 and not are_copies(folders):
            raise UserError(f"'{path}' has two {split} folders, '{folders[0].name}' and '{folders[1].name}'; keep one")
    return {split: _inner(folders[0]) for split, folders in found.items()}


def _is_flat(folder: Path) -> bool:
    children = list(folder.iterdir())
    return any(map(is_image, children)) and not any(child.is_dir() for child in children)


def _table_of(folder: Path) -> Path:
    """Return the table with the labels of a folder without class folders: inside it, or beside it under its name."""
    split = folder.parent if folder.name.lower() == INNER else folder
    above = [split.parent] if split == folder else [split, split.parent, split.parent.parent]
    tables = [table for one in above for table in _tables(one) if split.name.lower() in table.stem.lower()]
    inside = _tables(folder)
    if len(every := inside + tables) == 1:
        return every[0]
    for found in (inside, tables):
        labelled = [table for table in found if _has_labels(table)]
        if len(labelled) == 1:
            return labelled[0]
    got = "no table" if not every else f"{len(inside or tables)} tables"
    raise UserError(
        f"'{folder}' holds images without class folders, and {got} for them; allowed: class folders, or one table in "
        f"it or beside it as {folder.name}.csv, with a column of file names and one of labels"
    )


def _has_labels(table: Path) -> bool:
    try:
        return bool(read_rows(table).rows)
    except UserError:
        return False


def _by_table(folder: Path, table: Path, classes: Mapping[str, Sequence[Path]]) -> dict[str, list[Path]]:
    """Return the images of a folder by class: the labels in the table are names or numbers of the classes."""
    numbers = {int(name): name for name in classes if NUMBER.fullmatch(name)}
    found: dict[str, list[Path]] = defaultdict(list)
    for row in read_rows(table).rows:
        file = folder / Path(row.path).name
        name = row.label if row.label in classes else None
        if name is None and NUMBER.fullmatch(row.label) and len(numbers) == len(classes):
            name = numbers.get(int(row.label))
        if name is None:
            raise unknown(f"class in {row.place}:", row.label, classes)
        if not file.is_file():
            raise UserError(f"{row.place}: there is no '{row.path}' in '{folder}'")
        found[name].append(file)
    return dict(found)


def _labels_beside(path: Path) -> Path | None:
    """Return the table beside the folders in `path` that names most of their images, with several labels in a folder.

    Two such tables raise a `UserError`.
    """
    there = list[Path]()
    images = [file for file in files_below(path) if is_image(file) and file.parent != path]
    for beside in _tables(path):
        try:
            labels = {row.path: row.label for row in read_rows(beside).rows}
        except UserError:  # a table of something else
            continue
        inner = [file.relative_to(path) for file in images]
        found = [(one.parts[0], labels.get(str(one), labels.get(one.name, labels.get(one.stem)))) for one in inner]
        pairs = [(folder, label) for folder, label in found if label is not None]
        if len(pairs) > len(images) / 2 and len(set(pairs)) > len({folder for folder, _ in pairs}):
            there.append(beside)
    if len(there) > 1:
        names = cut(", ".join(f"'{table.name}'" for table in there))
        raise UserError(f"'{path}' has {len(there)} tables of its images, {names}; name one: csv:{there[0]}")
    return there[0] if there else None


def _below(file: Path, folder: Path) -> tuple[str, ...]:
    """Return the folders between a class folder and its file; none for a file with a label from a table."""
    return file.relative_to(folder).parts[:-1] if file.is_relative_to(folder) else ()


def listing(data: Data) -> Listing:
    """List the folder's images; without train/ and test/, a fifth of each class, chosen by the seed, is for testing.

    Classes are the names of the class folders in alphabetical order. Images may lie in subfolders of the class folders.
    With `group` "folder", images of any class whose path below their class folder is the same are kept in one split.
    """
    path = locate(data)
    if not path.is_dir():
        raise UserError(f"no such folder: '{path}'")
    path = _unpacked(path)
    folders, left_out = _split_folders(path), Counter[str]()
    if "all" in folders and (own := _labels_beside(path)) is not None:
        listed = table.listing(data.replace(name=f"csv:{own}", root=None))
        note = f"its folders are not classes: the labels are those of '{own.name}'"
        return replace(listed, notes=(note, *listed.notes))
    if data.group not in (None, GROUP):
        allowed = f"{GROUP} (images with the same path below their class folder belong together) or None"
        raise UserError(f"data group: got '{data.group}'; allowed of a folder: {allowed}")
    notes, classes = _half(path) if "all" in folders else [], dict[str, dict[str, list[Path]]]()
    for split, folder in folders.items():  # what is not trained on may lack classes
        if split not in ("all", "train") and _is_flat(folder):
            given = _table_of(folder)
            classes[split] = _by_table(folder, given, classes["train"])
            notes.append(f"'{folder.name}' has no class folders: its labels are those of '{given.name}'")
        else:
            classes[split] = class_files(folder, 2 if split in ("all", "train") else 1, left_out)
    names = tuple(next(iter(classes.values())))
    for split, found in classes.items():
        for name in found.keys() - set(names):
            raise unknown(f"class folder in '{folders[split]}':", name, names)
    rows = [
        (file, label, split, "/".join(_below(file, folders[split] / name)))
        for split, found in classes.items()
        for label, name in enumerate(names)
        for file in found.get(name, ())
    ]
    files, labels, splits, subfolders = zip(*rows, strict=True)
    if data.group == GROUP and not any(subfolders):
        raise UserError(f"data group: got '{GROUP}', but no class folder in '{path}' holds folders")
    others = ", ".join(f"{count} {kind}" for kind, count in left_out.most_common() if count)
    return Listing(
        names,
        files,
        np.array(labels, np.int64),
        None if "all" in folders else splits,
        "no folder 'test'",
        subfolders if data.group == GROUP else None,
        "--data.group None",
        (*notes, *((f"left out: {others}",) if others else ())),
        subfolders,
    )
