"""Any data set as a table of image files and their labels."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from taet.config import Data
from taet.data.dataset import Dataset
from taet.data.listing import Listing
from taet.data.places import locate
from taet.errors import UserError, unknown

NAMES = {"csv": "csv:PATH, a list of image files with the header path,label and, if wanted, split and group"}
COLUMNS = ("path", "label", "split", "group")
DELIMITERS = ",;\t"
SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}


class _Row(NamedTuple):
    line: int
    path: str
    label: str
    split: str
    group: str


def _columns(header: list[str], table: Path, group: str | None) -> dict[str, int]:
    """Return where the columns that are used stand."""
    names = [name.strip() for name in header]
    lower = [name.lower() for name in names]
    missing = [name for name in ("path", "label") if name not in lower]
    if missing:
        has = ", ".join(f"'{name}'" for name in names) or "nothing"
        raise UserError(
            f"'{table}' has no column '{missing[0]}'; its first line has: {has}; allowed: "
            "path,label and, if wanted, split and group, divided by commas, semicolons or tabs"
        )
    columns: dict[str, int] = {name: lower.index(name) for name in COLUMNS if name in lower}
    if group is not None:
        if group not in names:
            raise unknown(f"column for data group in '{table}':", group, names)
        columns["group"] = names.index(group)
    twice = next((name for name in columns if lower.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"'{table}' has two columns '{twice}'; keep one")
    return columns


def _rows(table: Path, group: str | None) -> tuple[list[_Row], dict[str, int]]:
    """Return the rows of a table that are not empty, and its columns; every row has a path, a label and its split."""
    rows: list[_Row] = []
    with table.open(newline="", encoding="utf-8-sig") as file:
        first = file.readline()
        file.seek(0)
        reader = csv.reader(file, delimiter=max(DELIMITERS, key=first.count), strict=True)
        header = next(reader, [])
        columns = _columns(header, table, group)
        line = reader.line_num
        for cells in reader:
            before, line = line, reader.line_num  # a row begins behind the one before; quoted cells may hold lines
            if not any(map(str.strip, cells)):
                continue
            if len(cells) != len(header):
                raise UserError(f"'{table}', line {before + 1}: got {len(cells)} cells; allowed: {len(header)}")
            found = {name: cells[place].strip() for name, place in columns.items()}
            empty = next((name for name, cell in found.items() if not cell and name != "group"), None)
            if empty is not None:
                raise UserError(f"'{table}', line {before + 1}: no {empty}; only the group of an image may be empty")
            split = found.get("split", "").lower()
            if split and split not in SPLITS:
                raise unknown(f"split in '{table}', line {before + 1}:", split, SPLITS)
            path = os.path.normpath(found["path"])
            rows.append(_Row(before + 1, path, found["label"], SPLITS.get(split, ""), found.get("group", "")))
    if not rows:
        raise UserError(f"'{table}' lists no image")
    return rows, columns


def _read_rows(table: Path, group: str | None) -> tuple[list[_Row], dict[str, int]]:
    if not table.is_file():
        raise UserError(f"no such file: '{table}'")
    try:
        return _rows(table, group)
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read '{table}': it is not in UTF-8; save it as CSV in UTF-8") from error
    except (OSError, csv.Error) as error:
        raise UserError(f"cannot read '{table}': {' '.join(str(error).split())}; allowed: a CSV file") from error


def _once(rows: list[_Row], table: Path) -> list[_Row]:
    """Leave out rows that repeat another; refuse one file with two labels or two groups."""
    first: dict[str, _Row] = {}
    kept: dict[tuple[str, str], _Row] = {}
    for row in rows:
        before = first.setdefault(row.path, row)
        for what, one, other in (("label", before.label, row.label), ("group", before.group, row.group)):
            if one != other:
                raise UserError(
                    f"'{table}': '{row.path}' has two {what}s, '{one}' in line {before.line} and '{other}' in line "
                    f"{row.line}"
                )
        kept.setdefault((row.path, row.split), row)
    return list(kept.values())


def _check_files(rows: list[_Row], files: list[Path], table: Path, folder: Path) -> None:
    """Refuse a list of which files are missing; each folder is read once, which is faster than to ask for each file."""
    there: dict[str, set[str]] = {}
    missing = []
    for row, file in zip(rows, files, strict=True):
        place, name = os.path.split(file)
        if place not in there:
            there[place] = set(os.listdir(place)) if os.path.isdir(place) else set()
        # A file system may know a name that it does not list: in other letters' case, or another form of Unicode.
        if name not in there[place] and not file.is_file():
            missing.append(row)
    if missing:
        raise UserError(
            f"'{table}': {len(missing)} of {len(rows)} files are missing, first '{missing[0].path}' (line "
            f"{missing[0].line}); looked for in '{folder}'; --data.root names another folder"
        )


def _class_names(labels: list[str]) -> tuple[dict[str, int], tuple[str, ...], tuple[str, ...]]:
    """Return the class of each label, the classes' names, and notes: whole numbers go by size, others by alphabet.

    Where two labels are one number, such as 01 and 1, all are taken as text.
    """
    distinct = sorted(set(labels))
    if not all(re.fullmatch(r"-?\d+", label) for label in distinct):
        return {label: i for i, label in enumerate(distinct)}, tuple(distinct), ()
    by_size = sorted(distinct, key=int)
    numbers, count = list(map(int, by_size)), len(distinct)
    alike = next((i for i in range(1, count) if numbers[i - 1] == numbers[i]), None)
    if alike is not None:
        note = f"labels '{by_size[alike - 1]}' and '{by_size[alike]}' are one number: all labels are taken as text"
        return {label: i for i, label in enumerate(distinct)}, tuple(distinct), (note,)
    note = f"labels are not 0 to {count - 1}: the {count} that occur are the classes, from the least on"
    return (
        {label: i for i, label in enumerate(by_size)},
        tuple(map(str, numbers)),
        (note,) if numbers != list(range(count)) else (),
    )


def _list(data: Data) -> Listing:
    table = locate(data)
    every, columns = _read_rows(table, data.group)
    rows = _once(every, table)
    folder = Path(data.root).expanduser() if data.root is not None else table.parent
    files = [folder / row.path for row in rows]
    _check_files(rows, files, table, folder)
    labels, names, notes = _class_names([row.label for row in rows])
    if len(names) < 2:
        raise UserError(f"'{table}': got only the label '{names[0]}'; allowed: 2 or more")
    splits = tuple(row.split for row in rows) if "split" in columns else None
    for part in ("train", "test"):
        if splits is not None and part not in splits:
            raise UserError(f"'{table}' has no row for {part}; allowed: train and test, or no column 'split'")
    repeated = len(every) - len(rows)
    return Listing(
        names,
        tuple(files),
        np.array([labels[row.label] for row in rows], np.int64),
        splits,
        "no column 'split'",
        tuple(row.group for row in rows) if "group" in columns else None,
        "another name for the column 'group'" if data.group is None else "--data.group None",
        (*notes, *((f"{repeated} rows repeat another and are left out",) if repeated else ())),
    )


def files(data: Data) -> dict[str, Sequence[Path]]:
    """Return for each split the image files that its `indices` count."""
    return _list(data).by_split()


def read(data: Data) -> Dataset:
    """Return the images of a table; without a column `split`, a fifth of each class, by the seed, is for testing.

    The first line names the columns, which commas, semicolons or tabs divide: `path`, relative to the table's folder or
    to --data.root; `label`, a name or a whole number; if wanted, `split`: train, val (valid, validation) or test; and
    `group`, or the column that --data.group names: images of one group are kept in one split. Other columns are left
    alone. The text is UTF-8. Classes are the labels that occur, whole numbers by size, others by alphabet.
    """
    return _list(data).dataset(data)
