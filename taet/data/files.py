"""Image files with labels: folders of class folders, and tables."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from taet.data import layouts
from taet.data.images import SUFFIXES, Files, Survey, files_below, is_image, survey
from taet.data.places import locate
from taet.data.selection import divided
from taet.data.source import PARTS, DataSource, Labels, check_names
from taet.data.storage import Images
from taet.data.tables import NUMBER, Row, labelled, labelled_tables, located
from taet.errors import UserError, unknown
from taet.settings import Data
from taet.statistics import Ints

NAMES = {
    "folder": "folder:PATH, a folder of class folders, or one with train/ and test/ that hold the class folders",
    "csv": "csv:PATH, a table (.csv or .json) of path,label[,split,group]",
}
SPLITS = {
    "train": ("train", "training", "final_training"),
    "test": ("test", "testing", "final_test"),
    "validation": ("val", "valid", "validation"),
}
"""Names of the split folders, in upper or lower case; GTSRB's own names come last."""
INNER = "images"
"""Name of a single folder inside a split folder, as in GTSRB's archives: it holds the class folders."""
NUMBERS = ("0", "1", "2", "...")
"""The order of classes that are numbers."""
TEST_SHARE = 0.2
"""Share of each class that is for testing where no split is given."""


@dataclass(frozen=True)
class Listing:
    """Labelled image files, with splits and groups if they are given."""

    rows: tuple[Row, ...]
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    mirror: bool = True

    @classmethod
    def of(cls, rows: Sequence[Row], where: str, notes: Sequence[str] = (), order: Sequence[str] = ()) -> Listing:
        """List rows; the classes are the labels that occur, in `order`.

        Others are sorted as text or, with the order NUMBERS, as numbers if they are.
        """
        names = sorted({row.label for row in rows})
        if order is NUMBERS:
            if all(map(NUMBER.fullmatch, names)) and len({*map(int, names)}) == len(names):
                names.sort(key=int)
        elif order:
            names.sort(key=list(order).index)
        if len(names) < 2:
            raise UserError(f"{where}: got {names or 'no image'}; allowed: 2 classes or more")
        check_names(names)
        splits = {row.split for row in rows}
        if splits != {""}:
            for part in ("train", "test"):
                if part not in splits:
                    raise UserError(f"{where}: no image for {part}; allowed: train and test, or no splits")
            if "" in splits:
                place = next(row.place for row in rows if not row.split)
                raise UserError(f"{place}: no split; allowed: {', '.join(PARTS)} for every image, or no splits")
        return cls(tuple(rows), tuple(names), tuple(notes))

    @property
    def divided(self) -> bool:
        """Whether splits are given; else TEST_SHARE of each class is for testing."""
        return self.rows[0].split != ""

    @cached_property
    def labels(self) -> Labels:
        """The labels of all files, with groups as numbers; a file without a group gets a number of its own."""
        number = {name: label for label, name in enumerate(self.class_names)}
        labels, groups = np.array([number[row.label] for row in self.rows], np.int64), None
        if any(row.group for row in self.rows):
            numbers: dict[str | int, int] = {}
            found = [numbers.setdefault(row.group or i, len(numbers)) for i, row in enumerate(self.rows)]
            groups = np.array(found, np.int64)
        return Labels(labels, self.class_names, groups)

    @cached_property
    def survey(self) -> Survey:
        """The facts from the headers of the files."""
        return survey([row.file for row in self.rows])

    def readable(self) -> Listing:
        """Leave out the files that cannot be decoded, and say so."""
        found = survey([row.file for row in self.rows], decode=True)
        if not found.unreadable:
            return self
        kept = tuple(row for row in self.rows if row.file not in found.unreadable)
        return replace(self, rows=kept, notes=(*self.notes, f"{found.faults()}; they are left out"))

    def parts(self, seed: int) -> dict[str, Ints]:
        """Return the positions of the files of each split; splits that cannot be trained or tested on are refused."""
        if self.divided:
            splits = np.array([row.split for row in self.rows])
            found = {part: np.flatnonzero(splits == part) for part in PARTS if (splits == part).any()}
            self._check_apart()
        else:
            train, test = divided(self.labels, self.labels.class_counts.tolist(), TEST_SHARE, seed)
            if train is None or test is None:
                grouped = self.labels.groups is not None
                spare = "group to spare; without groups: --data.group none" if grouped else "second image"
                raise UserError(f"no test images are given, and no class has a {spare}")
            found = {"train": np.sort(train), "test": np.sort(test)}
        counts = self.labels.choose(found["train"]).class_counts
        if not counts.all():
            raise UserError(f"class '{self.class_names[counts.argmin()]}' has no training image")
        return found

    def _check_apart(self) -> None:
        """Refuse a group in two given splits."""
        first: dict[str, Row] = {}
        for row in self.rows:
            before = first.setdefault(row.group, row) if row.group else row
            if row.split != before.split:
                raise UserError(
                    f"group '{row.group}' is in two splits: '{before.file}' is for {before.split}, "
                    f"'{row.file}' for {row.split}; keep it in one, or give --data.group none"
                )

    def source(self, data: Data) -> DataSource:
        """Return the splits, with images that are grey if all files are, else RGB; see `taet.data.images.Files`."""
        files = Files(self.survey, data.size, data.fit)
        splits, images = dict[str, Labels](), dict[str, Images]()
        for part, positions in self.parts(data.seed).items():
            indices = np.arange(len(positions)) if self.divided else positions
            splits[part] = replace(self.labels.choose(positions), indices=indices)
            images[part] = files.at(positions)
        grouped, notes = self.labels.groups is not None, []
        if not self.divided:
            share = f"{TEST_SHARE:.0%} of each class"
            share = f"as near to {share} as whole groups come" if grouped else f"{share}, rounded"
            notes.append(f"no test images are given: {share}, at least 1 of 2, is for testing (seed {data.seed})")
        if grouped:
            named = Counter(row.group for row in self.rows)
            alone = f"; {named['']} images stand alone" if named[""] else ""
            notes.append(f"{len(named) - ('' in named)} groups, each in one split{alone}")
        notes += [*self.notes, *self.survey.sentences(data.size, data.fit)]
        return DataSource(data.name, splits, images, self.mirror, tuple(notes), data.size is not None)


def listing(data: Data) -> Listing:
    """List the images of folder:PATH or csv:PATH; where no split is given, a fifth of each class is for testing.

    Of a folder, classes are the names of the class folders in alphabetical order, and images may lie in subfolders of
    them; the images of a subfolder, across classes, are a group where every class has two or more. Some published sets
    have layouts of their own: see `taet.data.layouts`. Of a table: see `taet.data.tables`.
    """
    path = locate(data)
    if table := data.name.startswith("csv:"):
        rows, notes = _from_table(path, path.parent if data.root is None else Path(os.path.expanduser(data.root)), data)
    elif not path.is_dir():
        raise UserError(f"no such folder: '{path}'")
    else:
        inner = _only_folders(path)
        known = (layouts.rows(one, data.group) for one in inner)
        rows, notes = next(filter(None, known), None) or _folder(_unpacked(inner), data)
    signs = None if data.group == "none" else layouts.signs(rows)
    listed = Listing.of(signs or rows, f"'{path}'", notes, NUMBERS if table else ())
    if signs is None:
        return listed
    note = "names as GTSRB's: the frames of one sign stay in one split, and no image is mirrored"
    return replace(listed, mirror=False, notes=(*listed.notes, note))


def _from_table(table: Path, folder: Path, data: Data) -> tuple[list[Row], list[str]]:
    rows, notes = labelled(table, data.group)
    found, more = located(rows, folder)
    return found, [*notes, *more]


def _folder(path: Path, data: Data) -> tuple[list[Row], list[str]]:
    """Return the images of class folders, and notes; a single table beside the folders has the labels instead."""
    group, folders = data.group, _split_folders(path)
    if "" in folders and len(tables := labelled_tables(path)) == 1:
        rows, notes = _from_table(tables[0], path, data)
        return rows, [f"labels are those of '{tables[0].name}'", *notes]
    if group not in (None, "none", "folder"):
        raise UserError(f"data group: got '{group}'; allowed of a folder: folder (subfolders of class folders) or none")
    rows, notes, left_out = list[Row](), list[str](), Counter[str]()
    for split, folder in folders.items():
        table = None if split in ("", "train") or _folders(folder) else _table_of(folder)
        if table is None:
            rows += class_rows(folder, split, left_out)
        else:
            rows += _by_table(folder, table, split, {row.label for row in rows})
            notes.append(f"'{folder.name}' has no class folders: its labels are those of '{table.name}'")
    known = {row.label for row in rows if row.split in ("", "train")}
    if strange := next((row for row in rows if row.label not in known), None):
        raise unknown(f"class of '{strange.file}':", strange.label, known)
    others = ", ".join(f"{count} {kind}" for kind, count in left_out.most_common() if count)
    notes += [f"left out: {others}"] if others else []
    if group == "folder" and not any(row.group for row in rows):
        raise UserError(f"data group: got 'folder', but no class folder in '{path}' holds folders")
    if group == "none" or (group is None and not _usable(rows)):
        rows = [row._replace(group="") for row in rows]
    return rows, notes


def _usable(rows: Sequence[Row]) -> bool:
    """Whether the subfolders of the class folders can be groups: two or more in each class, none in two splits."""
    per_class = Counter(label for label, _ in {(row.label, row.group or str(row.file)) for row in rows})
    splits = {(row.group, row.split) for row in rows if row.group}
    return min(per_class.values()) > 1 and len(splits) == len({group for group, _ in splits}) > 0


def _by_table(folder: Path, table: Path, split: str, known: set[str]) -> list[Row]:
    """Return the images of a folder without class folders; a label may be the number of a class folder, 0 of 00000."""
    numbers = {str(int(name)): name for name in known if NUMBER.fullmatch(name)}
    rows = [row._replace(file=Path(str(row.file)).name, split=split) for row in labelled(table, "none")[0]]
    return [row._replace(label=numbers.get(row.label, row.label)) for row in located(rows, folder)[0]]


def class_rows(folder: Path, split: str, left_out: Counter[str]) -> list[Row]:
    """Return the images of each class folder, in alphabetical order, with their subfolders as groups."""
    rows, classes = list[Row](), _folders(folder)
    check_names([child.name for child in classes])
    left_out["outside of the class folders"] += sum(is_image(child) for child in folder.iterdir())
    for child in classes:
        files = files_below(child)
        images = [file for file in files if is_image(file)]
        left_out.update(file.suffix or "no ending" for file in files if not is_image(file))
        if not images:
            raise UserError(f"class folder '{child}' holds no image; allowed: {', '.join(sorted(SUFFIXES))}")
        rows += [Row(file, child.name, split, "/".join(file.relative_to(child).parts[:-1])) for file in images]
    if not classes:
        raise UserError(f"'{folder}' holds no class folders; allowed: class folders, or one table of path and label")
    return rows


def _folders(path: Path) -> list[Path]:
    return sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))


def _only_folders(path: Path) -> list[Path]:
    """Return `path`, the folder in it if it holds no other, and so on: an archive unpacks to a folder of its own."""
    found = [path]
    while len(inner := _folders(found[-1])) == 1:
        found += inner
    return found


def _unpacked(inner: Sequence[Path]) -> Path:
    """Return the first of these folders with the split folders, else the first."""
    divided = (path for path in inner if {"train", "test"} <= _by_split(path).keys())
    return next(divided, _inner(inner[0]))


def _inner(folder: Path) -> Path:
    inner = _folders(folder)
    return inner[0] if len(inner) == 1 and inner[0].name.lower() == INNER else folder


def _by_split(path: Path) -> dict[str, list[Path]]:
    found = {split: [one for one in _folders(path) if one.name.lower() in names] for split, names in SPLITS.items()}
    return {split: folders for split, folders in found.items() if folders}


def _split_folders(path: Path) -> Mapping[str, Path]:
    """Return the folder of each split; {"": path} if `path` holds the class folders itself."""
    found = _by_split(path)
    missing = [name for name in ("train", "test") if name not in found]
    nested = any(_folders(folder) for name in {"train", "test"} - {*missing} for folder in found[name])
    if missing and not nested:  # where only one is there and holds images, it is a class of that name
        return {"": path}
    if missing:
        raise UserError(f"'{path}' has no folder '{missing[0]}'; allowed: both train and test, or only class folders")
    for split, (folder, *others) in found.items():
        if any(_held(other) != _held(folder) for other in others):
            raise UserError(f"'{path}' has two {split} folders, '{folder.name}' and '{others[0].name}'; keep one")
    return {split: _inner(folders[0]) for split, folders in found.items()}


def _held(folder: Path) -> list[tuple[str, int]]:
    """Return what a folder holds, in lower case: some archives hold a folder twice."""
    return sorted((file.relative_to(folder).as_posix().lower(), file.stat().st_size) for file in files_below(folder))


def _table_of(folder: Path) -> Path | None:
    """Return the table with the labels of a folder without class folders, inside it or beside it under its name."""
    split = folder.parent if folder.name.lower() == INNER else folder
    near = [table for place in (split, split.parent, split.parent.parent) for table in labelled_tables(place)]
    found = [*labelled_tables(folder), *(table for table in near if split.name.lower() in table.stem.lower())]
    return found[0] if found else None
