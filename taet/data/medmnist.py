"""The MedMNIST sets of single-label 2-D images, each one .npz file of one size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from taet.config import Data
from taet.data import npz
from taet.data.dataset import Dataset, Labels, Outline
from taet.data.downloads import Download
from taet.data.places import roots
from taet.errors import UserError

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
ORGANS = (
    "bladder",
    "femur-left",
    "femur-right",
    "heart",
    "kidney-left",
    "kidney-right",
    "liver",
    "lung-left",
    "lung-right",
    "pancreas",
    "spleen",
)


class Facts(NamedTuple):
    """What is published about one set."""

    images: tuple[int, int, int]
    """Of training, validation and test."""
    channels: int
    class_names: tuple[str, ...]
    md5: tuple[str, str, str, str]
    """Of the file of each of SIZES."""
    mirror: bool = True
    """Does a mirrored image keep its label?"""
    note: str = ""
    """What a user has to know about the set."""


# Numbers, names and checksums: the package medmnist 3.0.2. The files of RECORD lack some blank slices of organs that
# the paper still counts.
# Mirroring: cells and tissue have no side; a left eye mirrored is a right one of the same diagnosis, and findings in
# the skin, the breast or the lungs are the same on either side. The organs' classes, however, tell left from right,
# which a mirrored body exchanges: in the axial and coronal sets outright, in the sagittal one because a side is told by
# what lies around the organ, which a mirrored slice shows the wrong way round.
SETS = {
    "pathmnist": Facts(
        (89996, 10004, 7180),
        3,
        (
            "adipose",
            "background",
            "debris",
            "lymphocytes",
            "mucus",
            "smooth muscle",
            "normal colon mucosa",
            "cancer-associated stroma",
            "colorectal adenocarcinoma epithelium",
        ),
        (
            "a8b06965200029087d5bd730944a56c1",
            "55aa9c1e0525abe5a6b9d8343a507616",
            "ac42d08fb904d92c244187169d1fd1d9",
            "2c51a510bcdc9cf8ddb2af93af1eadec",
        ),
    ),
    "dermamnist": Facts(
        (7007, 1003, 2005),
        3,
        (
            "actinic keratoses and intraepithelial carcinoma",
            "basal cell carcinoma",
            "benign keratosis-like lesions",
            "dermatofibroma",
            "melanoma",
            "melanocytic nevi",
            "vascular lesions",
        ),
        (
            "0744692d530f8e62ec473284d019b0c7",
            "b70a2f5635c6199aeaa28c31d7202e1f",
            "2defd784463fa5243564e855ed717de1",
            "8974907d8e169bef5f5b96bc506ae45d",
        ),
        note="several images show one lesion, some in training and others in testing, which flatters the results "
        "(Abhishek et al., Scientific Data 2025, arXiv:2401.14497)",
    ),
    "octmnist": Facts(
        (97477, 10832, 1000),
        1,
        ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
        (
            "c68d92d5b585d8d81f7112f81e2d0842",
            "e229e9440236b774d9f0dfef9d07bdaf",
            "0a97e76651ace45c5d943ee3f65b63ae",
            "abc493b6d529d5de7569faaef2773ba3",
        ),
    ),
    "pneumoniamnist": Facts(
        (4708, 524, 624),
        1,
        ("normal", "pneumonia"),
        (
            "28209eda62fecd6e6a2d98b1501bb15f",
            "8f4eceb4ccffa70c672198ea285246c6",
            "05b46931834c231683c68f40c47b2971",
            "d6a3c71de1b945ea11211b03746c1fe1",
        ),
    ),
    "retinamnist": Facts(
        (1080, 120, 400),
        3,
        ("0", "1", "2", "3", "4"),
        (
            "bd4c0672f1bba3e3a89f0e4e876791e4",
            "afda852cc34dcda56f86ad2b2457dbcc",
            "e48e916a24454daf90583d4e6efb1a18",
            "eae7e3b6f3fcbda4ae613ebdcbe35348",
        ),
    ),
    "breastmnist": Facts(
        (546, 78, 156),
        1,
        ("malignant", "normal, benign"),
        (
            "750601b1f35ba3300ea97c75c52ff8f6",
            "742edef2a1fd1524b2efff4bd7ba9364",
            "363e4b3f8d712e9b5de15470a2aaadf1",
            "b56378a6eefa9fed602bb16d192d4c8b",
        ),
    ),
    "bloodmnist": Facts(
        (11959, 1712, 3421),
        3,
        (
            "basophil",
            "eosinophil",
            "erythroblast",
            "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)",
            "lymphocyte",
            "monocyte",
            "neutrophil",
            "platelet",
        ),
        (
            "7053d0359d879ad8a5505303e11de1dc",
            "2b94928a2ae4916078ca51e05b6b800b",
            "adace1e0ed228fccda1f39692059dd4c",
            "b718ff6835fcbdb22ba9eacccd7b2601",
        ),
    ),
    "tissuemnist": Facts(
        (165466, 23640, 47280),
        1,
        (
            "Collecting Duct, Connecting Tubule",
            "Distal Convoluted Tubule",
            "Glomerular endothelial cells",
            "Interstitial endothelial cells",
            "Leukocytes",
            "Podocytes",
            "Proximal Tubule Segments",
            "Thick Ascending Limb",
        ),
        (
            "ebe78ee8b05294063de985d821c1c34b",
            "123ece2eba09d0aa5d698fda57103344",
            "61b955355d7425a89687b06cca3ce0c2",
            "b077128c4a949f0a4eb01517f9037b9c",
        ),
    ),
    "organamnist": Facts(
        (34561, 6491, 17778),
        1,
        ORGANS,
        (
            "68e3f8846a6bd62f0c9bf841c0d9eacc",
            "2dcccc29b88e6da5a01161ef20cda288",
            "eeae80d0a227a8d099027e1b3cfd3b60",
            "50747347e05c87dd3aaf92c49f9f3170",
        ),
        mirror=False,
    ),
    "organcmnist": Facts(
        (12975, 2392, 8216),
        1,
        ORGANS,
        (
            "b9ceb9546e10131b32923c5bbeaea2b1",
            "3ce34a8724ea6f548e6db4744d03b6a9",
            "773c1f009daa3fe5d9a2a201b2a7ed94",
            "050f5e875dc056f6768abf94ec9995d1",
        ),
        mirror=False,
    ),
    "organsmnist": Facts(
        (13932, 2452, 8827),
        1,
        ORGANS,
        (
            "9ab87b696fb54e2a387ebe992d6ed5f1",
            "53a6d115339d874c25e309a994ff46d3",
            "ded0c5fa01a95dc4978b956f613e9b8e",
            "b354719e553fbbb2513d5533f52a4cb1",
        ),
        mirror=False,
    ),
}


CLASS_COUNTS = {
    "pathmnist": (
        (9366, 9509, 10360, 10401, 8006, 12182, 7886, 9401, 12885),
        (1041, 1057, 1152, 1156, 890, 1354, 877, 1045, 1432),
        (1338, 847, 339, 634, 1035, 592, 741, 421, 1233),
    ),
    "dermamnist": (
        (228, 359, 769, 80, 779, 4693, 99),
        (33, 52, 110, 12, 111, 671, 14),
        (66, 103, 220, 23, 223, 1341, 29),
    ),
    "pneumoniamnist": ((1214, 3494), (135, 389), (234, 390)),
    "retinamnist": ((486, 128, 206, 194, 66), (54, 12, 28, 20, 6), (174, 46, 92, 68, 20)),
    "breastmnist": ((147, 399), (21, 57), (42, 114)),
    "bloodmnist": (
        (852, 2181, 1085, 2026, 849, 993, 2330, 1643),
        (122, 312, 155, 290, 122, 143, 333, 235),
        (244, 624, 311, 579, 243, 284, 666, 470),
    ),
}
"""Training, validation and test images of each class, where they are known without the files."""


def _facts(name: str) -> Facts:
    if name == MULTI_LABEL:
        raise UserError(
            f"{name} is multi-label: an image has any number of 14 findings, and no class; allowed: {', '.join(SETS)}"
        )
    return SETS[name]


def _file(name: str, side: int) -> str:
    return f"{name}.npz" if side == SIZES[0] else f"{name}_{side}.npz"


def _side(size: int | None) -> int:
    """Return which published size is wanted: `size` where there is such a file, else the smallest."""
    return size if size in SIZES else SIZES[0]


def downloads(data: Data) -> tuple[Download, ...]:
    """Return the file of the size that is asked for; its megabytes are those of its pixels, uncompressed: at most."""
    facts, side = _facts(data.name), _side(data.size)
    file = _file(data.name, side)
    url = f"{RECORD}/files/{file}?download=1"
    megabytes = sum(facts.images) * side**2 * facts.channels / 1e6
    return (Download(url, file, facts.md5[SIZES.index(side)], megabytes),)


def _found(data: Data) -> tuple[Path, int] | None:
    """Return the file of the size that is asked for or, where there is none, the smallest; and its pixels a side."""
    sides = dict.fromkeys((_side(data.size), SIZES[0]))
    paths = ((root / _file(data.name, side), side) for side in sides for root in roots(data))
    return next(((path, side) for path, side in paths if path.is_file()), None)


def outline(data: Data) -> Outline | None:
    """Return the numbers of the file, or the published ones where it is not there; None where neither is known."""
    facts, found = _facts(data.name), _found(data)
    if found is not None:
        path, side = found
        splits = npz.read_labels(path, facts.class_names)
        return Outline(splits, (facts.channels, side, side), facts.mirror)
    if data.name not in CLASS_COUNTS:
        return None
    counts = zip(("train", "validation", "test"), CLASS_COUNTS[data.name], strict=True)
    side = _side(data.size)
    published = {part: Labels.of_counts(facts.class_names, each) for part, each in counts}
    return Outline(published, (facts.channels, side, side), facts.mirror)


def _find(data: Data) -> tuple[Path, int]:
    """Return what `_found` returns; where nothing is there, a `UserError` says what to do."""
    found = _found(data)
    if found is not None:
        return found
    (wanted,) = downloads(data)
    looked = ", ".join(f"'{root}'" for root in roots(data))
    command = f"taet data prepare {data.name}" + (f" --size {data.size}" if data.size else "")
    raise UserError(
        f"{wanted.file} is not in {looked}; run {command}, or put the file from {wanted.url} "
        "into a folder and name that with --data.root or TAET_DATA"
    )


def _check(dataset: Dataset, facts: Facts, side: int) -> None:
    shape = (facts.channels, side, side)
    if dataset.image_shape != shape:
        raise UserError(f"got images of shape {dataset.image_shape}; allowed: {shape}")
    expected = dict(zip(("train", "validation", "test"), facts.images, strict=True))
    got = {part: len(split) for part, split in dataset.splits.items()}
    if got != expected:
        got_text, allowed = (", ".join(f"{count} {part}" for part, count in each.items()) for each in (got, expected))
        raise UserError(f"got {got_text} images; allowed: {allowed}, as in {RECORD}")


def read(data: Data) -> Dataset:
    """Return the published splits, of the file of `data.size` pixels where there is one, else of that of 28 pixels.

    Sizes published: 28, 64, 128, 224. A file that is missing or of other content, and a multi-label set, are a
    `UserError`. Source: Yang et al., MedMNIST v2, Scientific Data 2023, arXiv:2110.14795.
    """
    facts = _facts(data.name)
    path, side = _find(data)
    arrays = npz.read_arrays(path, data.storage)
    try:
        dataset = Dataset.from_arrays(
            *(arrays[key] for key in npz.REQUIRED),
            validation=(arrays["val_images"], arrays["val_labels"]) if "val_images" in arrays else None,
            class_names=facts.class_names,
            name=data.name,
            mirror=facts.mirror,
        )
        _check(dataset, facts, side)
    except UserError as error:
        raise UserError(f"'{path}': {error}") from error
    notes = [f"read from {path.name}, images of {side} x {side} pixels"]
    if side != _side(data.size):
        notes.append(f"{_file(data.name, _side(data.size))} is not there")
    return replace(dataset, notes=("; ".join(notes), *([facts.note] if facts.note else [])))
