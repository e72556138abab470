"""Fashion-MNIST, from its official files."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from taet.config import Data
from taet.data.dataset import Dataset, Outline
from taet.data.downloads import Download
from taet.data.named_arrays import REQUIRED, to_dataset
from taet.data.places import not_found, roots
from taet.errors import UserError

NAMES = {
    "fashion-mnist": "Fashion-MNIST, 10 balanced classes of clothes, 28x28 grey pixels; official files",
    "fashion-mnist-lt": "Fashion-MNIST, clothes, 28x28 grey pixels, made long-tailed; official files",
}
CLASS_NAMES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
PER_CLASS = {"train": 6000, "test": 1000}
IMAGE_SHAPE = (1, 28, 28)
FOLDER = "FashionMNIST/raw"  # where torchvision keeps the files
URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"


def _download(file: str, md5: str, megabytes: float) -> Download:
    return Download(f"{URL}/{file}", f"{FOLDER}/{file}", md5, megabytes)


# With torchvision's checksums; training images and labels, then test images and labels.
FILES = (
    _download("train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d", 26.4),
    _download("train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe", 0.03),
    _download("t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79", 4.4),
    _download("t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310", 0.005),
)


def downloads(data: Data) -> tuple[Download, ...]:  # noqa: ARG001 - there is one set, of one size
    """Return the four official files, with torchvision's checksums."""
    return FILES


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Return the array in an IDX file of bytes, compressed or not.

    Format: 0, 0, 8 (unsigned byte), the number of dimensions, each dimension as a big-endian int32, then the bytes in
    C order. Anything else is a `UserError`. Source: LeCun, Cortes and Burges, The MNIST database, 1998.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read '{path}': {error}; allowed: an IDX file, whole") from error
    start = 4 + 4 * int.from_bytes(content[3:4])
    shape = tuple(int.from_bytes(content[place : place + 4]) for place in range(4, start, 4))
    if content[:3] != b"\0\0\x08" or len(content) != start + math.prod(shape):
        raise UserError(f"cannot read '{path}': its header or its length is wrong; allowed: an IDX file of bytes")
    return np.frombuffer(bytearray(content), np.uint8, offset=start).reshape(shape)


def _find(data: Data) -> list[Path]:
    """Return the four files in one folder, each compressed as published or unpacked."""
    for root in roots(data):
        places = [root / download.file for download in FILES]
        found = [place if place.is_file() else place.with_suffix("") for place in places]
        lost = [place.name for place, path in zip(places, found, strict=True) if not path.is_file()]
        if not lost:
            return found
        if len(lost) < len(FILES):
            raise UserError(
                f"Fashion-MNIST: '{root / FOLDER}' has no {', '.join(lost)}; run taet data prepare {data.name}, "
                f"or get it from {URL}"
            )
    files = ", ".join(download.name for download in FILES)
    raise not_found("Fashion-MNIST", data, f"put {files} from {URL} below {FOLDER}")


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
    where = f"Fashion-MNIST in '{paths[0].parent}'"
    dataset = to_dataset(arrays, class_names=CLASS_NAMES, name=data.name, where=where)
    outline(data).check(dataset, where)
    return dataset
