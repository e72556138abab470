"""Splits and data sets: what is derived from them, what is refused, and how they are described."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from taet.data import Dataset, Split
from taet.data.dataset import render
from tests.calls import one_line


def test_a_data_set_of_arrays_is_the_arrays(arrays):
    given = arrays()
    dataset = Dataset.from_arrays(**given, class_names=["a", "b", "c"], name="three")
    assert np.shares_memory(dataset.train.images, given["train_images"])
    assert dataset.train.labels.dtype == np.int64
    assert dataset.class_counts.tolist() == [6, 3, 1]
    assert (dataset.imbalance_ratio, dataset.image_shape, dataset.validation) == (
        6,
        (3, 4, 5),
        None,
    )
    text = (
        "Dataset(three: 3 classes, 5x4 pixels, colour, imbalance ratio 6; 10 train, 5 test images)"
    )
    assert repr(dataset) == text
    grey = arrays(shape=(4, 5))
    grey["train_labels"] = grey["train_labels"][:, np.newaxis].astype(np.uint8)
    dataset = Dataset.from_arrays(**grey)
    assert dataset.train.images.shape == (10, 4, 5, 1)
    assert dataset.train.labels.shape == (10,)
    assert dataset.class_names == ("0", "1", "2")


def test_arrays_that_torch_cannot_share_are_copied(arrays):
    given = arrays()
    own = given["train_images"]
    # read-only; blue, green, red
    for images in (np.broadcast_to(own[:1], own.shape), own[..., ::-1]):
        split = Dataset.from_arrays(**given | {"train_images": images}).train
        assert split.images.flags.writeable  # else torch warns, though only once
        assert (torch.from_numpy(split.images).numpy() == images).all()


def test_arrays_of_few_grey_levels_have_a_note(arrays):
    dark = arrays()["train_images"] // 16
    assert (
        Dataset.from_arrays(**arrays() | {"train_images": dark})
        .notes[0]
        .startswith("dark: no training pixel is ")
    )


def test_checksum_sees_images_labels_and_shape(arrays):
    split = Dataset.from_arrays(**arrays()).train
    assert split.sha256 == replace(split, images=split.images.copy(order="F")).sha256
    changed = split.images.copy()
    changed[0, 0, 0, 0] ^= 1
    others = [
        replace(split, images=changed),
        replace(split, labels=np.roll(split.labels, 1)),
        replace(split, images=split.images.reshape(10, 5, 4, 3)),
    ]
    assert len({split.sha256, *(other.sha256 for other in others)}) == 4


def test_manifest_is_plain_json_and_names_the_images(arrays):
    dataset = Dataset.from_arrays(**arrays())
    chosen = replace(dataset.train, groups=np.arange(10) * 7).choose(np.array([7, 2]))
    assert chosen.groups.tolist() == [49, 14]
    manifest = json.loads(
        json.dumps(replace(dataset, train=chosen, validation=dataset.test).manifest())
    )
    assert list(manifest) == ["train", "validation", "test"]
    assert manifest["train"] == {
        "indices": [7, 2],
        "sha256": chosen.sha256,
        "class_counts": [1, 1, 0],
    }
    assert chosen.choose(np.array([1])).indices.tolist() == [2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"train_images": np.zeros((10, 4, 5, 3))},
            r"train_images: got float64 \(10, 4, 5, 3\); allowed: uint8",
        ),
        (
            {"test_images": np.zeros((5, 3, 4, 5), np.uint8)},
            r"test_images: got uint8 \(5, 3, 4, 5\); allowed",
        ),
        (
            {"test_images": np.zeros((5, 4, 4, 3), np.uint8)},
            r"allowed: \(4, 5, 3\), as in training",
        ),
        ({"test_images": np.zeros((4, 4, 5, 3), np.uint8)}, "got 4 images but 5 labels"),
        ({"train_labels": np.repeat([True, False], 5)}, "train_labels: got bool"),
        ({"test_labels": np.array([0, 1, 2, 3, 0])}, "test_labels: got label 3; allowed: 0 to 2"),
        ({"train_labels": np.repeat([0, 2], 5)}, "class '1' has no training image"),
        ({"class_names": ["a", "b", "a"]}, "class names: got 'a' twice"),
        ({"class_names": ["a", "b\u202e", "c"]}, r"class names: got 'b\\u202e'"),
        ({"train_labels": np.zeros(10, int)}, "class names: got '0'; allowed: 2 classes or more"),
    ],
)
def test_bad_arrays_are_refused_in_one_line(change, message, arrays):
    with one_line(message):
        Dataset.from_arrays(**(arrays() | change))


def test_the_table_of_a_data_set_fits_a_terminal(arrays):
    names = ["a name that is longer than its column", "b", "c"]
    dataset = Dataset.from_arrays(**arrays((400, 100, 1)), class_names=names)
    dataset = replace(
        dataset, validation=dataset.test, notes=("word " * 40, "e.g. 'caf\udce9.png'", "\x1b[2J")
    )
    lines = render(dataset).splitlines()
    assert max(map(len, lines)) <= 80
    bars = [line.count("#") for line in lines[2:5]]
    assert bars[0] > 25
    assert bars[1:] == [round(bars[0] / 4), 1]
    assert " tail " in lines[4]
    assert " tail " not in render(Dataset.from_arrays(**arrays((9, 9, 9))))


# beyond 66,000 white pixels the sum of squares leaves 32 bits
@pytest.mark.parametrize("count", [300, 70_000])
def test_channel_statistics_are_those_of_the_pixels(count) -> None:
    images = np.random.default_rng(0).integers(0, 256, (count, 1, 2, 3), dtype=np.uint8)
    images[..., 1] |= 240
    images[..., 2] = 7
    split = Split(images, np.zeros(count, np.int64), ("a", "b"), np.arange(count))
    mean, spread = split.channel_statistics()
    np.testing.assert_allclose(mean, images.reshape(-1, 3).mean(0) / 255)
    np.testing.assert_allclose(spread[:2], images.reshape(-1, 3).std(0)[:2] / 255)
    assert spread[2] == 1 / 255
