"""The bundled digits."""

import numpy as np
from sklearn.datasets import load_digits

from taet.data import load
from taet.data.digits import read
from taet.settings import Data


def test_every_digit_is_used_once_and_the_last_ones_are_the_test_set():
    dataset, digits = read(Data(name="digits-lt")), load_digits()
    assert sorted([*dataset.train.indices, *dataset.test.indices]) == list(range(1797))
    assert dataset.test.class_counts.tolist() == [60] * 10
    for label in range(10):
        trained, tested = (split.indices[split.labels == label] for split in (dataset.train, dataset.test))
        assert trained.max() < tested.min()
    for split in (dataset.train, dataset.test):
        assert (digits.target[split.indices] == split.labels).all()


def test_grey_levels_are_rounded_to_256():
    dataset, digits = read(Data(name="digits-lt")), load_digits()
    levels = dict(zip(digits.images[dataset.train.indices].ravel(), dataset.train.images.ravel(), strict=True))
    assert levels == {value: round(value * 255 / 16) for value in range(17)}
    assert dataset.image_shape == (1, 8, 8)
    assert not dataset.mirror


def test_it_is_cut_by_ten_by_default_and_says_so():
    dataset = load("digits-lt")
    assert dataset.class_counts.tolist() == [118, 91, 70, 54, 42, 32, 25, 19, 15, 11]
    assert dataset.test.class_counts.tolist() == [60, 46, 35, 27, 21, 16, 12, 10, 7, 6]
    assert "mostly by other writers" in dataset.notes[0]
    assert any("imbalance ratio 10" in note for note in dataset.notes)
    assert dataset.train.images.dtype == np.uint8
