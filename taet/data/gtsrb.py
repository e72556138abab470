"""The German Traffic Sign Recognition Benchmark, from its official folders."""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from pathlib import Path

from taet.data.files import Listing
from taet.data.places import Download, not_found, official, roots
from taet.data.source import DataSource
from taet.data.tables import Row, read_table
from taet.errors import UserError
from taet.settings import Data

NAMES = {
    "gtsrb": "GTSRB, 43 German traffic signs, naturally long-tailed (11 to 1); frames of one sign stay in one split"
}
CLASS_NAMES = tuple(tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))["classes"])
"""In the order of the official class numbers."""
SIZE = 32
TRAINING = {"Final_Training/Images": 39_209, "Training": 26_640}
"""Folders of the training images in the order of preference, and their number: the benchmark's training set, and the
part of it that was used in the online competition of IJCNN 2011, which torchvision reads."""
TEST = 12_630
TRACK = re.compile(r"\d{5}_\d{5}\.ppm")
ARCHIVES = official("gtsrb")
AGAIN = "delete what is damaged and run taet data prepare gtsrb"


def downloads(data: Data) -> tuple[Download, ...]:  # noqa: ARG001 - there is one version
    """Return the official archives; torchvision keeps them in the same places."""
    return ARCHIVES


def _find(folders: list[Path]) -> tuple[Path, str] | None:
    """Return the folder GTSRB and its folder of training images, if they are there."""
    places = [root / folder for root in folders for folder in ("gtsrb/GTSRB", "GTSRB")]
    return next(((place, part) for place in places for part in TRAINING if (place / part).is_dir()), None)


def _rows(place: Path, training: str) -> list[Row]:
    """Return the training images, grouped by track, and the test images, in the order of the official table."""
    found = {label: sorted((place / training / f"{label:05}").glob("*.ppm")) for label in range(len(CLASS_NAMES))}
    train = [
        Row(path, CLASS_NAMES[label], "train", f"{label}/{path.stem[:5]}") for label in found for path in found[label]
    ]
    strange = next((row.file for row in train if not TRACK.fullmatch(row.file.name)), None)
    if strange is not None:
        raise UserError(f"GTSRB: got '{strange}'; allowed: names such as 00003_00029.ppm, the track and the frame")
    images = place / "Final_Test" / "Images"
    tables = [folder / "GT-final_test.csv" for folder in (place.parent, place, place / "Final_Test", images)]
    table = next((path for path in tables if path.is_file()), None)
    if table is None:
        raise UserError(f"GTSRB: '{tables[0]}' is missing; {AGAIN}")
    names = {str(label): name for label, name in enumerate(CLASS_NAMES)}
    test = [(cells.get("Filename", ""), cells.get("ClassId", "")) for _, cells in read_table(table)]
    for name, label in test:
        if label not in names:
            raise UserError(f"GTSRB: '{name}' in '{table}' has the class '{label}'; allowed: 0 to 42; {AGAIN}")
    return [*train, *(Row(images / name, names[label], "test") for name, label in test)]


def read(data: Data) -> DataSource:
    """Return the training images, grouped by track, and the 12,630 test images of 43 classes.

    There are 39,209 training images, 210 to 2,250 per class, or the 26,640 of the online competition if only these are
    there. Every image is used whole: the sign, with a border of a tenth of its size, at least 5 pixels. Images of 15 to
    250 pixels a side are scaled to 32 x 32 unless another size is given. A track is about 30 frames of one sign that
    a car passes. Mirroring changes signs. Source: Stallkamp, Schlipsing, Salmen and Igel, The German Traffic Sign
    Recognition Benchmark, IJCNN 2011.
    """
    found = _find(roots(data))
    if found is None:
        archives = ", ".join(Path(archive.file).name for archive in ARCHIVES)
        raise not_found("GTSRB", data, f"unpack {archives} from {ARCHIVES[0].url.rpartition('/')[0]}/ below gtsrb")
    place, training = found
    rows = _rows(place, training)
    for part, expected in (("train", TRAINING[training]), ("test", TEST)):
        labels = [row.label for row in rows if row.split == part]
        if len(labels) != expected or len({*labels}) != len(CLASS_NAMES):
            got = f"{len(labels)} {part} images of {len({*labels})} classes"
            raise UserError(f"GTSRB: got {got} in '{place}'; allowed: {expected} of {len(CLASS_NAMES)}; {AGAIN}")
    size = data.size or SIZE
    scaled = f"whole images, sign and border, scaled to {size}x{size} pixels"
    scaled += "" if data.size else ", since they have many sizes and none was asked for"
    listed = Listing.of(rows, f"'{place}'", [scaled, "groups are frames of one sign"], CLASS_NAMES)
    return replace(listed.source(data.replace(size=size)), mirror=False)
