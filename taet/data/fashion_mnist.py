"""Fashion-MNIST, from its official files."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from taet.data.dataset import DataSource, to_source
from taet.data.downloads import Download, find, not_found, official
from taet.data.storage import reading
from taet.errors import located
from taet.settings import Data

NAMES = {
    "fashion-mnist": "Fashion-MNIST, 10 balanced classes of clothes, 28x28 grey pixels; official files",
    "fashion-mnist-lt": "Fashion-MNIST, clothes, 28x28 grey pixels, made long-tailed; official files",
}
CLASS_NAMES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
SIZES = {"train": 60_000, "test": 10_000}
KEYS = ("train_images", "train_labels", "test_images", "test_labels")
FILES = official("fashion-mnist")


def downloads(data: Data) -> list[Download]:  # noqa: ARG001 - there is one set, of one size
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


def read(data: Data) -> DataSource:
    """Return all of Fashion-MNIST, balanced: 60,000 training and 10,000 test images, compressed or unpacked.

    Source: Xiao, Rasul and Vollgraf, Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms,
    2017, arXiv:1708.07747.
    """
    places = [Path(file.file) for file in FILES]
    paths = [path for place in places if (path := find(data, place, place.with_suffix(""))) is not None]
    if len(paths) < len(places):
        names, url = ", ".join(place.name for place in places), FILES[0].url.rpartition("/")[0]
        raise not_found("Fashion-MNIST", data, f"put {names} from {url} below {places[0].parent}")
    with located(f"Fashion-MNIST in '{paths[0].parent}'"):
        arrays = dict(zip(KEYS, map(read_idx, paths), strict=True))
        return to_source(arrays, class_names=CLASS_NAMES, name=data.name).check(SIZES, (28, 28, 1))
