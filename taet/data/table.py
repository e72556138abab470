"""Data sets as a list of image files with labels, or one such list for each split."""

from __future__ import annotations

import itertools
import os
import re
from collections import defaultdict
from pathlib import Path

import numpy as np

from taet.data.images import are_copies, files_below, is_image
from taet.data.listing import Listing
from taet.data.places import locate
from taet.data.rows import NUMBER, SPLITS, Row, Rows, Unlabelled, Wanted, read_rows
from taet.errors import UserError
from taet.settings import Data

NAMES = {"csv": "csv:PATH, a table of path,label[,split,group], or lists such as those of ImageNet-LT and iNaturalist"}
TRAIN = re.compile(r"(?<![a-z])train(?![a-z])")
"""The word in the name of a list, as in train2018.json, that is replaced in the names of the lists for other splits."""


def _beside(table: Path) -> dict[str, Path]:
    """Return the lists of the other splits in the folder of a training list, by split."""
    found: dict[str, Path] = {}
    for word, split in SPLITS.items():
        other = table.with_name(TRAIN.sub(word, table.name))
        if other == table or not other.is_file():
            continue
        if split in found:
            raise UserError(f"two lists for {split}, '{found[split]}' and '{other}'; keep one")
        found[split] = other
    return found


def _together(table: Path, wanted: Wanted) -> tuple[Rows, list[str]]:
    """Return the images of a list and of the lists of the other splits beside it, and notes."""
    whole, notes = read_rows(table, wanted), []
    if whole.guessed:
        notes.append(whole.guessed)
    lists = {} if "split" in whole.columns else _beside(table)
    found: dict[str, Rows] = {}
    for split, path in lists.items():
        try:
            found[split] = read_rows(path, wanted)
        except Unlabelled:
            notes.append(f"'{path.name}' has no labels and is left out")
            continue
        if "split" in found[split].columns:
            raise UserError(f"'{path}' has a column 'split', but by its name it is for {split}; keep one")
    if not found:
        return whole, notes
    if "test" not in found:
        found["test"] = found.pop("validation")
        notes.append(f"no list with labels for test: '{lists['validation'].name}' is for testing")
    parts = {"train": whole, **found}
    return Rows(
        [row._replace(split=split) for split, part in parts.items() for row in part.rows],
        frozenset(("split",)).union(*(part.columns for part in parts.values())),
        whole.likely_group,
    ), notes


def _once(rows: list[Row]) -> list[Row]:
    """Leave out repeated rows; refuse a file with two labels or two groups."""
    first: dict[str, Row] = {}
    kept: dict[tuple[str, str], Row] = {}
    for row in rows:
        before = first.setdefault(row.path, row)
        for what, one, other in (("label", before.label, row.label), ("group", before.group, row.group)):
            if one != other:
                raise UserError(
                    f"'{row.path}' has two {what}s, '{one}' in {before.place}, and '{other}' in {row.place}"
                )
        kept.setdefault((row.path, row.split), row)
    return list(kept.values())


def _check_files(rows: list[Row], files: list[Path], folder: Path) -> None:
    """Refuse a list with missing files; each folder is read once, which is faster than looking for each file."""
    there: dict[str, set[str]] = {}
    missing = []
    for row, file in zip(rows, files, strict=True):
        place, name = os.path.split(file)
        if place not in there:
            there[place] = set(os.listdir(place)) if os.path.isdir(place) else set()
        # A file system may find a name that it lists differently: in another case or another form of Unicode.
        if name not in there[place] and not file.is_file():
            missing.append(row)
    if missing:
        raise UserError(
            f"{len(missing)} of {len(rows)} files are missing, first '{missing[0].path}' ({missing[0].place}); looked "
            f"for in '{folder}'; --data.root names another folder, --data.image-template 'images/{{}}.jpg' another path"
        )


def _by_name(rows: list[Row], folder: Path) -> list[Path]:
    """Return the file in a subfolder that each row names, with or without its suffix; nothing if any is missing.

    No search is made if the path in the first row exists.
    """
    if (folder / rows[0].path).is_file() or any(os.sep in row.path for row in rows):
        return []
    names: dict[str, list[Path]] = defaultdict(list)
    for file in filter(is_image, files_below(folder)):
        for name in {file.name, file.stem}:
            names[name].append(file)
    found = [names[row.path] for row in rows]
    return [files[0] for files in found] if all(files and are_copies(files) for files in found) else []


def _class_names(labels: list[str]) -> tuple[dict[str, int], tuple[str, ...], tuple[str, ...]]:
    """Return the class of each label, the class names, and notes: whole numbers are sorted by size, others as text.

    If two labels are the same number, such as 01 and 1, all labels are text.
    """
    names = distinct = sorted(set(labels))
    notes: tuple[str, ...] = ()
    if all(NUMBER.fullmatch(label) for label in distinct):
        by_size, count = sorted(distinct, key=int), len(distinct)
        alike = next(((one, two) for one, two in itertools.pairwise(by_size) if int(one) == int(two)), None)
        if alike is not None:
            notes = (f"labels '{alike[0]}' and '{alike[1]}' are the same number: all labels are used as text",)
        else:
            distinct, names = by_size, [str(int(label)) for label in by_size]
            if names != list(map(str, range(count))):
                notes = (f"labels are not 0 to {count - 1}: the {count} that occur are the classes, sorted",)
    return {label: i for i, label in enumerate(distinct)}, tuple(names), notes


def listing(data: Data) -> Listing:
    """List the images of a table; where it has no splits, a fifth of each class, by the seed, is for testing.

    The first line of a table names the columns, separated by commas, semicolons or tabs: `path`, relative to the
    table's folder or to --data.root; `label`, a name or a whole number; optionally `split`: train, val (valid,
    validation) or test; and optionally `group`, or the column that --data.group names: images of one group are kept in
    one split. Other columns are ignored. Text is UTF-8. A list may also be lines of a path and a whole number, or
    COCO's .json: see `taet.data.rows`.

    If the name of a list without splits contains the word train, like ImageNet_LT_train.txt or train2018.json, the
    lists for val (valid, validation) and test are looked for beside it. A list without labels is left out; without a
    list for test, that for validation is the test set, as for iNaturalist. Classes are the labels that occur: whole
    numbers sorted by size, others alphabetically.

    Columns with other usual names are used, with a note; --data.image-column and --data.label-column name any other. A
    cell that is not a path is searched by its name below the folder, or becomes a path by --data.image-template.
    """
    table = locate(data)
    wanted = Wanted(data.group, data.image_column, data.label_column, data.image_template)
    (every, columns, likely, _), notes = _together(table, wanted)
    if likely is not None:
        notes.append(f"column '{likely}' may name groups of images: --data.group {likely} keeps each in one split")
    rows = _once(every)
    folder = Path(os.path.expanduser(data.root)) if data.root is not None else table.parent
    if data.image_template is None and (found := _by_name(rows, folder)):
        rows = [row._replace(path=os.path.relpath(file, folder)) for row, file in zip(rows, found, strict=True)]
        notes.append(f"files are found by their names below '{folder}', e.g. '{rows[0].path}'")
    files = [folder / row.path for row in rows]
    _check_files(rows, files, folder)
    labels, names, about_labels = _class_names([row.label for row in rows])
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
        "no column 'split' and no list for test",
        tuple(row.group for row in rows) if "group" in columns else None,
        "another name for the column 'group'" if data.group is None else "--data.group None",
        (*notes, *about_labels, *((f"{repeated} rows repeat another and are left out",) if repeated else ())),
        likely_group=likely,
    )
