"""Tables of labelled image files: a .csv with a header."""

import csv
import io
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

from taet.data.images import ImageFile, files_below, is_image, masks_of
from taet.data.storage import reading
from taet.errors import UserError, cut, unknown
from taet.formatting import listed

TABLE = "a .csv in UTF-8 (Excel: CSV UTF-8) with a header, with path, label and optionally split and group"
SPLITS = {
    **dict.fromkeys(("train", "training", "final_training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing", "final_test"), "test"),
}
"""Names of splits, in upper or lower case, in tables, as folders and on the hub."""
COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "image", "image_id", "isic_id"),
    "label": ("label", "class", "classid", "class_id", "target", "dx"),
    "split": ("split",),
    "group": ("group", "patient_id", "patientid", "patient", "subject_id", "lesion_id"),
}
"""Usual names of columns, in any case, with _ or a space; the first is used: a patient may have several lesions."""
MISSING = ("", "NA", "N/A", "NaN", "nan", "NULL", "None")  # no group, as R, pandas and databases write it
NUMBER = re.compile(r"-?\d{1,18}")  # a numeric label; longer numbers are names


class Row(NamedTuple):
    """A labelled image; `place` is its line in a table."""

    file: ImageFile
    label: str
    split: str = ""
    group: str = ""
    place: str = ""


def by_number(labels: Iterable[str]) -> list[str]:
    """Return the different labels in the order of numbers if all are numbers, else as text."""
    names = sorted({*labels})
    numbers = all(map(NUMBER.fullmatch, names)) and len({*map(int, names)}) == len(names)
    return sorted(names, key=int) if numbers else names


def _delimiter(text: str) -> str:
    return max(",;\t", key=text.partition("\n")[0].count)


def usual_columns(names: Sequence[str]) -> dict[str, str]:
    """Return the name, in any case, of the column of paths, labels, splits and groups; "" if there is none."""
    lower = {name.lower().replace(" ", "_"): name for name in reversed(names)}
    return {what: next((lower[name] for name in usual if name in lower), "") for what, usual in COLUMNS.items()}


def read_table(path: Path) -> list[tuple[str, dict[str, str]]]:
    """Return the rows of a table: the place of each, and its cells by column."""
    with reading(path, TABLE):
        text, rows = path.read_text("utf-8-sig"), []
        reader = csv.reader(io.StringIO(text, ""), delimiter=_delimiter(text), skipinitialspace=True, strict=True)
        names = [name.strip() for name in next(reader, [])]
        if twice := next((name for name in names if name and names.count(name) > 1), None):
            raise UserError(f"'{path}' has two columns '{twice}'; allowed: each name once")
        for cells in filter(any, reader):
            place = f"'{path}', line {reader.line_num}"
            if len(cells) != len(names):
                raise UserError(f"{place}: got {len(cells)} cells; allowed: {len(names)}")
            rows.append((place, dict(zip(names, map(str.strip, cells), strict=True))))
        return rows


def headers(folder: Path) -> dict[Path, dict[str, str]]:
    """Return the tables in a folder, each with the columns that its first line names; see COLUMNS."""
    found = {}
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in (".csv", ".tab", ".tsv", "")):
        if path.is_file() and not path.name.startswith("."):
            with path.open("rb") as file:
                header = file.readline(1 << 16).decode("utf-8-sig", "replace")
            names = [name.strip(' "\r\n') for name in header.split(_delimiter(header))]
            if names[:3] != ["path", "class", "probability"]:  # by `taet predict`
                found[path] = usual_columns(names)
    return found


def labelled_tables(folder: Path) -> list[Path]:
    """Return the tables in a folder that have columns of paths and labels."""
    return [path for path, columns in headers(folder).items() if columns["path"] and columns["label"]]


def labelled(path: Path, folder: Path, group: str | None) -> tuple[list[Row], list[str]]:
    """Return a table's images in `folder`, from its columns path, label, split and group, and notes; see COLUMNS.

    `group` names another column of groups; "none" uses none. Only groups may be empty; an image has one label.
    """
    table, first = read_table(path), dict[ImageFile, Row]()
    names = list(table[0][1]) if table else []
    columns = usual_columns(names)
    if group is not None:
        columns["group"] = "" if group == "none" else group
        if columns["group"] not in ("", *names):
            raise unknown(f"column for data group in '{path}':", group, names)
    if missing := [what for what in ("path", "label") if not columns[what]]:
        has = cut(", ".join(f"'{name}'" for name in names)) or "no rows"
        usual = " and ".join(f"{what} ({', '.join(COLUMNS[what])})" for what in missing)
        raise UserError(f"'{path}' has no column for {usual}; it has {has}; allowed: {TABLE}")
    others = [name for name in names if usual_columns([name])["group"]] if group is None else []
    for place, cells in table:
        file, label, split, own = (cells[columns[what]] if columns[what] else "" for what in COLUMNS)
        own = "" if own in MISSING else own
        if not own and (other := next((name for name in others if cells[name] not in MISSING), "")):
            both = f"'{columns['group']}' is empty, but not '{other}'"
            raise UserError(f"{place}: {both}; allowed: one column of groups for all images, --data.group {other}")
        if not (file and label):
            raise UserError(f"{place}: got {cut(file, 40)!a} and {cut(label, 40)!a}; allowed: a path and a label")
        if split and split.lower() not in SPLITS:
            raise unknown(f"split in {place}:", split, SPLITS)
        row = Row(Path(os.path.normpath(file.replace("\\", "/"))), label, SPLITS.get(split.lower(), ""), own, place)
        if (before := first.setdefault(row.file, row))[1:4] != row[1:4]:
            raise UserError(f"'{row.file}' has two labels, splits or groups, in {before.place} and in {row.place}")
    used = ", ".join(f"{what} by column '{name}'" for what, name in columns.items() if name.lower() not in ("", what))
    unused = listed([name for name in names if name not in columns.values()], most=10)
    rows, notes = placed([*first.values()], folder)
    return rows, [*filter(None, (used, unused and f"columns that are not used: {unused}")), *notes]


def placed(rows: Sequence[Row], folder: Path) -> tuple[list[Row], list[str]]:
    """Return the rows with their files in `folder`, and notes; missing files are refused.

    If none of the files that the table has in one folder is there, they are looked for by name, with or without suffix,
    in all folders below `folder`; files of one name must be copies of one image.
    """
    paths, named = [folder / str(row.file) for row in rows], defaultdict[str, list[Path]](list)
    lost = {path for path in paths if not path.is_file()}
    images = [file for file in files_below(folder) if is_image(file)] if lost else []
    alike = {normalize("NFC", str(file)): file for file in images}  # a Mac decomposes the letters of names
    paths = [alike.get(normalize("NFC", str(path)), path) if path in lost else path for path in paths]
    lost &= {*paths}
    right = {path.parent for path in paths if path not in lost} - {folder}  # a bare name has no folder
    masks = masks_of(folder, images)
    for file in images:
        for name in {file.name, file.stem} if file not in masks else ():
            named[normalize("NFC", name)].append(file)
    names = {path: normalize("NFC", path.name) for path in lost}
    candidates = {name: named[name] for path, name in names.items() if name in named and path.parent not in right}
    copies = {name: len(files) == 1 or len({f.read_bytes() for f in files}) == 1 for name, files in candidates.items()}
    clear = {name: files[0] for name, files in candidates.items() if copies[name]}
    found = [path if path not in lost else None if path.parent in right else clear.get(names[path]) for path in paths]
    if missing := [row for row, file in zip(rows, found, strict=True) if file is None]:
        if len(several := candidates.get(names[folder / str(missing[0].file)], [])) > 1:
            either = f"'{several[0]}' or '{several[-1]}'; allowed: its path in the table, or --data.root, its folder"
            raise UserError(f"'{missing[0].file}' ({missing[0].place}) may be {either}")
        got = f"{len(missing)} of {len(rows)} files are missing, first '{missing[0].file}' ({missing[0].place})"
        looked = f"looked for in '{folder}' and, of a folder without any of its files, by name below it"
        raise UserError(f"{got}; {looked}; --data.root names another")
    made = [row._replace(file=file) for row, file in zip(rows, found, strict=True) if file is not None]
    return made, [f"images are found by their names below '{folder}'"] if lost else []
