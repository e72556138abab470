"""CIFAR, Fashion-MNIST and the single-label 2-D sets of MedMNIST, from their official files or one .npz file each."""

from __future__ import annotations

import gzip
import math
import tomllib
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from taet.data.arrays import read_set
from taet.data.dataset import PARTS, Arrays, DataSource, to_source
from taet.data.downloads import Download, find, not_found, official
from taet.data.storage import reading
from taet.errors import UserError, located
from taet.settings import Data

NAMES = {
    "cifar10": "CIFAR-10, 10 balanced classes of 32x32 colour pixels; official files or cifar10.npz",
    "cifar10-lt": "CIFAR-10, 32x32 colour pixels, made long-tailed; official files or cifar10.npz",
    "cifar10-balanced-small": "CIFAR-10, balanced, with as many images as cifar10-lt: REAT's upper bound",
    "cifar100": "CIFAR-100, 100 balanced classes of 32x32 colour pixels; official files or cifar100.npz",
    "cifar100-lt": "CIFAR-100, 32x32 colour pixels, made long-tailed; official files or cifar100.npz",
    "cifar100-balanced-small": "CIFAR-100, balanced, with as many images as cifar100-lt: REAT's upper bound",
    "fashion-mnist": "Fashion-MNIST, 10 balanced classes of clothes, 28x28 grey pixels; official files",
    "fashion-mnist-lt": "Fashion-MNIST, clothes, 28x28 grey pixels, made long-tailed; official files",
    "bloodmnist": "MedMNIST: blood cells under the microscope, 8 classes, colour; bloodmnist.npz",
    "breastmnist": "MedMNIST: breast ultrasound, malignant or not, grey; breastmnist.npz",
    "dermamnist": "MedMNIST: skin lesions (HAM10000), 7 classes, naturally long-tailed, colour; dermamnist.npz",
    "octmnist": "MedMNIST: optical coherence tomography of the retina, 4 classes, grey; octmnist.npz",
    "organamnist": "MedMNIST: abdominal CT, axial, 11 organs, grey; organamnist.npz",
    "organcmnist": "MedMNIST: abdominal CT, coronal, 11 organs, grey; organcmnist.npz",
    "organsmnist": "MedMNIST: abdominal CT, sagittal, 11 organs, grey; organsmnist.npz",
    "pathmnist": "MedMNIST: colon tissue, 9 classes, colour; pathmnist.npz",
    "pneumoniamnist": "MedMNIST: chest X-rays of children, pneumonia or not, grey; pneumoniamnist.npz",
    "retinamnist": "MedMNIST: fundus photographs, 5 grades of diabetic retinopathy, colour; retinamnist.npz",
    "tissuemnist": "MedMNIST: kidney cells, 8 classes, grey; tissuemnist.npz",
}
URL = "https://zenodo.org/records/10519652/files/{}?download=1"
SIDES = (28, 64, 128, 224)
"""Pixels of a side, of the files that MedMNIST publishes."""


class PublishedSet(NamedTuple):
    """Facts about one set: images of its splits in the order of PARTS, and of a set of MedMNIST the MD5 for SIDES."""

    images: Sequence[int]
    channels: int
    class_names: Sequence[str]
    md5: Sequence[str] = ()
    mirror: bool = True
    note: str = ""
    side: int = SIDES[0]


SETS = {
    name: PublishedSet(**entry)
    for name, entry in tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")).items()
}
"""Class names are in the order of the labels; CIFAR-100 has its fine classes."""


def _set_name(name: str) -> str:
    return next(one for one in SETS if name == one or name.startswith(f"{one}-"))


def downloads(data: Data) -> list[Download]:
    """Return the official files; of MedMNIST that of the requested size, its megabytes those of its pixels unpacked."""
    about = SETS[name := _set_name(data.name)]
    if not about.md5:
        return official(name)
    side = data.size if data.size in SIDES else SIDES[0]
    file = f"{name}.npz" if side == SIDES[0] else f"{name}_{side}.npz"
    megabytes = sum(about.images) * side**2 * about.channels / 1e6
    return [Download(URL.format(file), file, about.md5[SIDES.index(side)], megabytes)]


def read(data: Data) -> DataSource:
    """Return the whole set with its own splits, balanced but for MedMNIST; other content raises a `UserError`.

    Of MedMNIST the file of `data.size` pixels is read if it is there, else that of 28 pixels. Sources: Krizhevsky, 2009
    (CIFAR); Xiao et al., 2017, arXiv:1708.07747 (Fashion-MNIST); Yang et al., MedMNIST v2, Scientific Data 2023,
    arXiv:2110.14795, without ChestMNIST, which is multi-label.
    """
    name, wanted = _set_name(data.name), downloads(data)
    about, notes = SETS[name], list[str]()
    if name == "fashion-mnist":
        where, arrays = _clothes(data, wanted)
    elif about.md5:
        path = find(data, wanted[0].file, f"{name}.npz")
        if path is None:
            size = f" --size {data.size}" * bool(data.size)
            raise not_found(wanted[0].file, data, f"put the file from {wanted[0].url}", size)
        where, arrays, there = f"'{path}'", read_set(path, data.storage), path.name == wanted[0].file
        about = about._replace(side=data.size if there and data.size in SIDES else SIDES[0])
        missing = "" if there else f"; {wanted[0].file} is not there"
        notes = [f"read from {path.name}, images of {about.side} x {about.side} pixels{missing}", about.note]
    else:
        title = name.upper().replace("CIFAR", "CIFAR-")
        place = find(data, str(wanted[0].unpacks_to), f"{name}.npz")
        if place is None:
            raise not_found(title, data, f"unpack {wanted[0].url} (or put {name}.npz)")
        where = f"{title} in '{place}'"
        arrays = _pickles(place, title) if place.is_dir() else read_set(place, data.storage)
    with located(where):
        source = to_source(arrays, class_names=about.class_names, name=data.name, mirror=about.mirror)
        sizes = dict(zip([*PARTS] if len(about.images) == len(PARTS) else ["train", "test"], about.images, strict=True))
        source.check(sizes, (about.side, about.side, about.channels))
    return replace(source, notes=tuple(filter(None, notes)))


def _pickles(place: Path, title: str) -> Arrays:
    """Return the arrays of CIFAR's pickles: torchvision compares their MD5 first, so no foreign code is run."""
    from torchvision import datasets

    reader, arrays = getattr(datasets, title.replace("-", "")), dict[str, ArrayLike]()
    try:
        with warnings.catch_warnings():
            # The official pickles name NumPy types as in 2009, which newer NumPy deprecates.
            warnings.simplefilter("ignore")
            for part in ("train", "test"):
                made = reader(str(place.parent), train=part == "train", download=False)
                arrays |= {f"{part}_images": made.data, f"{part}_labels": np.asarray(made.targets)}
    except RuntimeError as error:
        raise UserError(f"{title}: a file in '{place}' is missing or damaged; unpack the archive again") from error
    return arrays


def _clothes(data: Data, wanted: list[Download]) -> tuple[str, Arrays]:
    """Return where the four files of Fashion-MNIST are, compressed or unpacked, and their arrays."""
    places = [Path(file.file) for file in wanted]
    paths = [path for place in places if (path := find(data, place, place.with_suffix(""))) is not None]
    if len(paths) < len(places):
        names, url = ", ".join(place.name for place in places), wanted[0].url.rpartition("/")[0]
        raise not_found("Fashion-MNIST", data, f"put {names} from {url} below {places[0].parent}")
    keys = ("train_images", "train_labels", "test_images", "test_labels")
    return f"Fashion-MNIST in '{paths[0].parent}'", dict(zip(keys, map(_read_idx, paths), strict=True))


def _read_idx(path: Path) -> NDArray[np.uint8]:
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
