"""Data sets as arrays: one .npz file with MedMNIST's keys, or a folder of .npy files as TAET's authors have them."""

from __future__ import annotations

import math
import shutil
from collections.abc import Collection, Sequence
from dataclasses import replace
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


def npz_names(path: Path) -> list[str]:
    """Return the names of the arrays in an .npz file."""
    with reading(path, ALLOWED), path.open("rb") as opened, np.load(opened, allow_pickle=False) as archive:
        return list(archive.files)


def read_npz(path: Path, names: Sequence[str], storage: str) -> dict[str, NDArray[np.generic]]:
    """Return these arrays of an .npz file; images that are kept on disk are unpacked to a file of the cache."""
    arrays = dict[str, NDArray[np.generic]]()
    with reading(path, ALLOWED), path.open("rb") as opened, np.load(opened, allow_pickle=False) as archive:

        def unpack(file: IO[bytes]) -> None:
            with archive.zip.open(packed) as stream:
                shutil.copyfileobj(stream, file)

        for name in names:
            packed = archive.zip.getinfo(f"{name}.npy")
            large = "image" in name and on_disk(packed.file_size, storage)
            arrays[name] = mapped(f"{file_key(path)}\t{name}", unpack) if large else archive[name]
    return arrays


def _keys(there: Collection[str], group: str | None = None) -> list[str]:
    """Return which of the arrays `there` make up a data set, with train_`group` and so on; one is missing: refused."""
    groups = [f"{part}_{group}" for part in PARTS.values()] if group else []
    parts = ["train", *(["val"] if {"val_images", "val_labels"} & {*there} else []), "test"]
    required = [*(f"{part}_{what}" for part in parts for what in ("images", "labels")), *groups[:1]]
    if missing := [key for key in required if key not in there]:
        raise UserError(f"it has no {', '.join(missing)}; it has: {cut(', '.join(there)) or 'nothing'}")
    return [*required, *(key for key in (*groups[1:], "class_names") if key in there)]


def read_set(path: Path, storage: str, group: str | None = None) -> Arrays:
    """Return the arrays of an .npz file that make up a data set, with the groups train_`group` and so on."""
    names = npz_names(path)
    with located(f"'{path}'"):
        wanted = _keys(names, group)
    return read_npz(path, wanted, storage)


def read(data: Data) -> DataSource:
    """Return the splits of a file or folder as they are; its optional array `class_names` names the classes.

    In an .npz, train_G, val_G and test_G with the group G of --data.group, or else train_group and so on, hold the
    group of each image, as numbers or text (N,). Format of the keys: Yang et al., MedMNIST v2, Scientific Data 2023,
    arXiv:2110.14795. Folders hold images uint8 (N, 3 S S) or (N, S S) of planes, as in the code of Wang et al., TAET,
    CVPR 2025, arXiv:2503.01924. Pickled arrays are refused.
    """
    path = locate(data)
    if data.name.startswith("taet-npy:"):
        with located(f"'{path}'"):
            return to_source(_read_folder(path), name=data.name)
    group = data.group or ("group" if "train_group" in npz_names(path) else "none")
    arrays = read_set(path, data.storage, None if group == "none" else group)
    with located(f"'{path}'"):
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
    for key in _keys(sorted(path.stem for path in folder.glob("*.npy"))):
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
