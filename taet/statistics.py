"""Accuracy by class and by group, intervals, and paired differences, all from counts, masks and scores.

`total` and `correct` are integer arrays (C,): per class, the number of test images and of those classified correctly.
A class without test images has no accuracy: it is nan in arrays over classes and left out of means.
A mask is a boolean array (N,): for each test image, whether it is classified correctly.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from taet.errors import UserError
from taet.intervals import Difference as Difference
from taet.intervals import Floats as Floats
from taet.intervals import Ints as Ints
from taet.intervals import balanced_interval as balanced_interval
from taet.intervals import counts_of
from taet.intervals import difference as difference
from taet.intervals import exact_interval as exact_interval
from taet.intervals import wilson_interval as wilson_interval

FEW_PER_CLASS = 50  # with fewer test images, one of them changes the accuracy of its class by more than two points
PAIRED_CLASSES = 1000
"""With more classes, no number is stored or drawn for each pair of them: 8,142 classes would take 350 MB a card."""


def class_counts(mask: ArrayLike, labels: ArrayLike, num_classes: int) -> tuple[Ints, Ints]:
    """Return `(correct, total)`, each (C,), from the boolean mask (N,) of correct images and their true labels (N,)."""
    marked, classes = np.asarray(mask), np.asarray(labels, dtype=np.int64)
    if marked.size and marked.dtype != bool:  # predictions, taken as a mask, would give wrong counts
        raise UserError(f"mask: got {marked.dtype}; allowed: bool, e.g. predictions == labels")
    return np.bincount(classes[marked.astype(bool)], minlength=num_classes), np.bincount(classes, minlength=num_classes)


def accuracy(correct: ArrayLike, total: ArrayLike) -> float:
    """Return the share of all images that are correct, sum_c correct_c / sum_c total_c; nan without images."""
    return per_class_accuracy(*map(np.sum, counts_of(correct, total))).item()


def per_class_accuracy(correct: ArrayLike, total: ArrayLike) -> Floats:
    """Return the recall of each class, correct_c / total_c, (C,) in [0, 1]; nan where a class has no images."""
    right, count = counts_of(correct, total)
    recalls: Floats = np.full(np.broadcast_shapes(right.shape, count.shape), np.nan)
    np.divide(right, count, out=recalls, where=count > 0)
    return recalls


def balanced_accuracy(correct: ArrayLike, total: ArrayLike) -> float:
    """Return the mean recall, (1/K) sum_c correct_c / total_c, over the K classes that have test images.

    Source: Brodersen, Ong, Stephan, Buhmann, "The balanced accuracy and its posterior distribution", ICPR 2010.
    """
    recalls = per_class_accuracy(correct, total)
    known = recalls[~np.isnan(recalls)]
    return float(known.mean()) if known.size else math.nan


def group_accuracy(correct: ArrayLike, total: ArrayLike, groups: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Return the balanced accuracy inside each group of class labels; nan for a group without test images."""
    right, count = np.asarray(correct), np.asarray(total)
    return {name: balanced_accuracy(right[list(labels)], count[list(labels)]) for name, labels in groups.items()}


def worst_class(correct: ArrayLike, total: ArrayLike) -> tuple[int, float]:
    """Return `(label, recall)` of the class with the lowest recall, first among equals; (-1, nan) without images."""
    recalls = per_class_accuracy(correct, total)
    if np.isnan(recalls).all():
        return -1, math.nan
    label = int(np.nanargmin(recalls))
    return label, float(recalls[label])


def weak_classes(correct: ArrayLike, total: ArrayLike) -> list[int]:
    """Return the labels of the classes whose recall is below the balanced accuracy, whatever their size.

    Source: the weak classes of TAET, CVPR 2025, arXiv:2503.01924.
    """
    # Equal recalls are not below their own mean, which may be rounded.
    below = per_class_accuracy(correct, total) < balanced_accuracy(correct, total) - 1e-12
    return [int(label) for label in np.flatnonzero(below)]


def few_images(total: ArrayLike) -> list[int]:
    """Return the labels of the classes with fewer than `FEW_PER_CLASS` test images, including classes with none."""
    return [int(label) for label in np.flatnonzero(np.asarray(total) < FEW_PER_CLASS)]


def class_shares(mask: ArrayLike, labels: ArrayLike, num_classes: int) -> Floats:
    """Return the share of the images of each true class that a mask (N,) marks, (C,); nan where a class has none."""
    return per_class_accuracy(*class_counts(mask, labels, num_classes))


def median_distance(distances: ArrayLike) -> float:
    """Return the median of the perturbation norms (N,), without those that are 0, of misclassified clean images.

    nan stands for a failed attack and counts as infinitely far. An infinite median is returned as nan.
    """
    values = np.asarray(distances, dtype=np.float64)
    values = values[values != 0]
    median = float(np.median(np.where(np.isnan(values), np.inf, values))) if values.size else math.inf
    return median if math.isfinite(median) else math.nan


def pairwise_auc(scores: ArrayLike, labels: ArrayLike) -> NDArray[np.float32]:
    """Return how well the score of each class separates it from each other class, A (C, C) in [0, 1].

        A[j, k] = P(s_j(x) > s_j(x')) + P(s_j(x) = s_j(x')) / 2   for x drawn from class j and x' from class k

    the area under the ROC curve of score j on these two classes; nan on the diagonal and where a class has no images.
    `scores` (N, C) are softmax probabilities, not logits, whose common offset is arbitrary. The result is in single
    precision, as cards store it. Source: Hand, Till, Machine Learning 45, 2001, section 3; their Â(j|k).
    """
    values, classes = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    if values.ndim != 2 or values.shape[:1] != classes.shape or not np.isfinite(values).all():
        raise ValueError(f"scores: got {values.shape}; allowed: finite ({len(classes)}, C), one row per label")
    num_classes = values.shape[1]
    total = np.bincount(classes, minlength=num_classes)
    matrix = np.full((num_classes, num_classes), np.nan, dtype=np.float32)
    for label in np.flatnonzero(total):
        column = values[:, label]
        own = np.sort(column[classes == label])
        # Each image is above `below` of the class's own scores and level with `level - below` of them.
        below, level = np.searchsorted(own, column, "left"), np.searchsorted(own, column, "right")
        lost = np.bincount(classes, weights=(below + level) / 2, minlength=num_classes)
        matrix[label] = 1 - per_class_accuracy(lost, len(own) * total)
    np.fill_diagonal(matrix, np.nan)
    return matrix


def roc_auc(matrix: ArrayLike) -> float:
    """Return the macro one-versus-one area under the ROC curve in [0, 1]: the mean of the matrix over all pairs.

        M = 2 / (K (K - 1)) sum_{j < k} (A[j, k] + A[k, j]) / 2

    over the K classes with images, A from `pairwise_auc`, whose source defines M; nan with fewer than two classes.
    """
    areas = np.asarray(matrix, dtype=np.float64)
    known = ~np.isnan(areas)
    return float(areas[known].mean()) if known.any() else math.nan


def class_ranks(train_counts: ArrayLike) -> Ints:
    """Return the rank of each class, (C,): 0 for the class with most training images, ties by label."""
    return np.argsort(np.argsort(-np.asarray(train_counts, dtype=np.int64), kind="stable"))


def class_groups(train_counts: ArrayLike) -> dict[str, list[int]]:
    """Return the labels of each group of classes, largest class first; a group may be empty with few classes.

    With classes ranked 1..C by training count: head is 1..floor(C/3), tail is ceil(2C/3)..C, body the rest (REAT); of
    two classes, one is head and one tail. last_half is the last floor(C/2) (TAET).
    """
    order = np.argsort(class_ranks(train_counts)).tolist()
    count = len(order)
    head, tail = (1, 1) if count == 2 else (count // 3, math.ceil(2 * count / 3) - 1)
    parts = {"head": order[:head], "body": order[head:tail], "tail": order[tail:]}
    return {**parts, "last_half": order[count - count // 2 :]}
