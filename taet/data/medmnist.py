"""The MedMNIST sets of single-label 2-D images, each one .npz file of one size."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from taet.data.arrays import read_set
from taet.data.dataset import DataSource, to_source
from taet.data.downloads import Download, find, not_found
from taet.errors import located
from taet.settings import Data

NAMES = {
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
SIZES = (28, 64, 128, 224)
"""Pixels of a side, of the files that are published."""


class MedicalSet(NamedTuple):
    """Published facts about one set: see medmnist.toml; images of its splits, MD5 of the files of SIZES."""

    images: tuple[int, int, int]
    channels: int
    class_names: tuple[str, ...]
    md5: tuple[str, str, str, str]
    mirror: bool = True
    note: str = ""


PUBLISHED_SETS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
SETS = {name: MedicalSet(**entry) for name, entry in PUBLISHED_SETS.items()}


def downloads(data: Data) -> list[Download]:
    """Return the file of the requested size; its megabytes are an upper bound, the size of its pixels uncompressed."""
    about, side = SETS[data.name], data.size if data.size in SIZES else SIZES[0]
    file = f"{data.name}.npz" if side == SIZES[0] else f"{data.name}_{side}.npz"
    megabytes = sum(about.images) * side**2 * about.channels / 1e6
    return [Download(URL.format(file), file, about.md5[SIZES.index(side)], megabytes)]


def read(data: Data) -> DataSource:
    """Return the published splits from the file of `data.size` pixels if there is one, else from that of 28 pixels.

    ChestMNIST is multi-label and not among them. Source: Yang et al., MedMNIST v2, Scientific Data 2023,
    arXiv:2110.14795.
    """
    (wanted,), about = downloads(data), SETS[data.name]
    path = find(data, wanted.file) or find(data, f"{data.name}.npz")
    if path is None:
        raise not_found(wanted.file, data, f"put the file from {wanted.url}", f" --size {data.size}" * bool(data.size))
    arrays, there = read_set(path, data.storage), path.name == wanted.file
    side = data.size if there and data.size in SIZES else SIZES[0]
    with located(f"'{path}'"):
        source = to_source(arrays, class_names=about.class_names, name=data.name, mirror=about.mirror)
        sizes = dict(zip(("train", "validation", "test"), about.images, strict=True))
        source.check(sizes, (side, side, about.channels))
    missing = "" if there else f"; {wanted.file} is not there"
    notes = [f"read from {path.name}, images of {side} x {side} pixels{missing}", about.note]
    return replace(source, notes=tuple(filter(None, notes)))
