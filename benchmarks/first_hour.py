"""Lay out GTSRB and HAM10000 as they are downloaded, for the recorded sessions of docs/first-hour.md.

`python benchmarks/first_hour.py gtsrb GTSRB` draws GTSRB's layout: true counts, tracks and tables, imitated pixels.
`python benchmarks/first_hour.py ham10000 NPZ HAM10000` writes images of 32 x 32 pixels as HAM10000's folders and table,
enlarged to 600 x 450 pixels. The sessions are `taet train taet --data GTSRB` and `taet train taet --data HAM10000`.
"""

import colorsys
import csv
from argparse import ArgumentParser
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

# Images per class of GTSRB: Stallkamp et al., "Man vs. computer", Neural Networks 32, 2012; its own tables.
TRAIN = [210, 2220, 2250, 1410, 1980, 1860, 420, 1440, 1410, 1470, 2010, 1320, 2100, 2160, 780]
TRAIN += [630, 420, 1110, 1200, 210, 360, 330, 390, 510, 270, 1500, 600, 240, 540, 270]
TRAIN += [450, 780, 240, 689, 420, 1200, 390, 210, 2070, 300, 360, 240, 240]
TEST = [60, 720, 750, 450, 660, 630, 150, 450, 450, 480, 660, 420, 690, 720, 270]
TEST += [210, 150, 360, 390, 60, 90, 90, 120, 150, 90, 480, 180, 60, 150, 90]
TEST += [150, 270, 60, 210, 120, 390, 120, 60, 690, 90, 90, 60, 90]
FRAMES = 30
"""Images of a track: one sign, photographed while the car comes nearer."""
HAM10000 = ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]


def gtsrb(out: Path, seed: int = 0) -> None:
    """Write 39,209 training images in tracks, 12,630 test images without classes, and three tables."""
    draws = np.random.default_rng(seed)
    header = ["Width", "Height", "Roi.X1", "Roi.Y1", "Roi.X2", "Roi.Y2", "ClassId", "Path"]
    rows = []
    for label, count in enumerate(TRAIN):
        folder = out / "Train" / str(label)
        folder.mkdir(parents=True)
        for number in range(count):
            track, frame = divmod(number, FRAMES)
            if frame == 0:
                sign, largest = _sign(label, draws), int(draws.integers(30, 160))
            size = max(15, round(largest * (0.35 + 0.65 * frame / FRAMES)))
            name = f"Train/{label}/{label:05d}_{track:05d}_{frame:05d}.png"
            rows.append([*_photograph(sign, size, draws, out / name), label, name])
    _table(out / "Train.csv", header, rows)
    (out / "Test").mkdir()
    rows = []
    for number, label in enumerate(draws.permutation(np.repeat(np.arange(len(TEST)), TEST)).tolist()):
        name = f"Test/{number:05d}.png"
        rows.append([*_photograph(_sign(label, draws), int(draws.integers(15, 160)), draws, out / name), label, name])
    _table(out / "Test.csv", header, rows)
    signs = [[f"Meta/{label}.png", label, label % 5, label % 4, f"{label % 5}.{label}"] for label in range(len(TRAIN))]
    (out / "Meta").mkdir()
    for name, label, *_ in signs:
        Image.fromarray(_sign(label, draws)).save(out / name)
    _table(out / "Meta.csv", ["Path", "ClassId", "ShapeId", "ColorId", "SignId"], signs)


def _sign(label: int, draws: np.random.Generator, side: int = 96) -> np.ndarray:
    """Draw a sign of a class before a street of its own: its shape, colour and number belong to the class."""
    street = draws.integers(40, 200, (6, 6, 3), dtype=np.uint8)
    image = Image.fromarray(street).resize((side, side), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    colour = tuple(round(255 * part) for part in colorsys.hsv_to_rgb(label % 7 / 7, 0.8, 0.8))
    box = (12, 12, side - 12, side - 12)
    match label % 3:
        case 0:
            draw.ellipse(box, fill="white", outline=colour, width=10)
        case 1:
            draw.polygon([(side // 2, 8), (side - 8, side - 14), (8, side - 14)], fill="white", outline=colour, width=8)
        case _:
            draw.rectangle(box, fill=colour, outline="white", width=5)
    draw.text((side // 2 - 18, side // 2 - 20), str(label), fill="black", font_size=36)
    return np.asarray(image.rotate(float(draws.normal(0, 4)), fillcolor=tuple(street[0, 0].tolist())))


def _photograph(sign: np.ndarray, size: int, draws: np.random.Generator, to: Path) -> list[int]:
    """Save a sign as a photograph of about `size` pixels and return its row of the table but for class and path."""
    width, height = size, max(15, round(size * draws.uniform(0.92, 1.1)))
    shifted = np.roll(sign, draws.integers(-4, 5, 2), axis=(0, 1))
    light = shifted * draws.uniform(0.35, 1.1) + draws.normal(0, 6, shifted.shape)
    Image.fromarray(light.clip(0, 255).astype(np.uint8)).resize((width, height), Image.Resampling.BILINEAR).save(to)
    edge = size // 10
    return [width, height, edge, edge, width - edge, height - edge]


def ham10000(images: np.ndarray, labels: np.ndarray, names: list[str], out: Path, seed: int = 0) -> None:
    """Write two folders of images and the table of HAM10000; lesions of one to three images are drawn."""
    draws = np.random.default_rng(seed)
    rows, lesion, left = [], 0, 0
    before = -1
    for number in np.argsort(labels, kind="stable").tolist():
        if left == 0 or labels[number] != before:
            lesion, left = lesion + 1, int(draws.choice([1, 2, 3], p=[0.75, 0.17, 0.08]))
        left, before = left - 1, int(labels[number])
        name, image = f"ISIC_{24306 + number:07d}", Image.fromarray(images[number])
        folder = out / f"HAM10000_images_part_{1 + (number >= len(labels) // 2)}"
        folder.mkdir(parents=True, exist_ok=True)
        image.resize((600, 450), Image.Resampling.BICUBIC).save(folder / f"{name}.jpg", quality=92)
        age = 5 * int(draws.integers(4, 17))
        person = [age, str(draws.choice(["male", "female"])), str(draws.choice(["back", "face", "trunk", "chest"]))]
        rows.append([f"HAM_{lesion:07d}", name, names[before], "histo", *person, "vidir_modern"])
    header = ["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization", "dataset"]
    _table(out / "HAM10000_metadata.csv", header, [rows[row] for row in draws.permutation(len(rows)).tolist()])


def _joined(arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return all images and labels of a file in which each split has its own arrays."""
    splits = sorted(name.removesuffix("_images") for name in arrays if name.endswith("_images"))
    images, labels = ([arrays[f"{split}_{part}"] for split in splits] for part in ("images", "labels"))
    return np.concatenate(images), np.concatenate(labels).ravel()


def _table(path: Path, header: list[str], rows: Iterable[list[Any]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    layouts = parser.add_subparsers(dest="layout", required=True)
    layouts.add_parser("gtsrb").add_argument("out", type=Path)
    lesions = layouts.add_parser("ham10000")
    lesions.add_argument("npz", type=Path)
    lesions.add_argument("out", type=Path)
    given = parser.parse_args()
    if given.layout == "gtsrb":
        gtsrb(given.out)
    else:
        with np.load(given.npz) as file:
            ham10000(*_joined(file), HAM10000, given.out)
