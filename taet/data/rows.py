"""Lists of labelled image files: a table with a header, lines of a path and a number, or COCO's JSON."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from taet.data.foreign_files import MOST_BYTES, MOST_IMAGES, reading
from taet.errors import UNPRINTABLE, UserError, cut, unknown

DELIMITERS = ",;\t"
SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
PATHS = ("path", "file", "filename", "file_name", "image", "image_id")
LABELS = ("label", "class", "classid", "class_id", "target", "dx")
COLUMNS = {"path": PATHS, "label": LABELS, "split": ("split",), "group": ("group",)}
"""Usual names of columns, in upper or lower case; by default the first that exists is used."""
LIKELY_GROUP = re.compile(r"(^|_)(patient|lesion|track|subject|site)(_?(id|no|number|name))?$", re.IGNORECASE)
"""Columns that name groups of images in tables such as those of HAM10000 and ISIC 2020."""
NUMBER = re.compile(r"-?\d{1,18}")
"""A numeric label; longer numbers are names."""
MOST_LINE = 1 << 20
"""Most characters of a line."""
MOST_TEXT = 4096
"""Most characters of a path, a label and a group together."""
MOST_JSON_BYTES = 1 << 31
"""Largest JSON file, which is read whole; the 2017 annotations of COCO have 450 MB."""
KEPT = frozenset(("images", "id", "file_name", "annotations", "image_id", "category_id"))
"""Keys of a JSON file that are kept while it is read; the others are sizes, licences and owners."""
COCO = "a JSON file of images with id and file_name, annotations with image_id and category_id, as COCO has them"


class Unlabelled(UserError):
    """A list without any label."""


class Row(NamedTuple):
    """One image and its position in the list."""

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
    """The names in COLUMNS that the list has."""
    likely_group: str | None = None
    """A column that may hold groups, if none is used."""
    guessed: str = ""
    """The columns of images and labels, if they were guessed from unusual names."""


def _is_json(path: Path) -> bool:
    return path.suffix.lower() == ".json"


def _delimiter(line: str) -> str:
    return max(DELIMITERS, key=line.count)


class Wanted(NamedTuple):
    """The columns that the user named, and how a cell becomes a path."""

    group: str | None = None
    path: str | None = None
    label: str | None = None
    template: str | None = None


PLAIN = Wanted()
OPTIONS = {"path": "image-column", "label": "label-column", "group": "group"}
"""Options of data that name columns."""


def _columns(names: list[str], table: Path, wanted: Wanted) -> dict[str, int]:
    lower = [name.lower() for name in names]
    there = {name: [lower.index(one) for one in ones if one in lower] for name, ones in COLUMNS.items()}
    columns = {name: places[0] for name, places in there.items() if places}
    for name, option in OPTIONS.items():
        column = getattr(wanted, name)
        if column is not None:
            if column not in names:
                raise unknown(f"column for data {option.replace('-', ' ')} in '{table}':", column, names)
            columns[name] = names.index(column)
    missing = [name for name in ("path", "label") if name not in columns]
    if missing:
        has = cut(", ".join(f"'{name}'" for name in names)) or "nothing"
        lacks = " and ".join(f"no column '{name}'" for name in missing)
        options = " ".join(f"--data.{OPTIONS[name]} NAME" for name in missing)
        raise Unlabelled(
            f"'{table}' has {lacks}; its first line has: {has}; allowed: "
            "path,label and optionally split and group, separated by commas, semicolons or tabs; or, without a header, "
            f"lines of a path and a whole number; columns of other names: {options}"
        )
    twice = next((lower[place] for place in columns.values() if lower.count(lower[place]) > 1), None)
    if twice is not None:
        raise UserError(f"'{table}' has two columns '{twice}'; keep one")
    return columns


def _lines(text: io.TextIOWrapper) -> Iterator[str]:
    for number in itertools.count():
        line = text.readline(MOST_LINE)
        if not line:
            return
        if len(line) == MOST_LINE or number > MOST_IMAGES:
            raise ValueError(f"it has a line of {MOST_LINE:,} characters or more, or more than {MOST_IMAGES:,} lines")
        yield line


def _table(path: Path, text: io.TextIOWrapper, delimiter: str, wanted: Wanted) -> Rows:
    """Read a table with a header; every non-empty row has a path, a label and, if there are splits, a split."""
    rows: list[Row] = []
    reader = csv.reader(_lines(text), delimiter=delimiter, strict=True)
    names = [name.strip() for name in next(reader, [])]
    columns = _columns(names, path, wanted)
    line = reader.line_num
    for cells in reader:
        before, line = line, reader.line_num  # a row may have several lines: quoted cells may contain line breaks
        if not any(map(str.strip, cells)):
            continue
        if len(cells) != len(names):
            raise UserError(f"'{path}', line {before + 1}: got {len(cells)} cells; allowed: {len(names)}")
        found = {name: cells[place].strip() for name, place in columns.items()}
        empty = next((name for name, cell in found.items() if not cell and name != "group"), None)
        if empty is not None:
            raise UserError(f"'{path}', line {before + 1}: no {empty}; only the group of an image may be empty")
        split = found.get("split", "").lower()
        if split and split not in SPLITS:
            raise unknown(f"split in '{path}', line {before + 1}:", split[:40], SPLITS)
        own_split, own_group = SPLITS.get(split, ""), found.get("group", "")
        file = found["path"] if wanted.template is None else wanted.template.replace("{}", found["path"])
        rows.append(_row(path, before + 1, file, found["label"], own_split, own_group))
    likely = next((name for name in names if LIKELY_GROUP.search(name) and "group" not in columns), None)
    used = {name: names[columns[name]] for name in ("path", "label")}
    guessed = any(getattr(wanted, name) is None and column.lower() != name for name, column in used.items())
    said = "images by column '{path}', labels by column '{label}'".format(**used)
    return Rows(rows, frozenset(columns), likely, said if guessed else "")


def _row(source: Path, number: int, path: str, label: str, split: str = "", group: str = "") -> Row:
    text = f"{path}{label}{group}"
    if len(text) > MOST_TEXT or UNPRINTABLE.search(text):
        allowed = f"path, label and group of at most {MOST_TEXT:,} characters, without control characters"
        raise UserError(f"{Row(source, number, path, label).place}: got {cut(text, 80)}; allowed: {allowed}")
    # Half a million images share some thousand labels.
    return Row(source, number, os.path.normpath(path), sys.intern(label), split, group)


def _is_lines(first: str) -> bool:
    """Whether a list begins with a path and a whole number, and not with the header of a table."""
    names = {name.strip(' "\r\n').lower() for name in first.split(_delimiter(first))}
    words = first.split()
    return len(words) > 1 and bool(NUMBER.fullmatch(words[-1])) and not {"path", "label"} & names


def _numbered(path: Path, lines: Iterable[str]) -> Rows:
    """Read lines of a path, which may contain spaces, and a whole number."""
    rows = []
    for number, line in enumerate(lines, 1):
        words = line.rsplit(maxsplit=1)
        if not words:
            continue
        if len(words) < 2 or not NUMBER.fullmatch(words[1]):
            raise UserError(f"'{path}', line {number}: got {line.strip()[:80]!r}; allowed: a path and a whole number")
        rows.append(_row(path, number, words[0].strip(), words[1]))
    return Rows(rows, frozenset(("path", "label")))


def _kept(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    kept = [(name, value) for name, value in pairs if name in KEPT]
    if len(dict(kept)) < len(kept):
        raise ValueError("a name is there twice in one object")
    return dict(kept)


def _coco(path: Path, text: io.TextIOWrapper) -> Rows:
    """Read the annotated images of COCO's JSON, in the order of the annotations."""
    if "\0" in text.read(MOST_LINE):
        raise ValueError("it holds zero bytes")
    text.seek(0)
    found = json.load(
        text,
        object_pairs_hook=_kept,
        parse_int=lambda digits: int(digits) if len(digits) < 20 else None,  # no number of an image or a class
        parse_constant=lambda _: None,  # NaN in fields that are not used
    )

    def of(entry: Any, name: str, *kinds: type) -> Any:
        value = entry[name] if isinstance(entry, dict) else None
        if type(value) not in kinds:
            raise ValueError("it has another structure")
        return value

    names: dict[int | str, str] = {}
    for image in of(found, "images", list):
        number, name = of(image, "id", int, str), of(image, "file_name", str)
        if names.setdefault(number, name) != name:
            raise ValueError(f"two images have the id {number}")
    entries = of(found, "annotations", list) if "annotations" in found else []
    pairs = ((names[of(entry, "image_id", int, str)], of(entry, "category_id", int, str)) for entry in entries)
    rows = [_row(path, number, name, str(label)) for number, (name, label) in enumerate(pairs, 1)]
    return Rows(rows, frozenset(("path", "label")))


def read_rows(path: Path, wanted: Wanted = PLAIN) -> Rows:
    """Return the images of a list, with their labels.

    A list is a table, whose first line names the columns `path`, `label` (or others of PATHS and LABELS) and optionally
    `split` and `group`, or the columns that are `wanted`; or lines of a path and a whole number, like the lists of
    ImageNet-LT; or a .json with `images` and `annotations`, like those of COCO and iNaturalist. A list without any
    label raises `Unlabelled`; other mistakes raise a `UserError`.
    """
    allowed, most = (COCO, MOST_JSON_BYTES) if _is_json(path) else ("a CSV file in UTF-8", MOST_BYTES)
    with reading(path, allowed, most=most) as file:
        text = io.TextIOWrapper(file, "utf-8-sig", newline="")
        if _is_json(path):
            found = _coco(path, text)
        else:
            first = next(_lines(text), "")
            text.seek(0)
            numbered = _is_lines(first)
            found = _numbered(path, _lines(text)) if numbered else _table(path, text, _delimiter(first), wanted)
    if not found.rows:
        raise Unlabelled(f"'{path}' lists no image with a label")
    return found
