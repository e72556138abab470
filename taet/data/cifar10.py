"""CIFAR-10, from its official files or from one `cifar10.npz`."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from taet.config import Data
from taet.data import npz
from taet.data.dataset import Dataset
from taet.data.places import roots
from taet.errors import UserError

NAMES = {"cifar10-lt": "CIFAR-10, 32x32 colour pixels, made long-tailed; official files or cifar10.npz"}
CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PER_CLASS = {"train": 5000, "test": 1000}
OFFICIAL_FOLDER = "cifar-10-batches-py"
ARCHIVE = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"


def _official(root: Path) -> dict[str, NDArray[np.generic]]:
    from torchvision.datasets import CIFAR10

    arrays: dict[str, NDArray[np.generic]] = {}
    try:
        with warnings.catch_warnings():
            # The official pickles spell NumPy types as they were in 2009, which newer NumPy deprecates.
            warnings.simplefilter("ignore")
            for part in PER_CLASS:
                official = CIFAR10(str(root), train=part == "train", download=False)
                arrays |= {f"{part}_images": official.data, f"{part}_labels": np.asarray(official.targets)}
    except RuntimeError as error:
        raise UserError(
            f"CIFAR-10: a file in '{root / OFFICIAL_FOLDER}' is missing or damaged; unpack {ARCHIVE} again"
        ) from error
    return arrays


def _find(folders: list[Path]) -> dict[str, NDArray[np.generic]]:
    for root in folders:
        if (root / OFFICIAL_FOLDER).is_dir():
            return _official(root)
        if (root / "cifar10.npz").is_file():
            return npz.read_arrays(root / "cifar10.npz")
    looked = ", ".join(f"'{root}'" for root in folders)
    raise UserError(
        f"CIFAR-10 is not in {looked}; unpack {ARCHIVE} (or put cifar10.npz) "
        "into a folder and name it with --data.root or TAET_DATA"
    )


def read(data: Data) -> Dataset:
    """Return all of CIFAR-10, balanced: 50,000 training and 10,000 test images. Source: Krizhevsky, 2009."""
    arrays = _find(roots(data))
    dataset = Dataset.from_arrays(*(arrays[key] for key in npz.REQUIRED), class_names=CLASS_NAMES, name=data.name)
    for part, expected in PER_CLASS.items():
        counts = dataset.splits[part].class_counts
        if (counts != expected).any():
            raise UserError(f"CIFAR-10: got {counts.tolist()} {part} images per class; allowed: {expected} of each")
    return dataset
