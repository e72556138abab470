"""Data sets as arrays: one .npz file with MedMNIST's keys."""

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from taet.data.dataset import PARTS, DataSource, splits_of
from taet.data.downloads import locate
from taet.data.storage import file_key, mapped, on_disk, reading
from taet.errors import UserError, cut, located
from taet.settings import Data

NAMES = {"npz": "npz:PATH, a file with train_images, train_labels, test_images, test_labels (MedMNIST's keys)"}


def read_npz(
    path: Path, choose: Callable[[Sequence[str]], Sequence[str]], storage: str
) -> dict[str, NDArray[np.generic]]:
    """Return the arrays of an .npz file whose names `choose` returns; images kept on disk are unpacked there."""
    arrays, allowed = dict[str, NDArray[np.generic]](), "a file of plain arrays"
    with reading(path, allowed), path.open("rb") as opened, np.load(opened, allow_pickle=False) as archive:

        def unpack(file: IO[bytes]) -> None:
            with archive.zip.open(packed) as stream:
                shutil.copyfileobj(stream, file)

        for name in choose(archive.files):
            packed = archive.zip.getinfo(f"{name}.npy")
            large = "image" in name and on_disk(packed.file_size, storage)
            arrays[name] = mapped(f"{file_key(path)}\t{name}", unpack) if large else archive[name]
    return arrays


def set_arrays(names: Sequence[str], group: str | None = None) -> list[str]:
    """Return the `names` of arrays that make up a data set, with train_`group` and so on; a missing one is refused."""
    groups = [f"{part}_{group or 'group'}" for part in PARTS.values()]
    parts = ["train", *(["val"] if {"val_images", "val_labels"} & {*names} else []), "test"]
    required = [f"{part}_{what}" for part in parts for what in ("images", "labels")]
    required += groups[:1] if group not in (None, "none") else []
    if missing := [key for key in required if key not in names]:
        raise UserError(f"it has no {', '.join(missing)}; it has: {cut(', '.join(names)) or 'nothing'}")
    return [key for key in dict.fromkeys((*required, *groups, "class_names")) if key in names]


def read(data: Data) -> DataSource:
    """Return the splits of a file as they are; its optional array `class_names` names the classes.

    The arrays train_G, val_G and test_G with the group G of --data.group, or else train_group and so on, hold the
    group of each image, as numbers or text (N,). Format of the keys: Yang et al., MedMNIST v2, Scientific Data 2023,
    arXiv:2110.14795. Pickled arrays are refused.
    """
    path, group = locate(data), data.group or "group"
    with located(f"'{path}'"):
        arrays = read_npz(path, partial(set_arrays, group=data.group), data.storage)
        splits = splits_of(arrays, group=group)
    groups = {part: of.groups for part, of in splits.items() if of.groups is not None}
    if (train := groups.get("train")) is None:
        return DataSource(splits)
    shared = {(one, other): len(np.intersect1d(groups[one], groups[other])) for one, other in combinations(groups, 2)}
    text = ", ".join(f"{number} in {one} and {other}" for (one, other), number in shared.items() if number)
    named, alone = len(np.unique(train[train >= 0])), int((train < 0).sum())
    notes = [f"{named} groups in train_{group}"]
    notes += [f"{alone} images of train_{group} stand alone"] if alone else []
    notes += [f"the file's own splits divide groups of {group}: {text}"] if text else []
    return DataSource(splits, notes=tuple(notes))
