"""Published sets, from their official files: digits, CIFAR, MedMNIST, Tiny-ImageNet and GTSRB."""

import csv
import tomllib
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import distribution
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from taet.data.arrays import read_npz, set_arrays
from taet.data.class_folders import class_folders
from taet.data.dataset import PARTS, Arrays, DataSource, Part, splits_of
from taet.data.downloads import Download, Missing, find, places
from taet.data.labelled_images import LabelledImage, source_of, with_tracks
from taet.data.notes import DataNote
from taet.data.storage import reading
from taet.errors import UserError, prefix_errors, unknown
from taet.settings import Data

NAMES = {
    "cifar10": "CIFAR-10, 10 balanced classes of 32x32 colour pixels; official files or "
    "cifar10.npz",
    "cifar10-lt": "CIFAR-10, 32x32 colour pixels, made long-tailed; official files or cifar10.npz",
    "cifar10-balanced-small": "CIFAR-10, balanced, with as many images as cifar10-lt: REAT's upper "
    "bound",
    "cifar100": "CIFAR-100, 100 balanced classes of 32x32 colour pixels; official files or "
    "cifar100.npz",
    "cifar100-lt": "CIFAR-100, 32x32 colour pixels, made long-tailed; official files or "
    "cifar100.npz",
    "cifar100-balanced-small": "CIFAR-100, balanced, with as many images as cifar100-lt: REAT's "
    "upper bound",
    "bloodmnist": "MedMNIST: blood cells under the microscope, 8 classes, colour; bloodmnist.npz",
    "breastmnist": "MedMNIST: breast ultrasound, malignant or not, grey; breastmnist.npz",
    "dermamnist": "MedMNIST: skin lesions (HAM10000), 7 classes, naturally long-tailed, colour; "
    "dermamnist.npz",
    "octmnist": "MedMNIST: optical coherence tomography of the retina, 4 classes, grey; "
    "octmnist.npz",
    "organamnist": "MedMNIST: abdominal CT, axial, 11 organs, grey; organamnist.npz",
    "organcmnist": "MedMNIST: abdominal CT, coronal, 11 organs, grey; organcmnist.npz",
    "organsmnist": "MedMNIST: abdominal CT, sagittal, 11 organs, grey; organsmnist.npz",
    "pathmnist": "MedMNIST: colon tissue, 9 classes, colour; pathmnist.npz",
    "pneumoniamnist": "MedMNIST: chest X-rays of children, pneumonia or not, grey; "
    "pneumoniamnist.npz",
    "retinamnist": "MedMNIST: fundus photographs, 5 grades of diabetic retinopathy, colour; "
    "retinamnist.npz",
    "tissuemnist": "MedMNIST: kidney cells, 8 classes, grey; tissuemnist.npz",
    "digits-lt": "scikit-learn's bundled digits, 8x8 grey pixels, made long-tailed; no download",
    "tiny-imagenet": "Tiny-ImageNet, 200 classes of 64x64 colour pixels, whole; the official "
    "folder tiny-imagenet-200",
    "tiny-imagenet-lt": "Tiny-ImageNet made long-tailed, as published: linear, 500 training images "
    "down to 5",
    "gtsrb": "GTSRB, 43 German traffic signs, naturally long-tailed (11 to 1); frames of one sign "
    "stay in one split",
}
PUBLISHED = {"tiny-imagenet-lt": {"profile": "linear", "imbalance_ratio": 100.0}}
"""The cut of the set in REAT: Li et al., arXiv:2307.10205."""
URL = "https://zenodo.org/records/10519652/files/{}?download=1"
SIDES = (28, 64, 128, 224)  # pixels of a side, of the files that MedMNIST publishes
PACKED_GTSRB = "gtsrb32.npz"
"""GTSRB in one file, read where the official folders are missing."""
# training images of GTSRB that were used in the online competition of IJCNN 2011
GTSRB_ONLINE = 26_640


class PublishedSet(NamedTuple):
    """Facts about one set: images of its splits in the order of PARTS, and of a set of MedMNIST the
    MD5 for SIDES."""

    images: Sequence[int]
    channels: int
    class_names: Sequence[str]
    md5: Sequence[str] = ()
    mirror: bool = True
    notes: Sequence[str] = ()
    side: int = SIDES[0]
    title: str = ""
    files: Sequence[Download] = ()
    licence: str = ""  # of images of patients


SETS = {
    name: PublishedSet(**{**entry, "files": [Download(**file) for file in entry.get("files", ())]})
    for name, entry in tomllib.loads(
        Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")
    ).items()
}
"""Class names are in the order of the labels; CIFAR-100 has its fine classes."""


def _set_name(name: str) -> str:
    return next(one for one in SETS if name == one or name.startswith(f"{one}-"))


def image_terms(name: str) -> str:
    """Return a sentence on whose images a set has, and their licence; "" if it has none of
    patients."""
    licence = SETS[name].licence if name in SETS else ""
    return f"The images are of patients, under {licence}." if licence else ""


def downloads(data: Data) -> list[Download]:
    """Return the official files; of MedMNIST that of the requested size."""
    name = _set_name(data.name)
    about = SETS[name]
    if not about.md5:
        return [*about.files]
    side = data.size if data.size in SIDES else SIDES[0]
    smallest = f"{name}.npz"
    file = smallest if side == SIDES[0] else f"{name}_{side}.npz"
    md5 = about.md5[SIDES.index(side)]
    return [Download(URL.format(file), file, f"md5:{md5}", instead=[smallest])]


def read(data: Data) -> DataSource:
    """Return the whole set with its own splits; other content raises a `UserError`.

    Of MedMNIST the file of `data.size` pixels is read if it exists, else that of 28 pixels.
    Sources: Krizhevsky, 2009 (CIFAR); Yang et al., MedMNIST v2, Scientific Data 2023,
    arXiv:2110.14795, without ChestMNIST, which is multi-label.
    """
    name, wanted = _set_name(data.name), downloads(data)
    about = SETS[name]
    if name == "digits":
        return _digits(about)
    title = about.title or wanted[0].file
    if name == "gtsrb" and (packed := _packed_gtsrb(data, wanted)) is not None:
        return _read_packed_gtsrb(packed, data, about)
    paths = places(title, data, wanted)
    path, side, images, notes = paths[0], about.side, list(about.images), list[str]()
    repair = f"delete what is damaged and run taet data prepare {name}"
    with prefix_errors(f"{title} in '{path}' ({repair})"):
        if name == "tiny-imagenet":
            source = _tiny_imagenet(data, path)
            side = data.size or side
        elif name == "gtsrb":
            source = _gtsrb(data, about, paths)
            side = data.size or side
            if path.name == "Training":
                images[0] = GTSRB_ONLINE
        else:
            source = _of_arrays(path, about, data)
        if about.md5:
            side = int(path.stem.partition("_")[2] or side)
            missing = "" if path.name == wanted[0].file else f"; {wanted[0].file} is not there"
            notes.append(f"read from {path.name}, images of {side} x {side} pixels{missing}")
        _check_contents(source, images, (side, side, about.channels))
    return replace(source, mirror=about.mirror, notes=(*notes, *about.notes, *source.notes))


def _of_arrays(path: Path, about: PublishedSet, data: Data) -> DataSource:
    """Return the set in CIFAR's folder of pickles, or in a file of MedMNIST's keys."""
    if path.is_dir():
        arrays = _pickles(path, about.title)
    else:
        arrays = read_npz(path, set_arrays, data.storage)
    return DataSource(splits_of(arrays, about.class_names))


def _check_contents(source: DataSource, images: Sequence[int], shape: tuple[int, int, int]) -> None:
    """Refuse a set with other numbers of images, or with images of another shape (H, W, C)."""
    parts = PARTS if len(images) == len(PARTS) else ("train", "test")
    allowed = dict(zip(parts, images, strict=True))
    got = {part: len(split) for part, split in source.splits.items()}
    got_shape = source.splits["train"].images.shape[1:]
    if got != allowed or got_shape != shape:
        raise UserError(f"got {got} images of shape {got_shape}; allowed: {allowed} of {shape}")


def _digits(about: PublishedSet) -> DataSource:
    """Return all digits, balanced, values v of 0..16 as round(v 255 / 16); the last 60 of each
    class are the test set.

    The file is sorted by writer; only it is read, as importing scikit-learn is slow. Source: the
    test part of Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI Machine
    Learning Repository, 1998.
    """
    file = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    values = np.loadtxt(str(file), np.int64, delimiter=",")
    pixels, labels = values[:, :-1].reshape(-1, 8, 8, 1), values[:, -1]
    images = np.rint(pixels * (255 / 16)).astype(np.uint8)
    test = np.sort(np.concatenate([np.flatnonzero(labels == label)[-60:] for label in range(10)]))
    rows = {"train": np.setdiff1d(np.arange(len(labels)), test), "test": test}
    splits = {
        part: Part(images[own], labels[own], tuple(about.class_names), own)
        for part, own in rows.items()
    }
    return DataSource(splits, about.mirror, tuple(about.notes))


def _pickles(place: Path, title: str) -> Arrays:
    """Return the arrays of CIFAR's pickles; torchvision compares their MD5 first, so that no
    foreign code runs."""
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
        raise UserError("a file is missing or damaged; unpack the archive again") from error
    return arrays


def _tiny_imagenet(data: Data, folder: Path) -> DataSource:
    """Return 500 training and 50 test images of each of 200 classes; greyscale files become colour.

    Classes are in the order of their WordNet ids, as for class folders, not in that of wnids.txt;
    training images of a class are in the order of their file names. Source: Le, Yang, Tiny ImageNet
    challenge, Stanford CS 231N, 2015.
    """

    def table(name: str) -> list[list[str]]:
        with reading(folder / name, "the official table"):
            return [line.split("\t") for line in (folder / name).read_text("utf-8").splitlines()]

    words = {row[0]: row[-1].split(",")[0] for row in table("words.txt")}
    wnids = sorted(row[0] for row in table("wnids.txt"))
    times = Counter(words[wnid] for wnid in wnids)
    names = {
        wnid: words[wnid] if times[words[wnid]] == 1 else f"{words[wnid]} ({wnid})"
        for wnid in wnids
    }
    listed, _ = class_folders(folder / "train", "train")
    images = [
        image._replace(label=names[image.label], group="")
        for image in listed
        if image.label in names
    ]
    for file, wnid, *_ in table("val/val_annotations.txt"):
        images.append(LabelledImage(folder / "val" / "images" / file, names[wnid], "test"))
    return source_of(images, data, order=[*names.values()])


def _packed_gtsrb(data: Data, wanted: Sequence[Download]) -> Path | None:
    """Return the path of gtsrb32.npz; None without it, or where the official folders are there."""
    try:
        places("GTSRB", data, wanted)
    except Missing:
        return find(data, PACKED_GTSRB)
    return None


def _read_packed_gtsrb(path: Path, data: Data, about: PublishedSet) -> DataSource:
    """Return GTSRB from one file of MedMNIST's keys, with `train_group`, the track of each image.

    Its images are the official regions of interest, the sign without its border, in 32 x 32 pixels;
    `data.size` may scale them.
    """
    with prefix_errors(f"GTSRB in '{path}'"):
        arrays = read_npz(path, partial(set_arrays, group="group"), data.storage)
        splits = splits_of(arrays, about.class_names, group="group")
        sizes = [len(splits[part]) for part in ("train", "test")]
        if sizes != list(about.images):
            raise UserError(f"got {sizes} images; allowed: {list(about.images)}, training and test")
    note = f"read from {path.name}: the region of interest of each image, 32x32 pixels"
    return DataSource(splits, about.mirror, (note, *about.notes))


def _gtsrb(data: Data, about: PublishedSet, paths: Sequence[Path]) -> DataSource:
    """Return the training images, grouped by track, and the 12,630 test images of 43 classes.

    There are 39,209 training images, 210 to 2,250 per class, or the 26,640 of the online
    competition if only these are there. Every image is used whole: the sign, with a border of a
    tenth of its size, at least 5 pixels. Images of 15 to 250 pixels a side are scaled to 32 x 32
    unless another size is given. Source: Stallkamp, Schlipsing, Salmen and Igel, The German Traffic
    Sign Recognition Benchmark, IJCNN 2011.
    """
    training, testing, table = paths
    names = {f"{label:05}": name for label, name in enumerate(about.class_names)}
    listed, _ = class_folders(_images_in(training), "train")
    listed += _gtsrb_test_images(_images_in(testing), table, names)
    images = with_tracks(listed) or []
    if {image.label for image in images} != names.keys():
        allowed = (
            f"folders {min(names)} to {max(names)} of files such as 00003_00029.ppm, the track and "
            "the frame"
        )
        raise UserError(f"got other class folders or file names; allowed: {allowed}")
    images = [image._replace(label=names[image.label]) for image in images]
    size = data.size or about.side
    note = DataNote(f"whole images, sign and border, scaled to {size}x{size} pixels")
    return source_of(images, data.replace(size=size), [note], order=about.class_names)


def _images_in(folder: Path) -> Path:
    return folder / "Images" if (folder / "Images").is_dir() else folder


def _gtsrb_test_images(folder: Path, table: Path, names: Mapping[str, str]) -> list[LabelledImage]:
    """Return the test images by the official table, whose ClassId is a number."""
    with reading(table, "the official table"), table.open(encoding="utf-8", newline="") as file:
        rows = [*csv.DictReader(file, delimiter=";")]
        labels = {row["Filename"]: f"{int(row['ClassId']):05}" for row in rows}
    for name, label in labels.items():
        if label not in names:
            raise unknown(f"class of '{name}':", str(int(label)), names)
    return [LabelledImage(folder / name, label, "test") for name, label in labels.items()]
