"""The German Traffic Sign Recognition Benchmark, from its official folders."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from taet.data.dataset import Dataset, Labels, Outline, Split
from taet.data.downloads import Download, official
from taet.data.images import FITTED, decode_all
from taet.data.places import not_found, roots
from taet.data.rows import read_rows
from taet.errors import UserError
from taet.settings import Data

NAMES = {
    "gtsrb": "GTSRB, 43 German traffic signs, naturally long-tailed (11 to 1); frames of one sign stay in one split"
}
CLASSES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))["classes"]
CLASS_NAMES, TRACK_COUNTS, TEST_COUNTS = zip(*CLASSES, strict=True)
"""Names, training tracks and test images, in the order of the official class numbers."""
SIZE = 32
TRAINING = {"Final_Training/Images": 39_209, "Training": 26_640}
"""Folders of the training images in the order of preference, and their number: the benchmark's training set, and the
part of it that was used in the online competition of IJCNN 2011, which torchvision reads."""
FRAMES, SHORT_TRACK_CLASS = 30, 33
"""Images per track; one track of one class has one image less."""
TEST = 12_630
TRACKS = 100_000
"""Track numbers have five digits."""
ARCHIVES = official("gtsrb")
AGAIN = "delete what is damaged and run taet data prepare gtsrb"


def downloads(data: Data) -> tuple[Download, ...]:  # noqa: ARG001 - there is one version
    """Return the official archives; torchvision keeps them in the same places."""
    return ARCHIVES


def _find(folders: list[Path]) -> tuple[Path, str] | None:
    """Return the folder GTSRB and its folder of training images, if they are there."""
    places = [root / folder for root in folders for folder in ("gtsrb/GTSRB", "GTSRB")]
    return next(((place, part) for place in places for part in TRAINING if (place / part).is_dir()), None)


def outline(data: Data) -> Outline:
    """Return the official numbers, or those of the files if they are present."""
    shape, found = (3, SIZE, SIZE), _find(roots(data))
    if found is not None:
        place, training = found
        _, labels, tracks = _training(place / training)
        train, test = Labels(labels, CLASS_NAMES, tracks), Labels(_test(place)[1], CLASS_NAMES)
        return Outline({"train": train, "test": test}, shape, mirror=False)
    owners = np.repeat(np.arange(len(CLASS_NAMES)), TRACK_COUNTS)
    tracks = np.repeat(np.arange(len(owners)), FRAMES)
    tracks = np.delete(tracks, np.flatnonzero(owners[tracks] == SHORT_TRACK_CLASS)[-1])
    train = Labels(owners[tracks], CLASS_NAMES, tracks)
    return Outline({"train": train, "test": Labels.of_counts(CLASS_NAMES, TEST_COUNTS)}, shape, mirror=False)


def _training(folder: Path) -> tuple[list[Path], NDArray[np.int64], NDArray[np.int64]]:
    """Return the training files, their labels, and numbers of their tracks; a track shows one sign."""
    paths = [path for label in range(len(CLASS_NAMES)) for path in sorted((folder / f"{label:05}").glob("*.ppm"))]
    strange = next((path for path in paths if not re.fullmatch(r"\d{5}_\d{5}", path.stem)), None)
    if strange is not None:
        raise UserError(f"GTSRB: got '{strange}'; allowed: names such as 00003_00029.ppm, the track and the frame")
    labels = np.array([int(path.parent.name) for path in paths], np.int64)
    tracks = np.array([int(path.stem[:5]) for path in paths], np.int64)
    return paths, labels, labels * TRACKS + tracks


def _test(place: Path) -> tuple[list[Path], NDArray[np.int64]]:
    """Return the test files and their labels, in the order of the official table."""
    images = place / "Final_Test" / "Images"
    tables = [folder / "GT-final_test.csv" for folder in (place.parent, place, place / "Final_Test", images)]
    table = next((path for path in tables if path.is_file()), None)
    if table is None:
        raise UserError(f"GTSRB: '{tables[0]}' is missing; {AGAIN}")
    try:
        rows = read_rows(table).rows
    except UserError as error:
        raise UserError(f"GTSRB: {error}; {AGAIN}") from None
    numbers = {str(label): label for label in range(len(CLASS_NAMES))}
    for row in rows:
        if row.label not in numbers:
            raise UserError(f"GTSRB: {row.place}: got class {row.label}; allowed: 0 to {len(CLASS_NAMES) - 1}; {AGAIN}")
    return [images / row.path for row in rows], np.array([numbers[row.label] for row in rows], np.int64)


def _check(what: str, folder: Path, labels: NDArray[np.int64], expected: int) -> None:
    counts = np.bincount(labels, minlength=len(CLASS_NAMES))
    if len(labels) != expected or not counts.all():
        empty = [f"none of class {label}" for label in np.flatnonzero(counts == 0)[:1]]
        got = ", ".join([f"{len(labels)} {what} images", *empty])
        raise UserError(f"GTSRB: got {got} in '{folder}'; allowed: {expected}, some of each class; {AGAIN}")


def read(data: Data) -> Dataset:
    """Return the training images, grouped by track, and the 12,630 test images of 43 classes.

    There are 39,209 training images, 210 to 2,250 per class, or the 26,640 of the online competition if only these are
    there. Every image is used whole: the sign, with a border of a tenth of its size, at least 5 pixels. Images of 15 to
    250 pixels a side are scaled to 32 x 32 unless another size is given. A track is about 30 frames of one sign that
    a car passes. Mirroring changes signs. Source: Stallkamp, Schlipsing, Salmen and Igel, The German Traffic Sign
    Recognition Benchmark, IJCNN 2011.
    """
    found = _find(roots(data))
    if found is None:
        archives = ", ".join(archive.name for archive in ARCHIVES)
        raise not_found("GTSRB", data, f"unpack {archives} from {ARCHIVES[0].url.rpartition('/')[0]}/ below gtsrb")
    place, training = found
    train_paths, train_labels, tracks = _training(place / training)
    test_paths, test_labels = _test(place)
    _check("training", place / training, train_labels, TRAINING[training])
    _check("test", place / "Final_Test", test_labels, TEST)
    size = data.size or SIZE
    train_images, test_images = (
        decode_all(paths, size, data.storage, fit=data.fit) for paths in (train_paths, test_paths)
    )
    number = len(np.unique(tracks))
    scaled = f"whole images, sign and border, scaled to {size}x{size} pixels"
    scaled += "" if data.fit == "squeeze" else f", those that are not square {FITTED[data.fit]}"
    return Dataset(
        data.name,
        Split(train_images, train_labels, CLASS_NAMES, np.arange(len(train_labels)), groups=tracks),
        None,
        Split(test_images, test_labels, CLASS_NAMES, np.arange(len(test_labels))),
        mirror=False,
        notes=(
            scaled if data.size else f"{scaled}, since they have many sizes and none was asked for",
            f"the training images are frames of {number} signs; a validation split holds out whole signs",
        ),
        resized=True,
    )
