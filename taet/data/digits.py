"""The handwritten digits of scikit-learn: 1,797 images of 8x8 pixels, no download."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from taet.data.dataset import DataSource, to_source
from taet.settings import Data

NAMES = {"digits-lt": "scikit-learn's bundled digits, 8x8 grey pixels, made long-tailed; no download"}
TEST_PER_CLASS = 60
NOTE = f"the test images are the last {TEST_PER_CLASS} of each class in the file, mostly by other writers than the "


def read(data: Data) -> DataSource:
    """Return all digits, balanced, values v of 0..16 as round(v 255 / 16); the last 60 of each class are the test set.

    The file is sorted by writer, so most test digits were written by other people than the training digits.
    Source: the test part of Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
    Repository, 1998.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, labels = np.rint(digits.images * (255 / 16)).astype(np.uint8), digits.target
    test = np.sort(np.concatenate([np.flatnonzero(labels == label)[-TEST_PER_CLASS:] for label in range(10)]))
    rows = {"train": np.setdiff1d(np.arange(len(labels)), test), "test": test}
    arrays = {f"{part}_images": images[own] for part, own in rows.items()}
    arrays |= {f"{part}_labels": labels[own] for part, own in rows.items()}
    source = to_source(arrays, name=data.name, mirror=False)
    splits = {part: replace(of, indices=rows[part]) for part, of in source.splits.items()}
    return replace(source, splits=splits, notes=(f"{NOTE}training images",))
