"""Fashion-MNIST from tiny files in the official layout."""

import functools
import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets

from taet.data import fashion_mnist, load
from taet.errors import UserError
from taet.settings import Data

PER_CLASS = {"train": 10, "test": 2}
FILES = [Path(download.file).name for download in fashion_mnist.FILES]

# Without a time inside, so that the names of the tests are the same in every process of pytest.
packed = functools.partial(gzip.compress, mtime=0)


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture(autouse=True)
def _small(monkeypatch, tmp_path):
    monkeypatch.setattr(fashion_mnist, "PER_CLASS", PER_CLASS)
    monkeypatch.delenv("TAET_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def raw(tmp_path):
    """Write the four files, and return their folder."""
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for part, count in (("train", 100), ("t10k", 20)):
        for kind, array in (
            ("images-idx3", generator.integers(0, 256, (count, 28, 28), np.uint8)),
            ("labels-idx1", np.tile(np.arange(10, dtype=np.uint8), count // 10)),
        ):
            (folder / f"{part}-{kind}-ubyte.gz").write_bytes(packed(idx(array)))
    return folder


def unpack(folder):
    for file in folder.glob("*.gz"):
        file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))
        file.unlink()


@pytest.mark.parametrize("unpacked", [False, True])
def test_it_is_read_as_torchvision_reads_it(unpacked, raw, tmp_path):
    whole = {file.name: gzip.decompress(file.read_bytes()) for file in raw.iterdir()}
    if unpacked:
        unpack(raw)
    dataset = load("fashion-mnist", root=str(tmp_path))
    for file, content in whole.items():  # torchvision reads the unpacked files only
        (raw / file).with_suffix("").write_bytes(content)
    for train, split in ((True, dataset.train), (False, dataset.test)):
        official = torchvision.datasets.FashionMNIST(str(tmp_path), train=train)
        assert (split.images[..., 0] == official.data.numpy()).all()
        assert (split.labels == official.targets.numpy()).all()
        assert dataset.class_names == tuple(official.classes)
    assert dataset.image_shape == (1, 28, 28)
    assert dataset.mirror


@pytest.mark.usefixtures("raw")
def test_names_say_what_is_cut(tmp_path):
    whole, cut = (load(name, root=str(tmp_path), test="balanced") for name in ("fashion-mnist", "fashion-mnist-lt"))
    assert whole.class_counts.tolist() == [10] * 10
    assert cut.class_counts.tolist() == [10, 7, 5, 4, 3, 2, 2, 1, 1, 1]


def test_what_is_downloaded_is_what_torchvision_downloads():
    official = torchvision.datasets.FashionMNIST
    downloads = fashion_mnist.downloads(Data(name="fashion-mnist"))
    assert [(Path(download.file).name, download.md5) for download in downloads] == official.resources
    official_copy = "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion"  # the other has no https
    assert [download.url for download in downloads] == [f"{official_copy}/{file}" for file, _ in official.resources]
    assert {Path(download.file).parent.as_posix() for download in downloads} == {"FashionMNIST/raw"}


def test_a_missing_file_is_named(raw, tmp_path):
    (raw / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError, match=r"raw' has no t10k-labels-idx1-ubyte; run taet data prepare fashion-mnist,"):
        load("fashion-mnist", root=str(tmp_path))


IMAGES = np.zeros((20, 28, 28), np.uint8)
LABELS = np.tile(np.arange(10, dtype=np.uint8), 2)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("t10k-images-idx3", packed(idx(IMAGES))[:40], "cannot read .*t10k-images"),
        ("t10k-images-idx3", b"no gzip at all", "cannot read .*t10k-images"),
        ("t10k-images-idx3", packed(b""), "cannot read .*t10k-images"),
        ("t10k-images-idx3", packed(idx(IMAGES)[:-1]), "its header or its length is wrong"),
        ("t10k-images-idx3", packed(b"\0\0\x0d" + idx(IMAGES)[3:]), "its header or its length is wrong"),
        ("t10k-images-idx3", packed(b"\0\0\x08\xff"), "its header or its length is wrong"),
        ("t10k-labels-idx1", packed(idx(IMAGES)), r"test_labels: got shape \(20, 28, 28\)"),
        ("t10k-labels-idx1", packed(idx(LABELS[::2])), "got 20 images but 10 labels"),
        ("t10k-labels-idx1", packed(idx(LABELS + np.uint8(1))), "test_labels: got label 10"),
        ("t10k-labels-idx1", packed(idx(LABELS * 0)), "got 20 test images of 'T-shirt/top'; allowed: 2 of"),
    ],
)
def test_a_file_of_other_content_is_refused_in_one_line(file, content, message, raw, tmp_path):
    (raw / f"{file}-ubyte.gz").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        load("fashion-mnist", root=str(tmp_path))
    assert "\n" not in str(error.value)
