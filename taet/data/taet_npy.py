"""The folders of arrays that the authors of TAET publish, such as cifar10lt_10: read, and written."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from taet.config import Data
from taet.data.dataset import Dataset, Outline
from taet.data.named_arrays import CLASS_NAMES, PARTS, keys, to_dataset, to_labels
from taet.data.places import locate
from taet.data.store import Images, gather, header, pieces
from taet.errors import UserError

NAMES = {"taet-npy": "taet-npy:PATH, a folder with train/test_images.npy (N,3072) and train/test_labels.npy, as TAET's"}


def _open(folder: Path, key: str) -> NDArray[np.generic]:
    """Return the array in `key`.npy, of which only what is used gets read; pickled objects are refused unread."""
    path = folder / f"{key}.npy"
    try:
        return np.asarray(npy.open_memmap(path, mode="r"))
    except (OSError, ValueError) as error:
        pickled = "Python objects" in str(error)
        reason = "it holds pickled objects" if pickled else " ".join(str(error).split())
        raise UserError(f"cannot read '{path}': {reason}; allowed: an .npy file of a plain array") from error


def _images(folder: Path, key: str, storage: str) -> Images:
    """Return rows (N, C S S) of whole colour planes, C 3 or 1, as images (N,S,S,C)."""
    path = folder / f"{key}.npy"
    rows, (number, side, _, channels) = _rows(folder, key)
    about = path.stat()
    return gather(
        (row.reshape(channels, side, side).transpose(1, 2, 0) for row in rows),
        (number, side, side, channels),
        key=f"taet-npy\n{path.resolve()}\n{about.st_size}\n{about.st_mtime_ns}",
        storage=storage,
    )


def _rows(folder: Path, key: str) -> tuple[NDArray[np.generic], tuple[int, int, int, int]]:
    """Return rows of colour planes, unread, and the shape (N,S,S,C) of the images that they are."""
    path, rows = folder / f"{key}.npy", _open(folder, key)
    if rows.ndim != 2 or rows.dtype != np.uint8 or rows.size == 0:
        raise UserError(f"'{path}': got {rows.dtype} of shape {rows.shape}; allowed: uint8 of shape (N,3072)")
    number, length = rows.shape
    # No number is both a square and three times a square, so the length tells colour from grey.
    channels = 3 if 3 * math.isqrt(length // 3) ** 2 == length else 1
    side = math.isqrt(length // channels)
    if channels * side**2 != length:
        raise UserError(f"'{path}': got {length} numbers per image; allowed: 3 S S (colour) or S S (grey), e.g. 3072")
    return rows, (number, side, side, channels)


def _find(data: Data) -> tuple[Path, list[str]]:
    """Return the folder, and the names of its arrays."""
    folder = locate(data)
    if not folder.is_dir():
        raise UserError(f"no such folder: '{folder}'")
    wanted, missing = keys(path.stem for path in folder.glob("*.npy"))
    if missing:
        files = ", ".join(f"{key}.npy" for key in missing)
        raise UserError(f"'{folder}' has no {files}; allowed: a folder with the files that TAET publishes")
    return folder, wanted


def outline(data: Data) -> Outline:
    """Return the labels of the folder and the shape of its images."""
    folder, wanted = _find(data)
    splits = to_labels({key: _open(folder, key) for key in wanted if not key.endswith("images")}, where=f"'{folder}'")
    _, height, width, channels = _rows(folder, "train_images")[1]
    return Outline(splits, (channels, height, width))


def read(data: Data) -> Dataset:
    """Return the folder's splits as they are.

    Images are uint8 rows (N, 3 S S): the red plane of S x S pixels, row by row, then the green, then the blue. TAET's
    folders keep the rows of CIFAR's own batches, so S is 32 there; any S is read, and (N, S S) is grey. Labels are
    whole numbers (N,). Beside TAET's four files there may be val_images.npy, val_labels.npy and class_names.npy.
    Pickled arrays are refused. Source: the code of Wang et al., TAET, CVPR 2025, arXiv:2503.01924.
    """
    folder, wanted = _find(data)
    arrays = {
        key: _images(folder, key, data.storage) if key.endswith("images") else _open(folder, key) for key in wanted
    }
    return to_dataset(arrays, name=data.name, where=f"'{folder}'")


def write(dataset: Dataset, folder: Path) -> None:
    """Write `dataset` into the new folder `folder`, so that `read` returns the same arrays and class names.

    A folder that is there already, and images that are not square, are a `UserError`.
    """
    height, width = dataset.image_shape[1:]
    if height != width:
        raise UserError(f"layout taet-npy: got {width} x {height} pixels; allowed: square images, e.g. --data.size 32")
    if folder.exists():
        raise UserError(f"layout taet-npy: '{folder}' exists already; allowed: a new folder")
    folder.mkdir(parents=True)
    for part, split in dataset.splits.items():
        with (folder / f"{PARTS[part]}_images.npy").open("wb") as file:
            file.write(header((len(split), math.prod(split.images.shape[1:]))))
            for piece in pieces(split.images):
                file.write(piece.transpose(0, 3, 1, 2).tobytes())
        np.save(folder / f"{PARTS[part]}_labels.npy", split.labels)
    np.save(folder / f"{CLASS_NAMES}.npy", np.array(dataset.class_names))
