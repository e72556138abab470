"""Folders and tables of image files in the forms that people make: the layout is detected, and its
images are listed."""

import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

from taet.data.archives import is_archive, unpacked
from taet.data.class_folders import (
    MASK_FOLDER,
    class_folders,
    files_below,
    is_image,
    masks_of,
    subfolders,
)
from taet.data.class_names import MISSING, NUMBER, by_number
from taet.data.dataset import PARTS, DataSource
from taet.data.downloads import locate
from taet.data.labelled_images import (
    SPLITS,
    LabelledImage,
    Listing,
    grouped_by_pattern,
    note_on_names_alike,
    source_of,
    with_tracks,
)
from taet.data.notes import DataNote
from taet.errors import UserError, prefix_errors, unknown
from taet.formatting import join_words
from taet.own_data import tables
from taet.settings import Data

NAMES = {
    "folder": "folder:PATH, a folder of class folders, or one with train/ and test/ that hold the "
    "class folders; or an archive of it (.zip, .tar, .tar.gz)",
    "csv": "csv:PATH, a table of path,label[,split,group], or a folder with one for each split",
}


class FolderListing(NamedTuple):
    """The images of a folder, notes, and the tables that their labels come from."""

    images: list[LabelledImage]
    notes: list[DataNote]
    tables_used: Collection[Path] = ()


def read(data: Data, only_test: bool = False) -> DataSource:
    """Return the images of folder:PATH or csv:PATH.

    Of a folder, classes are the names of the class folders in alphabetical order, and images may
    lie in subfolders of them; at the first level where a class has two or more subfolders, images
    in subfolders of one name, across classes, are a group. A table in the folder may have the
    labels instead, see `taet.own_data.tables`. An archive is unpacked once into the cache.
    `only_test`: see `source_of`.
    """
    path, order, pattern = locate(data), list[str](), data.group_pattern
    if pattern is not None:  # instead of columns, folders and tracks
        data = data.replace(group_pattern=None, group="none")
    if data.name.startswith("csv:"):
        images, notes = _of_tables(path, data, only_test)
        order = by_number(image.label for image in images)
    else:
        folder = path
        if path.is_file() and is_archive(path):
            folder = _without_outer_folders(unpacked(path))
        images, notes = list_folder(folder, data, only_test)
    tracks = with_tracks(images)
    if pattern is not None:
        images, pattern_notes = grouped_by_pattern(images, pattern)
        notes += pattern_notes
    elif tracks is not None and data.group != "none":
        grouped = any(image.group for image in images)
        notes += _track_notes(grouped, data.mirror)
        images = images if grouped else tracks
    elif data.group != "none" and not any(image.group for image in images):
        notes += note_on_names_alike(images)
    with prefix_errors(f"'{path}'"):
        return source_of(
            images, data, notes, order=order, mirror=tracks is None, only_test=only_test
        )


def _without_outer_folders(folder: Path) -> Path:
    """Return the first folder below `folder` that holds more than another folder."""
    while len(children := [*folder.iterdir()]) == 1 and children[0].is_dir():
        folder = children[0]
    return folder


def _track_notes(grouped: bool, mirror: str) -> list[DataNote]:
    effects = list[str]()
    if not grouped:
        effects.append("the frames of one sign stay in one split")
    if mirror != "yes":
        effects.append("no image is mirrored")
    if not effects:
        return []
    return [DataNote(f"names as GTSRB's: {', and '.join(effects)}", "tracks", grouped=not grouped)]


def list_folder(path: Path, data: Data, only_test: bool = False) -> Listing:
    """Return the images of a folder, by the first layout that it has.

    In this order: tables with a column for each class, as in ISIC 2018 and 2019; folders of splits;
    a table of labels beside the images, or one for each split; class folders. An archive unpacks to
    a folder of its own, so that the first two are looked for in nested folders, too.
    """
    nested = [path]
    while len(only := subfolders(nested[-1])) == 1:
        nested += only
    for folder in nested:
        one_hot = [table for table in _tables_near(folder, data) if tables.is_one_hot(table, data)]
        if by_split := _by_split(one_hot):
            return _of_one_hot_tables(folder, by_split, data)
    folder, splits = path, dict[str, Path]()
    for candidate in nested:
        if found := split_folders(candidate):
            folder, splits = candidate, found
            break
    labelled = tables.labelled_tables(folder, data)
    beside = labelled
    if len(subfolders(folder)) > 1:  # class folders say more than the numbers of a list
        beside = [table for table in labelled if table.suffix.lower() != tables.LIST]
    if splits and not (len(beside) == 1 and _hold_only_images(splits.values(), data)):
        made = _of_split_folders(folder, splits, data)
    elif len(beside) == 1:
        made = _of_table_beside(folder, beside[0], data, splits)
    elif by_split := _by_split(beside):
        made = _of_split_tables(folder, by_split, data)
    else:
        _refuse_named_columns(folder, data)
        made = _of_class_folders(path, beside, data, only_test)
    if not made.tables_used:
        _refuse_named_columns(folder, data)
    unused = [table for table in labelled if table not in made.tables_used]
    notes = [*made.notes, *_unused_labels(unused), *_unused_tables(folder, made, data)]
    return Listing(made.images, notes)


def _tables_near(folder: Path, data: Data) -> list[Path]:
    """Return the tables of labels in a folder, and in those of its subfolders that hold only
    tables."""
    found = tables.labelled_tables(folder, data)
    for child in subfolders(folder):
        if not any(is_image(file) or file.is_dir() for file in child.iterdir()):
            found += tables.labelled_tables(child, data)
    return found


def _by_split(labelled: Sequence[Path]) -> dict[str, Path]:
    """Return the table of each split, by their names, or a single table for ""; empty if neither
    is clear."""
    if len(labelled) == 1:
        return {"": labelled[0]}
    by_split = dict[str, Path]()
    for table in labelled:
        split = tables.split_in(table.name)
        if not split or split in by_split:
            return {}
        by_split[split] = table
    return by_split if "train" in by_split else {}


def _hold_only_images(folders: Iterable[Path], data: Data) -> bool:
    """Whether the folders of all splits have neither class folders nor tables of their own."""
    return not any(subfolders(folder) or _table_of(folder, data) for folder in folders)


def _refuse_named_columns(folder: Path, data: Data) -> None:
    """Refuse names of columns where no table has the labels, with the columns that there are."""
    named = {"path": data.path_column, "label": data.label_column}
    option = next((option for option, column in named.items() if column is not None), None)
    if option is None:
        return
    columns = [
        f"; '{table.name}' has the columns {join_words(tables.header(table), most=10)}"
        for table in tables.headers(folder, data)
    ]
    raise UserError(
        f"data {option}: got '{named[option]}'; allowed: with a table of labels, whose columns of "
        f"paths and labels --data.path and --data.label name; '{folder}' has none"
        f"{''.join(columns[:1])}"
    )


# Tables


def _of_tables(path: Path, data: Data, only_test: bool) -> Listing:
    """Return the images of csv:PATH, a table or a folder with a table for each split."""
    root = tables.image_root(path, data)
    if not path.is_dir():
        return tables.labelled(path, root, data)
    labelled = tables.labelled_tables(path, data)
    _check_all_are_understood(path, labelled)
    by_split = _by_split(labelled)
    only = tables.split_in(labelled[0].name) if len(labelled) == 1 else ""
    if not by_split or (only in ("validation", "test") and not only_test):
        names = join_words([f"'{table.name}'" for table in labelled], most=4)
        raise UserError(
            f"'{path}' has no table of labels for each split, with one for training: got "
            f"{names or 'none'}; allowed: a table, or a folder with tables named e.g. train.csv "
            "and test.csv"
        )
    listing = _of_split_tables(root, by_split, data)
    return Listing(listing.images, listing.notes)


def _check_all_are_understood(path: Path, labelled: Collection[Path]) -> None:
    """Refuse a file that has the name of a split and of a table, and is not read as one."""
    for file in sorted(path.iterdir()):
        has_suffix = file.suffix and file.suffix.lower() in tables.TABLE_SUFFIXES
        if has_suffix and tables.split_in(file.name) and file not in labelled:
            first = tables.first_line(file)
            raise UserError(
                f"'{file}' is not understood as a table of labels; its first line is '{first}'; "
                "allowed: columns of paths and labels, or lines of a path and a number"
            )


def _of_one_hot_tables(folder: Path, by_split: Mapping[str, Path], data: Data) -> Listing:
    """Return the images of tables with a column for each class; other tables near them may have
    their groups."""
    images, notes, used = _of_split_tables(folder, by_split, data.replace(group="none"))
    if data.group == "none":
        return Listing(images, notes)
    group_of, sources = dict[str, str](), list[str]()
    places = dict.fromkeys([folder, *(table.parent for table in used)])
    for other in (table for place in places for table in tables.headers(place, data)):
        if other not in used and (groups := _groups_in(other, data)):
            group_of |= groups
            sources.append(f"'{other.name}'")
    if sources:
        text = f"groups are those of {join_words(sources)}"
        notes.append(DataNote(text, "groups-by", tables=tuple(sources)))
    elif data.group is not None:
        names = join_words(f"'{table.name}'" for table in used)
        raise UserError(
            f"data group: got '{data.group}'; allowed with {names}: a column of a table beside it, "
            "or none"
        )
    grouped = [
        image._replace(group=group_of.get(Path(str(image.file)).stem, "")) for image in images
    ]
    return Listing(grouped, notes)


def _of_split_tables(folder: Path, by_split: Mapping[str, Path], data: Data) -> FolderListing:
    """Return the images of the table of each split, or of a single one for ""."""
    images = list[LabelledImage]()
    names = join_words(
        f"'{table.name}'{f' ({split})' if split else ''}" for split, table in by_split.items()
    )
    notes = [DataNote(f"labels are those of {names}", "table", splits=tuple(by_split))]
    for split, table in by_split.items():
        own_images, own_notes = tables.labelled(table, folder, data)
        images += [image._replace(split=split or image.split) for image in own_images]
        notes += [note for note in own_notes if note not in notes]
    return FolderListing(images, notes, [*by_split.values()])


def _groups_in(path: Path, data: Data) -> dict[str, str]:
    """Return the group of each image by a table, by the image's name without suffix; empty if it
    has none."""
    table = tables.read_table(path)
    roles = tables.roles_of(table.columns, data)
    if not roles.path or not roles.group:
        return {}
    groups = {row.cells[roles.path]: row.cells[roles.group] for row in table.rows}
    return {Path(name).stem: group for name, group in groups.items() if group not in MISSING}


def _of_table_beside(
    path: Path, table: Path, data: Data, splits: Mapping[str, Path]
) -> FolderListing:
    """Return the images of the only table of labels in a folder; those in folders of splits have
    these."""
    images, notes = tables.labelled(table, path, data)
    _check_folders_agree(images, path, table)
    if splits and not any(image.split for image in images):
        images = [image._replace(split=_split_of(image, splits)) for image in images]
    files = [file for file in files_below(path) if is_image(file)]
    without = {file.resolve() for file in {*files} - masks_of(path, files)}
    without -= {Path(str(image.file)).resolve() for image in images}
    if without:
        text = f"{len(without)} images without a row in it are left out"
        notes.insert(0, DataNote(text, "without-a-row", count=len(without)))
    notes.insert(0, DataNote(f"labels are those of '{table.name}'", "table", splits=("",)))
    return FolderListing(images, notes, [table])


def _split_of(image: LabelledImage, splits: Mapping[str, Path]) -> str:
    parents = Path(str(image.file)).parents
    return next((split for split, folder in splits.items() if folder in parents), "")


def _check_folders_agree(images: Sequence[LabelledImage], path: Path, table: Path) -> None:
    """Refuse a table by which an image of class a lies in the folder b, if b is a class, too."""
    classes = {image.label for image in images}
    apart = list[LabelledImage]()
    for image in images:
        top = os.path.relpath(str(image.file), path).partition(os.sep)[0]
        if top != image.label and top in classes:
            apart.append(image)
    if apart:
        raise UserError(
            f"{len(apart)} images lie in folders of other classes than '{table}' says, e.g. "
            f"'{apart[0].file}'; allowed: --data 'csv:{table}' if the table is right, else no "
            "table there"
        )


def _unused_labels(unused: Sequence[Path]) -> list[DataNote]:
    """Return a note on tables of labels, where folders give the labels."""
    if not unused:
        return []
    names = join_words((f"'{table.name}'" for table in unused), most=3)
    text = f"tables of labels that are not used: {names}{_use_of_table(unused)}"
    return [DataNote(text, "unused-tables", count=len(unused))]


def _use_of_table(tables_of_labels: Sequence[Path]) -> str:
    """Return how tables of labels are used instead of folders."""
    first = tables_of_labels[0]
    if len(tables_of_labels) > 1 and _by_split(tables_of_labels):
        return f"; --data 'csv:{first.parent}' takes their labels"
    return f"; --data 'csv:{first}' takes the labels of that table"


def _unused_tables(folder: Path, made: FolderListing, data: Data) -> list[DataNote]:
    """Return a note on each table in a folder whose groups or splits could be meant, and are not
    used.

    Groups are not missed where `data` names them, or the table of the labels has them.
    """
    grouped = any(image.group for image in made.images)
    has_groups = data.group is not None or (grouped and bool(made.tables_used))
    if grouped:
        why = "only images of one subfolder are kept together"
    else:
        why = "images of one {} may be in two splits"
    with_groups, with_splits = list[DataNote](), list[DataNote]()
    for table, roles in tables.headers(folder, data).items():
        if table in made.tables_used:
            continue
        if roles.group and not has_groups:
            text = f"'{table.name}' is not used: {why.format(roles.group)}"
            with_groups.append(DataNote(text, "unused-table", name=table.name))
        if roles.split or _has_column_of_splits(table, roles):
            text = f"'{table.name}' is not used: it may give other splits"
            with_splits.append(DataNote(text, "unused-table", name=table.name))
    return with_groups + with_splits


def _has_column_of_splits(table: Path, roles: tables.Roles) -> bool:
    names = {name.lower() for name in tables.header(table)}
    if names.isdisjoint(tables.SPLIT_COLUMNS):
        return False
    return bool(tables.column_of_splits(tables.read_table(table), roles))


# Class folders


def _of_class_folders(
    path: Path, beside: Sequence[Path], data: Data, only_test: bool
) -> FolderListing:
    """Return the images of a folder of class folders; `beside`: tables of labels that are not
    used."""
    _check_group_option(data.group)
    images, notes, _ = _of_split("", path, (), data)
    hint = _use_of_table(beside) if beside else ""
    _check_no_splits_inside(images, path)
    if not only_test and len({image.label for image in images}) == 1:
        if images[0].group:
            hint = f"; did you mean '{path / images[0].label}'?"
        raise UserError(f"'{path}' has one class folder; allowed: 2 or more{hint}")
    grouped = with_subfolder_groups(images, data.group)
    return FolderListing(grouped.images, notes + grouped.notes)


def _of_split_folders(path: Path, folders: Mapping[str, Path], data: Data) -> FolderListing:
    """Return the images of the folder of each split, which holds class folders or a table."""
    _check_group_option(data.group)
    images, notes, used = list[LabelledImage](), list[DataNote](), list[Path]()
    known = set[str]()
    labelled = {split: folder for split, folder in folders.items() if _has_labels(folder, data)}
    for split, folder in folders.items():
        if split not in labelled and split != "train":
            text = f"'{folder.name}' has images without labels, and is left out"
            notes.append(DataNote(text, "hidden-labels", split=split))
            continue
        made = _of_split(split, folder, known, data)
        if split == "train":
            known = {image.label for image in made.images}
        _check_labels(made.images, known)
        images += made.images
        notes += made.notes
        used += made.tables_used
    if {image.split for image in images} == {"train"}:
        images = [image._replace(split="") for image in images]
    for other in subfolders(path):
        if other not in folders.values():
            notes.append(DataNote(f"'{other.name}' is left out", "folder", name=other.name))
    _check_no_splits_inside(images, path)
    if len(known) == 1:
        raise UserError(f"'{path}' has one class folder; allowed: 2 or more")
    grouped = with_subfolder_groups(images, data.group)
    return FolderListing(grouped.images, notes + grouped.notes, used)


def _check_group_option(group: str | None) -> None:
    if group not in (None, "none", "folder"):
        raise UserError(
            f"data group: got '{group}'; allowed of a folder: folder (subfolders of class folders) "
            "or none"
        )


def _check_no_splits_inside(images: Sequence[LabelledImage], path: Path) -> None:
    """Refuse class folders that hold train and test folders."""
    inside = {SPLITS.get(image.group.partition("/")[0].lower(), "") for image in images}
    if {"train", "test"} <= inside:
        raise UserError(
            f"'{path}' has its splits inside the class folders; allowed: train/ and test/ that "
            "hold them"
        )


def _check_labels(images: Sequence[LabelledImage], known: Collection[str]) -> None:
    """Refuse a label that no training image has."""
    strange = next((image for image in images if image.label not in known), None)
    if strange is not None:
        what = f"class of '{strange.file}', without a training image:"
        raise unknown(what, strange.label, known)


def _of_split(split: str, outer: Path, known: Collection[str], data: Data) -> FolderListing:
    """Return the images of one split, of class folders or else of a table; `known`: its labels."""
    folder = _folder_of_images(outer)
    notes = list[DataNote]()
    if folder != outer:
        for other in subfolders(outer):
            if other != folder:
                notes.append(DataNote(f"'{other.name}' is left out", "folder", name=other.name))
    table = _table_of(folder, data) if split and not subfolders(folder) else None
    if table is None:
        if not subfolders(folder):
            raise _no_class_folders(folder, outer, data)
        images, own_notes = class_folders(folder, split)
        return FolderListing(images, notes + own_notes)
    # a label 0 is class 00000
    numbers = {str(int(name)): name for name in known if NUMBER.fullmatch(name)}
    images = [
        image._replace(split=split, label=numbers.get(image.label, image.label))
        for image in tables.labelled(table, folder, data.replace(group="none")).images
    ]
    text = f"'{folder.name}' has no class folders: its labels are those of '{table.name}'"
    return FolderListing(images, [*notes, DataNote(text, "table", splits=(split,))], [table])


def _no_class_folders(folder: Path, outer: Path, data: Data) -> UserError:
    """Return the error for a folder without class folders, with what the tables near it lack."""
    others, lacking, complete = list[str](), list[str](), list[str]()
    for place in dict.fromkeys([outer, folder]):
        for other in sorted(place.iterdir()):
            if other.suffix.lower() in tables.OTHER_TABLES:
                others.append(f"; '{other.name}' is not read: save it as a .csv in UTF-8")
        for table, roles in tables.headers(place, data).items():
            columns = tables.header(table)
            if roles.path and roles.label:
                complete.append(f"'{table.name}'")
            elif table.suffix and len(columns) > 1:
                first_line = f"the first line of '{table.name}' is {join_words(columns, most=5)}"
                lacking.append(f"; {first_line}: {_options_of_columns(roles)} its columns")
    several = ""
    if len(complete) > 1:
        names = join_words(complete, most=4)
        several = f"; it is not clear which of the tables {names} has the labels"
    of_one_class = ""
    if any(map(is_image, outer.iterdir())):
        above = f"the folder above, '{outer.parent}'"
        of_one_class = f"; it holds images: if they are of one class, give {above}"
    hint = next((hint for hint in (several, *others, *lacking, of_one_class) if hint), "")
    return UserError(
        f"'{folder}' holds no class folders; allowed: class folders, or a table: csv:FILE{hint}"
    )


def _options_of_columns(roles: tables.Roles) -> str:
    """Return the options that name the columns which no usual name tells."""
    if roles.label:
        return "--data.path names"
    return "--data.label names" if roles.path else "--data.path and --data.label name"


def _has_labels(outer: Path, data: Data) -> bool:
    """Whether the folder of a split has class folders or a table, or no image at all."""
    folder = _folder_of_images(outer)
    if subfolders(folder) or _table_of(folder, data) is not None:
        return True
    return not any(is_image(file) for file in folder.iterdir())


def _folder_of_images(outer: Path) -> Path:
    """Return the folder `images` in a folder if it is alone there, as in GTSRB's archives; masks
    may be beside it."""
    inner = [child for child in subfolders(outer) if not MASK_FOLDER.fullmatch(child.name)]
    return inner[0] if len(inner) == 1 and inner[0].name.lower() == "images" else outer


def _table_of(folder: Path, data: Data) -> Path | None:
    """Return the table of labels for a folder without class folders: one inside it, or one beside
    it with its name."""
    inside = tables.labelled_tables(folder, data)
    if inside:
        return inside[0]
    split = folder.parent if folder.name.lower() == "images" else folder
    for place in (split, split.parent, split.parent.parent):
        for table in tables.labelled_tables(place, data):
            if split.name.lower() in table.stem.lower():
                return table
    return None


def split_folders(path: Path) -> dict[str, Path]:
    """Return the folder of each split; none if `path` holds the class folders itself.

    There may be no folder for testing, or none for validation. Of two folders whose names differ
    in upper and lower case only, as in some archives, the first is read.
    """
    found = dict[str, Path]()
    for folder in subfolders(path):
        split = SPLITS.get(folder.name.lower())
        if split is None:
            continue
        first = found.setdefault(split, folder)
        if first.name.lower() != folder.name.lower():
            raise UserError(
                f"'{path}' has two {split} folders, '{first.name}' and '{folder.name}'; keep one"
            )
    if "train" in found and len(found) > 1:
        return {split: found[split] for split in PARTS if split in found}
    if found and any(subfolders(folder) for folder in found.values()):
        # else they hold images: they are classes
        missing = "test" if "train" in found else "train"
        raise UserError(
            f"'{path}' has no folder '{missing}'; add it, or leave only the class folders"
        )
    return {}


# Groups


def with_subfolder_groups(images: Sequence[LabelledImage], group: str | None) -> Listing:
    """Return the images with the subfolders of class folders as groups, or without, and notes.

    Images of one patient often lie in a subfolder; they stay together. By default, subfolders are
    no groups if that would leave half of the classes with one group, or a group is in two splits.
    group: "folder" always takes them, "none" never.
    """
    level, grouped = _at_first_level_with_siblings(images)
    names = {image.group for image in grouped if image.group}
    without_groups = [image._replace(group="") for image in images]
    if group == "none" or not names:
        return Listing(without_groups, [])
    lone = _classes_of_one_group(grouped)
    torn = _groups_in_two_splits(grouped)
    if group is None:
        classes = {image.label for image in grouped}
        many_are_lone = 2 * len(lone) >= len(classes)
        if torn or many_are_lone:
            why = f"{torn} of them in two splits"
            if many_are_lone:
                why = f"class '{lone[0]}' has only one"
            text = f"subfolders are not kept together as groups, e.g. patients: {why}"
            if not torn:
                text += "; --data.group folder does"
            note = DataNote(text, "subfolders-no-groups", torn=torn, lone=len(lone))
            return Listing(without_groups, [note])
    text = f"a group is a subfolder of a class folder, at level {level} below it"
    notes = [DataNote(text, "subfolder-groups", level=level, groups=len(names))]
    has_splits = any(image.split for image in images)
    if group is None and not has_splits:
        notes += _note_on_one_group(grouped, lone)
    return Listing(grouped, notes)


def _classes_of_one_group(grouped: Sequence[LabelledImage]) -> list[str]:
    """Return the classes with one group; an image without a group is a group of its own."""
    groups = dict.fromkeys((image.label, image.group or str(image.file)) for image in grouped)
    groups_of_class = Counter(label for label, _ in groups)
    return [label for label, count in groups_of_class.items() if count < 2]


def _groups_in_two_splits(grouped: Sequence[LabelledImage]) -> int:
    """Return how many groups have images in more than one split."""
    placed = {(image.group, image.split) for image in grouped if image.group}
    splits_of_group = Counter(group for group, _ in placed)
    return sum(count > 1 for count in splits_of_group.values())


def _note_on_one_group(grouped: Sequence[LabelledImage], lone: Sequence[str]) -> list[DataNote]:
    """Return a note on the first class whose images are one group, if there is one."""
    with_groups = {image.label for image in grouped if image.group}
    for label in lone:
        if label in with_groups:
            text = f"class '{label}' is one group, so it is in one split"
            text += "; --data.group none divides it"
            return [DataNote(text, "class-is-one-group", name=label)]
    return []


def _at_first_level_with_siblings(
    images: Sequence[LabelledImage],
) -> tuple[int, list[LabelledImage]]:
    """Return the first level of subfolders at which a class has two of them, or else the deepest,
    and the images with the subfolder of that level as group."""
    deepest = 1 + max(image.group.count("/") for image in images)
    for level in range(1, deepest + 1):
        grouped = [_grouped_at(image, level) for image in images]
        pairs = {(image.label, image.group) for image in grouped if image.group}
        subfolders_of_class = Counter(label for label, _ in pairs)
        if max(subfolders_of_class.values(), default=0) > 1:
            break
    return level, grouped


def _grouped_at(image: LabelledImage, level: int) -> LabelledImage:
    folders = image.group.split("/")[:level]
    return image._replace(group=normalize("NFC", "/".join(folders)))
