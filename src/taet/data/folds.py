"""Cross-validation: every image is a test image in one of K folds, and groups stay together."""

import warnings

import numpy as np

from taet.errors import UserError
from taet.metrics.accuracies import Ints


def fold_of(labels: Ints, groups: Ints | None, folds: int, seed: int) -> Ints:
    """Return the fold, 0 to folds - 1, in which each image is a test image, (N,).

    labels (N,): 0..C-1. Without groups, the images of each class are spread evenly over the folds;
    with groups (N,), whole groups are, by scikit-learn's `StratifiedGroupKFold`. The same seed
    always gives the same folds.
    """
    if groups is None:
        return _spread(labels, folds, seed)
    from sklearn.model_selection import StratifiedGroupKFold

    codes = np.unique(groups, return_inverse=True)[1]
    if (count := int(codes.max()) + 1) < folds:
        raise UserError(f"data folds: got {folds}; allowed: up to {count}, the number of groups")
    largest = int(np.bincount(labels).max())
    if largest < folds:
        raise UserError(
            f"data folds: got {folds}; allowed: up to {largest}, the images of the largest class"
        )
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=np.random.RandomState(seed))
    folds_of_images = np.empty(len(labels), np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes with fewer images than folds
        for fold, (_, test) in enumerate(splitter.split(labels, labels, codes)):
            folds_of_images[test] = fold
    return folds_of_images


def _spread(labels: Ints, folds: int, seed: int) -> Ints:
    """Deal the shuffled images of one class after the other out to the folds, in turn."""
    if len(labels) < folds:
        raise UserError(f"data folds: got {folds}; allowed: up to {len(labels)}, one image in each")
    shuffled = np.random.RandomState(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    folds_of_images = np.empty(len(labels), np.int64)
    folds_of_images[by_class] = np.arange(len(labels)) % folds
    return folds_of_images
