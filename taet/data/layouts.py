"""A data set written for other programs: one .npz, folders of PNG images, or the arrays of TAET's repository."""

from __future__ import annotations

import itertools
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from taet.data import taet_npy
from taet.data.aside import aside
from taet.data.dataset import CLASS_NAMES, PARTS, Dataset
from taet.data.image_store import header, pieces
from taet.data.images import picture
from taet.data.npz import GROUP
from taet.errors import UserError, unknown
from taet.progress import Progress


def _write_npz(dataset: Dataset, path: Path) -> Iterator[int]:
    """Write MedMNIST's keys, `class_names` and, if images have groups, train_group and so on.

    Grey images are (N,H,W), labels and groups (N,). Yields the number of images in each written block.
    """
    with zipfile.ZipFile(path, "w") as archive:

        def save(name: str, array: NDArray[np.generic]) -> None:
            with archive.open(f"{name}.npy", "w") as member:
                npy.write_array(member, array, allow_pickle=False)

        for part, split in dataset.splits.items():
            shape = split.images.shape[:3] if split.images.shape[3] == 1 else split.images.shape
            with archive.open(f"{PARTS[part]}_images.npy", "w", force_zip64=True) as member:
                member.write(header(shape))
                for block in pieces(split.images):
                    member.write(np.ascontiguousarray(block).data)
                    yield len(block)
            save(f"{PARTS[part]}_labels", split.labels)
            if split.groups is not None:
                save(f"{PARTS[part]}_{GROUP}", split.groups)
        save(CLASS_NAMES, np.array(dataset.class_names))


def class_folders(class_names: Sequence[str]) -> list[str]:
    """Return a folder name for each class, so that their alphabetical order is the order of the labels.

    If the names themselves are not in that order, each is preceded by its label with leading zeros.
    """
    safe = [re.sub(r'[\\/:*?"<>|\x00-\x1f]', "-", name).strip(". ") for name in class_names]
    distinct = len({name.casefold() for name in safe}) == len(safe)  # some file systems ignore case
    if distinct and all(safe) and safe == sorted(safe):
        return safe
    width = len(str(len(safe) - 1))
    return [
        f"{label:0{width}}" if name == str(label) else f"{label:0{width}} {name}".strip()
        for label, name in enumerate(safe)
    ]


def _write_folder(dataset: Dataset, path: Path) -> Iterator[int]:
    """Write train/CLASS/POSITION.png and so on, with the position in the source's own split: see `_write_npz`.

    Images with groups: train/CLASS/GROUP/POSITION.png, as --data.group folder reads it; groups are numbers.
    """

    def save(image: NDArray[np.uint8], file: Path) -> None:
        picture(image).save(file, "PNG")

    names = class_folders(dataset.class_names)
    with ThreadPoolExecutor() as pool:
        for part, split in dataset.splits.items():
            width = len(str(split.indices.max()))
            folders = [path / PARTS[part] / names[label] for label in split.labels]
            if split.groups is not None:
                folders = [folder / str(group) for folder, group in zip(folders, split.groups, strict=True)]
            for folder in set(folders):
                folder.mkdir(parents=True)
            files = (folder / f"{index:0{width}}.png" for folder, index in zip(folders, split.indices, strict=True))
            for block in pieces(split.images):
                list(pool.map(save, block, itertools.islice(files, len(block))))
                yield len(block)


WRITERS: dict[str, Callable[[Dataset, Path], Iterator[int]]] = {
    "npz": _write_npz,
    "folder": _write_folder,
    "taet-npy": taet_npy.write,
}


def write(dataset: Dataset, layout: str, out: Path, progress: Progress) -> None:
    """Write `dataset` to the new file (npz) or folder `out`, which gets its name when it is complete."""
    if layout not in WRITERS:
        raise unknown("layout", layout, WRITERS)
    check_free(out)
    made = out.with_name(f".{out.name}.part")
    part = made / out.name
    try:
        with aside(made):
            done, total = 0, sum(map(len, dataset.splits.values()))
            for images in WRITERS[layout](dataset, part):
                done += images
                progress(done, total, f"writing {out.name}")
            os.sync()  # thousands of files, before they are given their place
            check_free(out)
            part.rename(out)
    except OSError as error:
        raise UserError(f"cannot write '{out}': {error.strerror}") from error


def check_free(out: Path) -> None:
    """Refuse a path that exists."""
    if os.path.lexists(out):
        raise UserError(f"'{out}' exists already and is kept; allowed: another place, by --out")
