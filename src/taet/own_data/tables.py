"""Tables of labelled image files: a .csv with a header, a .jsonl, or a .txt of paths and
numbers."""

import codecs
import csv
import io
import json
import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

import numpy as np

from taet.data.class_folders import SUFFIXES, files_below, is_image, masks_of
from taet.data.class_names import MISSING
from taet.data.image_files import ImageFile
from taet.data.labelled_images import FEWEST_CLASSES, SPLITS, LabelledImage, Listing
from taet.data.notes import DataNote
from taet.data.storage import reading
from taet.errors import UserError, shortened, unknown
from taet.formatting import join_words
from taet.settings import Data

TABLE = (
    "a .csv in UTF-8 (Excel: CSV UTF-8) with a header, with path, label and optionally split and "
    "group"
)
TABLE_SUFFIXES = (".csv", ".tab", ".tsv", ".jsonl", ".txt", "")
LINES, LIST = ".jsonl", ".txt"
OTHER_TABLES = (".xlsx", ".xls", ".ods", ".parquet", ".json")
"""Suffixes of files that may be tables of labels, and are not read."""
IMAGE_SUFFIX = f"(?:{'|'.join(map(re.escape, SUFFIXES))})"
LIST_LINE = re.compile(
    rf"((?:(?!{IMAGE_SUFFIX}\s).)+{IMAGE_SUFFIX})\s+(\d{{1,18}})\s*", re.IGNORECASE
)
"""A line of a list, as those of ImageNet-LT and Places-LT: the path of one image and its class."""
COLUMNS = {
    "path": (
        *("path", "file", "filename", "file_name", "image", "image_id", "isic_id", "image_index"),
        *("image_name", "img_name", "image_path", "img_path", "filepath", "file_path", "id_code"),
    ),
    "label": ("label", "class", "classid", "class_id", "target", "dx", "diagnosis"),
    "split": ("split",),
    "group": ("group", "patient_id", "patientid", "patient", "subject_id", "lesion_id"),
}
"""Usual names of columns, in any case, with _ or a space; the first is used: a patient may have
several lesions."""
SPLIT_COLUMNS = ("set", "subset", "partition", "phase", "usage", "dataset")
"""Names of columns that are of splits if all of their cells are names of splits."""
PREDICTIONS = ["path", "class", "probability"]
"""First columns of a table by `taet predict`, which holds no labels."""
ZERO_OR_ONE = {"0", "1", "0.0", "1.0"}
"""Cells of a column for a class."""
SUBMISSION = re.compile("submission", re.IGNORECASE)
"""In the name of a table of a competition whose labels are examples of answers."""
WHOLE_NUMBER = re.compile(r"\d{1,18}\.0+")
HEADER_BYTES = 1 << 16


class TableRow(NamedTuple):
    """A line of a table."""

    place: str
    """File and line, for messages."""
    cells: dict[str, str]
    """By column."""


class ImageTable(NamedTuple):
    """A table as text."""

    path: Path
    columns: list[str]
    rows: list[TableRow]


class Roles(NamedTuple):
    """The column of each role; "" where there is none."""

    path: str
    label: str
    split: str
    group: str


def read_table(path: Path) -> ImageTable:
    """Return the rows of a table: the place of each, and its cells by column."""
    with reading(path, TABLE):
        text = _decoded(path.read_bytes())
        if path.suffix.lower() == LINES:
            return _read_json_lines(path, text)
        if path.suffix.lower() == LIST and _is_list(text):
            return _read_list(path, text)
        return _read_csv(path, text)


def _is_list(text: str) -> bool:
    """Whether the first line of a text is the path of an image and a number."""
    return LIST_LINE.fullmatch(_first_line_of(text)) is not None


def _first_line_of(text: str) -> str:
    """Return the first line that is not empty; "" if there is none."""
    return next((line for line in text.splitlines() if line.strip()), "")


def split_in(name: str) -> str:
    """Return the split that the name of a table says, as in ImageNet_LT_train.txt; "" if none."""
    words = re.split("[^a-z]+", Path(name).stem.lower())
    return next((SPLITS[word] for word in words if word in SPLITS), "")


def _decoded(content: bytes, errors: str = "strict") -> str:
    """Return the text of a table: UTF-16 where it begins with its mark, as Excel's "Unicode text"
    does, else UTF-8."""
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if is_utf16 else "utf-8-sig", errors)


def _read_list(path: Path, text: str) -> ImageTable:
    rows = list[TableRow]()
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        place = f"'{path}', line {number}"
        found = LIST_LINE.fullmatch(line)
        if found is None:
            got = shortened(line, 60)
            raise UserError(f"{place}: got '{got}'; allowed: the path of an image and a number")
        rows.append(TableRow(place, {"path": found[1], "label": str(int(found[2]))}))
    return ImageTable(path, ["path", "label"], rows)


def _read_json_lines(path: Path, text: str) -> ImageTable:
    columns, rows = dict[str, None](), list[TableRow]()
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        place = f"'{path}', line {number}"
        cells = json.loads(line, parse_int=str, parse_float=str)
        if not isinstance(cells, dict):
            raise UserError(f"{place}: got a {type(cells).__name__}; allowed: an object")
        as_text = {name: "" if value is None else str(value) for name, value in cells.items()}
        columns |= dict.fromkeys(as_text)
        rows.append(TableRow(place, as_text))
    complete = [TableRow(place, dict.fromkeys(columns, "") | cells) for place, cells in rows]
    return ImageTable(path, [*columns], complete)


def _read_csv(path: Path, text: str) -> ImageTable:
    lines, delimiter = _beginning(text)
    reader = csv.reader(
        io.StringIO(text, ""), delimiter=delimiter, skipinitialspace=True, strict=True
    )
    for _ in range(lines):
        next(reader, None)
    columns = [name.strip() for name in next(reader, [])]
    twice = next((name for name in columns if name and columns.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"'{path}' has two columns '{twice}'; allowed: each name once")
    rows = list[TableRow]()
    for cells in reader:
        if not any(cells):
            continue
        place = f"'{path}', line {reader.line_num}"
        if len(cells) != len(columns):
            raise UserError(f"{place}: got {len(cells)} cells; allowed: {len(columns)}")
        stripped = [cell.strip() for cell in cells]
        rows.append(TableRow(place, dict(zip(columns, stripped, strict=True))))
    return ImageTable(path, columns, rows)


def _beginning(text: str) -> tuple[int, str]:
    """Return how many lines are before the header, and the delimiter.

    Empty lines may be before it, and Excel's line `sep=;`, which names the delimiter.
    """
    lines = text.splitlines()
    before = 0
    while before < len(lines) and not lines[before].strip():
        before += 1
    header = lines[before] if before < len(lines) else ""
    if header.lower().startswith("sep=") and len(header.strip()) <= len("sep=;"):
        return before + 1, header[len("sep=") :][:1] or ","
    return before, max(",;\t", key=header.count)


def usual_columns(names: Sequence[str]) -> Roles:
    """Return the name, in any case, of the column of each role; "" if there is none."""
    known = {name.lower().replace(" ", "_"): name for name in reversed(names)}
    found = {
        role: next((known[name] for name in usual if name in known), "")
        for role, usual in COLUMNS.items()
    }
    return Roles(**found)


def roles_of(names: Sequence[str], data: Data) -> Roles:
    """Return the column of each role: the one that `data` names, or else a usual one."""
    given = {"path": data.path_column, "label": data.label_column, "group": data.group}
    named = {role: column for role, column in given.items() if column is not None}
    free = [name for name in names if name not in named.values()]
    roles = usual_columns(free)
    for role, column in named.items():
        roles = roles._replace(**{role: column if column in names else ""})
    return roles


def headers(folder: Path, data: Data) -> dict[Path, Roles]:
    """Return the tables in a folder, each with the columns that its header names; see COLUMNS."""
    found = {}
    for path in sorted(folder.iterdir()):
        is_table = path.suffix.lower() in TABLE_SUFFIXES and not path.name.startswith(".")
        if is_table and path.is_file():
            names = header(path)
            if names[: len(PREDICTIONS)] != PREDICTIONS:
                found[path] = roles_of(names, data)
    return found


def first_line(path: Path) -> str:
    """Return the beginning of the first line of a text that is not empty, for messages."""
    with path.open("rb") as file:
        text = _decoded(file.read(HEADER_BYTES), "replace")
    return shortened(_first_line_of(text), 60)


def header(path: Path) -> list[str]:
    """Return the names of the columns of a table, from its beginning alone."""
    with path.open("rb") as file:
        text = _decoded(file.read(HEADER_BYTES), "replace")
    before, delimiter = _beginning(text)
    line = [*text.splitlines()[before:], ""][0]
    if path.suffix.lower() == LIST:
        # other texts are no tables of a folder
        return ["path", "label"] if _is_list(text) and split_in(path.name) else []
    if path.suffix.lower() != LINES:
        return [name.strip(' "\r\n') for name in line.split(delimiter)]
    try:
        cells = json.loads(line, parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        return []
    return [*cells] if isinstance(cells, dict) else []


def labelled_tables(folder: Path, data: Data) -> list[Path]:
    """Return the tables in a folder that have columns of paths and labels, or a column for each
    class."""
    return [
        path
        for path, roles in headers(folder, data).items()
        if roles.path
        and not SUBMISSION.search(path.stem)
        and (roles.label or is_one_hot(path, data))
    ]


def is_one_hot(path: Path, data: Data) -> bool:
    """Whether a table has a column for each class instead of one of labels."""
    try:
        table = read_table(path)
    except UserError:
        return False
    roles = roles_of(table.columns, data)
    return not roles.label and bool(class_columns(table, roles, data))


def class_columns(table: ImageTable, roles: Roles, data: Data) -> list[str]:
    """Return the columns of classes, where there is one for each; none if it is not clear.

    This is the form of ISIC 2018 and 2019: a column for each class, 1 in that of the label and
    else 0. They are those that `data` names; all columns but those with a role, if they hold only
    0 and 1; or neighbours of which exactly one is 1 in every row, beside columns of other content.
    """
    if named := _named_classes(data):
        return named if set(named) <= {*table.columns} else []
    free = [name for name in table.columns if name and name not in roles]
    binary = {name for name in free if {row.cells[name] for row in table.rows} <= ZERO_OR_ONE}
    if len(binary) < FEWEST_CLASSES or not table.rows:
        return []
    if len(binary) == len(free):
        return free
    neighbours = _neighbours_with_one_label(table, free, binary)
    return neighbours[0] if len(neighbours) == 1 else []


def _named_classes(data: Data) -> list[str]:
    """Return the columns of the classes that --data.label a,b,c names; none if it names one
    column."""
    names = [name.strip() for name in (data.label_column or "").split(",")]
    return names if len(names) > 1 else []


def _neighbours_with_one_label(
    table: ImageTable, columns: Sequence[str], binary: Collection[str]
) -> list[list[str]]:
    """Return the longest runs of neighbouring columns of 0 and 1 of which every row has one 1."""
    values = np.array(
        [
            [float(row.cells[name]) if name in binary else 2 for name in columns]
            for row in table.rows
        ]
    )
    runs = list[list[str]]()
    first = 0
    while first < len(columns):
        ones_up_to = values[:, first:].cumsum(axis=1)
        lasts = np.flatnonzero((ones_up_to == 1).all(axis=0))
        length = int(lasts[-1]) + 1 if len(lasts) else 0
        if length >= FEWEST_CLASSES:
            runs.append([*columns[first : first + length]])
        first += max(length, 1)
    return runs


def labelled(path: Path, folder: Path, data: Data) -> Listing:
    """Return a table's images in `folder`, from its columns path, label, split and group, and
    notes; see COLUMNS.

    `data` may name columns; its group "none" uses no groups. Only groups may be empty; an image has
    one label.
    """
    table = read_table(path)
    _check_named_columns(table, data)
    roles = roles_of(table.columns, data)
    classes = [] if roles.label else class_columns(table, roles, data)
    if not roles.split:
        roles = roles._replace(split=column_of_splits(table, roles))
    _check_roles(table, roles, classes)
    other_groups = list[str]()
    if data.group is None:
        other_groups = [name for name in table.columns if usual_columns([name]).group]
    images = dict[ImageFile, LabelledImage]()
    for row in table.rows:
        image = _labelled_image(row, roles, classes, other_groups)
        first = images.setdefault(image.file, image)
        if first[1:4] != image[1:4]:
            raise UserError(
                f"'{image.file}' has two labels, splits or groups, in {first.place} and in "
                f"{image.place}"
            )
    placed = find_files(_with_whole_numbers([*images.values()]), folder)
    notes = _column_notes(table, roles, classes) + _half_used_splits(table, roles)
    return Listing(placed.images, notes + placed.notes)


def _with_whole_numbers(images: Sequence[LabelledImage]) -> list[LabelledImage]:
    """Return the images; labels 0.0, 1.0, ... become 0, 1, ...

    pandas writes numbers of classes so where a label was missing; as texts, 10.0 is before 2.0.
    """
    if not all(WHOLE_NUMBER.fullmatch(image.label) for image in images):
        return [*images]
    return [image._replace(label=image.label.partition(".")[0]) for image in images]


def column_of_splits(table: ImageTable, roles: Roles) -> str:
    """Return the column with one of `SPLIT_COLUMNS` as its name whose cells are all names of
    splits, train among them; "" if there is none.

    Two such columns that differ are refused.
    """
    splits_of = dict[str, list[str]]()
    for name in table.columns:
        if name.lower() in SPLIT_COLUMNS and name not in roles:
            splits = [SPLITS.get(row.cells[name].lower(), "") for row in table.rows]
            if "train" in splits and "" not in splits:
                splits_of[name] = splits
    first = next(iter(splits_of), "")
    for other, splits in splits_of.items():
        if splits != splits_of[first]:
            raise UserError(
                f"'{table.path}' has two columns of splits, '{first}' and '{other}', that differ; "
                "allowed: one of them, or one called split"
            )
    return first


def _half_used_splits(table: ImageTable, roles: Roles) -> list[DataNote]:
    """Return a note on each column that is not used, although some of its cells are splits."""
    notes = list[DataNote]()
    for name in table.columns:
        if name.lower() not in SPLIT_COLUMNS or name in roles or roles.split:
            continue
        other = [row for row in table.rows if row.cells[name].lower() not in SPLITS]
        if len(other) == len(table.rows):
            continue
        why = "no row of it says train"
        if other:
            why = f"{other[0].place} has '{shortened(other[0].cells[name], 40)}'"
        text = f"'{name}' may give other splits; it is not used, since {why}"
        notes.append(DataNote(text, "half-used-splits", name=name))
    return notes


def _check_named_columns(table: ImageTable, data: Data) -> None:
    """Refuse the name of a column that the table lacks."""
    group = None if data.group == "none" else data.group
    named = {"path": data.path_column, "label": data.label_column, "group": group}
    asked = [(role, column) for role, column in named.items() if column is not None]
    if classes := _named_classes(data):
        asked = [(role, column) for role, column in asked if role != "label"]
        asked += [("label", name) for name in classes]
    for role, column in asked:
        if column not in table.columns:
            raise unknown(f"column for data {role} in '{table.path}':", column, table.columns)


def _check_roles(table: ImageTable, roles: Roles, classes: Sequence[str]) -> None:
    missing = [] if roles.path else ["path"]
    if not roles.label and not classes:
        missing.append("label")
    if missing:
        has = shortened(", ".join(f"'{name}'" for name in table.columns)) if table.rows else ""
        usual = " and ".join(f"{role} ({', '.join(COLUMNS[role])})" for role in missing)
        raise UserError(
            f"'{table.path}' has no column for {usual}; it has {has or 'no rows'}; allowed: "
            f"{TABLE}; --data.{missing[0]} names another column"
        )


def _labelled_image(
    row: TableRow, roles: Roles, classes: Sequence[str], other_groups: Sequence[str]
) -> LabelledImage:
    """Return the image of a row; `other_groups`: columns that may hold a group where its own is
    empty, which is refused."""
    place, cells = row
    file = cells[roles.path]
    label = cells[roles.label] if roles.label else _one_hot_label(row, roles.path, classes)
    split = cells[roles.split] if roles.split else ""
    group = cells[roles.group] if roles.group else ""
    if group in MISSING:
        group = ""
        other = next((name for name in other_groups if cells[name] not in MISSING), "")
        if other:
            raise UserError(
                f"{place}: '{roles.group}' is empty, but not '{other}'; allowed: one column of "
                f"groups for all images, --data.group {other}"
            )
    if not (file and label):
        got = f"got {shortened(file, 40)!a} and {shortened(label, 40)!a}"
        raise UserError(f"{place}: {got}; allowed: a path and a label")
    if split and split.lower() not in SPLITS:
        raise unknown(f"split in {place}:", split, SPLITS)
    path = Path(os.path.normpath(file.replace("\\", "/")))
    return LabelledImage(path, label, SPLITS.get(split.lower(), ""), group, place)


def _one_hot_label(row: TableRow, path_column: str, classes: Sequence[str]) -> str:
    strange = next((name for name in classes if row.cells[name] not in ZERO_OR_ONE), None)
    if strange is not None:
        raise UserError(f"{row.place}: got '{row.cells[strange]}' in '{strange}'; allowed: 0 or 1")
    labels = [name for name in classes if float(row.cells[name]) == 1]
    if len(labels) != 1:
        file = row.cells[path_column]
        raise UserError(f"{row.place}: got {len(labels)} classes of '{file}'; allowed: one")
    return labels[0]


def _column_notes(table: ImageTable, roles: Roles, classes: Sequence[str]) -> list[DataNote]:
    notes = list[DataNote]()
    unusual = [
        f"{role} by column '{name}'"
        for role, name in roles._asdict().items()
        if name and name.lower() != role
    ]
    if unusual:
        notes.append(DataNote(", ".join(unusual), "columns", **roles._asdict()))
    if classes:
        text = f"the label is the column that holds 1, of {join_words(classes, most=10)}"
        notes.append(DataNote(text, "one-hot", classes=tuple(classes)))
    unused = [name for name in table.columns if name not in {*roles, *classes}]
    if named := join_words([name for name in unused if name], most=10):
        text = f"columns that are not used: {named}"
        notes.append(DataNote(text, "unused-columns", names=tuple(unused)))
    return notes


@dataclass
class FileIndex:
    """The image files below a folder, by path and by name."""

    folder: Path
    by_path: Mapping[str, list[Path]]
    """By path without suffix, in Unicode NFC: a Mac decomposes the letters of names."""
    by_name: Mapping[str, list[Path]]
    """By name with and without suffix, in Unicode NFC; without masks."""

    @classmethod
    def of(cls, folder: Path) -> "FileIndex":
        """List the image files below a folder."""
        images = [file for file in files_below(folder) if is_image(file)]
        masks = masks_of(folder, images)
        by_path, by_name = defaultdict[str, list[Path]](list), defaultdict[str, list[Path]](list)
        for file in images:
            by_path[_without_suffix(file)].append(file)
            if file not in masks:
                for name in {file.name, file.stem}:
                    by_name[normalize("NFC", name)].append(file)
        return cls(folder, by_path, by_name)

    def beside(self, path: Path) -> Path | None:
        """Return the file at `path` in another Unicode form, or with another suffix or none."""
        files = self.by_path.get(_without_suffix(path), [])
        same_name = [
            file for file in files if normalize("NFC", file.name) == normalize("NFC", path.name)
        ]
        chosen = same_name or files
        return chosen[0] if len(chosen) == 1 else None

    def named(self, path: Path) -> list[Path]:
        """Return all files of this name, with or without suffix."""
        name = normalize("NFC", path.name)
        return self.by_name.get(name) or self.by_name.get(normalize("NFC", _stem(path)), [])


def _stem(path: Path) -> str:
    """Return the name of a file without the suffix of an image."""
    return path.stem if path.suffix.lower() in SUFFIXES else path.name


def _without_suffix(path: Path) -> str:
    return normalize("NFC", str(path.with_name(_stem(path))))


def find_files(images: Sequence[LabelledImage], folder: Path) -> Listing:
    """Return the images with their files in `folder`, and notes; missing files are refused.

    If none of the files that the table has in one folder is there, they are looked for by name,
    with or without suffix, in all folders below `folder`; files of one name must be copies of one
    image.
    """
    wanted = [folder / str(image.file) for image in images]
    lost = {path for path in wanted if not path.is_file()}
    if not lost:
        return Listing(_with_files(images, wanted), [])
    index = FileIndex.of(folder)
    found = {path: path for path in wanted if path not in lost}
    for path in lost:
        if (beside := index.beside(path)) is not None:
            found[path] = beside
    # a bare name has no folder
    right_folders = {path.parent for path in found} - {folder}
    elsewhere = [path for path in lost if path not in found and path.parent not in right_folders]
    for path in elsewhere:
        if _are_copies(candidates := index.named(path)):
            found[path] = candidates[0]
    missing = [image for image, path in zip(images, wanted, strict=True) if path not in found]
    if missing:
        raise _missing_files(missing, len(images), index, elsewhere)
    notes = _search_notes(folder, found, elsewhere)
    return Listing(_with_files(images, [found[path] for path in wanted]), notes)


def _with_files(images: Sequence[LabelledImage], files: Iterable[Path]) -> list[LabelledImage]:
    return [image._replace(file=file) for image, file in zip(images, files, strict=True)]


def _are_copies(files: Sequence[Path]) -> bool:
    """Whether there are files, and all of them have the same bytes."""
    return len(files) == 1 or len({file.read_bytes() for file in files}) == 1


def _search_notes(
    folder: Path, found: Mapping[Path, Path], elsewhere: Collection[Path]
) -> list[DataNote]:
    notes = list[DataNote]()
    if elsewhere:
        text = f"images are found by their names below '{folder}'"
        notes.append(DataNote(text, "found-by-name", count=len(elsewhere)))
    renamed = [
        path
        for path, file in found.items()
        if path.suffix.lower() in SUFFIXES and path.suffix != file.suffix
    ]
    if renamed:
        in_table, on_disk = renamed[0].name, found[renamed[0]].name
        example = f"'{in_table}' is '{on_disk}'"
        text = f"{len(renamed)} images have another suffix than in the table: {example}"
        numbers = {"count": len(renamed), "files": (in_table, on_disk)}
        notes.append(DataNote(text, "other-suffix", **numbers))
    return notes


def _missing_files(
    missing: Sequence[LabelledImage], total: int, index: FileIndex, elsewhere: Collection[Path]
) -> UserError:
    first, folder = missing[0], index.folder
    path = folder / str(first.file)
    if path in elsewhere and len(files := index.named(path)) > 1:
        either = f"'{files[0]}' or '{files[-1]}'"
        return UserError(
            f"'{first.file}' ({first.place}) may be {either}; allowed: its path in the table, or "
            "--data.root, its folder"
        )
    return UserError(
        f"{len(missing)} of {total} files are missing, first '{first.file}' ({first.place}); "
        f"looked for in '{folder}' and, of a folder without any of its files, by name below it; "
        "--data.root names another"
    )


def image_root(table: Path, data: Data) -> Path:
    """Return the folder to which the paths of a table are relative: --data.root, or else its own.

    `table` may be a folder of tables.
    """
    if data.root is not None:
        return Path(os.path.expanduser(data.root))
    return table if table.is_dir() else table.parent
