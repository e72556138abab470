"""Lists of labelled image files: a table with a header, lines of a path and a number, or COCO's JSON."""

from __future__ import annotations

import csv
import json
import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

from taet.errors import UserError, unknown

COLUMNS = ("path", "label", "split", "group")
DELIMITERS = ",;\t"
SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
LIKELY_GROUPS = ("patient", "patient_id", "subject", "subject_id", "lesion_id")
"""Columns that name groups of images in tables such as those of HAM10000 and ISIC 2020."""
NUMBER = re.compile(r"-?\d+")
KEPT = frozenset(("images", "id", "file_name", "annotations", "image_id", "category_id"))
"""What is kept of a JSON file while it is read; the rest is sizes, licences and owners."""


class Unlabelled(UserError):
    """A list without any label."""


class Row(NamedTuple):
    """One image, and its place in the list."""

    source: Path
    number: int
    """Line, or position among the annotations, from 1."""
    path: str
    label: str
    split: str = ""
    group: str = ""

    @property
    def place(self) -> str:
        return f"'{self.source}', {'annotation' if _is_json(self.source) else 'line'} {self.number}"


class Rows(NamedTuple):
    """The images of one list."""

    rows: list[Row]
    columns: frozenset[str]
    """Those of COLUMNS that the list has."""
    likely_group: str | None = None
    """A column that may name groups, if none is used."""


def _is_json(path: Path) -> bool:
    return path.suffix.lower() == ".json"


def _delimiter(line: str) -> str:
    """Return the delimiter of a table with this first line."""
    return max(DELIMITERS, key=line.count)


def _columns(names: list[str], table: Path, group: str | None) -> dict[str, int]:
    """Return the positions of the columns that are used."""
    lower = [name.lower() for name in names]
    missing = [name for name in ("path", "label") if name not in lower]
    if missing:
        has = ", ".join(f"'{name}'" for name in names) or "nothing"
        raise Unlabelled(
            f"'{table}' has no column '{missing[0]}'; its first line has: {has}; allowed: "
            "path,label and optionally split and group, separated by commas, semicolons or tabs; or, without a header, "
            "lines of a path and a whole number"
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


def _table(path: Path, group: str | None) -> Rows:
    """Read a table with a header; every row that is not empty has a path, a label and, if there are splits, a split."""
    rows: list[Row] = []
    with path.open(newline="", encoding="utf-8-sig") as file:
        first = file.readline()
        file.seek(0)
        reader = csv.reader(file, delimiter=_delimiter(first), strict=True)
        header = next(reader, [])
        names = [name.strip() for name in header]
        columns = _columns(names, path, group)
        line = reader.line_num
        for cells in reader:
            before, line = line, reader.line_num  # a row may have several lines: quoted cells may contain line breaks
            if not any(map(str.strip, cells)):
                continue
            if len(cells) != len(header):
                raise UserError(f"'{path}', line {before + 1}: got {len(cells)} cells; allowed: {len(header)}")
            found = {name: cells[place].strip() for name, place in columns.items()}
            empty = next((name for name, cell in found.items() if not cell and name != "group"), None)
            if empty is not None:
                raise UserError(f"'{path}', line {before + 1}: no {empty}; only the group of an image may be empty")
            split = found.get("split", "").lower()
            if split and split not in SPLITS:
                raise unknown(f"split in '{path}', line {before + 1}:", split, SPLITS)
            own_split, own_group = SPLITS.get(split, ""), found.get("group", "")
            rows.append(_row(path, before + 1, found["path"], found["label"], own_split, own_group))
    likely = [name for name in names if name.lower() in LIKELY_GROUPS and "group" not in columns]
    return Rows(rows, frozenset(columns), next(iter(likely), None))


def _row(source: Path, number: int, path: str, label: str, split: str = "", group: str = "") -> Row:
    # Half a million images share some thousand labels.
    return Row(source, number, os.path.normpath(path), sys.intern(label), split, group)


def _is_lines(path: Path) -> bool:
    """Whether a list begins with a path and a whole number, and not with the header of a table."""
    with path.open(encoding="utf-8-sig") as file:
        first = file.readline()
    names = {name.strip(' "\n').lower() for name in first.split(_delimiter(first))}
    words = first.split()
    return len(words) > 1 and bool(NUMBER.fullmatch(words[-1])) and not {"path", "label"} & names


def _lines(path: Path) -> Rows:
    """Read lines of a path, which may contain blanks, and a whole number."""
    rows = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            words = line.rsplit(maxsplit=1)
            if not words:
                continue
            if len(words) < 2 or not NUMBER.fullmatch(words[1]):
                raise UserError(f"'{path}', line {number}: got '{line.strip()}'; allowed: a path and a whole number")
            rows.append(_row(path, number, words[0].strip(), words[1]))
    return Rows(rows, frozenset(("path", "label")))


def _coco(path: Path) -> Rows:
    """Read the annotated images of COCO's JSON, in the order of the annotations."""
    with path.open(encoding="utf-8") as file:
        found = json.load(file, object_hook=lambda entry: {name: entry[name] for name in KEPT & entry.keys()})
    try:
        names = {image["id"]: image["file_name"] for image in found["images"]}
        rows = [
            _row(path, number, names[entry["image_id"]], str(entry["category_id"]))
            for number, entry in enumerate(found.get("annotations", ()), 1)
        ]
    except (KeyError, TypeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else "it has another structure"
        raise UserError(
            f"cannot read '{path}': {what}; allowed: images with id and file_name, annotations with image_id and "
            "category_id, as COCO has them"
        ) from error
    return Rows(rows, frozenset(("path", "label")))


def read_rows(path: Path, group: str | None = None) -> Rows:
    """Return the images of a list, with their labels.

    A list is a table, whose first line names the columns `path`, `label` and optionally `split` and `group` (or the
    column that the argument `group` names); or lines of a path and a whole number, like the lists of ImageNet-LT; or a
    .json with `images` and `annotations`, like those of COCO and iNaturalist. A list without any label raises
    `Unlabelled`, other mistakes a `UserError`.
    """
    if not path.is_file():
        raise UserError(f"no such file: '{path}'")
    try:
        found = _coco(path) if _is_json(path) else _lines(path) if _is_lines(path) else _table(path, group)
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read '{path}': it is not in UTF-8; save it as CSV in UTF-8") from error
    except (OSError, csv.Error, json.JSONDecodeError) as error:
        allowed = "a JSON file" if _is_json(path) else "a CSV file"
        raise UserError(f"cannot read '{path}': {' '.join(str(error).split())}; allowed: {allowed}") from error
    if not found.rows:
        raise Unlabelled(f"'{path}' lists no image with a label")
    return found
