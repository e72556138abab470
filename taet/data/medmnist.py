"""The MedMNIST sets of single-label 2-D images, each one .npz file of one size."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from taet.data.arrays import read_set
from taet.data.downloads import Download, find, not_found
from taet.data.source import DataSource, to_source
from taet.errors import UserError, located
from taet.settings import Data

NAMES = {
    "bloodmnist": "MedMNIST: blood cells under the microscope, 8 classes, colour; bloodmnist.npz",
    "breastmnist": "MedMNIST: breast ultrasound, malignant or not, grey; breastmnist.npz",
    "chestmnist": "MedMNIST: chest X-rays; multi-label, so it is refused",
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
RECORD = "https://zenodo.org/records/10519652"
SIZES = (28, 64, 128, 224)
"""Pixels of a side, of the files that are published."""


class MedicalSet(NamedTuple):
    """Published facts about one set: see medmnist.toml."""

    images: tuple[int, int, int]
    """Images of training, validation and test."""
    channels: int
    class_names: tuple[str, ...]
    md5: tuple[str, str, str, str]
    """MD5 of the file of each of SIZES."""
    mirror: bool = True
    """Whether a mirrored image keeps its label."""
    note: str = ""
    """What a user needs to know about the set."""


PUBLISHED_SETS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
SETS = {name: MedicalSet(**entry) for name, entry in PUBLISHED_SETS.items()}


def _set(name: str) -> MedicalSet:
    if name not in SETS:
        why = "an image has any number of 14 findings, and no class"
        raise UserError(f"{name} is multi-label: {why}; allowed: {', '.join(SETS)}")
    return SETS[name]


def _file(name: str, side: int) -> str:
    return f"{name}.npz" if side == SIZES[0] else f"{name}_{side}.npz"


def _side(data: Data) -> int:
    """Return the published size to use: `data.size` if there is such a file, else the smallest."""
    return data.size if data.size in SIZES else SIZES[0]


def downloads(data: Data) -> list[Download]:
    """Return the file of the requested size; its megabytes are an upper bound, the size of its pixels uncompressed."""
    about, side = _set(data.name), _side(data)
    file = _file(data.name, side)
    megabytes = sum(about.images) * side**2 * about.channels / 1e6
    return [Download(f"{RECORD}/files/{file}?download=1", file, about.md5[SIZES.index(side)], megabytes)]


def read(data: Data) -> DataSource:
    """Return the published splits from the file of `data.size` pixels if there is one, else from that of 28 pixels.

    Sizes published: 28, 64, 128, 224. A file that is missing or has other content raises a `UserError`, and so does a
    multi-label set. Source: Yang et al., MedMNIST v2, Scientific Data 2023, arXiv:2110.14795.
    """
    about, (wanted,) = _set(data.name), downloads(data)
    path = find(data, wanted.file) or find(data, _file(data.name, SIZES[0]))
    if path is None:
        raise not_found(wanted.file, data, f"put the file from {wanted.url}", f" --size {data.size}" * bool(data.size))
    side = _side(data) if path.name == wanted.file else SIZES[0]
    arrays = read_set(path, data.storage)
    with located(f"'{path}'"):
        source = to_source(arrays, class_names=about.class_names, name=data.name, mirror=about.mirror)
        sizes = dict(zip(("train", "validation", "test"), about.images, strict=True))
        source.check(sizes, (side, side, about.channels))
    missing = "" if path.name == wanted.file else f"; {wanted.file} is not there"
    notes = [f"read from {path.name}, images of {side} x {side} pixels{missing}", about.note]
    return replace(source, notes=tuple(filter(None, notes)))
