"""Published sets from miniatures of their exact official layouts."""

import hashlib
import pickle

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image
from sklearn.datasets import load_digits

from taet.data import facts, load
from taet.data.dataset import PARTS
from taet.data.published import SETS, read
from taet.settings import Data
from tests.models.test_weights import Trap

pytestmark = pytest.mark.usefixtures("here")
FACTS = dict(SETS)
MEDICAL = {
    "pathmnist": (89_996, 10_004, 7_180, 9, 3),
    "dermamnist": (7_007, 1_003, 2_005, 7, 3),
    "octmnist": (97_477, 10_832, 1_000, 4, 1),
    "pneumoniamnist": (4_708, 524, 624, 2, 1),
    "retinamnist": (1_080, 120, 400, 5, 3),
    "breastmnist": (546, 78, 156, 2, 1),
    "bloodmnist": (11_959, 1_712, 3_421, 8, 3),
    "tissuemnist": (165_466, 23_640, 47_280, 8, 1),
    "organamnist": (34_561, 6_491, 17_778, 11, 1),
    "organcmnist": (12_975, 2_392, 8_216, 11, 1),
    "organsmnist": (13_932, 2_452, 8_827, 11, 1),
}
"""Training, validation and test images, classes, channels: the package medmnist 3.0.2."""


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def test_every_digit_is_used_once_and_the_last_ones_are_the_test_set():
    source, digits = read(Data(name="digits-lt")), load_digits()
    train, test = source.splits["train"], source.splits["test"]
    assert sorted([*train.indices, *test.indices]) == list(range(1797))
    assert test.class_counts.tolist() == [60] * 10
    for part in (train, test):
        assert (part.images[..., 0] == np.rint(digits.images[part.indices] * 255 / 16)).all()
        assert (digits.target[part.indices] == part.labels).all()
    assert all(
        train.indices[train.labels == c].max() < test.indices[test.labels == c].min()
        for c in range(10)
    )
    dataset = load("digits-lt")
    assert dataset.class_counts.tolist() == [118, 91, 70, 54, 42, 32, 25, 19, 15, 11]
    assert dataset.test.class_counts.tolist() == [60, 46, 35, 27, 21, 16, 12, 10, 7, 6]
    assert "mostly by other writers" in dataset.notes[0]
    assert not dataset.mirror


# CIFAR and MedMNIST


def as_pickles(folder, arrays, name, monkeypatch):
    """Write CIFAR's official layout, and teach torchvision the checksums of these files."""
    official = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[
        name
    ]
    batches, fine = folder / official.base_folder, "labels" if name == "cifar10" else "fine_labels"
    batches.mkdir(parents=True)

    def write(file, content):
        text = pickle.dumps(content, protocol=2)
        (batches / file).write_bytes(text)
        return [file, hashlib.md5(text).hexdigest()]

    def batch(images, labels):
        rows = images.transpose(0, 3, 1, 2).reshape(len(labels), -1)
        return {
            fine: labels.tolist(),
            "coarse_labels": (labels % 20).tolist(),
            "data": rows,
            "filenames": [],
        }

    files = [file for file, _ in official.train_list]
    pieces = [np.array_split(arrays[f"train_{what}"], len(files)) for what in ("images", "labels")]
    monkeypatch.setattr(
        official, "train_list", [write(f, batch(*p)) for f, *p in zip(files, *pieces, strict=True)]
    )
    test = batch(arrays["test_images"], arrays["test_labels"])
    monkeypatch.setattr(official, "test_list", [write(official.test_list[0][0], test)])
    meta = {official.meta["key"]: [*FACTS[name].class_names]}
    monkeypatch.setattr(
        official, "meta", official.meta | {"md5": write(official.meta["filename"], meta)[1]}
    )


@pytest.fixture
def miniature(tmp_path, monkeypatch):
    """Return a function that makes a small set, tells the package its size, and writes it in an
    official layout."""

    def make(name, layout="npz", side=None, **changes):
        facts, places = FACTS[name], [*PARTS.values()] if FACTS[name].md5 else ["train", "test"]
        counts = [
            {"train": 10, "val": 1, "test": 2}[part] * len(facts.class_names) for part in places
        ]
        monkeypatch.setitem(SETS, name, facts._replace(images=tuple(counts)))
        shape = (side or facts.side, side or facts.side, *([3] if facts.channels == 3 else []))
        arrays = {
            f"{part}_images": noise(n, *shape, seed=n)
            for part, n in zip(places, counts, strict=True)
        }
        for part, n in zip(places, counts, strict=True):
            labels = np.arange(n) % len(facts.class_names)
            # as MedMNIST has them
            arrays[f"{part}_labels"] = labels.astype(np.uint8)[:, None] if facts.md5 else labels
        arrays |= changes
        if layout == "pickles":
            as_pickles(tmp_path, arrays, name, monkeypatch)
        else:
            np.savez(tmp_path / f"{name}{f'_{side}' * bool(side)}.npz", **arrays)
        return arrays

    return make


LAYOUTS = [(name, layout) for name in ("cifar10", "cifar100") for layout in ("pickles", "npz")]
LAYOUTS += [(name, "npz") for name in MEDICAL]


@pytest.mark.parametrize(("name", "layout"), LAYOUTS)
def test_a_set_has_the_images_labels_and_classes_of_its_files(name, layout, miniature, tmp_path):
    arrays = miniature(name, layout)
    dataset = load(name, root=str(tmp_path))
    for part, split in dataset.splits.items():
        assert (split.images == arrays[f"{PARTS[part]}_images"].reshape(split.images.shape)).all()
        assert (split.labels == arrays[f"{PARTS[part]}_labels"].ravel()).all()
    assert len(dataset.splits) == len(arrays) / 2
    assert dataset.class_names == tuple(FACTS[name].class_names)


def test_the_published_facts_of_medmnist():
    found = {
        name: (*FACTS[name].images, len(FACTS[name].class_names), FACTS[name].channels)
        for name in MEDICAL
    }
    assert found == MEDICAL
    # The paper counts 708,069 2-D images, 112,120 of them in ChestMNIST; 107 blank organ slices
    # were left out since.
    assert sum(sum(FACTS[name].images) for name in MEDICAL) == 708_069 - 112_120 - 107
    for own in (FACTS[name] for name in MEDICAL):  # what is left in a mirror is right
        assert own.mirror != any(
            word in name for name in own.class_names for word in ("left", "right")
        )


@pytest.mark.parametrize("file", ["test_batch", "data_batch_3", "batches.meta"])
def test_a_pickle_with_another_checksum_is_refused_and_not_run(file, miniature, tmp_path, refused):
    miniature("cifar10", "pickles")
    marker, place = tmp_path / "run", tmp_path / "cifar-10-batches-py" / file

    place.write_bytes(pickle.dumps(Trap(marker)))
    refused(
        "cifar10-lt",
        "cifar-10-batches-py' .* is missing or damaged; unpack the archive",
        root=str(tmp_path),
    )
    assert not marker.exists()


def test_a_set_is_looked_for_in_root_then_the_environment_then_data(
    miniature, tmp_path, monkeypatch, refused
):
    monkeypatch.setenv("TAET_DATA", str(tmp_path / "there"))
    root = str(tmp_path / "here")
    assert facts(Data(name="cifar10-lt")) is None
    refused(
        "cifar10-lt",
        r"not in '.*here', '.*there', 'data'; run taet data prepare cifar10-lt, or",
        root=root,
    )
    for level, folder in enumerate(("data", "there", "here")):
        miniature("cifar10", train_images=np.full((100, 32, 32, 3), level, np.uint8))
        (tmp_path / folder).mkdir()
        (tmp_path / "cifar10.npz").rename(tmp_path / folder / "cifar10.npz")
        assert (load("cifar10-lt", root=root).train.images == level).all()


def test_a_file_of_other_content_is_refused(miniature, tmp_path, refused):
    for changes, message in (
        (
            {"test_labels": np.full(20, 10)},
            "CIFAR-10 in '.*cifar10.npz' .*: test_labels: got label 10; allowed: 0 to 9",
        ),
        (
            {"test_labels": np.arange(10), "test_images": noise(10, 32, 32, 3)},
            "got {'train': 100, 'test': 10} images",
        ),
        (
            {"train_images": noise(100, 28, 28), "test_images": noise(20, 28, 28)},
            r"of shape \(28, 28, 1\); allowed",
        ),
    ):
        miniature("cifar10", **changes)
        refused("cifar10-lt", message, root=str(tmp_path))


def test_the_file_of_the_size_that_is_asked_for_is_read_or_else_the_small_one(
    miniature, tmp_path, refused
):
    address = r"^bloodmnist_64\.npz is not in '.*'; run taet data prepare bloodmnist --size 64, or put .*zenodo"  # noqa: E501
    refused("bloodmnist", address, root=str(tmp_path), size=64)
    miniature("bloodmnist")
    dataset = load("bloodmnist", root=str(tmp_path), size=64)
    assert dataset.image_shape == (3, 64, 64)
    assert dataset.notes[0] == (
        "read from bloodmnist.npz, images of 28 x 28 pixels; bloodmnist_64.npz is not there"
    )
    arrays = miniature("bloodmnist", side=64)
    assert (
        load("bloodmnist", root=str(tmp_path), size=64).train.images == arrays["train_images"]
    ).all()


# Tiny-ImageNet

WNIDS = ("n02124075", "n01443537", "n03126707", "n01629819")  # as wnids.txt has them: in no order
WORDS = {
    "n01443537": "goldfish, Carassius auratus",
    "n01629819": "crane",
    "n02124075": "Egyptian cat",
}
WORDS |= {"n03126707": "crane", "n00001740": "entity"}


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Write the official tree; the image of number 1 of every class is a greyscale file, as some
    official ones are."""
    monkeypatch.setitem(SETS, "tiny-imagenet", SETS["tiny-imagenet"]._replace(images=(48, 8)))
    folder, annotations = tmp_path / "tiny-imagenet-200", []

    def save(path, label, index):
        path.parent.mkdir(parents=True, exist_ok=True)
        grey = Image.new("L", (64, 64), 60 * label + 4 * index)
        (grey if index == 1 else grey.convert("RGB")).save(path, "JPEG", quality=95)

    for label, wnid in enumerate(sorted(WNIDS)):
        for index in range(12):
            save(folder / "train" / wnid / "images" / f"{wnid}_{index}.JPEG", label, index)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text(
            f"{wnid}_0.JPEG\t0\t10\t63\t58\n"
        )
    for number in range(8):
        wnid = WNIDS[number % 4]
        annotations.append(f"val_{number}.JPEG\t{wnid}\t0\t32\t44\t62\n")
        save(
            folder / "val" / "images" / f"val_{number}.JPEG", sorted(WNIDS).index(wnid), number // 4
        )
    (folder / "val" / "val_annotations.txt").write_text("".join(annotations))
    (folder / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in WNIDS))
    (folder / "words.txt").write_text(
        "".join(f"{wnid}\t{words}\n" for wnid, words in WORDS.items())
    )
    save(folder / "test" / "images" / "test_0.JPEG", 0, 0)
    return folder


def test_tiny_imagenet_has_its_classes_in_the_order_of_their_ids(tiny):
    dataset = load("tiny-imagenet", root=str(tiny.parent))
    assert dataset.class_names == (
        "goldfish",
        "crane (n01629819)",
        "Egyptian cat",
        "crane (n03126707)",
    )
    assert dataset.train.labels.tolist() == np.repeat(range(4), 12).tolist()
    by_name = [0, 1, 10, 11, *range(2, 10)]  # _10 comes before _2
    expected = [60 * label + 4 * index for label in range(4) for index in by_name]
    assert np.abs(dataset.train.images.mean((1, 2, 3)) - expected).max() < 1.5  # JPEG rounds
    labels = [sorted(WNIDS).index(wnid) for wnid in WNIDS] * 2
    assert dataset.test.labels.tolist() == labels
    expected = [60 * label + 4 * (position // 4) for position, label in enumerate(labels)]
    assert np.abs(dataset.test.images.mean((1, 2, 3)) - expected).max() < 1.5
    assert np.ptp(dataset.train.images[1], axis=-1).max() == 0  # the greyscale file
    cut = load("tiny-imagenet-lt", root=str(tiny.parent), imbalance_ratio=12, test="balanced")
    assert (cut.class_counts.tolist(), len(cut.test)) == ([12, 8, 4, 1], 8)


def test_an_incomplete_tree_is_refused_by_what_is_missing(tiny, refused):
    (tiny / "train/n01629819/images/n01629819_3.JPEG").unlink()
    refused("tiny-imagenet", "got {'train': 47, 'test': 8} images", root=str(tiny.parent))
    (tiny / "val/images/val_3.JPEG").unlink()
    refused("tiny-imagenet", r"val_3\.JPEG", root=str(tiny.parent))
