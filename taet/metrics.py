"""Accuracy, balanced accuracy, groups and confidence intervals, all computed from counts.

`correct` and `total` are integer arrays (C,): per class, how many test images there are and how many were classified
correctly. A class without test images has no accuracy: it is nan where classes are listed, and left out of means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def class_counts(mask: ArrayLike, labels: ArrayLike, num_classes: int) -> tuple[Ints, Ints]:
    """Return `(correct, total)`, each (C,), from one truth value and one label per image, both (N,)."""
    marked, classes = np.asarray(mask, dtype=bool), np.asarray(labels, dtype=np.int64)
    total = np.bincount(classes, minlength=num_classes)
    correct = np.bincount(classes[marked], minlength=num_classes)
    return correct.astype(np.int64), total.astype(np.int64)


def accuracy(correct: ArrayLike, total: ArrayLike) -> float:
    """Return the share of all images that are correct, sum_c correct_c / sum_c total_c; nan without images."""
    return _ratio(np.sum(correct), np.sum(total)).item()


def per_class_accuracy(correct: ArrayLike, total: ArrayLike) -> Floats:
    """Return the recall of each class, correct_c / total_c, (C,) in [0, 1]; nan where a class has no images."""
    return _ratio(correct, total)


def balanced_accuracy(correct: ArrayLike, total: ArrayLike) -> float:
    """Return the mean recall, (1/K) sum_c correct_c / total_c, over the K classes that have test images.

    Source: Brodersen, Ong, Stephan, Buhmann, "The balanced accuracy and its posterior distribution", ICPR 2010.
    """
    recalls = per_class_accuracy(correct, total)
    present = ~np.isnan(recalls)
    return float(recalls[present].mean()) if present.any() else math.nan


def group_accuracy(correct: ArrayLike, total: ArrayLike, groups: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Return the balanced accuracy inside each group of class labels; nan for a group without test images."""
    right, count = np.asarray(correct), np.asarray(total)
    return {name: balanced_accuracy(right[_index(of)], count[_index(of)]) for name, of in groups.items()}


def worst_class(correct: ArrayLike, total: ArrayLike) -> tuple[int, float]:
    """Return `(label, recall)` of the class with the lowest recall, first among equals; (-1, nan) without images."""
    recalls = per_class_accuracy(correct, total)
    if np.isnan(recalls).all():
        return -1, math.nan
    label = int(np.nanargmin(recalls))
    return label, float(recalls[label])


def wilson_interval(correct: ArrayLike, total: ArrayLike, level: float = 0.95) -> tuple[Floats, Floats]:
    """Return the score interval `(low, high)` of a proportion, in the shape of the counts; nan where the total is 0.

    With p = correct/total, n = total and z the normal quantile of (1 + level)/2:

        (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)

    Unlike p -+ z sqrt(p(1-p)/n) it keeps its level for small n, stays in [0, 1] and does not shrink to a point there.
    Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22, 1927.
    """
    z2 = NormalDist().inv_cdf((1 + level) / 2) ** 2
    n = np.asarray(total, dtype=np.float64)
    p = _ratio(correct, total)
    n = np.where(n > 0, n, np.nan)
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n**2))) / (1 + z2 / n)
    # At p = 0 and p = 1 the exact bounds are 0 and 1; rounding must not push them past p.
    return np.clip(centre - half, 0, p), np.clip(centre + half, p, 1)


def balanced_interval(correct: ArrayLike, total: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Return the interval `(low, high)` of the balanced accuracy, a mean of independent proportions.

    With p_c, [l_c, u_c] the recall of class c and its Wilson interval, over the K classes that have test images:

        mean(p) - sqrt(sum_c (p_c - l_c)^2)/K,   mean(p) + sqrt(sum_c (u_c - p_c)^2)/K

    It is a closed form, chosen over a stratified bootstrap because that gives a width of zero to a class that is all
    right or all wrong, which small tail classes often are.
    Source: Zou, Huang, Zhang, "A note on confidence interval estimation for a linear function of binomial proportions",
    Computational Statistics & Data Analysis 53, 2009.
    """
    present = np.asarray(total) > 0
    if not present.any():
        return math.nan, math.nan
    right, count = np.asarray(correct)[present], np.asarray(total)[present]
    recalls = per_class_accuracy(right, count)
    low, high = wilson_interval(right, count, level)
    mean, classes = recalls.mean(), len(recalls)
    below = np.sqrt(((recalls - low) ** 2).sum()) / classes
    above = np.sqrt(((high - recalls) ** 2).sum()) / classes
    return float(max(mean - below, 0)), float(min(mean + above, 1))


def mean_and_standard_error(values: ArrayLike) -> tuple[Floats, Floats]:
    """Return the mean over the first axis of `values`, (n, ...), and its standard error, (...) each.

    With s the sample standard deviation, sqrt(sum_i (v_i - mean)^2 / (n - 1)), the standard error is s / sqrt(n); one
    value has none (nan), and of no value the mean is nan as well.
    """
    sample = np.asarray(values, dtype=np.float64)
    count, unknown = len(sample), np.full(sample.shape[1:], np.nan)
    if count < 2:
        return (sample[0] if count else unknown), unknown
    return sample.mean(0), np.asarray(sample.std(0, ddof=1) / math.sqrt(count))


def confusion_matrix(labels: ArrayLike, predictions: ArrayLike, num_classes: int) -> Ints:
    """Return how often class r was predicted as class k, (C, C) integers, rows r true, columns k predicted."""
    true, predicted = np.asarray(labels, dtype=np.int64), np.asarray(predictions, dtype=np.int64)
    for name, values in (("label", true), ("prediction", predicted)):
        if values.size and not (values.min() >= 0 and values.max() < num_classes):
            raise ValueError(f"{name}s: got {values.min()} to {values.max()}; allowed: 0 to {num_classes - 1}")
    return np.bincount(true * num_classes + predicted, minlength=num_classes**2).reshape(num_classes, num_classes)


def class_ranks(train_counts: ArrayLike) -> Ints:
    """Return the rank of each class, (C,): 0 for the class with most training images, ties by label."""
    ranks = np.empty(len(np.asarray(train_counts)), dtype=np.int64)
    ranks[_largest_first(train_counts)] = np.arange(len(ranks))
    return ranks


def class_groups(train_counts: ArrayLike) -> dict[str, list[int]]:
    """Return the labels of each group of classes, largest class first; a group may be empty with few classes.

    With classes ranked 1..C by training count: head is 1..floor(C/3), tail is ceil(2C/3)..C, body the rest (REAT);
    last_half, a second way to cut, is the last floor(C/2) (TAET).
    """
    order = [int(label) for label in _largest_first(train_counts)]
    count = len(order)
    head, tail = count // 3, math.ceil(2 * count / 3) - 1
    return {
        "head": order[:head],
        "body": order[head:tail],
        "tail": order[tail:],
        "last_half": order[count - count // 2 :],
    }


def _largest_first(train_counts: ArrayLike) -> NDArray[Any]:
    return np.argsort(-np.asarray(train_counts, dtype=np.int64), kind="stable")


def _index(labels: Sequence[int]) -> Ints:
    return np.asarray(labels, dtype=np.int64)


def _ratio(part: Any, whole: Any) -> Floats:
    numerator, denominator = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    quotient = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), np.nan)
    np.divide(numerator, denominator, out=quotient, where=denominator > 0)
    return quotient
