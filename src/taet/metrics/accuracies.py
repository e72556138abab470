"""Accuracy by class and by group, from counts, masks and scores.

`total` and `correct` are integer arrays (C,): per class, the number of test images and of those
classified correctly. A class without test images has no accuracy: it is nan in arrays over classes
and left out of means. A mask is a boolean array (N,): for each test image, whether it is classified
correctly.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from taet.errors import UserError
from taet.metrics.intervals import Ints as Ints
from taet.metrics.intervals import counts_of
from taet.metrics.mean_limits import Floats as Floats

# with fewer test images, one of them changes the accuracy of its class by more than two points
FEW_PER_CLASS = 50


def class_counts(mask: ArrayLike, labels: ArrayLike, num_classes: int) -> tuple[Ints, Ints]:
    """Return `(correct, total)`, the counts of correct and of all images by class.

    Args:
        mask: whether each image is classified correctly, boolean (N,). Another type, such as
            predictions, is a `UserError`.
        labels: true classes, (N,), 0 to num_classes - 1.
        num_classes: number of classes C; both counts are (C,).

    Example:
        >>> from taet.metrics import class_counts
        >>> class_counts([True, False, True], [0, 0, 1], num_classes=2)
        (array([1, 1]), array([2, 1]))
    """
    marked, classes = np.asarray(mask), np.asarray(labels, dtype=np.int64)
    # predictions, taken as a mask, would give wrong counts
    if marked.size and marked.dtype != bool:
        raise UserError(f"mask: got {marked.dtype}; allowed: bool, e.g. predictions == labels")
    return np.bincount(classes[marked.astype(bool)], minlength=num_classes), np.bincount(
        classes, minlength=num_classes
    )


def accuracy(correct: ArrayLike, total: ArrayLike) -> float:
    """Return the share of all images that are correct, sum_c correct_c / sum_c total_c.

    `correct` and `total` are counts by class, (C,); a mask is a `UserError`. The share is in
    [0, 1], and nan without images.

    Example:
        >>> from taet.metrics import accuracy
        >>> accuracy([90, 40, 3], [100, 50, 10])
        0.83125
    """
    return per_class_accuracy(*map(np.sum, counts_of(correct, total))).item()


def per_class_accuracy(correct: ArrayLike, total: ArrayLike) -> Floats:
    """Return the recall of each class, correct_c / total_c, (C,) in [0, 1].

    It is nan for a class without images. A mask in place of counts is a `UserError`.

    Example:
        >>> from taet.metrics import per_class_accuracy
        >>> per_class_accuracy([90, 40, 3], [100, 50, 10])
        array([0.9, 0.8, 0.3])
    """
    right, count = counts_of(correct, total)
    recalls: Floats = np.full(np.broadcast_shapes(right.shape, count.shape), np.nan)
    np.divide(right, count, out=recalls, where=count > 0)
    return recalls


def balanced_accuracy(correct: ArrayLike, total: ArrayLike) -> float:
    """Return the mean recall, (1/K) sum_c correct_c / total_c, over the K classes with images.

    `correct` and `total` are counts by class, (C,); a mask is a `UserError`. The mean is in [0, 1],
    and nan if no class has images. Source: Brodersen, Ong, Stephan, Buhmann, "The balanced accuracy
    and its posterior distribution", ICPR 2010.

    Example:
        >>> from taet.metrics import balanced_accuracy
        >>> round(balanced_accuracy([90, 40, 3], [100, 50, 10]), 4)
        0.6667
    """
    recalls = per_class_accuracy(correct, total)
    known = recalls[~np.isnan(recalls)]
    return float(known.mean()) if known.size else math.nan


def class_precision(correct: ArrayLike, predicted: ArrayLike) -> Floats:
    """Return the precision of each class, correct_c / predicted_c, (C,) in [0, 1].

    `predicted` (C,): the images that are taken for the class, right or wrong; nan where none is. It
    depends on how the test images are spread over the classes, which recall does not.
    """
    return per_class_accuracy(correct, predicted)


def class_f1(correct: ArrayLike, total: ArrayLike, predicted: ArrayLike) -> Floats:
    """Return the F1 score of each class, (C,) in [0, 1]: the harmonic mean of precision and recall.

        F1_c = 2 correct_c / (total_c + predicted_c)

    nan for a class without test images. Source: van Rijsbergen, "Information Retrieval", 1979.
    """
    right, count = counts_of(correct, total)
    both = np.where(count > 0, count + np.asarray(predicted, dtype=np.float64), np.nan)
    return 2 * right / both


def group_accuracy(
    correct: ArrayLike, total: ArrayLike, groups: Mapping[str, Sequence[int]]
) -> dict[str, float]:
    """Return the balanced accuracy inside each group of class labels, in [0, 1].

    `correct` and `total` are counts by class, (C,), and `groups` are labels by name, as from
    `class_groups`. A group without test images has nan; a mask is a `UserError`.

    Example:
        >>> from taet.metrics import group_accuracy
        >>> group_accuracy([90, 40, 3], [100, 50, 10], {"head": [0], "tail": [2]})
        {'head': 0.9, 'tail': 0.3}
    """
    right, count = np.asarray(correct), np.asarray(total)
    return {
        name: balanced_accuracy(right[list(labels)], count[list(labels)])
        for name, labels in groups.items()
    }


def worst_class(correct: ArrayLike, total: ArrayLike) -> tuple[int, float]:
    """Return `(label, recall)` of the class with the lowest recall, first among equals.

    Without images it is (-1, nan).
    """
    recalls = per_class_accuracy(correct, total)
    if np.isnan(recalls).all():
        return -1, math.nan
    label = int(np.nanargmin(recalls))
    return label, float(recalls[label])


def few_images(total: ArrayLike) -> list[int]:
    """Return the labels of the classes with fewer than `FEW_PER_CLASS` test images, or none."""
    return [int(label) for label in np.flatnonzero(np.asarray(total) < FEW_PER_CLASS)]


def class_shares(mask: ArrayLike, labels: ArrayLike, num_classes: int) -> Floats:
    """Return the share of the images of each true class that a mask (N,) marks, (C,).

    It is nan for a class without images.
    """
    return per_class_accuracy(*class_counts(mask, labels, num_classes))


def median_distance(distances: ArrayLike) -> float:
    """Return the median of the perturbation norms (N,) of the images that needed an attack.

    A norm of 0 belongs to a clean image that is misclassified, and is left out. nan stands for a
    failed attack and counts as infinitely far; an infinite median is returned as nan.
    """
    values = np.asarray(distances, dtype=np.float64)
    values = values[values != 0]
    median = (
        float(np.median(np.where(np.isnan(values), np.inf, values))) if values.size else math.inf
    )
    return median if math.isfinite(median) else math.nan


def class_ranks(train_counts: ArrayLike) -> Ints:
    """Return the rank of each class, (C,): 0 for the most training images, ties by label."""
    return np.argsort(np.argsort(-np.asarray(train_counts, dtype=np.int64), kind="stable"))


def class_groups(train_counts: ArrayLike) -> dict[str, list[int]]:
    """Return the labels of each group of classes, largest class first.

    The classes are ranked 1 to C by their training images, `train_counts` (C,), ties by label:

        head        1 to floor(C/3)
        body        the ranks between head and tail
        tail        ceil(2C/3) to C
        last_half   the last floor(C/2)

    Of two classes, one is head and one tail. With few classes a group may be empty. Sources: REAT,
    arXiv:2307.10205 (head, body, tail); TAET, arXiv:2503.01924 (last_half).

    Example:
        >>> from taet.metrics import class_groups
        >>> class_groups([60, 30, 10])
        {'head': [0], 'body': [], 'tail': [1, 2], 'last_half': [2]}
    """
    order = np.argsort(class_ranks(train_counts)).tolist()
    count = len(order)
    head, tail = (1, 1) if count == 2 else (count // 3, math.ceil(2 * count / 3) - 1)
    parts = {"head": order[:head], "body": order[head:tail], "tail": order[tail:]}
    return {**parts, "last_half": order[count - count // 2 :]}
