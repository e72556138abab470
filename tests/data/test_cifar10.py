"""CIFAR-10 from tiny files in both layouts, and from the real one."""

import hashlib
import pickle

import numpy as np
import pytest
import torchvision.datasets

from taet.data import cifar10, load
from taet.errors import UserError

PER_CLASS = {"train": 10, "test": 2}


def tiny(part, per_class=PER_CLASS):
    labels = np.tile(np.arange(10), per_class[part])
    images = np.random.default_rng(len(labels)).integers(0, 256, (len(labels), 32, 32, 3), np.uint8)
    return images, labels


@pytest.fixture(autouse=True)
def _tiny_cifar(monkeypatch, tmp_path):
    monkeypatch.setattr(cifar10, "PER_CLASS", PER_CLASS)
    monkeypatch.delenv("TAET_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


def write_npz(folder, per_class=PER_CLASS):
    folder.mkdir(exist_ok=True)
    parts = {part: tiny(part, per_class) for part in PER_CLASS}
    np.savez(
        folder / "cifar10.npz",
        **{f"{part}_images": images for part, (images, _) in parts.items()},
        **{f"{part}_labels": labels for part, (_, labels) in parts.items()},
    )


def write_official(folder, monkeypatch):
    """Write the official layout, and teach torchvision the checksums of these files."""
    batches = folder / "cifar-10-batches-py"
    batches.mkdir(parents=True)

    def write(name, content):
        text = pickle.dumps(content, protocol=2)
        (batches / name).write_bytes(text)
        return hashlib.md5(text).hexdigest()

    def batch(images, labels):
        return {"data": images.transpose(0, 3, 1, 2).reshape(len(labels), -1), "labels": labels.tolist()}

    images, labels = tiny("train")
    halves = {f"data_batch_{i + 1}": batch(images[i::2], labels[i::2]) for i in range(2)}
    official = torchvision.datasets.CIFAR10
    monkeypatch.setattr(official, "train_list", [[name, write(name, half)] for name, half in halves.items()])
    monkeypatch.setattr(official, "test_list", [["test_batch", write("test_batch", batch(*tiny("test")))]])
    names = write("batches.meta", {"label_names": list(cifar10.CLASS_NAMES)})
    monkeypatch.setattr(official, "meta", official.meta | {"md5": names})


def test_both_layouts_give_the_same_test_set(tmp_path, monkeypatch):
    write_official(tmp_path / "a", monkeypatch)
    write_npz(tmp_path / "b")
    official, packed = (load("cifar10-lt", root=str(tmp_path / folder), test="balanced") for folder in "ab")
    assert official.test.sha256 == packed.test.sha256
    assert official.class_counts.tolist() == packed.class_counts.tolist() == [10, 7, 5, 4, 3, 2, 2, 1, 1, 1]
    assert official.class_names[0] == "airplane"
    assert official.class_names[-1] == "truck"


def test_a_damaged_official_file_is_refused(tmp_path, monkeypatch):
    write_official(tmp_path, monkeypatch)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(b"cut")
    with pytest.raises(UserError, match="missing or damaged; unpack"):
        load("cifar10-lt", root=str(tmp_path))


def test_it_is_looked_for_in_root_then_the_environment_then_data(tmp_path, monkeypatch):
    monkeypatch.setenv("TAET_DATA", str(tmp_path / "there"))
    with pytest.raises(UserError, match=r"not in '.*here', '.*there', 'data'; unpack .* --data\.root or TAET_DATA"):
        load("cifar10-lt", root=str(tmp_path / "here"))
    for folder, per_class in (("data", 10), ("there", 20), ("here", 30)):
        monkeypatch.setitem(PER_CLASS, "train", per_class)
        write_npz(tmp_path / folder)
        assert load("cifar10-lt", root=str(tmp_path / "here")).class_counts.max() == per_class


def test_another_number_of_images_is_refused(tmp_path):
    write_npz(tmp_path, {"train": 10, "test": 3})
    with pytest.raises(UserError, match=r"CIFAR-10: got \[3, .* test images per class; allowed: 2 of each"):
        load("cifar10-lt", root=str(tmp_path))


@pytest.mark.data
@pytest.mark.parametrize(
    ("ratio", "train", "test"), [(10, 20431, 4084), (20, 17023, 3401), (50, 13996, 2795), (100, 12406, 2478)]
)
def test_real_cifar10_has_the_published_counts(real_data, monkeypatch, ratio, train, test):
    monkeypatch.setattr(cifar10, "PER_CLASS", {"train": 5000, "test": 1000})
    dataset = load("cifar10-lt", root=str(real_data("cifar10.npz").parent), imbalance_ratio=ratio)
    assert (len(dataset.train), len(dataset.test)) == (train, test)
    assert dataset.image_shape == (3, 32, 32)
