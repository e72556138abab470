"""CIFAR-10 and CIFAR-100, from their official archives or from one .npz file with MedMNIST's keys."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from taet.data.arrays import read_set
from taet.data.dataset import Arrays, DataSource, to_source
from taet.data.downloads import Download, find, not_found, official
from taet.errors import UserError, located
from taet.settings import Data

NAMES = {
    "cifar10": "CIFAR-10, 10 balanced classes of 32x32 colour pixels; official files or cifar10.npz",
    "cifar10-lt": "CIFAR-10, 32x32 colour pixels, made long-tailed; official files or cifar10.npz",
    "cifar10-balanced-small": "CIFAR-10, balanced, with as many images as cifar10-lt: REAT's upper bound",
    "cifar100": "CIFAR-100, 100 balanced classes of 32x32 colour pixels; official files or cifar100.npz",
    "cifar100-lt": "CIFAR-100, 32x32 colour pixels, made long-tailed; official files or cifar100.npz",
    "cifar100-balanced-small": "CIFAR-100, balanced, with as many images as cifar100-lt: REAT's upper bound",
}
SIZES = {"train": 50_000, "test": 10_000}
CLASS_NAMES = {
    "cifar10": "airplane automobile bird cat deer dog frog horse ship truck",
    "cifar100": """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
        camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur
        dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard
        lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
        pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark
        shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone
        television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm""",
}
"""In the order of the labels, as listed in the archive; for CIFAR-100 the fine classes."""


def downloads(data: Data) -> list[Download]:
    """Return the official archive."""
    return official(data.name.partition("-")[0])


def _official(place: Path, title: str) -> Arrays:
    """Return the arrays of the official pickles: torchvision compares their MD5 first, so no foreign code is run."""
    from torchvision import datasets

    reader, arrays = getattr(datasets, title.replace("-", "")), dict[str, ArrayLike]()
    try:
        with warnings.catch_warnings():
            # The official pickles name NumPy types as in 2009, which newer NumPy deprecates.
            warnings.simplefilter("ignore")
            for part in SIZES:
                made = reader(str(place.parent), train=part == "train", download=False)
                arrays |= {f"{part}_images": made.data, f"{part}_labels": np.asarray(made.targets)}
    except RuntimeError as error:
        raise UserError(f"{title}: a file in '{place}' is missing or damaged; unpack the archive again") from error
    return arrays


def read(data: Data) -> DataSource:
    """Return the whole set, balanced: 50,000 training and 10,000 test images. Source: Krizhevsky, 2009.

    CIFAR-100 has its 100 fine classes. A file that is missing, damaged or has other content raises a `UserError`.
    """
    kind, (archive,) = data.name.partition("-")[0], downloads(data)
    title = kind.upper().replace("CIFAR", "CIFAR-")
    place = find(data, str(archive.unpacks_to), f"{kind}.npz")
    if place is None:
        raise not_found(title, data, f"unpack {archive.url} (or put {kind}.npz)")
    arrays = _official(place, title) if place.is_dir() else read_set(place, data.storage)
    with located(f"{title} in '{place}'"):
        return to_source(arrays, class_names=CLASS_NAMES[kind].split(), name=data.name).check(SIZES, (32, 32, 3))
