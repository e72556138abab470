"""Data sets as arrays: one .npz file with MedMNIST's keys, or a folder of .npy files as TAET's authors have them."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from taet.data.dataset import PARTS, Arrays, DataSource, to_source
from taet.data.downloads import locate
from taet.data.storage import file_key, mapped, on_disk, reading
from taet.errors import UserError, cut, located
from taet.settings import Data

NAMES = {
    "npz": "npz:PATH, a file with train_images, train_labels, test_images, test_labels (MedMNIST's keys)",
    "taet-npy": "taet-npy:PATH, a folder with train/test_images.npy (N,3072) and train/test_labels.npy, as TAET's",
}
ALLOWED = "a file of plain arrays"


def read_npz(
    path: Path, choose: Callable[[Sequence[str]], Sequence[str]], storage: str
) -> dict[str, NDArray[np.generic]]:
    """Return the arrays of an .npz file that are chosen by their names; images kept on disk are unpacked."""
    arrays = dict[str, NDArray[np.generic]]()
    with reading(path, ALLOWED), path.open("rb") as opened, np.load(opened, allow_pickle=False) as archive:

        def unpack(file: IO[bytes]) -> None:
            with archive.zip.open(packed) as stream:
                shutil.copyfileobj(stream, file)

        for name in choose(archive.files):
            packed = archive.zip.getinfo(f"{name}.npy")
            large = "image" in name and on_disk(packed.file_size, storage)
            arrays[name] = mapped(f"{file_key(path)}\t{name}", unpack) if large else archive[name]
    return arrays


def of_set(there: Sequence[str], group: str | None = None) -> list[str]:
    """Return which of the arrays `there` make up a data set, with train_`group` and so on; one is missing: refused."""
    groups = [f"{part}_{group or 'group'}" for part in PARTS.values()]
    parts = ["train", *(["val"] if {"val_images", "val_labels"} & {*there} else []), "test"]
    required = [f"{part}_{what}" for part in parts for what in ("images", "labels")]
    required += groups[:1] if group not in (None, "none") else []
    if missing := [key for key in required if key not in there]:
        raise UserError(f"it has no {', '.join(missing)}; it has: {cut(', '.join(there)) or 'nothing'}")
    return [key for key in dict.fromkeys((*required, *groups, "class_names")) if key in there]


def read(data: Data) -> DataSource:
    """Return the splits of a file or folder as they are; its optional array `class_names` names the classes.

    In an .npz, train_G, val_G and test_G with the group G of --data.group, or else train_group and so on, hold the
    group of each image, as numbers or text (N,). Format of the keys: Yang et al., MedMNIST v2, Scientific Data 2023,
    arXiv:2110.14795. Folders hold images uint8 (N, 3 S S) or (N, S S) of planes, as in the code of Wang et al., TAET,
    CVPR 2025, arXiv:2503.01924. Pickled arrays are refused.
    """
    path, group = locate(data), data.group or "group"
    with located(f"'{path}'"):
        if data.name.startswith("taet-npy:"):
            return to_source(_read_folder(path), name=data.name)
        arrays = read_npz(path, partial(of_set, group=data.group), data.storage)
        source = to_source(arrays, name=data.name, group=group)
    groups = {part: of.groups for part, of in source.splits.items() if of.groups is not None}
    if "train" not in groups:
        return source
    train = groups.pop("train")
    shared = {part: len(np.intersect1d(train, own)) for part, own in groups.items()}
    text = ", ".join(f"{number} in training and {part}" for part, number in shared.items() if number)
    notes = [f"{len(np.unique(train))} groups in train_{group}; a validation split holds out whole ones"]
    notes += [f"the file's own splits divide groups of {group}: {text}"] if text else []
    return replace(source, notes=tuple(notes))


def _read_folder(folder: Path) -> Arrays:
    """Return the arrays of a folder; rows (N, C S S) of a red, a green and a blue plane become a view (N,S,S,C)."""
    arrays = dict[str, NDArray[np.generic]]()
    for key in of_set(sorted(path.stem for path in folder.glob("*.npy"))):
        with reading(folder / f"{key}.npy", ALLOWED):
            arrays[key] = rows = np.load(folder / f"{key}.npy", mmap_mode="r", allow_pickle=False)
        if key.endswith("images"):
            number, length = (*rows.shape, 0)[:2]
            # No number is both a square and three times a square, so the length tells colour from grey.
            channels = 3 if 3 * math.isqrt(length // 3) ** 2 == length else 1
            side = math.isqrt(length // channels)
            if rows.ndim != 2 or length == 0 or channels * side**2 != length:
                raise UserError(f"{key}: got shape {rows.shape}; allowed: (N, 3 S S) (colour) or (N, S S) (grey)")
            arrays[key] = rows.reshape(number, channels, side, side).transpose(0, 2, 3, 1)
    return arrays
