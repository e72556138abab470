"""The MedMNIST sets of single-label 2-D images, each one .npz file of one size."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from taet.data.arrays import keys, npz_names, read_npz
from taet.data.places import Download, find, not_found
from taet.data.source import PARTS, DataSource, to_source
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
MULTI_LABEL = "chestmnist"
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


def _sets() -> dict[str, MedicalSet]:
    published = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    for entry in published.values():
        entry |= {key: tuple(value) for key, value in entry.items() if isinstance(value, list)}
    return {name: MedicalSet(**entry) for name, entry in published.items()}


SETS = _sets()


def _set(name: str) -> MedicalSet:
    if name == MULTI_LABEL:
        raise UserError(
            f"{name} is multi-label: an image has any number of 14 findings, and no class; allowed: {', '.join(SETS)}"
        )
    return SETS[name]


def _file(name: str, side: int) -> str:
    return f"{name}.npz" if side == SIZES[0] else f"{name}_{side}.npz"


def _side(size: int | None) -> int:
    """Return the published size to use: `size` if there is such a file, else the smallest."""
    return size if size in SIZES else SIZES[0]


def downloads(data: Data) -> tuple[Download, ...]:
    """Return the file of the requested size; its megabytes are an upper bound, the size of its pixels uncompressed."""
    about, side = _set(data.name), _side(data.size)
    file = _file(data.name, side)
    megabytes = sum(about.images) * side**2 * about.channels / 1e6
    return (Download(f"{RECORD}/files/{file}?download=1", file, about.md5[SIZES.index(side)], megabytes),)


def _find(data: Data) -> tuple[Path, int] | None:
    """Return the file of the requested size or else the smallest one, and its pixels per side."""
    paths = ((find(data, _file(data.name, side)), side) for side in (_side(data.size), SIZES[0]))
    return next(((path, side) for path, side in paths if path is not None), None)


def read(data: Data) -> DataSource:
    """Return the published splits from the file of `data.size` pixels if there is one, else from that of 28 pixels.

    Sizes published: 28, 64, 128, 224. A file that is missing or has other content raises a `UserError`, and so does a
    multi-label set. Source: Yang et al., MedMNIST v2, Scientific Data 2023, arXiv:2110.14795.
    """
    about, found = _set(data.name), _find(data)
    if found is None:
        (wanted,) = downloads(data)
        raise not_found(wanted.file, data, f"put the file from {wanted.url}", f" --size {data.size}" * bool(data.size))
    path, side = found
    with located(f"'{path}'"):
        arrays = read_npz(path, keys(npz_names(path)))
        source = to_source(arrays, class_names=about.class_names, name=data.name, mirror=about.mirror)
        source.check({}, (about.channels, side, side))
        got = tuple(len(source.splits[part]) for part in PARTS if part in source.splits)
        if got != about.images:
            raise UserError(f"got {got} images in its splits; allowed: {about.images}, as in {RECORD}")
    notes = [f"read from {path.name}, images of {side} x {side} pixels"]
    if side != _side(data.size):
        notes.append(f"{_file(data.name, _side(data.size))} is not there")
    return replace(source, notes=("; ".join(notes), *([about.note] if about.note else [])))
