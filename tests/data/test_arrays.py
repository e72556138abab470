"""Sets as arrays in one .npz file, and images that are kept in a file."""

import numpy as np
import pytest

from taet.data import facts, load, storage
from taet.data.dataset import DataFacts
from taet.settings import Data
from tests.data.conftest import kinds, note_of


def test_a_file_is_taken_as_it_is(npz, arrays):
    given = arrays()
    validation = {
        "val_images": 255 - given["test_images"],
        "val_labels": given["test_labels"][:, np.newaxis],
    }
    dataset = load(
        npz(given | validation | {"class_names": np.array(["x", "y", "z"]), "other": np.zeros(3)})
    )
    assert (dataset.train.images == given["train_images"]).all()
    assert (dataset.test.labels == given["test_labels"]).all()
    assert (dataset.validation.images == validation["val_images"]).all()
    assert dataset.class_names == ("x", "y", "z")
    assert dataset.notes == (
        "not cut to a long tail; the training images have imbalance ratio 6, before any limit or "
        "share",
        "the source's own validation split is kept",
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_labels": np.array([0, None] * 5, object)}, "Object arrays cannot be loaded"),
        ({"class_names": np.arange(3)}, "class_names: got int64"),
        (
            {"val_images": np.zeros((2, 4, 5, 3), np.uint8)},
            "has no val_labels; it has: .*train_images",
        ),
        (
            {"train_group": np.arange(9)},
            "train_group: got 9 of int64; allowed: 10 whole numbers or texts",
        ),
    ],
)
def test_a_bad_file_is_refused_in_one_line(npz, change, message, arrays, refused):
    refused(npz(arrays() | change), message)


@pytest.mark.parametrize(
    ("change", "conversion"),
    [
        (lambda images: images.transpose(0, 3, 1, 2), r"these are images.transpose\(0, 2, 3, 1\)$"),
        (
            lambda images: images.transpose(0, 3, 1, 2) / 255,
            r"\(255 \* images.transpose\(0, 2, 3, 1\)\).round\(\).astype\('uint8'\)$",
        ),
        (lambda images: images.reshape(len(images), -1) / 255, "N at least 1$"),
        (lambda images: images / 255, r"\(255 \* images\).round\(\).astype\('uint8'\)"),
        (lambda images: images.astype(float), r"images.round\(\).astype\('uint8'\)"),
        (lambda images: images - 128.0, "N at least 1$"),
    ],
    ids=["channels first", "both", "flat", "from 0 to 1", "as floats", "centred"],
)
def test_images_of_another_usual_form_are_refused_with_the_conversion(
    change, conversion, npz, arrays, refused
):
    given = arrays()
    refused(npz(given | {"train_images": change(given["train_images"])}), conversion)


def test_a_damaged_file_is_refused(npz, arrays, tmp_path, refused):
    name = npz(arrays())
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[200] ^= 1
    for broken, message in ((bytes(content), "Bad CRC"), (content[:300], "cannot read")):
        (tmp_path / "a.npz").write_bytes(broken)
        refused(name, message)


def test_groups_of_an_npz_stay_in_one_split_and_shared_ones_are_told(npz, arrays, refused):
    given = arrays((20, 20, 20), (5, 5, 5))
    groups = {
        "train_patient": np.repeat(np.arange(15), 4).astype(str),
        "test_patient": np.arange(10, 25).astype(str),
    }
    dataset = load(npz(given | groups), group="patient", validation=0.2)
    own = {"val_patient": np.arange(24, 39).astype(str)}
    own |= {f"val_{what}": given[f"test_{what}"] for what in ("images", "labels")}
    assert ("5 in train and test, 1 in validation and test") in load(
        npz(given | groups | own), group="patient"
    ).notes[1]
    assert not {*dataset.train.groups} & {*dataset.validation.groups}
    assert dataset.notes[:2] == (
        "15 groups in train_patient",
        "the file's own splits divide groups of patient: 5 in train and test",
    )
    assert load(npz(given | groups)).train.groups is None
    usual = {key.replace("patient", "group"): array for key, array in groups.items()}
    assert load(npz(given | usual)).train.groups is not None
    assert load(npz(given | usual), group="none").train.groups is None
    refused(npz(given), "has no train_site", group="site")
    # "" is no patient
    some = {"train_group": np.where(np.arange(60) < 40, "", groups["train_patient"])}
    dataset = load(npz(given | some), validation=0.2)
    assert dataset.notes[:2] == (
        "5 groups in train_group",
        "40 images of train_group stand alone",
    )
    assert dataset.validation.class_counts.tolist() == [4, 4, 4]


SETTINGS = (
    {},
    {"imbalance_ratio": 2, "size": 8},
    {"validation": 0.2, "max_count": 2, "seed": 4, "test": "balanced"},
)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_where_images_are_kept_changes_nothing(settings, npz, arrays, cached):
    name = npz(arrays((40, 20, 10), (8, 4, 2), (4, 4, 3)), np.savez_compressed)
    memory, disk = (load(name, storage=storage, **settings) for storage in ("memory", "disk"))
    assert all(isinstance(split.images, np.memmap) for split in disk.splits.values())
    assert not any(isinstance(split.images, np.memmap) for split in memory.splits.values())
    assert disk.manifest() == memory.manifest()
    assert disk.train.channel_statistics() == memory.train.channel_statistics()
    assert facts(Data(name=name, **settings)) == DataFacts.of(memory.splits, memory.image_shape)
    times = [file.stat().st_mtime_ns for file in sorted(cached.iterdir())]
    assert load(name, storage="disk", **settings).manifest() == disk.manifest()
    assert [file.stat().st_mtime_ns for file in sorted(cached.iterdir())] == times, (
        "nothing is written twice"
    )


@pytest.mark.usefixtures("cached")
def test_large_sets_go_to_disk_by_themselves(npz, arrays, monkeypatch, refused):
    given = arrays((40, 20, 10), (8, 4, 2))
    expected = load(npz(given, np.savez_compressed), imbalance_ratio=2).manifest()
    monkeypatch.setattr(storage, "memory", lambda: 1000)
    dataset = load(npz(given, np.savez_compressed), imbalance_ratio=2)
    assert isinstance(dataset.train.images, np.memmap)
    assert dataset.manifest() == expected
    refused(npz(given), r"do not fit into memory; allowed: --data.storage disk", storage="memory")


def test_an_interrupted_file_of_the_cache_is_never_used(npz, arrays, cached, monkeypatch, refused):
    name = npz(arrays())
    monkeypatch.setattr(
        "shutil.copyfileobj", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    refused(name, r"cannot write .*cache.*: no space left on the disk", storage="disk")
    monkeypatch.undo()
    monkeypatch.setenv("TAET_CACHE", str(cached))
    assert not [*cached.iterdir()]
    assert load(name, storage="disk").manifest() == load(name).manifest()
    for file in cached.glob("*.npy"):
        file.write_bytes(file.read_bytes()[:-1])
    refused(
        name, r"cannot read .*; allowed: delete it, and run the same command again", storage="disk"
    )


def test_validation_arrays_are_the_test_set_where_there_are_no_others(arrays, npz):
    given = arrays()
    moved = {name.replace("test_", "val_"): values for name, values in given.items()}
    dataset = load(npz(moved))
    assert dataset.test.sha256 == load(npz(given)).test.sha256
    assert dataset.validation is None
    assert "validation-is-test" in kinds(dataset)


def test_arrays_without_test_and_validation_images_are_refused(arrays, npz, refused):
    given = {name: values for name, values in arrays().items() if name.startswith("train")}
    refused(npz(given), "it has no test_images, test_labels; it has: train_images, train_labels")


def test_class_names_that_look_alike_are_noted(arrays, npz):
    dataset = load(npz(arrays() | {"class_names": np.array(["1", "01", "nv"])}))
    assert note_of(dataset, "alike-classes").numbers["names"] == ("1", "01")
