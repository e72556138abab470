"""CIFAR-10 and CIFAR-100 from tiny files in both layouts, and the real CIFAR-10."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets

from taet.data import cifar, load
from taet.errors import UserError
from taet.settings import Data

VERSIONS = dict(cifar.VERSIONS)
PER_CLASS = {"cifar10": {"train": 10, "test": 2}, "cifar100": {"train": 4, "test": 1}}
FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}


def expect(monkeypatch, name, **per_class):
    monkeypatch.setitem(cifar.VERSIONS, name, VERSIONS[name]._replace(per_class=per_class))


@pytest.fixture(autouse=True)
def _tiny_cifar(monkeypatch, tmp_path):
    for name, per_class in PER_CLASS.items():
        expect(monkeypatch, name, **per_class)
    monkeypatch.delenv("TAET_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


def tiny(name, part, per_class):
    labels = np.tile(np.arange(len(VERSIONS[name].class_names)), per_class[part])
    images = np.random.default_rng(len(labels)).integers(0, 256, (len(labels), 32, 32, 3), np.uint8)
    return images, labels


def write_npz(folder, name="cifar10", per_class=None):
    folder.mkdir(exist_ok=True)
    parts = {part: tiny(name, part, per_class or PER_CLASS[name]) for part in ("train", "test")}
    np.savez(
        folder / f"{name}.npz",
        **{f"{part}_images": images for part, (images, _) in parts.items()},
        **{f"{part}_labels": labels for part, (_, labels) in parts.items()},
    )


def write_official(folder, monkeypatch, name="cifar10"):
    """Write the official layout, and teach torchvision the checksums of these files."""
    batches = folder / FOLDERS[name]
    batches.mkdir(parents=True)
    official = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]

    def write(file, content):
        text = pickle.dumps(content, protocol=2)
        (batches / file).write_bytes(text)
        return [file, hashlib.md5(text).hexdigest()]

    def batch(images, labels):
        rows = images.transpose(0, 3, 1, 2).reshape(len(labels), -1)
        if name == "cifar10":
            return {"batch_label": "one", "labels": labels.tolist(), "data": rows, "filenames": []}
        coarse = (labels % 20).tolist()
        return {"filenames": [], "fine_labels": labels.tolist(), "coarse_labels": coarse, "data": rows}

    (images, labels), test = (tiny(name, part, PER_CLASS[name]) for part in ("train", "test"))
    files = [f"data_batch_{i + 1}" for i in range(5)] if name == "cifar10" else ["train"]
    train_list = [write(file, batch(images[i :: len(files)], labels[i :: len(files)])) for i, file in enumerate(files)]
    names = list(VERSIONS[name].class_names)
    meta = (
        {"label_names": names, "num_vis": 3072}
        if name == "cifar10"
        else {"fine_label_names": names, "coarse_label_names": [f"group {i}" for i in range(20)]}
    )
    monkeypatch.setattr(official, "train_list", train_list)
    monkeypatch.setattr(official, "test_list", [write("test_batch" if name == "cifar10" else "test", batch(*test))])
    monkeypatch.setattr(official, "meta", official.meta | {"md5": write(official.meta["filename"], meta)[1]})


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_both_layouts_give_the_same_set(name, tmp_path, monkeypatch):
    write_official(tmp_path / "a", monkeypatch, name)
    write_npz(tmp_path / "b", name)
    official, packed = (load(name, root=str(tmp_path / folder)) for folder in "ab")
    assert official.test.sha256 == packed.test.sha256
    # The five batches hold every fifth image each, so their order is another one.
    images, labels = tiny(name, "train", PER_CLASS[name])
    assert sorted(map(bytes, official.train.images)) == sorted(map(bytes, images))
    assert (packed.train.images == images).all()
    assert (packed.train.labels == labels).all()
    assert (official.class_counts == packed.class_counts).all()
    assert official.class_names == packed.class_names
    assert official.mirror


def test_fine_labels_are_taken_not_the_coarse_ones(tmp_path, monkeypatch):
    write_official(tmp_path, monkeypatch, "cifar100")
    dataset = load("cifar100", root=str(tmp_path))
    assert dataset.test.labels.tolist() == list(range(100))
    assert dataset.class_names == tuple(sorted(dataset.class_names))  # as in the official meta file


def test_names_say_what_is_cut(tmp_path):
    write_npz(tmp_path)
    whole, cut = (load(name, root=str(tmp_path), test="balanced") for name in ("cifar10", "cifar10-lt"))
    assert whole.class_counts.tolist() == [10] * 10
    assert cut.class_counts.tolist() == [10, 7, 5, 4, 3, 2, 2, 1, 1, 1]
    assert whole.test.sha256 == cut.test.sha256


@pytest.mark.parametrize("file", ["test_batch", "data_batch_3", "batches.meta"])
def test_a_pickle_with_another_checksum_is_refused_and_not_run(file, tmp_path, monkeypatch):
    write_official(tmp_path, monkeypatch)
    marker = tmp_path / "run"

    class Malicious:
        def __reduce__(self):
            return Path.touch, (marker,)

    (tmp_path / FOLDERS["cifar10"] / file).write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(UserError, match="cifar-10-batches-py' is missing or damaged; unpack https") as error:
        load("cifar10-lt", root=str(tmp_path))
    assert "\n" not in str(error.value)
    assert not marker.exists()
    pickle.loads((tmp_path / FOLDERS["cifar10"] / file).read_bytes())
    assert marker.exists()  # it would have been


def test_it_is_looked_for_in_root_then_the_environment_then_data(tmp_path, monkeypatch):
    monkeypatch.setenv("TAET_DATA", str(tmp_path / "there"))
    with pytest.raises(
        UserError, match=r"not in '.*here', '.*there', 'data'; run taet data prepare cifar10-lt, or"
    ) as e:
        load("cifar10-lt", root=str(tmp_path / "here"))
    assert "cifar-10-python.tar.gz (or put cifar10.npz) into a folder" in str(e.value)
    for folder, count in (("data", 10), ("there", 20), ("here", 30)):
        expect(monkeypatch, "cifar10", train=count, test=2)
        write_npz(tmp_path / folder, per_class={"train": count, "test": 2})
        assert load("cifar10-lt", root=str(tmp_path / "here")).class_counts.max() == count


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_labels": np.r_[np.arange(10), np.arange(10), 0]}, "test_images and test_labels: got 20 images but 21"),
        ({"test_labels": np.r_[np.arange(10), np.zeros(10, int)]}, "got 11 test images of 'airplane'; allowed: 2 of"),
        ({"train_labels": np.full(100, 10)}, "train_labels: class 'airplane' has no training image"),
        ({"test_labels": np.full(20, 10)}, "test_labels: got label 10; allowed: 0 to 9"),
        (
            {"train_images": np.zeros((100, 28, 28), np.uint8), "test_images": np.zeros((20, 28, 28), np.uint8)},
            r"got images of shape \(1, 28, 28\); allowed: \(3, 32, 32\)",
        ),
    ],
)
def test_a_file_of_other_content_is_refused_in_one_line(change, message, tmp_path):
    write_npz(tmp_path)
    np.savez(tmp_path / "cifar10.npz", **(dict(np.load(tmp_path / "cifar10.npz")) | change))
    with pytest.raises(UserError, match=f"CIFAR-10 in '.*cifar10.npz': {message}") as error:
        load("cifar10-lt", root=str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "reader"), [("cifar10-lt", "CIFAR10"), ("cifar100-balanced-small", "CIFAR100")])
def test_what_is_downloaded_is_the_official_archive(name, reader):
    (download,) = cifar.downloads(Data(name=name))
    official = getattr(torchvision.datasets, reader)
    assert download[:3] == (official.url, official.filename, official.tgz_md5)
    assert download.unpacks_to == official.base_folder


@pytest.mark.data
@pytest.mark.parametrize(
    ("ratio", "train", "test"), [(10, 20431, 4084), (20, 17023, 3401), (50, 13996, 2795), (100, 12406, 2478)]
)
def test_real_cifar10_has_the_published_counts(real_data, monkeypatch, ratio, train, test):
    monkeypatch.setitem(cifar.VERSIONS, "cifar10", VERSIONS["cifar10"])
    dataset = load("cifar10-lt", root=str(real_data("cifar10.npz").parent), imbalance_ratio=ratio)
    assert (len(dataset.train), len(dataset.test)) == (train, test)
    assert dataset.image_shape == (3, 32, 32)
