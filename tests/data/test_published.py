"""Published sets from small files in their exact official layouts."""

import gzip
import hashlib
import pickle
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image
from sklearn.datasets import load_digits

from taet.data import cifar, fashion_mnist, gtsrb, load, long_tail_counts, medmnist, tiny_imagenet
from taet.data.digits import read
from taet.errors import UserError
from taet.settings import Data

pytestmark = pytest.mark.usefixtures("here")


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def refused(name, message, **settings):
    with pytest.raises(UserError, match=message) as error:
        load(name, **settings)
    assert "\n" not in str(error.value)


def test_every_digit_is_used_once_and_the_last_ones_are_the_test_set():
    source, digits = read(Data(name="digits-lt")), load_digits()
    train, test = source.splits["train"], source.splits["test"]
    assert sorted([*train.indices, *test.indices]) == list(range(1797))
    assert test.class_counts.tolist() == [60] * 10
    for part in (train, test):
        assert (part.images[..., 0] == np.rint(digits.images[part.indices] * 255 / 16)).all()
        assert (digits.target[part.indices] == part.labels).all()
    assert all(train.indices[train.labels == c].max() < test.indices[test.labels == c].min() for c in range(10))
    dataset = load("digits-lt")
    assert dataset.class_counts.tolist() == [118, 91, 70, 54, 42, 32, 25, 19, 15, 11]
    assert dataset.test.class_counts.tolist() == [60, 46, 35, 27, 21, 16, 12, 10, 7, 6]
    assert "mostly by other writers" in dataset.notes[0]
    assert not dataset.mirror


# CIFAR

PER_CLASS = {"cifar10": {"train": 10, "test": 2}, "cifar100": {"train": 4, "test": 1}}
FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}


def tiny_cifar(name, part):
    labels = np.tile(np.arange(len(cifar.CLASS_NAMES[name].split())), PER_CLASS[name][part])
    return noise(len(labels), 32, 32, 3, seed=len(labels)), labels


def write_npz(folder, name="cifar10", **changes):
    folder.mkdir(exist_ok=True)
    made = {part: tiny_cifar(name, part) for part in ("train", "test")}
    arrays = {f"{part}_images": images for part, (images, _) in made.items()}
    arrays |= {f"{part}_labels": labels for part, (_, labels) in made.items()}
    np.savez(folder / f"{name}.npz", **(arrays | changes))


def write_official(folder, monkeypatch, name="cifar10"):
    """Write the official layout, and teach torchvision the checksums of these files."""
    batches = folder / FOLDERS[name]
    batches.mkdir(parents=True)
    official = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
    fine = "labels" if name == "cifar10" else "fine_labels"

    def write(file, content):
        text = pickle.dumps(content, protocol=2)
        (batches / file).write_bytes(text)
        return [file, hashlib.md5(text).hexdigest()]

    def batch(images, labels):
        rows = images.transpose(0, 3, 1, 2).reshape(len(labels), -1)
        return {fine: labels.tolist(), "coarse_labels": (labels % 20).tolist(), "data": rows, "filenames": []}

    (images, labels), test = (tiny_cifar(name, part) for part in ("train", "test"))
    files = [f"data_batch_{i + 1}" for i in range(5)] if name == "cifar10" else ["train"]
    train_list = [write(file, batch(images[i :: len(files)], labels[i :: len(files)])) for i, file in enumerate(files)]
    meta = {official.meta["key"]: cifar.CLASS_NAMES[name].split()}
    monkeypatch.setattr(official, "train_list", train_list)
    monkeypatch.setattr(official, "test_list", [write("test_batch" if name == "cifar10" else "test", batch(*test))])
    monkeypatch.setattr(official, "meta", official.meta | {"md5": write(official.meta["filename"], meta)[1]})


@pytest.fixture
def small_cifar(monkeypatch):
    monkeypatch.setattr(cifar, "SIZES", {"train": 100, "test": 20})


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_both_layouts_of_cifar_give_the_same_set(name, tmp_path, monkeypatch):
    sizes = {part: len(tiny_cifar(name, part)[1]) for part in ("train", "test")}
    monkeypatch.setattr(cifar, "SIZES", sizes)
    write_official(tmp_path / "a", monkeypatch, name)
    write_npz(tmp_path / "b", name)
    official, packed = (load(name, root=str(tmp_path / folder)) for folder in "ab")
    assert official.test.sha256 == packed.test.sha256  # with the fine labels
    images, labels = tiny_cifar(name, "train")
    assert sorted(map(bytes, official.train.images)) == sorted(map(bytes, images))  # the five batches interleave
    assert (packed.train.images == images).all()
    assert (packed.train.labels == labels).all()
    assert official.class_names == packed.class_names
    assert official.mirror


@pytest.mark.usefixtures("small_cifar")
@pytest.mark.parametrize("file", ["test_batch", "data_batch_3", "batches.meta"])
def test_a_pickle_with_another_checksum_is_refused_and_not_run(file, tmp_path, monkeypatch):
    write_official(tmp_path, monkeypatch)
    marker = tmp_path / "run"

    class Malicious:
        def __reduce__(self):
            return Path.touch, (marker,)

    (tmp_path / FOLDERS["cifar10"] / file).write_bytes(pickle.dumps(Malicious()))
    refused("cifar10-lt", "cifar-10-batches-py' is missing or damaged; unpack the archive", root=str(tmp_path))
    assert not marker.exists()
    pickle.loads((tmp_path / FOLDERS["cifar10"] / file).read_bytes())
    assert marker.exists()  # it would have been


@pytest.mark.usefixtures("small_cifar")
def test_a_set_is_looked_for_in_root_then_the_environment_then_data(tmp_path, monkeypatch):
    monkeypatch.setenv("TAET_DATA", str(tmp_path / "there"))
    root = str(tmp_path / "here")
    refused("cifar10-lt", r"not in '.*here', '.*there', 'data'; run taet data prepare cifar10-lt, or", root=root)
    for level, folder in enumerate(("data", "there", "here")):
        write_npz(tmp_path / folder, train_images=np.full((100, 32, 32, 3), level, np.uint8))
        assert (load("cifar10-lt", root=root).train.images == level).all()


@pytest.mark.usefixtures("small_cifar")
def test_a_file_of_other_content_is_refused(tmp_path):
    for changes, message in (
        ({"test_labels": np.arange(21) % 10}, "CIFAR-10 in '.*cifar10.npz': test_images and test_labels: got 20 im"),
        ({"train_labels": np.full(100, 10)}, "train_labels: class 'airplane' has no training image"),
        ({"test_labels": np.full(20, 10)}, "test_labels: got label 10; allowed: 0 to 9"),
        ({"test_labels": np.arange(10), "test_images": noise(10, 32, 32, 3)}, "got {'train': 100, 'test': 10} images"),
        ({"train_images": noise(100, 28, 28), "test_images": noise(20, 28, 28)}, r"of shape \(28, 28, 1\); allowed"),
    ):
        write_npz(tmp_path, **changes)
        refused("cifar10-lt", message, root=str(tmp_path))


@pytest.mark.data
@pytest.mark.parametrize(
    ("ratio", "train", "test"), [(10, 20431, 4084), (20, 17023, 3401), (50, 13996, 2795), (100, 12406, 2478)]
)
def test_real_cifar10_has_the_published_counts(real_data, ratio, train, test):
    dataset = load("cifar10-lt", root=str(real_data("cifar10.npz").parent), imbalance_ratio=ratio)
    assert (len(dataset.train), len(dataset.test)) == (train, test)


# Fashion-MNIST


def idx(array):
    return gzip.compress(struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes())


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """Write the four files, and return their folder."""
    monkeypatch.setattr(fashion_mnist, "SIZES", {"train": 100, "test": 20})
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for part, count in (("train", 100), ("t10k", 20)):
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(idx(noise(count, 28, 28)))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(idx(np.tile(np.arange(10, dtype=np.uint8), count // 10)))
    return folder


@pytest.mark.parametrize("unpacked", [False, True])
def test_fashion_mnist_is_read_as_torchvision_reads_it(unpacked, raw, tmp_path):
    packed = load("fashion-mnist", root=str(tmp_path))
    for file in raw.glob("*.gz"):
        file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))
        if unpacked:
            file.unlink()
    dataset = load("fashion-mnist", root=str(tmp_path)) if unpacked else packed
    for train, split in ((True, dataset.train), (False, dataset.test)):
        official = torchvision.datasets.FashionMNIST(str(tmp_path), train=train)
        assert (split.images[..., 0] == official.data.numpy()).all()
        assert (split.labels == official.targets.numpy()).all()
        assert dataset.class_names == tuple(official.classes)
    assert [(Path(one.file).name, one.md5) for one in fashion_mnist.FILES] == official.resources


def test_a_file_of_fashion_mnist_that_is_damaged_or_missing_is_refused(raw, tmp_path):
    for content in (idx(noise(20, 28, 28))[:40], gzip.compress(b"\0\0\x08\xff"), b"no gzip"):
        (raw / "t10k-images-idx3-ubyte.gz").write_bytes(content)
        refused("fashion-mnist", "cannot read .*t10k-images", root=str(tmp_path))
    (raw / "t10k-images-idx3-ubyte.gz").unlink()
    refused("fashion-mnist", "Fashion-MNIST is not in .*t10k-labels-idx1-ubyte.gz from https", root=str(tmp_path))


# MedMNIST

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


@pytest.fixture
def medical(monkeypatch):
    """What a file of MedMNIST holds: labels uint8 of shape (N,1); grey images have no axis of channels."""
    for name, published in SETS.items():
        monkeypatch.setitem(medmnist.SETS, name, published._replace(images=(33, 12, 22)))

    def made(name, side=28):
        shape, classes = (side, side, 3) if SETS[name].channels == 3 else (side, side), len(SETS[name].class_names)
        sizes = {"train": 33, "val": 12, "test": 22}
        images = {f"{part}_images": noise(count, *shape, seed=count) for part, count in sizes.items()}
        labels = {
            f"{part}_labels": np.arange(count, dtype=np.uint8)[:, None] % classes for part, count in sizes.items()
        }
        return images | labels

    return made


def test_the_published_facts_of_medmnist():
    found = {name: (*facts.images, len(facts.class_names), facts.channels) for name, facts in SETS.items()}
    assert found == PUBLISHED
    # The paper counts 708,069 2-D images, 112,120 of them in ChestMNIST; 107 blank organ slices were left out since.
    assert sum(sum(facts.images) for facts in SETS.values()) == 708_069 - 112_120 - 107
    assert medmnist.NAMES.keys() == {*PUBLISHED}
    checksums = [md5 for facts in SETS.values() for md5 in facts.md5]
    assert len({md5 for md5 in checksums if len(md5) == 32}) == len(checksums) == 4 * len(SETS)
    for facts in SETS.values():  # what is left in a mirror is right
        assert facts.mirror != any(word in name for name in facts.class_names for word in ("left", "right"))


@pytest.mark.parametrize("name", ["bloodmnist", "octmnist", "organamnist"])
def test_a_file_of_medmnist_is_read_with_its_own_splits(name, medical, tmp_path):
    arrays = medical(name)
    np.savez_compressed(tmp_path / f"{name}.npz", **arrays)
    dataset = load(name, root=str(tmp_path))
    for part, split in (("train", dataset.train), ("val", dataset.validation), ("test", dataset.test)):
        assert (split.images == arrays[f"{part}_images"].reshape(split.images.shape)).all()
        assert (split.labels == arrays[f"{part}_labels"][:, 0]).all()
    assert dataset.class_names == tuple(SETS[name].class_names)
    assert dataset.notes[0] == f"read from {name}.npz, images of 28 x 28 pixels"


def test_the_file_of_the_size_that_is_asked_for_is_read_or_else_the_small_one(medical, tmp_path):
    address = r"^bloodmnist_64\.npz is not in '.*'; run taet data prepare bloodmnist --size 64, or put the .*zenodo"
    refused("bloodmnist", address, root=str(tmp_path), size=64)
    np.savez(tmp_path / "bloodmnist.npz", **medical("bloodmnist"))
    dataset = load("bloodmnist", root=str(tmp_path), size=64)
    assert dataset.image_shape == (3, 64, 64)
    assert dataset.notes[0] == "read from bloodmnist.npz, images of 28 x 28 pixels; bloodmnist_64.npz is not there"
    np.savez(tmp_path / "bloodmnist_64.npz", **medical("bloodmnist", 64))
    dataset = load("bloodmnist", root=str(tmp_path), size=64)
    assert (dataset.train.images == medical("bloodmnist", 64)["train_images"]).all()


# Tiny-ImageNet

WNIDS = ("n02124075", "n01443537", "n03126707", "n01629819")  # as wnids.txt has them: in no order
WORDS = {"n01443537": "goldfish, Carassius auratus", "n01629819": "crane", "n02124075": "Egyptian cat"}
WORDS |= {"n03126707": "crane", "n00001740": "entity"}


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Write the official tree; the image of number 1 of every class is a greyscale file, as some official ones are."""
    monkeypatch.setattr(tiny_imagenet, "SIZES", {"train": 48, "test": 8})
    folder, annotations = tmp_path / "tiny-imagenet-200", []

    def save(path, label, index):
        path.parent.mkdir(parents=True, exist_ok=True)
        grey = Image.new("L", (64, 64), 60 * label + 4 * index)
        (grey if index == 1 else grey.convert("RGB")).save(path, "JPEG", quality=95)

    for label, wnid in enumerate(sorted(WNIDS)):
        for index in range(12):
            save(folder / "train" / wnid / "images" / f"{wnid}_{index}.JPEG", label, index)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t10\t63\t58\n")
    for number in range(8):
        wnid = WNIDS[number % 4]
        annotations.append(f"val_{number}.JPEG\t{wnid}\t0\t32\t44\t62\n")
        save(folder / "val" / "images" / f"val_{number}.JPEG", sorted(WNIDS).index(wnid), number // 4)
    (folder / "val" / "val_annotations.txt").write_text("".join(annotations))
    (folder / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in WNIDS))
    (folder / "words.txt").write_text("".join(f"{wnid}\t{words}\n" for wnid, words in WORDS.items()))
    save(folder / "test" / "images" / "test_0.JPEG", 0, 0)
    return folder


def test_tiny_imagenet_has_its_classes_in_the_order_of_their_ids(tiny):
    dataset = load("tiny-imagenet", root=str(tiny.parent))
    assert dataset.class_names == ("goldfish", "crane (n01629819)", "Egyptian cat", "crane (n03126707)")
    assert dataset.train.labels.tolist() == np.repeat(range(4), 12).tolist()
    by_name = [0, 1, 10, 11, *range(2, 10)]  # _10 comes before _2
    expected = [60 * label + 4 * index for label in range(4) for index in by_name]
    assert np.abs(dataset.train.images.mean((1, 2, 3)) - expected).max() < 1.5  # JPEG rounds
    labels = [sorted(WNIDS).index(wnid) for wnid in WNIDS] * 2
    assert dataset.test.labels.tolist() == labels
    expected = [60 * label + 4 * (position // 4) for position, label in enumerate(labels)]
    assert np.abs(dataset.test.images.mean((1, 2, 3)) - expected).max() < 1.5
    assert np.ptp(dataset.train.images[1], axis=-1).max() == 0  # the greyscale file
    counts = long_tail_counts(200, 500, 100, "linear")  # as published
    assert (counts[0], counts[-1], counts[100]) == (500, 5, 251)
    cut = load("tiny-imagenet-lt", root=str(tiny.parent), imbalance_ratio=12, test="balanced")
    assert (cut.class_counts.tolist(), len(cut.test)) == ([12, 8, 4, 1], 8)


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("wnids.txt", r"delete the folder tiny.*wnids\.txt'"),
        ("train/n01629819/images/n01629819_3.JPEG", r"got {'train': 47, 'test': 8} images"),
        ("train/n02124075", r"class 'Egyptian cat' has no training image"),
        ("val/images/val_3.JPEG", r"val_3\.JPEG"),
    ],
)
def test_an_incomplete_tree_is_refused_by_what_is_missing(tiny, lost, message):
    shutil.rmtree(tiny / lost) if (tiny / lost).is_dir() else (tiny / lost).unlink()
    refused("tiny-imagenet", message, root=str(tiny.parent))


# GTSRB


@pytest.fixture
def signs(tmp_path, monkeypatch):
    """Return a function that writes the tree below a folder GTSRB, with the test table beside it: 3 tracks of 2."""
    monkeypatch.setattr(gtsrb, "TRAINING", dict.fromkeys(gtsrb.TRAINING, 258))
    monkeypatch.setattr(gtsrb, "TEST", 86)
    header = "Filename;Width;Height;Roi.X1;ClassId\r\n"

    def save(path, value, frame):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (15 + 3 * frame, 18), (value,) * 3).save(path)  # many sizes, few of them square

    def write(place="gtsrb/GTSRB", training="Final_Training/Images"):
        for label in range(43):
            for track, frame in np.ndindex(3, 2):
                save(tmp_path / place / training / f"{label:05}/{track:05}_{frame:05}.ppm", 5 * label + track, frame)
            (tmp_path / place / training / f"{label:05}/GT-{label:05}.csv").write_text(header)
        images, rows = tmp_path / place / "Final_Test" / "Images", ""
        for number in range(86):
            label = (85 - number) % 43
            save(images / f"{number:05}.ppm", 5 * label + 4, number % 3)
            rows += f"{number:05}.ppm;15;18;5;{label}\r\n"
        ((tmp_path / place).parent / "GT-final_test.csv").write_text(header + rows)
        (images / "GT-final_test.test.csv").write_text("Filename;Width;Height;Roi.X1\r\n")  # it has no classes

    return write


@pytest.mark.parametrize("place", ["gtsrb/GTSRB", "GTSRB"])
@pytest.mark.parametrize("training", ["Final_Training/Images", "Training"])
def test_gtsrb_in_both_layouts_and_places(tmp_path, place, training, signs):
    signs(place, training)
    dataset = load("gtsrb", root=str(tmp_path))
    assert len(set(dataset.class_names)) == 43
    assert dataset.class_names[14] == "stop"
    assert dataset.train.labels.tolist() == np.repeat(range(43), 6).tolist()
    expected = [5 * label + track for label in range(43) for track in range(3) for _ in range(2)]
    assert dataset.train.images.mean((1, 2, 3)).tolist() == expected
    assert dataset.test.labels.tolist() == [n % 43 for n in range(86)][::-1]
    assert dataset.test.images.mean((1, 2, 3)).tolist() == [5 * label + 4 for label in dataset.test.labels]
    assert (dataset.image_shape, dataset.resized, dataset.mirror) == ((3, 32, 32), True, False)
    held = load("gtsrb", root=str(tmp_path), validation=0.34, size=48)
    assert (held.class_counts.tolist(), held.image_shape) == ([4] * 43, (3, 48, 48))
    assert not set(held.train.groups) & set(held.validation.groups)


def test_what_gtsrb_lacks_is_named(tmp_path, signs):
    refused("gtsrb", r"not in '.*here', 'data'; run taet data prepare gtsrb, .*GTSRB_Final_Test_GT", root="here")
    (tmp_path / "gtsrb").mkdir()
    refused("gtsrb", r"--data.root; the folder 'gtsrb' here is read by folder:gtsrb$")
    signs()
    table = tmp_path / "gtsrb/GT-final_test.csv"
    text = table.read_text()
    for changed, message in (
        (text.replace(";ClassId", ";Kind"), "holds no class folders"),
        (text.replace(";42\n", ";43\n"), "unknown class of .*'43'"),
        (text[: text.index("00085")], "got 85 test images of 43 classes; allowed: 86 of 43"),
    ):
        table.write_text(changed)
        refused("gtsrb", rf"run taet data prepare gtsrb\): .*{message}", root=str(tmp_path))
    table.write_text(text)
    training = tmp_path / "gtsrb/GTSRB/Final_Training/Images/00007"
    (training / "00000_00000.ppm").rename(training / "a.ppm")
    refused("gtsrb", "allowed: names such as 00003_00029.ppm", root=str(tmp_path))
