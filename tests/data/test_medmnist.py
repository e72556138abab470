"""MedMNIST's single-label 2-D sets from small files with their keys, shapes and types."""

import numpy as np
import pytest

from taet import registry
from taet.data import load, medmnist
from taet.errors import UserError
from taet.settings import Data

SETS = dict(medmnist.SETS)
PUBLISHED = {
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
IMAGES = (33, 12, 22)


@pytest.fixture(autouse=True)
def _small(monkeypatch, tmp_path):
    for name, published in SETS.items():
        monkeypatch.setitem(medmnist.SETS, name, published._replace(images=IMAGES))
    monkeypatch.delenv("TAET_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


def made(name, side=28):
    """What a file of MedMNIST holds: labels uint8 of shape (N,1); grey images have no axis of channels."""
    generator, facts = np.random.default_rng(side), SETS[name]
    shape = (side, side, 3) if facts.channels == 3 else (side, side)
    arrays = {}
    for part, count in zip(("train", "val", "test"), IMAGES, strict=True):
        arrays[f"{part}_images"] = generator.integers(0, 256, (count, *shape), np.uint8)
        arrays[f"{part}_labels"] = (np.arange(count, dtype=np.uint8) % len(facts.class_names))[:, np.newaxis]
    return arrays


def labels_of(name):
    return {key: array for key, array in made(name).items() if key.endswith("labels")}


def test_the_published_facts():
    found = {name: (*facts.images, len(facts.class_names), facts.channels) for name, facts in SETS.items()}
    assert found == PUBLISHED
    # The paper counts 708,069 2-D images, 112,120 of them in ChestMNIST; 107 blank organ slices were left out since.
    assert sum(sum(facts.images) for facts in SETS.values()) == 708_069 - 112_120 - 107
    assert {name for name, entry in registry.entries("data").items() if entry.module == "taet.data.medmnist"} == {
        *PUBLISHED,
        "chestmnist",
    }
    checksums = [md5 for facts in SETS.values() for md5 in facts.md5]
    assert len(set(checksums)) == len(checksums) == 4 * len(SETS)
    assert all(len(md5) == 32 for md5 in checksums)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_file_is_read_with_its_own_splits(name, tmp_path):
    arrays = made(name)
    np.savez_compressed(tmp_path / f"{name}.npz", **arrays)
    dataset = load(name, root=str(tmp_path))
    for part, split in (("train", dataset.train), ("val", dataset.validation), ("test", dataset.test)):
        assert (split.images == arrays[f"{part}_images"].reshape(split.images.shape)).all()
        assert (split.labels == arrays[f"{part}_labels"][:, 0]).all()
    assert dataset.image_shape == (SETS[name].channels, 28, 28)
    assert dataset.class_names == SETS[name].class_names
    assert dataset.notes[0] == f"read from {name}.npz, images of 28 x 28 pixels"
    assert dataset.notes[-1] == "the source's own validation split is kept"


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_left_in_a_mirror_is_right(name):
    sided = any(word in class_name for class_name in SETS[name].class_names for word in ("left", "right"))
    assert SETS[name].mirror != sided


@pytest.mark.parametrize("size", [64, 128, 224])
def test_the_file_of_the_size_that_is_asked_for_is_read(size, tmp_path):
    for side, name in ((28, "bloodmnist.npz"), (size, f"bloodmnist_{size}.npz")):
        np.savez(tmp_path / name, **made("bloodmnist", side))
    dataset = load("bloodmnist", root=str(tmp_path), size=size)
    assert (dataset.train.images == made("bloodmnist", size)["train_images"]).all()
    assert dataset.notes[0] == f"read from bloodmnist_{size}.npz, images of {size} x {size} pixels"


def test_the_small_file_stands_for_a_size_that_is_not_there(tmp_path):
    np.savez(tmp_path / "bloodmnist.npz", **made("bloodmnist"))
    dataset = load("bloodmnist", root=str(tmp_path), size=64)
    assert dataset.image_shape == (3, 64, 64)
    assert dataset.notes[0] == "read from bloodmnist.npz, images of 28 x 28 pixels; bloodmnist_64.npz is not there"
    assert load("bloodmnist", root=str(tmp_path), size=32).notes[0].endswith("28 x 28 pixels")


def test_chestmnist_is_refused_as_multi_label():
    for refused in (lambda: load("chestmnist"), lambda: medmnist.downloads(Data(name="chestmnist"))):
        with pytest.raises(UserError, match=r"chestmnist is multi-label: .*; allowed: .*dermamnist") as error:
            refused()
        assert "\n" not in str(error.value)


def test_a_missing_file_is_one_line_with_its_address(tmp_path):
    with pytest.raises(
        UserError, match=r"^dermamnist_64\.npz is not in '.*', 'data'; run taet data prepare dermamnist --size 64, or"
    ) as error:
        load("dermamnist", root=str(tmp_path), size=64)
    assert "https://zenodo.org/records/10519652/files/dermamnist_64.npz?download=1 into a folder" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("bloodmnist", {"test_labels": None, "test_images": None}, "has no test_images, test_labels"),
        (
            "bloodmnist",
            {"val_labels": None, "val_images": None},
            r"got \(33, 22\) images in its splits; allowed: \(33, 12, 22\)",
        ),
        ("bloodmnist", {"test_labels": np.array([0, None] * 11, object)}, "Object arrays cannot be loaded"),
        ("bloodmnist", {"test_labels": np.full((22, 1), 8)}, "got label 8; allowed: 0 to 7"),
        ("bloodmnist", {"test_labels": np.zeros((22, 14), np.uint8)}, r"test_labels: got shape \(22, 14\)"),
        ("bloodmnist", {"test_labels": np.zeros((22, 1))}, "test_labels: got float64"),
        ("bloodmnist", made("octmnist") | labels_of("bloodmnist"), r"\(1, 28, 28\); allowed: \(3, 28, 28\)"),
        ("bloodmnist", made("bloodmnist", 64), r"\(3, 64, 64\); allowed: \(3, 28, 28\)"),
    ],
)
def test_a_file_of_other_content_is_refused_in_one_line(name, change, message, tmp_path):
    arrays = {key: array for key, array in (made(name) | change).items() if array is not None}
    np.savez(tmp_path / f"{name}.npz", **arrays)
    with pytest.raises(UserError, match=rf"{name}\.npz'.*{message}") as error:
        load(name, root=str(tmp_path))
    assert "\n" not in str(error.value)
