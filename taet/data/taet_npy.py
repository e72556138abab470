"""Reading and writing the array folders of TAET's authors, such as cifar10lt_10."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from taet.data.array_file import ArrayFile, open_array, read_array
from taet.data.dataset import CLASS_NAMES, PARTS, Dataset, Outline, to_dataset, to_labels
from taet.data.image_store import Images, gather, header, pieces
from taet.data.npz import keys
from taet.data.places import locate
from taet.errors import UserError, located
from taet.settings import Data

NAMES = {"taet-npy": "taet-npy:PATH, a folder with train/test_images.npy (N,3072) and train/test_labels.npy, as TAET's"}


def _image_shape(path: Path, rows: ArrayFile) -> tuple[int, int, int, int]:
    """Return the shape (N,S,S,C) of images stored as rows (N, C S S) of whole colour planes, C 3 or 1."""
    if len(rows.shape) != 2 or rows.dtype != np.uint8 or rows.nbytes == 0:
        raise UserError(f"'{path}': got {rows.dtype} of shape {rows.shape}; allowed: uint8 of shape (N,3072)")
    number, length = rows.shape
    # No number is both a square and three times a square, so the length tells colour from grey.
    channels = 3 if 3 * math.isqrt(length // 3) ** 2 == length else 1
    side = math.isqrt(length // channels)
    if channels * side**2 != length:
        raise UserError(f"'{path}': got {length} numbers per image; allowed: 3 S S (colour) or S S (grey), e.g. 3072")
    return number, side, side, channels


def _images(folder: Path, key: str, storage: str) -> Images:
    path = folder / f"{key}.npy"
    with open_array(path) as rows:
        number, side, _, channels = _image_shape(path, rows)
        blocks = (block.reshape(-1, channels, side, side).transpose(0, 2, 3, 1) for block in rows.blocks())
        return gather(
            chain.from_iterable(blocks), (number, side, side, channels), key=f"taet-npy\n{rows.key}", storage=storage
        )


def _find(data: Data) -> tuple[Path, list[str]]:
    """Return the folder, and the names of its arrays."""
    folder = locate(data)
    if not folder.is_dir():
        raise UserError(f"no such folder: '{folder}'")
    return folder, keys(folder, sorted(path.stem for path in folder.glob("*.npy")))


def outline(data: Data) -> Outline:
    """Return the labels of the folder and the shape of its images."""
    folder, wanted = _find(data)
    labels = {key: read_array(folder / f"{key}.npy") for key in wanted if not key.endswith("images")}
    with located(f"'{folder}'"):
        splits = to_labels(labels)
    path = folder / "train_images.npy"
    with open_array(path) as rows:
        _, height, width, channels = _image_shape(path, rows)
    return Outline(splits, (channels, height, width))


def read(data: Data) -> Dataset:
    """Return the folder's splits as they are.

    Images are uint8 rows (N, 3 S S): the red plane of S x S pixels, row by row, then the green, then the blue. TAET's
    folders keep the rows of CIFAR's own batches, so S is 32 there; any S is read, and (N, S S) is grey. Labels are
    whole numbers (N,). Beside TAET's four files there may be val_images.npy, val_labels.npy and class_names.npy.
    Pickled arrays are refused. Source: the code of Wang et al., TAET, CVPR 2025, arXiv:2503.01924.
    """
    folder, wanted = _find(data)
    arrays: dict[str, Images | NDArray[np.generic]] = {}
    for key in wanted:
        is_images = key.endswith("images")
        arrays[key] = _images(folder, key, data.storage) if is_images else read_array(folder / f"{key}.npy")
    with located(f"'{folder}'"):
        return to_dataset(arrays, name=data.name)


def write(dataset: Dataset, folder: Path) -> Iterator[int]:
    """Write `dataset` into the new folder `folder`, so that `read` returns the same arrays and class names.

    Yields the number of images in each written block. Images that are not square raise a `UserError`.
    """
    height, width = dataset.image_shape[1:]
    if height != width:
        raise UserError(f"layout taet-npy: got {width} x {height} pixels; allowed: square images, e.g. --data.size 32")
    folder.mkdir()
    for part, split in dataset.splits.items():
        with (folder / f"{PARTS[part]}_images.npy").open("wb") as file:
            file.write(header((len(split), math.prod(split.images.shape[1:]))))
            for block in pieces(split.images):
                file.write(block.transpose(0, 3, 1, 2).tobytes())
                yield len(block)
        np.save(folder / f"{PARTS[part]}_labels.npy", split.labels)
    np.save(folder / f"{CLASS_NAMES}.npy", np.array(dataset.class_names))
