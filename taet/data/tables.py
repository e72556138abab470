"""Tables of labelled image files: a .csv with a header, or a .json list of objects."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from taet.data.images import files_below, is_image
from taet.data.storage import reading
from taet.errors import UNPRINTABLE, UserError, cut, unknown

TABLE = "a .csv in UTF-8 with a header, or a .json list of objects, with path, label and optionally split and group"
SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "image", "image_id"),
    "label": ("label", "class", "classid", "class_id", "target", "dx"),
    "split": ("split",),
    "group": ("group", "lesion_id", "patient_id"),
}
"""Usual names of columns, in upper or lower case; the first that exists is used."""
NUMBER = re.compile(r"-?\d{1,18}")
"""A numeric label; longer numbers are names."""


class Row(NamedTuple):
    """A labelled image; its `file`, a `taet.data.images.ImageFile`, is a text until it is found."""

    file: Any
    label: str
    split: str = ""
    group: str = ""
    place: str = ""
    """Where the row stands, for errors."""


def read_table(path: Path) -> list[tuple[str, dict[str, str]]]:
    """Return the rows of a table with their places: the cells by column."""
    with reading(path, TABLE):
        text = path.read_text("utf-8-sig")
        if path.suffix.lower() == ".json":
            entries = json.loads(text)
            if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
                raise ValueError("it is no list of objects")
            return [
                (f"'{path}', entry {number}", {name: "" if cell is None else str(cell) for name, cell in entry.items()})
                for number, entry in enumerate(entries, 1)
            ]
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)
        names, rows = [name.strip() for name in next(reader, [])], []
        for cells in reader:
            place = f"'{path}', line {reader.line_num}"
            if any(cells) and len(cells) != len(names):
                raise UserError(f"{place}: got {len(cells)} cells; allowed: {len(names)}")
            rows += [(place, dict(zip(names, map(str.strip, cells), strict=True)))] if any(cells) else []
        return rows


def _delimiter(text: str) -> str:
    return max(",;\t", key=text.partition("\n")[0].count)


def _columns(names: Sequence[str]) -> dict[str, str]:
    lower = {name.lower(): name for name in reversed(names)}
    return {what: next((lower[one] for one in usual if one in lower), "") for what, usual in COLUMNS.items()}


def labelled_tables(folder: Path) -> list[Path]:
    """Return the tables in a folder that by their first line have columns of paths and labels."""
    found = []
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in (".csv", ".tab", ".tsv", "")):
        if path.is_file() and not path.name.startswith("."):
            with path.open("rb") as file:
                header = file.readline(1 << 16).decode("utf-8-sig", "replace")
            columns = _columns([name.strip(' "\r\n') for name in header.split(_delimiter(header))])
            found += [path] if columns["path"] and columns["label"] else []
    return found


def labelled(path: Path, group: str | None = None) -> tuple[list[Row], list[str]]:
    """Return the rows of a table by its columns for path, label, split and group, and notes; see COLUMNS.

    `group` names another column of groups; "none" uses none. An empty cell, an unknown split, and characters that
    cannot be printed are refused; only the group of an image may be empty.
    """
    table = read_table(path)
    names = list(table[0][1]) if table else []
    columns = _columns(names)
    if group is not None:
        columns["group"] = "" if group == "none" else group
        if columns["group"] not in ("", *names):
            raise unknown(f"column for data group in '{path}':", group, names)
    if missing := [what for what in ("path", "label") if not columns[what]]:
        has = cut(", ".join(f"'{name}'" for name in names)) or "no rows"
        usual = " and ".join(f"{what} ({', '.join(COLUMNS[what])})" for what in missing)
        raise UserError(f"'{path}' has no column for {usual}; it has {has}; allowed: {TABLE}")
    rows = [_row(place, {what: cells.get(name, "") for what, name in columns.items()}) for place, cells in table]
    used = ", ".join(f"{what} by column '{name}'" for what, name in columns.items() if name.lower() not in ("", what))
    return _once(rows), [used] if used else []


def _row(place: str, cells: dict[str, str]) -> Row:
    path, label, split, group = (cells[what] for what in COLUMNS)
    if UNPRINTABLE.search(path + label + group):
        raise UserError(f"{place}: got {cut(path + label + group, 80)!a}; allowed: characters that can be printed")
    if empty := next((what for what in ("path", "label") if not cells[what].strip()), None):
        raise UserError(f"{place}: no {empty}; only the group of an image may be empty")
    if split and split.lower() not in SPLITS:
        raise unknown(f"split in {place}:", split, SPLITS)
    return Row(os.path.normpath(path), label, SPLITS.get(split.lower(), ""), group, place)


def _once(rows: Sequence[Row]) -> list[Row]:
    """Leave out repeated rows; refuse an image with two labels, splits or groups."""
    first: dict[str, Row] = {}
    for row in rows:
        before = first.setdefault(row.file, row)
        for what in ("label", "split", "group"):
            one, other = getattr(before, what), getattr(row, what)
            if one != other:
                places = f"'{one}' in {before.place}, and '{other}' in {row.place}"
                raise UserError(f"'{row.file}' has two {what}s, {places}")
    return list(first.values())


def located(rows: Sequence[Row], folder: Path) -> tuple[list[Row], list[str]]:
    """Return the rows with their files, and notes; files that are missing are refused.

    A path is relative to `folder`. If the first is not there, folders at its begin are left out one by one, as on the
    machine where a table was made; then files are looked for by their names, with or without an ending, anywhere below.
    """
    paths, notes = [PurePath(row.file).parts for row in rows], list[str]()
    number = next((n for n in range(len(paths[0])) if (folder / Path(*paths[0][n:])).is_file()), None)
    if number is not None:
        files = [file if (file := folder / Path(*parts[number:])).is_file() else None for parts in paths]
        notes += [f"'{'/'.join(paths[0][:number])}' is left out of '{rows[0].file}' and others"] if number else []
    else:
        named: dict[str, list[Path]] = defaultdict(list)
        for file in filter(is_image, files_below(folder)):
            for name in {file.name, file.stem}:
                named[name].append(file)
        files = [next(iter(_same(named[parts[-1]])), None) for parts in paths]
        notes.append(f"images are found by their names below '{folder}'")
    missing = [row for row, file in zip(rows, files, strict=True) if file is None]
    if missing:
        by_name = "" if number is not None else " and by name below it"
        raise UserError(
            f"{len(missing)} of {len(rows)} files are missing, first '{missing[0].file}' ({missing[0].place}); looked "
            f"for in '{folder}'{by_name}; --data.root names another folder"
        )
    return [row._replace(file=file) for row, file in zip(rows, files, strict=True)], notes


def _same(files: list[Path]) -> list[Path]:
    """Return files of one name if they have one size, as copies have; else none, because it is not clear which is."""
    return files if len({file.stat().st_size for file in files}) == 1 else []
