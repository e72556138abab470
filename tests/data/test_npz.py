"""Sets in one .npz file."""

import zipfile

import numpy as np
import pytest

from taet.data import load, npz
from taet.data.image_store import Stored
from taet.errors import UserError
from taet.settings import Data


def test_a_file_is_taken_as_it_is(tmp_path, arrays):
    given = arrays()
    validation = 255 - given["test_images"]
    np.savez(tmp_path / "a.npz", **given, val_images=validation, val_labels=given["test_labels"][:, np.newaxis])
    dataset = load(f"npz:{tmp_path / 'a.npz'}")
    assert (dataset.train.images == given["train_images"]).all()
    assert (dataset.test.labels == given["test_labels"]).all()
    assert (dataset.validation.images == validation).all()
    assert dataset.notes == (
        "taken as it is: the source's imbalance ratio is 6",
        "the source's own validation split is kept",
    )
    assert load(str(tmp_path / "a.npz")).train.sha256 == dataset.train.sha256


def test_class_names_are_read(tmp_path, arrays):
    np.savez(tmp_path / "a.npz", **arrays(), class_names=np.array(["x", "y", "z"]))
    assert load(f"npz:{tmp_path / 'a.npz'}").class_names == ("x", "y", "z")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_labels": np.array([0, None] * 5, object)}, "pickled objects"),
        ({"class_names": np.array(["a", "b", "c"], object)}, "pickled objects"),
        ({"class_names": np.arange(3)}, "class_names: got int64"),
        ({"class_names": np.array([["a", "b", "c"]])}, r"class_names: got <U1 of shape \(1, 3\)"),
        ({"val_images": np.zeros((2, 4, 5, 3), np.uint8)}, "has no val_labels; it has: .*train_images"),
        ({"train_images": np.full((10, 4, 5, 3), np.nan)}, r"a\.npz': train_images: got float64 with NaN"),
        ({"test_labels": np.array([0, 1, 2, 3, 0])}, r"a\.npz': test_labels: got label 3"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path, change, message, arrays):
    np.savez(tmp_path / "a.npz", **(arrays() | change))
    with pytest.raises(UserError, match=message) as error:
        load(f"npz:{tmp_path / 'a.npz'}")
    assert "\n" not in str(error.value)


def test_missing_keys_are_named_beside_those_there_are(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=np.zeros(3), test_labels=np.zeros(3))
    with pytest.raises(UserError, match="has no train_images, train_labels, test_images; it has: x_train, test_labels"):
        load(f"npz:{tmp_path / 'a.npz'}")


@pytest.mark.parametrize("content", [b"", b"no archive at all", b"PK\x03\x04 cut short"])
def test_a_file_that_is_no_npz_is_refused(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read '.*a\.npz'"):
        load(f"npz:{tmp_path / 'a.npz'}")


def test_a_damaged_member_is_refused(tmp_path, arrays):
    np.savez_compressed(tmp_path / "a.npz", **arrays())
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[100:140] = bytes(40)
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read '.*a\.npz'"):
        load(f"npz:{tmp_path / 'a.npz'}")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_arrays_of_one_name_are_refused(tmp_path, arrays):
    np.savez(tmp_path / "a.npz", **arrays())
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("train_labels.npy", archive.read("train_labels.npy"))
    with pytest.raises(UserError, match=r"a\.npz' holds the array 'train_labels' twice"):
        load(f"npz:{tmp_path / 'a.npz'}")


def test_a_single_array_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(UserError, match="holds a single array"):
        load(f"npz:{tmp_path / 'a.npy'}")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no such file: '.*a\.npz'"):
        load(str(tmp_path / "a.npz"))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 3)])
def test_images_may_lie_on_disk(save, shape, tmp_path, arrays, monkeypatch):
    monkeypatch.setenv("TAET_CACHE", str(tmp_path / "cache"))
    given = arrays(shape=shape)
    save(tmp_path / "a.npz", **given, val_images=given["test_images"], val_labels=given["test_labels"])
    memory, disk = (npz.read(Data(name=f"npz:{tmp_path / 'a.npz'}", storage=storage)) for storage in ("memory", "disk"))
    assert all(isinstance(split.images, Stored) for split in disk.splits.values())
    assert not any(isinstance(split.images, Stored) for split in memory.splits.values())
    assert disk.manifest() == memory.manifest()
    assert isinstance(npz.read_arrays(tmp_path / "a.npz")["train_images"], np.ndarray)  # so small
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_groups_come_with_the_images_and_those_that_the_file_divides_are_told(tmp_path, arrays):
    patients = {"train_patient": np.array(list("aabbbcddef")), "test_patient": np.array([*"xcyax"])[:, np.newaxis]}
    np.savez(tmp_path / "a.npz", **arrays(), **patients)
    dataset = npz.read(Data(name=f"npz:{tmp_path / 'a.npz'}", group="patient"))
    assert dataset.train.groups.tolist() == [0, 0, 1, 1, 1, 2, 3, 3, 4, 5]
    assert dataset.test.groups.tolist() == [6, 2, 7, 0, 6]
    assert dataset.notes == (
        "6 groups in train_patient; a validation split holds out whole ones",
        "the file's own splits divide groups of patient: 2 in training and test",
    )
    assert npz.read(Data(name=f"npz:{tmp_path / 'a.npz'}")).train.groups is None


def test_an_array_that_is_called_group_is_taken_by_itself(tmp_path, arrays):
    groups = {"train_group": np.arange(10) // 2, "test_group": np.arange(9, 14), "train_patient": np.arange(10)}
    np.savez(tmp_path / "a.npz", **arrays(), **groups)
    dataset = load(f"npz:{tmp_path / 'a.npz'}", validation=0.5)
    assert dataset.test.groups.tolist() == [5, 6, 7, 8, 9]
    assert not set(dataset.train.groups) & set(dataset.validation.groups)
    assert dataset.notes[0] == "5 groups in train_group; a validation split holds out whole ones"
    assert load(f"npz:{tmp_path / 'a.npz'}", group="patient").train.groups.tolist() == list(range(10))


@pytest.mark.parametrize("test", [{}, {"test_lesion": np.arange(20, 25)}])
def test_groups_that_are_numbers_and_whole_are_not_warned_about(test, tmp_path, arrays):
    np.savez(tmp_path / "a.npz", **arrays(), train_lesion=np.arange(10) // 2 * 3, **test)
    dataset = npz.read(Data(name=f"npz:{tmp_path / 'a.npz'}", group="lesion"))
    assert dataset.train.groups.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert (dataset.test.groups is None) == (not test)
    assert dataset.notes == ("5 groups in train_lesion; a validation split holds out whole ones",)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "has no train_patient; it has: train_images"),
        ({"train_patient": np.arange(9)}, r"train_patient: got int64 of shape \(9,\); allowed: whole .*, \(10,\), one"),
        ({"train_patient": np.ones(10)}, "train_patient: got float64"),
        ({"train_patient": np.arange(10), "test_patient": np.arange(4)}, r"test_patient: got int64 of shape \(4,\)"),
    ],
)
def test_groups_that_do_not_fit_are_refused(given, message, tmp_path, arrays):
    np.savez(tmp_path / "a.npz", **arrays(), **given)
    with pytest.raises(UserError, match=message):
        npz.read(Data(name=f"npz:{tmp_path / 'a.npz'}", group="patient"))


@pytest.mark.parametrize("groups", [{}, {"train_group": np.arange(20) // 3, "test_group": np.arange(9)}])
def test_the_facts_are_known_without_the_images(tmp_path, arrays, groups, facts_agree):
    given = arrays(train_counts=(9, 7, 4), test_counts=(4, 3, 2))
    np.savez(tmp_path / "a.npz", **given, **groups, class_names=np.array(["x", "y", "z"]))
    facts_agree(f"npz:{tmp_path / 'a.npz'}")
    parts = {key.replace("test", "val"): array for key, array in given.items() if key.startswith("test")}
    np.savez(tmp_path / "b.npz", **{key: array.squeeze() for key, array in given.items()}, **parts)
    facts_agree(str(tmp_path / "b.npz"))
