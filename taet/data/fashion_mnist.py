"""Fashion-MNIST, from its official files."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from taet.data.places import Download, find, not_found, official
from taet.data.source import DataSource, to_source
from taet.data.storage import reading
from taet.errors import UserError, located
from taet.settings import Data

NAMES = {
    "fashion-mnist": "Fashion-MNIST, 10 balanced classes of clothes, 28x28 grey pixels; official files",
    "fashion-mnist-lt": "Fashion-MNIST, clothes, 28x28 grey pixels, made long-tailed; official files",
}
CLASS_NAMES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
PER_CLASS = {"train": 6000, "test": 1000}
IMAGE_SHAPE = (1, 28, 28)
KEYS = ("train_images", "train_labels", "test_images", "test_labels")
FILES = official("fashion-mnist")
FOLDER, URL = Path(FILES[0].file).parent, FILES[0].url.rpartition("/")[0]


def downloads(data: Data) -> tuple[Download, ...]:  # noqa: ARG001 - there is one set, of one size
    """Return the four official files."""
    return FILES


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Return the array in an IDX file of bytes, compressed or not.

    Format: 0, 0, 8 (unsigned byte), the number of dimensions, each dimension as a big-endian int32, then the bytes in
    C order. Anything else is a `UserError`. Source: LeCun, Cortes and Burges, The MNIST database, 1998.
    """
    with reading(path, "an IDX file of bytes, whole"):
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        begin = 4 + 4 * content[3]
        shape = [int.from_bytes(content[place : place + 4]) for place in range(4, begin, 4)]
        if content[:3] != b"\0\0\x08" or len(content) != begin + math.prod(shape):
            raise ValueError("its header or its length is wrong")
        return np.frombuffer(content, np.uint8, offset=begin).reshape(shape)


def _find(data: Data) -> list[Path]:
    """Return the four files in one folder, each compressed as published or unpacked."""
    places = [FOLDER / Path(file.file).name for file in FILES]
    some = find(data, *places, *(place.with_suffix("") for place in places))
    if some is None:
        names = ", ".join(place.name for place in places)
        raise not_found("Fashion-MNIST", data, f"put {names} from {URL} below {FOLDER}")
    found = [path if (path := some.parent / place.name).is_file() else path.with_suffix("") for place in places]
    if lost := [path.name for path in found if not path.is_file()]:
        raise UserError(
            f"Fashion-MNIST: '{some.parent}' has no {', '.join(lost)}; run taet data prepare {data.name}, "
            f"or get it from {URL}"
        )
    return found


def read(data: Data) -> DataSource:
    """Return all of Fashion-MNIST, balanced: 60,000 training and 10,000 test images.

    Source: Xiao, Rasul and Vollgraf, Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms,
    2017, arXiv:1708.07747.
    """
    paths = _find(data)
    arrays = dict(zip(KEYS, map(read_idx, paths), strict=True))
    with located(f"Fashion-MNIST in '{paths[0].parent}'"):
        return to_source(arrays, class_names=CLASS_NAMES, name=data.name).check(PER_CLASS, IMAGE_SHAPE)
