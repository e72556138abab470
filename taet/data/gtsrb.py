"""The German Traffic Sign Recognition Benchmark, from its official folders."""

from __future__ import annotations

import tomllib
from pathlib import Path

from taet.data.dataset import DataSource
from taet.data.downloads import Download, find, not_found, official
from taet.data.files import of_rows, rows_of, signs
from taet.errors import UserError, located
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
ARCHIVES = official("gtsrb")


def downloads(_: Data) -> list[Download]:
    """Return the official archives; torchvision keeps them in the same places."""
    return ARCHIVES


def read(data: Data) -> DataSource:
    """Return the training images, grouped by track, and the 12,630 test images of 43 classes.

    There are 39,209 training images, 210 to 2,250 per class, or the 26,640 of the online competition if only these are
    there. Every image is used whole: the sign, with a border of a tenth of its size, at least 5 pixels. Images of 15 to
    250 pixels a side are scaled to 32 x 32 unless another size is given. A track is about 30 frames of one sign that
    a car passes. Mirroring changes signs. Source: Stallkamp, Schlipsing, Salmen and Igel, The German Traffic Sign
    Recognition Benchmark, IJCNN 2011.
    """
    known = [f"{place}/{part}" for place in ("gtsrb/GTSRB", "GTSRB") for part in TRAINING]
    if (training := find(data, *known)) is None:
        archives = ", ".join(Path(archive.file).name for archive in ARCHIVES)
        raise not_found("GTSRB", data, f"unpack {archives} from {ARCHIVES[0].url.rpartition('/')[0]}/ below gtsrb")
    part = next(part for part in TRAINING if training.match(part))
    place, size = training.parents[part.count("/")], data.size or SIZE
    with located(f"GTSRB in '{place}' (delete what is damaged and run taet data prepare gtsrb)"):
        rows = signs(rows_of({"train": training, "test": place / "Final_Test" / "Images"})[0])
        if rows is None:
            raise UserError("got other file names; allowed: names such as 00003_00029.ppm, the track and the frame")
        names = {f"{label:05}": name for label, name in enumerate(CLASS_NAMES)}
        if {row.label for row in rows} != names.keys():
            raise UserError(f"got other class folders; allowed: {min(names)} to {max(names)}")
        rows = [row._replace(label=names[row.label]) for row in rows]
        scaled = f"whole images, sign and border, scaled to {size}x{size} pixels"
        scaled += "" if data.size else ", since they have many sizes and none was asked for"
        notes = [scaled, "groups are frames of one sign"]
        source = of_rows(rows, data.replace(size=size), f"'{place}'", notes, CLASS_NAMES, mirror=False)
        return source.check({"train": TRAINING[part], "test": TEST}, (size, size, 3))
