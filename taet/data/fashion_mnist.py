"""Fashion-MNIST, from its official files."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from taet.data.dataset import Dataset, Outline, to_dataset
from taet.data.downloads import Download, official
from taet.data.foreign_files import MOST_BYTES, check_unpacked, reading
from taet.data.npz import REQUIRED
from taet.data.places import find, not_found
from taet.errors import UserError, located
from taet.settings import Data

NAMES = {
    "fashion-mnist": "Fashion-MNIST, 10 balanced classes of clothes, 28x28 grey pixels; official files",
    "fashion-mnist-lt": "Fashion-MNIST, clothes, 28x28 grey pixels, made long-tailed; official files",
}
CLASS_NAMES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
PER_CLASS = {"train": 6000, "test": 1000}
IMAGE_SHAPE = (1, 28, 28)
FILES = official("fashion-mnist")
FOLDER, URL = Path(FILES[0].file).parent, FILES[0].url.rpartition("/")[0]


def downloads(data: Data) -> tuple[Download, ...]:  # noqa: ARG001 - there is one set, of one size
    """Return the four official files, with torchvision's checksums."""
    return FILES


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Return the array in an IDX file of bytes, compressed or not.

    Format: 0, 0, 8 (unsigned byte), the number of dimensions, each dimension as a big-endian int32, then the bytes in
    C order. Anything else is a `UserError`. Source: LeCun, Cortes and Burges, The MNIST database, 1998.
    """
    with reading(path, "an IDX file of bytes, whole", most=MOST_BYTES) as file:
        stream = gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
        begins = stream.read(4)
        sides = stream.read(4 * begins[3]) if begins[:3] == b"\0\0\x08" and len(begins) == 4 else b""
        shape = [int.from_bytes(sides[place : place + 4]) for place in range(0, len(sides), 4)]
        size = math.prod(shape)
        check_unpacked(size, path.stat().st_size)
        content = bytearray(stream.read(size + 1))
        if not sides or len(sides) != 4 * begins[3] or len(content) != size:
            raise ValueError("its header or its length is wrong")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _find(data: Data) -> list[Path]:
    """Return the four files in one folder, each compressed as published or unpacked."""
    names = [download.name for download in FILES]
    places = [FOLDER / name for name in names]
    some = find(data, *places, *(place.with_suffix("") for place in places))
    if some is None:
        raise not_found("Fashion-MNIST", data, f"put {', '.join(names)} from {URL} below {FOLDER}")
    folder = some.parent
    found = [path if (path := folder / name).is_file() else path.with_suffix("") for name in names]
    if lost := [name for name, path in zip(names, found, strict=True) if not path.is_file()]:
        raise UserError(
            f"Fashion-MNIST: '{folder}' has no {', '.join(lost)}; run taet data prepare {data.name}, "
            f"or get it from {URL}"
        )
    return found


def outline(data: Data) -> Outline:  # noqa: ARG001 - there is one set
    """Return the published numbers."""
    return Outline.of_counts(CLASS_NAMES, PER_CLASS, IMAGE_SHAPE)


def read(data: Data) -> Dataset:
    """Return all of Fashion-MNIST, balanced: 60,000 training and 10,000 test images.

    Source: Xiao, Rasul and Vollgraf, Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms,
    2017, arXiv:1708.07747.
    """
    paths = _find(data)
    arrays = dict(zip(REQUIRED, map(read_idx, paths), strict=True))
    with located(f"Fashion-MNIST in '{paths[0].parent}'"):
        dataset = to_dataset(arrays, class_names=CLASS_NAMES, name=data.name)
        outline(data).check(dataset)
    return dataset
