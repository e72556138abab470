"""Data sets as arrays: one .npz file with MedMNIST's keys, or a folder of .npy files as TAET's authors have them."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from taet.data.places import locate
from taet.data.source import PARTS, DataSource, GivenArray, to_source
from taet.data.storage import PIECE, ArrayShape, Pixels, file_key, gather, portions, reading
from taet.errors import UserError, cut, located
from taet.settings import Data
from taet.statistics import Ints

NAMES = {
    "npz": "npz:PATH, a file with train_images, train_labels, test_images, test_labels (MedMNIST's keys)",
    "taet-npy": "taet-npy:PATH, a folder with train/test_images.npy (N,3072) and train/test_labels.npy, as TAET's",
}
NPZ, NPY = "an .npz file of plain arrays", "an .npy file of a plain array"
GROUP, UNGROUPED = "group", "none"
"""Name of the groups that are used without a setting, and the setting that uses none."""


@dataclass(frozen=True)
class NpzImages:
    """Images uint8 (N,H,W) or (N,H,W,C) in an .npz file."""

    path: Path
    name: str
    shape: ArrayShape

    @property
    def key(self) -> str:
        """Path, size and time of the file, and the name of the array."""
        return f"{file_key(self.path)}\t{self.name}"

    def read(self, rows: Ints | None) -> Iterator[Pixels]:
        """Yield the images at `rows`; a file that is not read from its begin to its end is read whole first."""
        if rows is None:
            yield from self._stream()
            return
        whole = gather(self._stream(), self.shape, key=lambda: self.key, storage="auto")
        yield from (whole[some] for some in portions(rows, self.shape))

    def _stream(self) -> Iterator[Pixels]:
        number, size = self.shape[0], math.prod(self.shape[1:])
        step = max(1, PIECE // size)
        with reading(self.path, NPZ), zipfile.ZipFile(self.path) as archive, archive.open(f"{self.name}.npy") as file:
            _header(file)
            for first in range(0, number, step):
                wanted = min(step, number - first) * size
                block = file.read(wanted)
                if len(block) < wanted:
                    raise ValueError("it is cut short")
                yield np.frombuffer(block, np.uint8).reshape(-1, *self.shape[1:])
            if file.read(1):  # the end, where the checksum is compared
                raise ValueError("it is longer than it says")


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    """Return shape, whether it is stored by columns, and type of an .npy file, up to the end of its header."""
    version = npy.read_magic(file)
    return (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(file)


def _read(path: Path, archive: zipfile.ZipFile, name: str) -> GivenArray:
    """Return an array of an .npz; images are read when they are chosen, pickled objects are refused."""
    with archive.open(f"{name}.npy") as file:
        shape, by_columns, dtype = _header(file)
    plain = dtype == np.uint8 and not by_columns and 0 not in shape
    if "image" in name and plain and (len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))):
        number, height, width, channels = (*shape, 1)[:4]
        return NpzImages(path, name, (number, height, width, channels))
    with archive.open(f"{name}.npy") as file:
        array: NDArray[np.generic] = npy.read_array(file, allow_pickle=False)
    if array.dtype.kind == "U":
        array.tolist()  # an error if it holds numbers that are no characters
    return array


def npz_names(path: Path) -> list[str]:
    """Return the names of the arrays in an .npz file."""
    with reading(path, NPZ), zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"'{path}' holds the array '{cut(twice)}' twice; allowed: every name once")
    return names


def read_npz(path: Path, names: Sequence[str]) -> dict[str, GivenArray]:
    """Return these arrays of an .npz file."""
    with reading(path, NPZ), zipfile.ZipFile(path) as archive:
        return {name: _read(path, archive, name) for name in names}


def keys(there: Sequence[str], group: str | None = None) -> list[str]:
    """Return which of the arrays `there` make up a data set; a set that lacks one is refused.

    With `group`, train_`group` is required, and those of the other splits are optional.
    """
    groups = [f"{part}_{group}" for part in PARTS.values()] if group else []
    parts = ["train", *(["val"] if {"val_images", "val_labels"} & {*there} else []), "test"]
    required = [*(f"{part}_{what}" for part in parts for what in ("images", "labels")), *groups[:1]]
    if missing := [key for key in required if key not in there]:
        raise UserError(f"it has no {', '.join(missing)}; it has: {cut(', '.join(there)) or 'nothing'}")
    return [*required, *(key for key in (*groups[1:], "class_names") if key in there)]


def read(data: Data) -> DataSource:
    """Return the splits of a file or folder as they are; its optional array `class_names` names the classes.

    In an .npz, train_G, val_G and test_G with the group G of --data.group, or else train_group and so on, hold the
    group of each image, as numbers or text (N,). Format of the keys: Yang et al., MedMNIST v2, Scientific Data 2023,
    arXiv:2110.14795. Folders hold images uint8 (N, 3 S S) or (N, S S) of planes, as in the code of Wang et al., TAET,
    CVPR 2025, arXiv:2503.01924. Pickled arrays are refused.
    """
    path = locate(data)
    if data.name.startswith("taet-npy:"):
        arrays, group = _read_folder(path), None
    else:
        names = npz_names(path)
        group = data.group or (GROUP if f"train_{GROUP}" in names else None)
        group = None if group == UNGROUPED else group
        with located(f"'{path}'"):
            wanted = keys(names, group)
        arrays = read_npz(path, wanted)
    with located(f"'{path}'"):
        source = to_source(arrays, name=data.name, group=group)
    train = source.splits["train"].groups
    if train is None:
        return source
    notes = [f"{len(np.unique(train))} groups in train_{group}; a validation split holds out whole ones"]
    others = {part: of.groups for part, of in source.splits.items() if part != "train" and of.groups is not None}
    shared = {part: len(np.intersect1d(train, own)) for part, own in others.items()}
    text = ", ".join(f"{number} in training and {part}" for part, number in shared.items() if number)
    notes += [f"the file's own splits divide groups of {group}: {text}"] if text else []
    return replace(source, notes=tuple(notes))


def _read_folder(folder: Path) -> dict[str, GivenArray]:
    if not folder.is_dir():
        raise UserError(f"no such folder: '{folder}'")
    with located(f"'{folder}'"):
        wanted = keys(sorted(path.stem for path in folder.glob("*.npy")))
    arrays: dict[str, GivenArray] = {}
    for key in wanted:
        path = folder / f"{key}.npy"
        with reading(path, NPY):
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        arrays[key] = _planes(path, array) if key.endswith("images") else np.array(array)
    return arrays


def _planes(path: Path, rows: NDArray[np.uint8]) -> Pixels:
    """Return rows (N, C S S), the red plane of S x S pixels, then green, then blue, as a view (N,S,S,C), C 3 or 1."""
    if rows.ndim != 2 or rows.dtype != np.uint8 or rows.size == 0:
        raise UserError(f"'{path}': got {rows.dtype} of shape {rows.shape}; allowed: uint8 of shape (N,3072)")
    number, length = rows.shape
    # No number is both a square and three times a square, so the length tells colour from grey.
    channels = 3 if 3 * math.isqrt(length // 3) ** 2 == length else 1
    side = math.isqrt(length // channels)
    if channels * side**2 != length:
        raise UserError(f"'{path}': got {length} numbers per image; allowed: 3 S S (colour) or S S (grey), e.g. 3072")
    return rows.reshape(number, channels, side, side).transpose(0, 2, 3, 1)
