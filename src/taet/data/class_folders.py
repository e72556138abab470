"""Folders of class folders: which files are images, which are masks, and the listing of them."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from taet.data.labelled_images import LabelledImage, Listing
from taet.data.notes import DataNote
from taet.errors import UserError
from taet.files import RUN
from taet.formatting import join_words, plural

SUFFIXES = frozenset(
    (
        *(".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg"),
        *(".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"),
    )
)
SYSTEM_FOLDERS = frozenset(
    (
        # Macs and Windows
        *("__macosx", "$recycle.bin", "system volume information"),
        # network storage by Synology and QNAP
        *("@eadir", "@tmp", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"),
        *("lost+found", "__pycache__"),
    )
)
"""Folders that systems and storage devices make, in lower case; they hold no images of a user."""
MASK = re.compile(r"(?<=.)[ _-](mask|segmentation)s?(_\d+)?$", re.IGNORECASE)
"""End of the name of a mask, after the name of its image, as in BUSI and ISIC."""
MASK_FOLDER = re.compile(r"(mask|segmentation|annotation|ground.?truth)s?", re.IGNORECASE)
"""A folder of masks, inside or beside that of the images."""
RUN_FILES = [depth + name for depth in ("", "*/", "*/*/") for name in (RUN, "evaluation.json")]
"""Files of runs and of their cards, whose folders are no classes."""


def is_image(file: Path) -> bool:
    """Whether a file has the name of an image, and is not hidden, as a Mac's notes on an image
    are."""
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".")


def is_of_system(name: str) -> bool:
    """Whether a folder of this name is hidden, or made by a system: see SYSTEM_FOLDERS."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


def files_below(folder: Path) -> list[Path]:
    """Return the files in `folder` and its subfolders, sorted.

    Hidden files and folders of systems are left out; links are followed once.
    """
    found, seen = list[Path](), set[str]()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not is_of_system(name))
        found += [Path(place, name) for name in files if not name.startswith(".")]
    return sorted(found, key=lambda file: file.parts)


def subfolders(path: Path) -> list[Path]:
    """Return the folders in a folder, sorted, without hidden ones, those of systems, and those of
    runs."""
    if not path.is_dir():
        seen_from = ""
        if not path.is_absolute():
            seen_from = f", seen from {Path.cwd()}; TAET_DATA can name the folder that holds it"
        raise UserError(f"no such folder: '{path}'{seen_from}")
    return sorted(
        child
        for child in path.iterdir()
        if child.is_dir() and not is_of_system(child.name) and not _holds_a_run(child)
    )


def _holds_a_run(folder: Path) -> bool:
    return any(next(folder.glob(name), None) is not None for name in RUN_FILES)


def masks_of(folder: Path, images: Sequence[Path]) -> set[Path]:
    """Return which images in `folder` are masks of others: in a subfolder of masks, or by their
    names."""
    known = {file.with_suffix("") for file in images}
    masks = set[Path]()
    for file in images:
        inside = file.relative_to(folder).parts[:-1]
        if any(MASK_FOLDER.fullmatch(name) for name in inside) or (
            MASK.search(file.stem) and file.with_name(MASK.sub("", file.stem)) in known
        ):
            masks.add(file)
    return masks


def left_out(files: Sequence[Path]) -> list[DataNote]:
    """Return a note that counts the files that are no images by their kinds, if there are any."""
    others = Counter(file.suffix.lower() or "no suffix" for file in files if not is_image(file))
    if not others:
        return []
    kinds = join_words([f"{count} {kind}" for kind, count in others.most_common()], 5)
    text = f"left out: {plural(others.total(), 'other file')} ({kinds})"
    return [DataNote(text, "other-files", count=others.total())]


def class_folders(folder: Path, split: str = "") -> Listing:
    """Return the images of each class folder, in alphabetical order, with their subfolders as
    groups.

    A class folder without an image is refused; in a split for validation or testing, an empty one
    is as good as none.
    """
    images, notes = list[LabelledImage](), list[DataNote]()
    all_files, masks, empty = list[Path](), 0, list[str]()
    classes = subfolders(folder)
    if not classes:
        raise UserError(
            f"'{folder}' holds no class folders; allowed: class folders, or a table: csv:FILE"
        )
    for child in classes:
        files = files_below(child)
        named = [file for file in files if is_image(file)]
        drawn = masks_of(child, named)
        shown = [file for file in named if file not in drawn]
        if not files and split in ("validation", "test"):
            empty.append(child.name)
        elif not shown:
            allowed = ", ".join(sorted(SUFFIXES)) if files else "one or more, or no such folder"
            raise UserError(f"class folder '{child}' holds no image; allowed: {allowed}")
        for file in shown:
            group = "/".join(file.relative_to(child).parts[:-1])
            images.append(LabelledImage(file, child.name, split, group))
        all_files += files
        masks += len(drawn)
    if empty:
        text = f"empty class folders of the {split} images: {join_words(empty, most=10)}"
        notes.append(DataNote(text, "empty-class", names=tuple(empty)))
    if masks:
        notes.append(DataNote(f"{masks} masks of images are left out", "masks", count=masks))
    if outside := sum(map(is_image, folder.iterdir())):
        text = f"{outside} images outside of the class folders are left out"
        notes.append(DataNote(text, "outside", count=outside))
    return Listing(images, notes + left_out(all_files))
