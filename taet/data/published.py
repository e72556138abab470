"""Published sets, from their official files: digits, CIFAR, MedMNIST, Tiny-ImageNet and GTSRB."""

import tomllib
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import distribution
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from taet.data.arrays import read_npz, set_arrays
from taet.data.dataset import PARTS, Arrays, DataSource, Part, splits_of
from taet.data.downloads import Download, places
from taet.data.files import class_rows, of_rows, rows_of, signs
from taet.data.storage import reading
from taet.data.tables import Row
from taet.errors import UserError, located
from taet.settings import Data

NAMES = {
    "cifar10": "CIFAR-10, 10 balanced classes of 32x32 colour pixels; official files or cifar10.npz",
    "cifar10-lt": "CIFAR-10, 32x32 colour pixels, made long-tailed; official files or cifar10.npz",
    "cifar10-balanced-small": "CIFAR-10, balanced, with as many images as cifar10-lt: REAT's upper bound",
    "cifar100": "CIFAR-100, 100 balanced classes of 32x32 colour pixels; official files or cifar100.npz",
    "cifar100-lt": "CIFAR-100, 32x32 colour pixels, made long-tailed; official files or cifar100.npz",
    "cifar100-balanced-small": "CIFAR-100, balanced, with as many images as cifar100-lt: REAT's upper bound",
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
    "digits-lt": "scikit-learn's bundled digits, 8x8 grey pixels, made long-tailed; no download",
    "tiny-imagenet": "Tiny-ImageNet, 200 classes of 64x64 colour pixels, whole; the official folder tiny-imagenet-200",
    "tiny-imagenet-lt": "Tiny-ImageNet made long-tailed, as published: linear, 500 training images down to 5",
    "gtsrb": "GTSRB, 43 German traffic signs, naturally long-tailed (11 to 1); frames of one sign stay in one split",
}
PUBLISHED = {"tiny-imagenet-lt": {"profile": "linear", "imbalance_ratio": 100.0}}
"""The cut of the set in REAT: Li et al., arXiv:2307.10205."""
URL = "https://zenodo.org/records/10519652/files/{}?download=1"
SIDES = (28, 64, 128, 224)  # pixels of a side, of the files that MedMNIST publishes
GTSRB_ONLINE = 26_640  # training images of GTSRB that were used in the online competition of IJCNN 2011


class PublishedSet(NamedTuple):
    """Facts about one set: images of its splits in the order of PARTS, and of a set of MedMNIST the MD5 for SIDES."""

    images: Sequence[int]
    channels: int
    class_names: Sequence[str]
    md5: Sequence[str] = ()
    mirror: bool = True
    notes: Sequence[str] = ()
    side: int = SIDES[0]
    title: str = ""
    files: Sequence[Download] = ()


SETS = {
    name: PublishedSet(**{**entry, "files": [Download(**file) for file in entry.get("files", ())]})
    for name, entry in tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")).items()
}
"""Class names are in the order of the labels; CIFAR-100 has its fine classes."""


def _set_name(name: str) -> str:
    return next(one for one in SETS if name == one or name.startswith(f"{one}-"))


def downloads(data: Data) -> list[Download]:
    """Return the official files; of MedMNIST that of the requested size."""
    about = SETS[name := _set_name(data.name)]
    if not about.md5:
        return [*about.files]
    side = data.size if data.size in SIDES else SIDES[0]
    file = f"{name}.npz" if side == SIDES[0] else f"{name}_{side}.npz"
    return [Download(URL.format(file), file, f"md5:{about.md5[SIDES.index(side)]}", instead=[f"{name}.npz"])]


def read(data: Data) -> DataSource:
    """Return the whole set with its own splits; other content raises a `UserError`.

    Of MedMNIST the file of `data.size` pixels is read if it exists, else that of 28 pixels. Sources: Krizhevsky, 2009
    (CIFAR); Yang et al., MedMNIST v2, Scientific Data 2023, arXiv:2110.14795, without ChestMNIST, which is multi-label.
    """
    name, wanted = _set_name(data.name), downloads(data)
    about = SETS[name]
    if name == "digits":
        return _digits(about)
    title = about.title or wanted[0].file
    paths = places(title, data, wanted)
    path, side, images, notes = paths[0], about.side, list(about.images), list[str]()
    with located(f"{title} in '{path}' (delete what is damaged and run taet data prepare {name})"):
        if name == "tiny-imagenet":
            source, side = _tiny_imagenet(data, path), data.size or side
        elif name == "gtsrb":
            source, side = _gtsrb(data, about, paths), data.size or side
            images[0] = GTSRB_ONLINE if path.name == "Training" else images[0]
        else:
            arrays: Arrays = _pickles(path, about.title) if path.is_dir() else read_npz(path, set_arrays, data.storage)
            if about.md5:
                side = int(path.stem.partition("_")[2] or side)
                missing = "" if path.name == wanted[0].file else f"; {wanted[0].file} is not there"
                notes = [f"read from {path.name}, images of {side} x {side} pixels{missing}"]
            source = DataSource(splits_of(arrays, about.class_names))
        got, own = {part: len(of) for part, of in source.splits.items()}, source.splits["train"].images.shape[1:]
        sizes = dict(zip(PARTS if len(images) == len(PARTS) else ("train", "test"), images, strict=True))
        if got != sizes or own != (side, side, about.channels):
            raise UserError(f"got {got} images of shape {own}; allowed: {sizes} of {(side, side, about.channels)}")
    return replace(source, mirror=about.mirror, notes=(*notes, *about.notes, *source.notes))


def _digits(about: PublishedSet) -> DataSource:
    """Return all digits, balanced, values v of 0..16 as round(v 255 / 16); the last 60 of each class are the test set.

    The file is sorted by writer; only it is read, as importing scikit-learn is slow. Source: the test part of Alpaydin
    and Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998.
    """
    file = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    values = np.loadtxt(str(file), np.int64, delimiter=",")
    images, labels = np.rint(values[:, :-1].reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8), values[:, -1]
    test = np.sort(np.concatenate([np.flatnonzero(labels == label)[-60:] for label in range(10)]))
    rows = {"train": np.setdiff1d(np.arange(len(labels)), test), "test": test}
    splits = {part: Part(images[own], labels[own], tuple(about.class_names), own) for part, own in rows.items()}
    return DataSource(splits, about.mirror, tuple(about.notes))


def _pickles(place: Path, title: str) -> Arrays:
    """Return the arrays of CIFAR's pickles; torchvision compares their MD5 first, so that no foreign code runs."""
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

    Classes are in the order of their WordNet ids, as for class folders, not in that of wnids.txt; training images of a
    class are in the order of their file names. Source: Le, Yang, Tiny ImageNet challenge, Stanford CS 231N, 2015.
    """

    def table(name: str) -> list[list[str]]:
        with reading(folder / name, "the official table"):
            return [line.split("\t") for line in (folder / name).read_text("utf-8").splitlines()]

    words = {row[0]: row[-1].split(",")[0] for row in table("words.txt")}
    wnids = sorted(row[0] for row in table("wnids.txt"))
    times = Counter(words[wnid] for wnid in wnids)
    names = {wnid: words[wnid] if times[words[wnid]] == 1 else f"{words[wnid]} ({wnid})" for wnid in wnids}
    training = (row for row in class_rows(folder / "train", "train")[0] if row.label in names)
    rows = [row._replace(label=names[row.label], group="") for row in training]
    for file, wnid, *_ in table("val/val_annotations.txt"):
        rows.append(Row(folder / "val" / "images" / file, names[wnid], "test"))
    return of_rows(rows, data, order=[*names.values()])


def _gtsrb(data: Data, about: PublishedSet, paths: Sequence[Path]) -> DataSource:
    """Return the training images, grouped by track, and the 12,630 test images of 43 classes.

    There are 39,209 training images, 210 to 2,250 per class, or the 26,640 of the online competition if only these are
    there. Every image is used whole: the sign, with a border of a tenth of its size, at least 5 pixels. Images of 15 to
    250 pixels a side are scaled to 32 x 32 unless another size is given. Source: Stallkamp, Schlipsing, Salmen and
    Igel, The German Traffic Sign Recognition Benchmark, IJCNN 2011.
    """
    rows = signs(rows_of({"train": paths[0], "test": paths[1]})[0]) or []
    names = {f"{label:05}": name for label, name in enumerate(about.class_names)}
    if {row.label for row in rows} != names.keys():
        allowed = f"folders {min(names)} to {max(names)} of files such as 00003_00029.ppm, the track and the frame"
        raise UserError(f"got other class folders or file names; allowed: {allowed}")
    rows = [row._replace(label=names[row.label]) for row in rows]
    size = data.size or about.side
    notes = [f"whole images, sign and border, scaled to {size}x{size} pixels"]
    return of_rows(rows, data.replace(size=size), notes, about.class_names)
