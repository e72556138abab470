"""Data sets as arrays: one .npz file with MedMNIST's keys."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from taet.data.class_names import alike_notes
from taet.data.dataset import PARTS, DataSource, Part, splits_of
from taet.data.downloads import locate
from taet.data.notes import VALIDATION_IS_TEST, DataNote
from taet.data.storage import file_key, mapped, on_disk, reading
from taet.errors import UserError, prefix_errors, shortened
from taet.settings import Data

NAMES = {
    "npz": "npz:PATH, a file with train_images, train_labels, test_images, test_labels (MedMNIST's "
    "keys)"
}


def read_npz(
    path: Path, choose: Callable[[Sequence[str]], Sequence[str]], storage: str
) -> dict[str, NDArray[np.generic]]:
    """Return the arrays of an .npz file whose names `choose` returns; images kept on disk are
    unpacked there."""
    arrays, allowed = dict[str, NDArray[np.generic]](), "a file of plain arrays"
    with (
        reading(path, allowed),
        path.open("rb") as opened,
        np.load(opened, allow_pickle=False) as archive,
    ):

        def unpack(file: IO[bytes]) -> None:
            with archive.zip.open(packed) as stream:
                shutil.copyfileobj(stream, file)

        for name in choose(archive.files):
            packed = archive.zip.getinfo(f"{name}.npy")
            large = "image" in name and on_disk(packed.file_size, storage)
            arrays[name] = mapped(f"{file_key(path)}\t{name}", unpack) if large else archive[name]
    return arrays


def set_arrays(
    names: Sequence[str], group: str | None = None, validation_only: bool = False
) -> list[str]:
    """Return the `names` of arrays that make up a data set, with train_`group` and so on; a missing
    one is refused.

    `validation_only`: arrays for validation may stand in the place of those for testing.
    """
    has_validation = bool({"val_images", "val_labels"} & {*names})
    has_test = bool({"test_images", "test_labels"} & {*names})
    parts = ["train"]
    if has_validation:
        parts.append("val")
    if has_test or not (has_validation and validation_only):
        parts.append("test")
    required = [f"{part}_{what}" for part in parts for what in ("images", "labels")]
    groups = [f"{part}_{group or 'group'}" for part in PARTS.values()]
    if group not in (None, "none"):
        required.append(groups[0])
    if missing := [key for key in required if key not in names]:
        raise UserError(
            f"it has no {', '.join(missing)}; it has: {shortened(', '.join(names)) or 'nothing'}"
        )
    return [key for key in dict.fromkeys((*required, *groups, "class_names")) if key in names]


def read(data: Data) -> DataSource:
    """Return the splits of a file as they are; its optional array `class_names` names the classes.

    The arrays train_G, val_G and test_G with the group G of --data.group, or else train_group and
    so on, hold the group of each image, as numbers or text (N,). Without arrays for testing, those
    for validation take their place. Format of the keys: Yang et al., MedMNIST v2, Scientific Data
    2023, arXiv:2110.14795. Pickled arrays are refused.
    """
    path, group, notes = locate(data), data.group or "group", list[DataNote]()
    with prefix_errors(f"'{path}'"):
        choose = partial(set_arrays, group=data.group, validation_only=True)
        arrays = read_npz(path, choose, data.storage)
        if "test_images" not in arrays:
            arrays = {_as_test(name): values for name, values in arrays.items()}
            notes.append(VALIDATION_IS_TEST)
        splits = splits_of(arrays, group=group)
    notes += _group_notes(splits, group)
    notes += alike_notes(splits["train"].class_names)
    return DataSource(splits, notes=tuple(notes))


def _as_test(name: str) -> str:
    """Return the name of an array of validation images as one of test images."""
    return f"test_{name.removeprefix('val_')}" if name.startswith("val_") else name


def _group_notes(splits: Mapping[str, Part], group: str) -> list[DataNote]:
    """Return notes on the groups of the training images, and on those that the file's own splits
    divide."""
    groups = {part: split.groups for part, split in splits.items() if split.groups is not None}
    train = groups.get("train")
    if train is None:
        return []
    count, alone = len(np.unique(train[train >= 0])), int((train < 0).sum())
    notes = [DataNote(f"{count} groups in train_{group}", "groups", groups=count, alone=alone)]
    if alone:
        notes.append(DataNote(f"{alone} images of train_{group} stand alone", "alone", count=alone))
    shared = list[str]()
    for first, second in combinations(groups, 2):
        if number := len(np.intersect1d(groups[first], groups[second])):
            shared.append(f"{number} in {first} and {second}")
    if shared:
        text = f"the file's own splits divide groups of {group}: {', '.join(shared)}"
        notes.append(DataNote(text, "divided-groups"))
    return notes
