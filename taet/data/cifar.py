"""CIFAR-10 and CIFAR-100, from their official archives or from one .npz file with MedMNIST's keys."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from taet.data.arrays import keys, npz_names, read_npz
from taet.data.places import Download, find, not_found, official
from taet.data.source import Arrays, DataSource, GivenArray, to_source
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
IMAGE_SHAPE = (3, 32, 32)


class CifarVersion(NamedTuple):
    """One of the two sets: its official archive and content."""

    title: str
    archive: Download
    folder: str
    """Folder in the archive."""
    per_class: dict[str, int]
    """Images of each class in each split."""
    class_names: tuple[str, ...]
    """Class names in the order of the labels, as listed in the archive; for CIFAR-100 the fine classes."""


def _version(number: int, per_class: dict[str, int], names: str) -> CifarVersion:
    (archive,) = official(f"cifar{number}")
    return CifarVersion(f"CIFAR-{number}", archive, str(archive.unpacks_to), per_class, tuple(names.split()))


VERSIONS = {
    "cifar10": _version(
        10, {"train": 5000, "test": 1000}, "airplane automobile bird cat deer dog frog horse ship truck"
    ),
    "cifar100": _version(
        100,
        {"train": 500, "test": 100},
        """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
        castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
        elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
        man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
        pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
        skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
        tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm""",
    ),
}


def _kind(data: Data) -> str:
    """Return cifar10 or cifar100; the other sets are subsets of these."""
    return data.name.partition("-")[0]


def downloads(data: Data) -> tuple[Download, ...]:
    """Return the official archive."""
    return (VERSIONS[_kind(data)].archive,)


def _official(place: Path, version: CifarVersion) -> Arrays:
    """Return the arrays of the official files, which are pickles.

    Torchvision compares the official MD5 before it opens each file, so no foreign code is run.
    """
    from torchvision import datasets

    reader = getattr(datasets, version.title.replace("-", ""))
    arrays: dict[str, GivenArray] = {}
    try:
        with warnings.catch_warnings():
            # The official pickles name NumPy types as in 2009, which newer NumPy deprecates.
            warnings.simplefilter("ignore")
            for part in version.per_class:
                official = reader(str(place.parent), train=part == "train", download=False)
                arrays |= {f"{part}_images": official.data, f"{part}_labels": np.asarray(official.targets)}
    except RuntimeError as error:
        url = version.archive.url
        raise UserError(f"{version.title}: a file in '{place}' is missing or damaged; unpack {url} again") from error
    return arrays


def read(data: Data) -> DataSource:
    """Return the whole set, balanced: 50,000 training and 10,000 test images. Source: Krizhevsky, 2009.

    CIFAR-100 has its 100 fine classes. A file that is missing, damaged or has other content raises a `UserError`.
    """
    version, file = VERSIONS[_kind(data)], f"{_kind(data)}.npz"
    place = find(data, version.folder, file)
    if place is None:
        raise not_found(version.title, data, f"unpack {version.archive.url} (or put {file})")
    with located(f"{version.title} in '{place}'"):
        arrays = _official(place, version) if place.is_dir() else read_npz(place, keys(npz_names(place)))
        source = to_source(arrays, class_names=version.class_names, name=data.name)
        return source.check(version.per_class, IMAGE_SHAPE)
