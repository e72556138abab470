"""The folders of arrays that TAET's authors publish: read, written, and what is refused."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from taet.data import Dataset, layouts, load, taet_npy
from taet.errors import UserError
from taet.settings import Data


@pytest.fixture
def published(tmp_path):
    """A folder as TAET's notebook saves it: rows of CIFAR's batches, labels int64, grouped by class."""
    folder = tmp_path / "cifar10lt_10"
    folder.mkdir()
    for part, counts in (("train", (5, 3, 1)), ("test", (2, 1, 1))):
        labels = np.repeat(np.arange(3), counts)
        planes = np.zeros((len(labels), 3, 32, 32), np.uint8)
        planes[:, 0], planes[:, 1], planes[:, 2] = 200, 100, 50  # a red, a green and a blue plane
        planes[:, 0, 0, 5] = labels + 1  # the first row of pixels, column 5
        np.save(folder / f"{part}_images.npy", planes.reshape(-1, 3072))
        np.save(folder / f"{part}_labels.npy", labels)
    return folder


def random_set(shape, counts=(6, 3, 1), validation=False):
    generator = np.random.default_rng(0)

    def part():
        return generator.integers(0, 256, (sum(counts), *shape), np.uint8), np.repeat(np.arange(len(counts)), counts)

    return Dataset.from_arrays(
        *part(), *part(), validation=part() if validation else None, class_names=["ä b", "c", "d"][: len(counts)]
    )


def write(dataset, folder):
    layouts.write(dataset, "taet-npy", folder, lambda *_: None)


def test_rows_are_colour_planes(published):
    dataset = load(f"taet-npy:{published}")
    assert dataset.train.images.shape == (9, 32, 32, 3)
    assert dataset.train.images[0, 7, 9].tolist() == [200, 100, 50]
    assert dataset.train.images[:, 0, 5, 0].tolist() == (dataset.train.labels + 1).tolist()
    assert dataset.class_counts.tolist() == [5, 3, 1]
    assert dataset.test.class_counts.tolist() == [2, 1, 1]
    assert dataset.class_names == ("0", "1", "2")
    assert dataset.notes[0] == "taken as it is: the source's imbalance ratio is 5"


def test_a_relative_path_is_looked_for_in_the_data_folders(published, monkeypatch):
    monkeypatch.chdir(published.parent)
    assert len(load("taet-npy:cifar10lt_10").train) == 9
    monkeypatch.chdir("/")
    assert len(load("taet-npy:cifar10lt_10", root=str(published.parent)).train) == 9


@pytest.mark.parametrize("shape", [(32, 32, 3), (5, 5, 3), (8, 8, 1), (1, 1, 3), (3, 3, 1)])
@pytest.mark.parametrize("validation", [False, True])
def test_a_round_trip_gives_the_same_arrays(shape, validation, tmp_path):
    given = random_set(shape, validation=validation)
    write(given, tmp_path / "new" / "set")
    read = taet_npy.read(Data(name=f"taet-npy:{tmp_path / 'new' / 'set'}"))
    assert read.manifest() == given.manifest()
    assert read.class_names == given.class_names


def test_what_is_written_is_what_the_notebook_saves(published, tmp_path):
    write(load(f"taet-npy:{published}"), tmp_path / "again")
    for path in published.iterdir():
        original, written = np.load(path), np.load(tmp_path / "again" / path.name)
        assert written.dtype == original.dtype
        assert (written == original).all()
    extra = {path.name for path in (tmp_path / "again").iterdir()} - {path.name for path in published.iterdir()}
    assert extra == {"class_names.npy"}


def test_images_on_disk_are_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("TAET_CACHE", str(tmp_path / "cache"))
    given = random_set((6, 6, 3))
    write(given, tmp_path / "a")
    kept = taet_npy.read(Data(name=f"taet-npy:{tmp_path / 'a'}", storage="disk"))
    assert not isinstance(kept.train.images, np.ndarray)
    assert kept.manifest() == given.manifest()
    write(kept, tmp_path / "b")
    assert taet_npy.read(Data(name=f"taet-npy:{tmp_path / 'b'}")).manifest() == given.manifest()


def test_nothing_is_overwritten(published):
    before = (published / "train_images.npy").read_bytes()
    with pytest.raises(UserError, match="cifar10lt_10' exists already and is kept"):
        write(random_set((4, 4, 3)), published)
    assert (published / "train_images.npy").read_bytes() == before


def test_images_that_are_not_square_have_no_place_in_the_layout(tmp_path):
    with pytest.raises(UserError, match="got 5 x 4 pixels; allowed: square images"):
        write(random_set((4, 5, 3)), tmp_path / "a")
    assert not (tmp_path / "a").exists()


class Malicious:
    def __reduce__(self):
        return Path.touch, (Path("run"),)


@pytest.mark.parametrize("key", ["train_images", "train_labels", "class_names"])
def test_pickled_arrays_are_refused_and_not_run(key, published, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save(published / f"{key}.npy", np.array([Malicious()], object), allow_pickle=True)
    with pytest.raises(UserError, match=f"{key}.npy': it holds pickled objects; allowed: an .npy file of") as error:
        load(f"taet-npy:{published}")
    assert "\n" not in str(error.value)
    (published / f"{key}.npy").write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(UserError, match=f"cannot read '.*{key}.npy'"):
        load(f"taet-npy:{published}")
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("key", "array", "message"),
    [
        ("train_images", np.zeros((9, 3071), np.uint8), "got 3071 numbers per image; allowed: 3 S S"),
        ("train_images", np.zeros((9, 3072)), r"got float64 of shape \(9, 3072\); allowed: uint8 of shape \(N,3072\)"),
        ("train_images", np.zeros((9, 32, 32, 3), np.uint8), r"got uint8 of shape \(9, 32, 32, 3\)"),
        ("train_images", np.zeros((8, 3072), np.uint8), "got 8 images but 9 labels"),
        ("test_images", np.zeros((4, 1024), np.uint8), r"test_images: got images of shape \(32, 32, 1\)"),
        ("test_labels", np.array([0, 1, 2, 3]), "test_labels: got label 3"),
        ("class_names", np.arange(3), r"class_names: got int64 of shape \(3,\); allowed: text"),
        ("val_labels", np.arange(3), "has no val_images; it has"),
    ],
)
def test_arrays_of_other_content_are_refused_in_one_line(key, array, message, published):
    np.save(published / f"{key}.npy", array)
    with pytest.raises(UserError, match=f"cifar10lt_10.*{message}") as error:
        load(f"taet-npy:{published}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"no array at all", b"\x93NUMPY\x01\x00"])
def test_a_file_that_is_no_array_is_refused(content, published):
    (published / "test_images.npy").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read '.*test_images\.npy'") as error:
        load(f"taet-npy:{published}")
    assert "\n" not in str(error.value)


def test_a_truncated_file_is_refused(published):
    path = published / "train_images.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"cannot read '.*train_images\.npy'"):
        load(f"taet-npy:{published}")


def test_missing_files_and_folders_are_named(published):
    (published / "train_labels.npy").unlink()
    with pytest.raises(UserError, match="cifar10lt_10' has no train_labels; it has: test_images"):
        load(f"taet-npy:{published}")
    with pytest.raises(UserError, match="no such folder: 'nowhere'"):
        load("taet-npy:nowhere")


def test_the_facts_are_known_without_the_images(published, facts_agree):
    facts_agree(f"taet-npy:{published}")
