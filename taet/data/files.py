"""Image files with labels: folders of class folders, and tables."""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from unicodedata import normalize

import numpy as np

from taet.data import tables
from taet.data.dataset import PARTS, DataSource, Part, check_names
from taet.data.downloads import locate
from taet.data.images import MASKS, SUFFIXES, Files, files_below, is_image, left_out, masks_of, survey
from taet.data.splits import divided
from taet.data.storage import reading
from taet.data.tables import MISSING, NUMBER, SPLITS, TABLE, Row, by_number, labelled, placed, read_table
from taet.errors import UserError, located, unknown
from taet.files import RUN
from taet.formatting import listed
from taet.settings import Data

NAMES = {
    "folder": "folder:PATH, a folder of class folders, or one with train/ and test/ that hold the class folders",
    "csv": "csv:PATH, a table of path,label[,split,group]",
}
SIGN = re.compile(r"(\d{5}_){1,2}\d{5}")
RUNS = [depth + name for depth in ("", "*/", "*/*/") for name in (RUN, "evaluation.json")]  # no class has these
ISIC = "ISIC_2019_Training_GroundTruth.csv"
DIVIDED = "no test images are given"
TEST_SHARE = 0.2  # share of each class that is for testing where no split is given


def of_rows(
    rows: Sequence[Row], data: Data, notes: Sequence[str] = (), order: Sequence[str] = (), mirror: bool = True
) -> DataSource:
    """Return the images of rows; the classes are the labels that occur, in `order` or else sorted as text.

    Without splits, TEST_SHARE of a class is for testing; a group in two splits is refused. Grey if all are, else RGB.
    """
    names = check_names(sorted({row.label for row in rows}, key=list(order).index if order else None))
    given, notes = {row.split for row in rows}, list(notes)
    folded = {name: str(int(name)) if NUMBER.fullmatch(name) else normalize("NFC", name).casefold() for name in names}
    times = Counter(folded.values())
    if variants := [name for name, key in folded.items() if times[key] > 1]:
        notes.append(f"classes whose names differ in case, zeros or Unicode form only: {listed(variants, most=6)}")
    unlikely = [name for name in names if name in MISSING or name.lower() in SPLITS]
    notes += [f"'{name}' is taken as a class; remove its images if it means no label" for name in unlikely]
    if given != {""} and not {"train", "test"} <= given <= {*PARTS}:
        got = ", ".join(sorted(split or "none for some" for split in given))
        raise UserError(f"got the splits {got}; allowed: train, test and validation, or no splits")
    files = (os.path.abspath(row.file) if isinstance(row.file, Path) else row.file for row in rows)
    if repeated := [file for file, times in Counter(files).items() if times > 1]:
        raise UserError(f"got '{repeated[0]}' in several rows; allowed: each image once")
    images, rows = surveyed(rows, data)
    numbers, groups = dict[str | int, int](), None
    if any(row.group for row in rows):  # a file without a group gets a number of its own
        groups = np.array([numbers.setdefault(row.group or i, len(numbers)) for i, row in enumerate(rows)])
        named = Counter(row.group for row in rows)
        kept = f"{len(named) - ('' in named)} groups, each kept together"
        notes.insert(0, f"{kept}; {named['']} images stand alone" if named[""] else kept)
    label_of = {name: label for label, name in enumerate(names)}
    labels = np.array([label_of[row.label] for row in rows], np.int64)
    whole = Part(images, labels, names, np.arange(len(labels)), groups)
    if given == {""}:
        train, test = divided(whole, whole.class_counts.tolist(), TEST_SHARE, data.seed)
        if train is None or test is None:
            spare = "second image" if groups is None else "group to spare; without groups: --data.group none"
            raise UserError(f"{DIVIDED}, and no class has a {spare}")
        in_groups = f"whole groups, {len(test) / len(labels):.0%} of the images, are"
        held_out = f"{TEST_SHARE:.0%} of each class, and one of two images, is" if groups is None else in_groups
        notes.insert(0, f"{DIVIDED}: {held_out} for testing (seed {data.seed})")
        made = {"train": whole.choose(np.sort(train)), "test": whole.choose(np.sort(test))}
    else:
        splits = np.array([row.split for row in rows])
        split_counts = Counter(group for group, _ in {(row.group, row.split) for row in rows if row.group})
        if torn := next((group for group, count in split_counts.items() if count > 1), None):
            raise UserError(f"group '{torn}' is in two splits; keep it in one, or give --data.group none")
        made = {part: whole.choose(np.flatnonzero(splits == part)) for part in PARTS if part in given}
        made = {part: replace(of, indices=np.arange(len(of))) for part, of in made.items()}
    counts = made["train"].class_counts
    if not counts.all():
        raise UserError(f"class '{names[counts.argmin()]}' has no training image")
    return DataSource(made, mirror, (*notes, *images.sentences()), data.size is not None)


def surveyed(rows: Sequence[Row], data: Data) -> tuple[Files, list[Row]]:
    """Return the images of rows, and the rows without unreadable ones where `data` says to skip these."""
    skip = data.skip_unreadable
    images = survey([row.file for row in rows], data.size, decode=skip, skip=skip)
    readable = {*images.files}
    return images, [row for row in rows if row.file in readable]


def read(data: Data) -> DataSource:
    """Return the images of folder:PATH or csv:PATH.

    Of a folder, classes are the names of the class folders in alphabetical order, and images may lie in subfolders of
    them; at the first level where a class has two or more subfolders, images in subfolders of one name, across classes,
    are a group. ISIC 2019 has tables of its own: see `_isic`. Of a table: see `taet.data.tables`.
    """
    path, order = locate(data), list[str]()
    if data.name.startswith("csv:"):
        root = path.parent if data.root is None else Path(os.path.expanduser(data.root))
        rows, notes = labelled(path, root, data.group)
        order = by_number(row.label for row in rows)
    else:
        inner = [path]
        while len(only := _folders(inner[-1])) == 1:  # an archive unpacks to a folder of its own
            inner += only
        isic = next((folder for folder in inner if (folder / ISIC).is_file()), None)
        with_splits = (folder for folder in inner if {"train", "test"} <= _split_folders(folder).keys())
        top = isic or next(with_splits, path)
        rows, notes = _isic(top, data.group) if isic else _of_folder(top, data.group)
        notes += _unused(top, rows, data.group) if isic is None else []
    with_tracks, grouped = signs(rows), any(row.group for row in rows)
    if with_tracks is not None and data.group != "none":
        effects = [] if grouped else ["the frames of one sign stay in one split"]
        effects += [] if data.mirror == "yes" else ["no image is mirrored"]
        notes += [f"names as GTSRB's: {', and '.join(effects)}"] if effects else []
        rows = rows if grouped else with_tracks
    with located(f"'{path}'"):
        return of_rows(rows, data, notes, order, mirror=with_tracks is None)


def _unused(folder: Path, rows: Sequence[Row], group: str | None) -> list[str]:
    """Return a note on each table in a folder whose groups, without a `group` given, or splits are not used."""
    grouped, used = any(row.group for row in rows), {row.place.rpartition(", ")[0] for row in rows}
    why = "only images of one subfolder are kept together" if grouped else "images of one {} may be in two splits"
    others = {table.name: of for table, of in tables.headers(folder).items() if f"'{table}'" not in used}
    known = group is not None or (grouped and any(used))  # the groups come from the table that has the labels
    notes = [f"'{name}' is not used: {why.format(of['group'])}" for name, of in others.items() if of["group"]]
    splits = [f"'{name}' is not used: it may give other splits" for name, of in others.items() if of["split"]]
    return splits if known else notes + splits


def _of_folder(path: Path, group: str | None) -> tuple[list[Row], list[str]]:
    """Return the images of class folders, and notes; a single table beside the folders has the labels instead."""
    folders = _split_folders(path)
    if len(full := [] if folders else tables.labelled_tables(path)) == 1:
        rows, notes = labelled(full[0], path, group)
        classes = {row.label for row in rows}
        tops = [os.path.relpath(str(row.file), path).partition(os.sep)[0] for row in rows]
        if apart := [row for row, top in zip(rows, tops, strict=True) if top != row.label and top in classes]:
            got = f"{len(apart)} images lie in folders of other classes than '{full[0]}' says, e.g. '{apart[0].file}'"
            raise UserError(f"{got}; allowed: --data 'csv:{full[0]}' if the table is right, else no table there")
        images = [file for file in files_below(path) if is_image(file)]
        without = {file.resolve() for file in {*images} - masks_of(path, images)}
        without -= {Path(str(row.file)).resolve() for row in rows}
        notes += [f"{len(without)} images without a row in it are left out"] if without else []
        return rows, [f"labels are those of '{full[0].name}'", *notes]
    if group not in (None, "none", "folder"):
        raise UserError(f"data group: got '{group}'; allowed of a folder: folder (subfolders of class folders) or none")
    rows, notes = rows_of(folders or {"": path})
    beside = _folders(path) if folders else []
    notes += [f"'{other.name}' is left out" for other in beside if other not in folders.values()]
    several = listed((f"'{table.name}'" for table in full), most=3)
    takes = f"; --data 'csv:{full[0]}' takes the labels of that table" if full else ""
    notes += [f"tables of labels that are not used: {several}{takes}"] if full else []
    inside = {SPLITS.get(row.group.partition("/")[0].lower(), "") for row in rows if row.group}
    if {"train", "test"} <= inside:
        raise UserError(f"'{path}' has its splits inside the class folders; allowed: train/ and test/ that hold them")
    all_rows = rows
    for depth in range(1, 2 + max(row.group.count("/") for row in rows)):  # a patient's eyes or visits stay together
        rows = [row._replace(group=normalize("NFC", "/".join(row.group.split("/")[:depth]))) for row in all_rows]
        subfolders = Counter(label for label, _ in {(row.label, row.group) for row in rows if row.group})
        if max(subfolders.values(), default=0) > 1:
            break
    per_class = Counter(label for label, _ in {(row.label, row.group or str(row.file)) for row in rows})
    if len(per_class) == 1:
        hint = f"; did you mean '{path / rows[0].label}'?" if rows[0].group and not folders else takes
        raise UserError(f"'{path}' has one class folder; allowed: 2 or more{hint}")
    splits = Counter(of for of, _ in {(row.group, row.split) for row in rows if row.group})
    lone = [label for label, count in per_class.items() if count < 2]
    wrong = [f"class '{lone[0]}' has only one"] if lone and 2 * len(lone) >= len(per_class) else []
    wrong += [f"{twice} of them in two splits"] if (twice := sum(count > 1 for count in splits.values())) else []
    if splits and wrong and group is None:
        way = "" if max(splits.values()) > 1 else "; --data.group folder does"
        notes.append(f"subfolders are not kept together as groups, e.g. patients: {wrong[0]}{way}")
    if group == "none" or (wrong and group is None):
        rows = [row._replace(group="") for row in rows]
    elif splits:
        notes.append(f"a group is a subfolder of a class folder, at level {depth} below it")
        if one := next((of for of in lone if of in subfolders and not folders and group is None), None):
            notes.append(f"class '{one}' is one group, so it is in one split; --data.group none divides it")
    return rows, notes


def rows_of(folders: Mapping[str, Path]) -> tuple[list[Row], list[str]]:
    """Return the images of the folder of each split, with their subfolders as groups, and notes."""
    rows, notes, known = list[Row](), list[str](), set[str]()
    for split, outer in folders.items():
        # A single folder `images`, as in GTSRB's archives, holds the class folders; masks may be beside it.
        inner = [child for child in _folders(outer) if not MASKS.fullmatch(child.name)]
        folder = inner[0] if len(inner) == 1 and inner[0].name.lower() == "images" else outer
        notes += [f"'{child.name}' is left out" for child in _folders(outer) if folder != outer and child not in inner]
        table = _table_of(folder) if split not in ("", "train") and not _folders(folder) else None
        if table is None:
            own, own_notes = class_rows(folder, split)
            notes += own_notes
        else:
            numbers = {str(int(name)): name for name in known if NUMBER.fullmatch(name)}  # a label 0 is class 00000
            own, _ = labelled(table, folder, "none")
            own = [row._replace(split=split, label=numbers.get(row.label, row.label)) for row in own]
            notes.append(f"'{folder.name}' has no class folders: its labels are those of '{table.name}'")
        known |= {row.label for row in own} if split in ("", "train") else set()
        if strange := next((row for row in own if row.label not in known), None):
            raise unknown(f"class of '{strange.file}', without a training image:", strange.label, known)
        rows += own
    return rows, notes


def class_rows(folder: Path, split: str = "") -> tuple[list[Row], list[str]]:
    """Return the images of each class folder, in alphabetical order, with their subfolders as groups, and notes."""
    rows, notes, every, masks, classes = list[Row](), list[str](), list[Path](), set[Path](), _folders(folder)
    if not classes:
        raise UserError(f"'{folder}' holds no class folders; allowed: class folders, or a table: csv:FILE")
    for child in classes:
        every += (files := files_below(child))
        images = [file for file in files if is_image(file)]
        drawn = masks_of(child, images)
        images, masks = [file for file in images if file not in drawn], masks | drawn
        if not images:
            allowed = ", ".join(sorted(SUFFIXES)) if files else "one or more, or no such folder"
            raise UserError(f"class folder '{child}' holds no image; allowed: {allowed}")
        rows += [Row(file, child.name, split, "/".join(file.relative_to(child).parts[:-1])) for file in images]
    if masks:
        notes.append(f"{len(masks)} masks of images are left out")
    if outside := sum(map(is_image, folder.iterdir())):
        notes.append(f"{outside} images outside of the class folders are left out")
    return rows, notes + left_out(every)


def _folders(path: Path) -> list[Path]:
    if not path.is_dir():
        seen = "" if path.is_absolute() else f", seen from {Path.cwd()}; TAET_DATA can name the folder that holds it"
        raise UserError(f"no such folder: '{path}'{seen}")
    inner = (child for child in path.iterdir() if child.is_dir() and not child.name.startswith((".", "__MACOSX")))
    return sorted(child for child in inner if not any(next(child.glob(run), None) for run in RUNS))


def _split_folders(path: Path) -> dict[str, Path]:
    """Return the folder of each split; none if `path` holds the class folders itself.

    Of two folders whose names differ in upper and lower case only, as in some archives, the first is read.
    """
    found = dict[str, Path]()
    for folder in _folders(path):
        split = SPLITS.get(folder.name.lower())
        if split and found.setdefault(split, folder).name.lower() != folder.name.lower():
            raise UserError(f"'{path}' has two {split} folders, '{found[split].name}' and '{folder.name}'; keep one")
    missing = [split for split in ("train", "test") if split not in found]
    if missing and any(map(_folders, found.values())):  # else they hold images: they are classes
        raise UserError(f"'{path}' has no folder '{missing[0]}'; add it, or leave only the class folders")
    return {} if missing else {split: found[split] for split in PARTS if split in found}


def _table_of(folder: Path) -> Path | None:
    """Return the table of labels for a folder without class folders: one inside it, or one beside it with its name."""
    split = folder.parent if folder.name.lower() == "images" else folder
    near = [table for place in (split, split.parent, split.parent.parent) for table in tables.labelled_tables(place)]
    found = [*tables.labelled_tables(folder), *(table for table in near if split.name.lower() in table.stem.lower())]
    return found[0] if found else None


def _isic(folder: Path, group: str | None) -> tuple[list[Row], list[str]]:
    """Return the images of ISIC 2019 (arXiv:1908.02288), and notes.

    One table has a column for each class, the other one the lesion of each image.
    """
    lesions, made, path = dict[str, str](), list[Row](), folder / ISIC
    with reading(path, TABLE):
        if group != "none":
            table = read_table(folder / ISIC.replace("GroundTruth", "Metadata"))
            lesions = {cells["image"]: cells[group or "lesion_id"] for _, cells in table}
        for place, cells in read_table(path):
            name = cells.pop("image")
            classes = [label for label, cell in cells.items() if float(cell) == 1]
            if len(classes) != 1:
                raise UserError(f"{place}: got {len(classes)} classes of '{name}'; allowed: one")
            made.append(Row(Path(name), classes[0], "", lesions.get(name, ""), place))
    found, notes = placed(made, folder)
    return found, ["layout of ISIC 2019", *notes]


def signs(rows: Sequence[Row]) -> list[Row] | None:
    """Return the images with their tracks as groups if all are named as GTSRB's; None for other images.

    Names end in the numbers of the track, within its class, and of the frame, as in 00003_00029.ppm; in Kaggle's copy
    the class comes first. A track is about 30 frames of one sign that a car passes.
    """
    made = list[Row]()
    for row in rows:
        stem = Path(str(row.file)).stem
        if row.split == "test":
            made.append(row)
        elif SIGN.fullmatch(stem) and NUMBER.fullmatch(row.label):
            made.append(row._replace(group=f"{row.label}/{stem.split('_')[-2]}"))
        else:
            return None
    return made
