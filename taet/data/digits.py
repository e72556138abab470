"""The handwritten digits of scikit-learn: 1,797 images of 8x8 pixels, no download."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from taet.data.dataset import Dataset
from taet.settings import Data

NAMES = {"digits-lt": "scikit-learn's bundled digits, 8x8 grey pixels, made long-tailed; no download"}
TEST_PER_CLASS = 60


def read(data: Data) -> Dataset:
    """Return all digits, balanced, values v of 0..16 as round(v 255 / 16); the last 60 of each class are the test set.

    The file is sorted by writer, so most test digits were written by other people than the training digits.
    Source: the test part of Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
    Repository, 1998.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    labels = digits.target
    test = np.sort(np.concatenate([np.flatnonzero(labels == label)[-TEST_PER_CLASS:] for label in range(10)]))
    train = np.setdiff1d(np.arange(len(labels)), test)
    dataset = Dataset.from_arrays(
        images[train], labels[train], images[test], labels[test], name=data.name, mirror=False
    )
    return replace(
        dataset,
        train=replace(dataset.train, indices=train),
        test=replace(dataset.test, indices=test),
        notes=(
            f"the test images are the last {TEST_PER_CLASS} of each class in the file, "
            "mostly by other writers than the training images",
        ),
    )
