"""A list of labelled image files, checked, as the source of a data set."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

import numpy as np

from taet.data.class_names import MISSING, NUMBER, alike_notes, check_names
from taet.data.dataset import PARTS, DataSource, Part
from taet.data.folds import fold_of
from taet.data.image_files import ImageFile, ImageFiles, survey
from taet.data.notes import VALIDATION_IS_TEST, DataNote
from taet.data.splits import divided, test_seed
from taet.errors import UserError
from taet.metrics.accuracies import Ints
from taet.settings import Data

SPLITS = {
    **dict.fromkeys(("train", "training", "final_training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing", "final_test"), "test"),
}
"""Names of splits, in lower case, in tables, as folders and on the hub."""
TEST_SHARE = 0.2
"""Share of each class that is for testing where no split is given."""
FEWEST_CLASSES = 2


class LabelledImage(NamedTuple):
    """An image file with its label."""

    file: ImageFile
    label: str
    split: str = ""
    """A key of PARTS, or "" where none is given."""
    group: str = ""
    """What it belongs to, e.g. a patient; "": it stands alone."""
    place: str = ""
    """Its line in a table."""


class Listing(NamedTuple):
    """What a layout of folders or tables lists."""

    images: list[LabelledImage]
    notes: list[DataNote]


def source_of(
    images: Sequence[LabelledImage],
    data: Data,
    notes: Iterable[DataNote] = (),
    *,
    order: Sequence[str] = (),
    mirror: bool = True,
    only_test: bool = False,
) -> DataSource:
    """Return the source of labelled images; the classes are the labels that occur.

    Classes are in `order`, or else sorted as text. Without splits, TEST_SHARE of each class is for
    testing; a group in two splits is refused. Images are grey if all are, else RGB. `only_test`:
    all of them are test images, also of a single class, of a model that exists.
    """
    names = _class_names(images, order, fewest=1 if only_test else FEWEST_CLASSES)
    images, split_notes = _with_test_split(images)
    if not only_test:
        _check_splits(images)
    _check_files(images)
    if any(image.split for image in images):
        _check_groups(images)
    files, images = surveyed(images, data)
    whole = _as_part(files, images, names)
    named = [
        *_group_notes(images),
        *notes,
        *split_notes,
        *alike_notes(names),
        *_names_that_mean_none(names),
    ]
    if only_test:
        order_of_splits = ["", *PARTS]
        places = np.array([order_of_splits.index(image.split) for image in images])
        parts = {"test": _in_own_order(whole.choose(np.argsort(places, kind="stable")))}
    elif not any(image.split for image in images):
        parts = _divided(whole, data) if data.folds is None else _one_fold(whole, data)
        named.insert(0, _division_note(whole, parts["test"], data))
    elif data.folds is not None:
        raise UserError(f"data folds: got {data.folds}; allowed: of images without splits")
    else:
        parts = _by_split(whole, [image.split for image in images])
    if not only_test and not (counts := parts["train"].class_counts).all():
        raise UserError(f"class '{names[counts.argmin()]}' has no training image")
    return DataSource(parts, mirror, (*named, *files.notes()), data.size is not None)


def surveyed(images: Sequence[LabelledImage], data: Data) -> tuple[ImageFiles, list[LabelledImage]]:
    """Return the files of images, and the images whose files can be read.

    Unreadable ones are refused, or left out where `data` says so.
    """
    skip = data.skip_unreadable
    files = survey(
        [image.file for image in images],
        data.size,
        decode=skip,
        skip=skip,
        background=data.transparent,
    )
    readable = {*files.files}
    return files, [image for image in images if image.file in readable]


def _class_names(
    images: Sequence[LabelledImage], order: Sequence[str], fewest: int
) -> tuple[str, ...]:
    labels = {image.label for image in images}
    names = sorted(labels, key=list(order).index) if order else sorted(labels)
    return check_names(names, fewest)


def _names_that_mean_none(names: Sequence[str]) -> list[DataNote]:
    """Return a note on each class whose name reads as no label, or as a split."""
    unlikely = [name for name in names if name in MISSING or name.lower() in SPLITS]
    return [
        DataNote(
            f"'{name}' is taken as a class; remove its images if it means no label",
            "unlikely-class",
            name=name,
        )
        for name in unlikely
    ]


def _with_test_split(images: Sequence[LabelledImage]) -> Listing:
    """Return the images; without test images, those for validation take their place, with a
    note."""
    if {image.split for image in images} != {"train", "validation"}:
        return Listing([*images], [])
    moved = [
        image._replace(split="test") if image.split == "validation" else image for image in images
    ]
    return Listing(moved, [VALIDATION_IS_TEST])


def _check_splits(images: Sequence[LabelledImage]) -> None:
    """Allow no splits at all, or train and test, perhaps with validation."""
    given = {image.split for image in images}
    if given == {""} or {"train", "test"} <= given <= {*PARTS}:
        return
    got = ", ".join(sorted(split or "none for some" for split in given))
    raise UserError(f"got the splits {got}; allowed: train, test and validation, or no splits")


def _check_files(images: Sequence[LabelledImage]) -> None:
    """Allow each file once."""
    times = Counter(
        os.path.abspath(image.file) if isinstance(image.file, Path) else image.file
        for image in images
    )
    repeated = next((file for file, count in times.items() if count > 1), None)
    if repeated is not None:
        raise UserError(f"got '{repeated}' in several rows; allowed: each image once")


def _check_groups(images: Sequence[LabelledImage]) -> None:
    """Allow each group in one split."""
    split_of = dict[str, str]()
    for image in images:
        if image.group and split_of.setdefault(image.group, image.split) != image.split:
            raise UserError(
                f"group '{image.group}' is in two splits; keep it in one, or give --data.group none"
            )


def _group_numbers(images: Sequence[LabelledImage]) -> Ints | None:
    """Return a number for the group of each image, (N,); None without groups."""
    if not any(image.group for image in images):
        return None
    numbers = dict[str | int, int]()
    # an image without a group gets a number of its own
    keys = [image.group or position for position, image in enumerate(images)]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys])


def _group_notes(images: Sequence[LabelledImage]) -> list[DataNote]:
    sizes = Counter(image.group for image in images)
    alone = sizes.pop("", 0)
    if not sizes:
        return []
    text = f"{len(sizes)} groups, each kept together"
    if alone:
        text += f"; {alone} images stand alone"
    return [DataNote(text, "groups", groups=len(sizes), alone=alone)]


def _as_part(files: ImageFiles, images: Sequence[LabelledImage], names: tuple[str, ...]) -> Part:
    label_of = {name: label for label, name in enumerate(names)}
    labels = np.array([label_of[image.label] for image in images], np.int64)
    return Part(files, labels, names, np.arange(len(labels)), _group_numbers(images))


def _divided(whole: Part, data: Data) -> dict[str, Part]:
    """Return the training and the held-out test images of a part without splits."""
    train, test = divided(whole, whole.class_counts.tolist(), TEST_SHARE, test_seed(data))
    if train is None or test is None:
        spare = "second image"
        if whole.groups is not None:
            spare = "group to spare; without groups: --data.group none"
        raise UserError(f"no test images are given, and no class has a {spare}")
    return {"train": whole.choose(np.sort(train)), "test": whole.choose(np.sort(test))}


def _one_fold(whole: Part, data: Data) -> dict[str, Part]:
    """Return one fold of a part without splits for testing, and the others for training."""
    assert data.folds is not None
    is_test = fold_of(whole.labels, whole.groups, data.folds, test_seed(data)) == data.fold
    return {
        "train": whole.choose(np.flatnonzero(~is_test)),
        "test": whole.choose(np.flatnonzero(is_test)),
    }


def _division_note(whole: Part, test: Part, data: Data) -> DataNote:
    seed = test_seed(data)
    if data.folds is not None:
        text = f"fold {data.fold} of {data.folds} (0 to {data.folds - 1}) is for testing"
        about = {"fold": data.fold, "folds": data.folds, "test": len(test), "seed": seed}
        return DataNote(f"{text} (seed {seed})", "fold", **about)
    if whole.groups is None:
        held_out = f"{TEST_SHARE:.0%} of each class (of two images one) is"
    else:
        held_out = f"whole groups, {len(test) / len(whole):.0%} of the images, are"
    text = f"no test images are given: {held_out} for testing (seed {seed})"
    return DataNote(text, "divided", test=len(test), seed=seed)


def _by_split(whole: Part, splits: Sequence[str]) -> dict[str, Part]:
    split_names = np.array(splits)
    given = [part for part in PARTS if part in {*splits}]
    return {
        part: _in_own_order(whole.choose(np.flatnonzero(split_names == part))) for part in given
    }


def _in_own_order(part: Part) -> Part:
    """Return a part whose indices count its own images."""
    return replace(part, indices=np.arange(len(part)))


def grouped_by_pattern(images: Sequence[LabelledImage], pattern: str) -> Listing:
    """Return the images with the groups that a regular expression finds in the names of their
    files.

    A group is what the first ( ) matches, or without one the whole pattern; where it matches
    nothing, an image stands alone.
    """
    expression, grouped = re.compile(pattern), list[LabelledImage]()
    for image in images:
        match = expression.search(Path(str(image.file)).name)
        group = "" if match is None else match[1 if expression.groups else 0] or ""
        grouped.append(image._replace(group=normalize("NFC", group)))
    if not any(image.group for image in grouped):
        name = Path(str(images[0].file)).name
        raise UserError(
            f"data group pattern: got '{pattern}', which matches no file, e.g. not '{name}'; "
            "allowed: one that finds what images of one group share, such as 'patient(\\d+)'"
        )
    note = DataNote(f"groups are found in file names by '{pattern}'", "groups-by-pattern")
    return Listing(grouped, [note])


BEGINNING = "(.+)[_-]"  # of the name of a file, up to its last _ or -
LEAST_ALIKE = 0.2  # share of the files whose names begin as another's
LARGEST_ALIKE = 0.1  # share of the files in the largest group; a larger one is a class, or a word


def note_on_names_alike(images: Sequence[LabelledImage]) -> list[DataNote]:
    """Return a note if the names of many files begin alike, as those of several images of one
    patient do: p12_left.png, p12_right.png.

    A beginning has a number, and is rare: a word before the number of an image is in every name.
    """
    beginnings = Counter[str]()
    for image in images:
        match = re.search(BEGINNING, Path(str(image.file)).name)
        if match is not None and any(map(str.isdigit, match[1])):
            beginnings[match[1]] += 1
    alike = [count for count in beginnings.values() if count > 1]
    is_rare = max(alike, default=0) <= max(2, LARGEST_ALIKE * len(images))
    if not alike or not is_rare or sum(alike) < LEAST_ALIKE * len(images):
        return []
    text = (
        f"the names of {sum(alike)} of {len(images)} files begin as another's, up to the last _ or "
        "-: if such files show one patient or object, test results are too good unless "
        f"--data.group-pattern '{BEGINNING}' keeps them in one split"
    )
    return [DataNote(text, "names-alike", alike=sum(alike), files=len(images))]


TRACK_AND_FRAME = re.compile(r"(\d{5}_){1,2}\d{5}")


def with_tracks(images: Sequence[LabelledImage]) -> list[LabelledImage] | None:
    """Return the images with their tracks as groups if all are named as GTSRB's; None for other
    images.

    Names end in the numbers of the track, within its class, and of the frame, as in
    00003_00029.ppm; in Kaggle's copy the class comes first. A track is about 30 frames of one sign
    that a car passes.
    """
    grouped = list[LabelledImage]()
    for image in images:
        stem = Path(str(image.file)).stem
        if image.split == "test":
            grouped.append(image)
        elif TRACK_AND_FRAME.fullmatch(stem) and NUMBER.fullmatch(image.label):
            track = stem.split("_")[-2]
            grouped.append(image._replace(group=f"{image.label}/{track}"))
        else:
            return None
    return grouped
