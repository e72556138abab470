"""Sets as arrays: one .npz file, or a folder of .npy files; and images that are kept in a file."""

import zipfile

import numpy as np
import pytest

from taet.data import facts, load, storage
from taet.data.dataset import DataFacts
from taet.errors import UserError
from taet.settings import Data


@pytest.fixture
def npz(tmp_path):
    def save(given, how=np.savez):
        how(tmp_path / "a.npz", **given)
        return f"npz:{tmp_path / 'a.npz'}"

    return save


@pytest.fixture
def folder(tmp_path):
    """Return a function that writes arrays as TAET's folders hold them."""

    def save(given):
        (tmp_path / "rows").mkdir(exist_ok=True)
        for key, array in given.items():
            flat = array.transpose(0, 3, 1, 2).reshape(len(array), -1) if key.endswith("images") else array
            np.save(tmp_path / "rows" / f"{key}.npy", flat)
        return f"taet-npy:{tmp_path / 'rows'}"

    return save


def test_a_file_is_taken_as_it_is(npz, arrays):
    given = arrays()
    validation = {"val_images": 255 - given["test_images"], "val_labels": given["test_labels"][:, np.newaxis]}
    name = npz(given | validation | {"class_names": np.array(["x", "y", "z"]), "other": np.zeros(3)})
    dataset = load(name)
    assert (dataset.train.images == given["train_images"]).all()
    assert (dataset.test.labels == given["test_labels"]).all()
    assert (dataset.validation.images == validation["val_images"]).all()
    assert dataset.class_names == ("x", "y", "z")
    assert dataset.notes == (
        "taken as it is: the source's imbalance ratio is 6",
        "the source's own validation split is kept",
    )
    assert load(name.removeprefix("npz:")).train.sha256 == dataset.train.sha256


@pytest.mark.parametrize("shape", [(4, 4, 3), (6, 6, 1)])
def test_rows_of_planes_are_images(folder, arrays, shape):
    given = arrays(shape=shape)
    dataset = load(folder(given))
    assert (dataset.train.images == given["train_images"]).all()
    assert dataset.image_shape == (shape[2], *shape[:2])
    assert load(folder(given).removeprefix("taet-npy:")).manifest() == dataset.manifest()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_labels": np.array([0, None] * 5, object)}, "Object arrays cannot be loaded"),
        ({"train_images": np.array([None] * 10, object)}, "Object arrays cannot be loaded"),
        ({"class_names": np.arange(3)}, "class_names: got int64"),
        ({"class_names": np.array(["a", "", "c"])}, "class names: got an empty name"),
        ({"class_names": np.array(["a", "b\u202ec", "c"])}, r"class names: got 'b\\u202ec'"),
        ({"class_names": np.full(3, 0x7FFFFFFF, np.uint32).view("<U1")}, "cannot read"),
        ({"val_images": np.zeros((2, 4, 5, 3), np.uint8)}, "has no val_labels; it has: .*train_images"),
        ({"train_images": np.full((10, 4, 5, 3), np.nan)}, r"a\.npz': train_images: got float64 with NaN"),
        ({"train_images": np.zeros((10, 4, 5, 4), np.uint8)}, r"train_images: got shape \(10, 4, 5, 4\)"),
        ({"train_images": np.zeros((9, 4, 5, 3), np.uint8)}, "got 9 images but 10 labels"),
        ({"test_labels": np.array([0, 1, 2, 3, 0])}, r"a\.npz': test_labels: got label 3"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(npz, change, message, arrays):
    with pytest.raises(UserError, match=message) as error:
        load(npz(arrays() | change))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"no archive at all", b"PK\x03\x04 cut short", None])
def test_a_file_that_is_no_npz_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"(cannot read|no such file:) '.*a\.npz'"):
        load(f"npz:{tmp_path / 'a.npz'}")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_missing_and_repeated_arrays_are_named(npz, arrays, tmp_path):
    with pytest.raises(UserError, match="has no train_images, train_labels, test_images; it has: x_train, test_labels"):
        load(npz({"x_train": np.zeros(3), "test_labels": np.zeros(3)}))
    npz(arrays())
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("train_labels.npy", archive.read("train_labels.npy"))
    with pytest.raises(UserError, match=r"a\.npz' holds the array 'train_labels' twice"):
        load(f"npz:{tmp_path / 'a.npz'}")


def test_damaged_pixels_are_refused_when_they_are_read(npz, arrays, tmp_path):
    name = npz(arrays())
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[200] ^= 1
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read '.*a\.npz': Bad CRC"):
        load(name)


@pytest.mark.parametrize(
    ("key", "array", "message"),
    [
        ("train_images", np.zeros((10, 21), np.uint8), r"got 21 numbers per image; allowed: 3 S S \(colour\)"),
        ("train_images", np.zeros((10, 48)), "got float64 of shape"),
        ("train_labels", np.array([None] * 10, object), "cannot read '.*train_labels.npy'"),
    ],
)
def test_bad_rows_are_refused_in_one_line(folder, arrays, tmp_path, key, array, message):
    name = folder(arrays(shape=(4, 4, 3)))
    np.save(tmp_path / "rows" / f"{key}.npy", array)
    with pytest.raises(UserError, match=message) as error:
        load(name)
    assert "\n" not in str(error.value)


def test_groups_of_an_npz_stay_in_one_split_and_shared_ones_are_told(npz, arrays):
    given = arrays((20, 20, 20), (5, 5, 5))
    groups = {"train_patient": np.repeat(np.arange(15), 4).astype(str), "test_patient": np.arange(10, 25).astype(str)}
    dataset = load(npz(given | groups), group="patient", validation=0.2)
    assert not {*dataset.train.groups} & {*dataset.validation.groups}
    assert dataset.notes[:2] == (
        "15 groups in train_patient; a validation split holds out whole ones",
        "the file's own splits divide groups of patient: 5 in training and test",
    )
    assert load(npz(given | groups)).train.groups is None
    usual = {key.replace("patient", "group"): array for key, array in groups.items()}
    assert load(npz(given | usual)).train.groups is not None
    assert load(npz(given | usual), group="none").train.groups is None
    with pytest.raises(UserError, match="has no train_site"):
        load(npz(given), group="site")


SETTINGS = ({}, {"validation": 0.2}, {"imbalance_ratio": 2, "size": 8}, {"max_count": 2, "seed": 4, "test": "balanced"})


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("how", [np.savez_compressed, None], ids=["npz", "rows"])
def test_where_images_are_kept_changes_nothing(how, settings, npz, folder, arrays, cached):
    given = arrays((40, 20, 10), (8, 4, 2), (4, 4, 3))
    name = npz(given, how) if how else folder(given)
    memory, disk = (load(name, storage=storage, **settings) for storage in ("memory", "disk"))
    assert all(isinstance(split.images, np.memmap) for split in disk.splits.values())
    assert not any(isinstance(split.images, np.memmap) for split in memory.splits.values())
    assert disk.manifest() == memory.manifest()
    assert disk.train.channel_statistics() == memory.train.channel_statistics()
    assert facts(Data(name=name, **settings)) == DataFacts.of(memory)
    times = [file.stat().st_mtime_ns for file in sorted(cached.iterdir())]
    assert load(name, storage="disk", **settings).manifest() == disk.manifest()
    assert [file.stat().st_mtime_ns for file in sorted(cached.iterdir())] == times, "nothing is written twice"


@pytest.mark.usefixtures("cached")
def test_large_sets_go_to_disk_by_themselves_and_through_little_memory(npz, arrays, monkeypatch):
    given = arrays((40, 20, 10), (8, 4, 2))
    expected = load(npz(given, np.savez_compressed), imbalance_ratio=2).manifest()
    monkeypatch.setattr(storage, "memory", lambda: 1000)
    monkeypatch.setattr(storage, "PIECE", 100)
    dataset = load(npz(given, np.savez_compressed), imbalance_ratio=2)
    assert isinstance(dataset.train.images, np.memmap)
    assert dataset.manifest() == expected
    with pytest.raises(UserError, match=r"do not fit into memory; allowed: --data.storage disk"):
        load(npz(given), storage="memory")


def test_a_damaged_file_of_the_cache_is_deleted_and_an_interrupted_one_never_used(npz, arrays, cached, monkeypatch):
    name = npz(arrays())
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(
        UserError, match=r"cannot keep .* of images in '.*cache': No space left; allowed: another folder"
    ):
        load(name, storage="disk")
    monkeypatch.undo()
    monkeypatch.setenv("TAET_CACHE", str(cached))
    assert not [*cached.glob("*.npy"), *cached.glob("*.part")]
    expected = load(name, storage="disk").manifest()
    for file in cached.glob("*.npy"):
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    with pytest.raises(UserError, match=r"was damaged, and is deleted; run the same command again"):
        load(name, storage="disk")
    for file in cached.glob("*.npy"):
        file.unlink()
    assert load(name, storage="disk").manifest() == expected
