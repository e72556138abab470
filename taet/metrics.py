"""Accuracy, balanced accuracy, errors, groups, intervals and tests, computed from counts, masks and scores.

`total` and `correct` are integer arrays (C,): per class, the number of test images and of those classified correctly.
A class without test images has no accuracy: it is nan in arrays over classes and left out of means.
A mask is a boolean array (N,): for each test image, whether it is classified correctly.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from taet.intervals import Floats as Floats
from taet.intervals import mean_recall_limits

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

FEW_PER_CLASS = 50
"""With fewer test images than this, one image changes the accuracy of its class by more than two points, and the 95 %
interval of the class can be more than 26 points wide."""
WORST_SHARE = 0.1
"""Share of the classes that the mean of the worst classes is taken over, as papers of class-wise fairness print it."""
PAIRED_CLASSES = 1000
"""With more classes nothing is stored or drawn for every pair of them: for 8,142 classes (iNaturalist 2018) the areas
under the ROC curve alone would take 350 MB in a card."""


def class_counts(mask: ArrayLike, labels: ArrayLike, num_classes: int) -> tuple[Ints, Ints]:
    """Return `(correct, total)`, each (C,), from a mask (N,) and the true labels (N,)."""
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
    return {name: balanced_accuracy(right[list(of)], count[list(of)]) for name, of in groups.items()}


def worst_class(correct: ArrayLike, total: ArrayLike) -> tuple[int, float]:
    """Return `(label, recall)` of the class with the lowest recall, first among equals; (-1, nan) without images."""
    recalls = per_class_accuracy(correct, total)
    if np.isnan(recalls).all():
        return -1, math.nan
    label = int(np.nanargmin(recalls))
    return label, float(recalls[label])


def worst_classes(correct: ArrayLike, total: ArrayLike, share: float = WORST_SHARE) -> list[int]:
    """Return the labels of the ceil(share K) classes with the lowest recall, of the K that have test images."""
    recalls = per_class_accuracy(correct, total)
    present = np.flatnonzero(~np.isnan(recalls))
    worst = present[recalls[present].argsort(kind="stable")]
    return [int(label) for label in worst[: math.ceil(share * len(present) - 1e-9)]]


def relative_deviation(correct: ArrayLike, total: ArrayLike) -> float:
    """Return the standard deviation of the recalls of the K classes with test images over their mean.

    sqrt((1/K) sum_c (r_c - mean r)^2) / mean r: 0 where all classes are equal, sqrt(K - 1) where only one class has
    any; nan where none has.
    """
    recalls = per_class_accuracy(correct, total)
    recalls = recalls[~np.isnan(recalls)]
    mean = recalls.mean() if recalls.size else 0.0
    return float(recalls.std() / mean) if mean else math.nan


def weak_classes(correct: ArrayLike, total: ArrayLike) -> list[int]:
    """Return the labels of the classes whose recall is below the balanced accuracy, whatever their size.

    Under an attack these are TAET's weak classes, which need not be the small ones.
    Source: "TAET: Two-Stage Adversarial Equalization Training on Long-Tailed Distributions", CVPR 2025,
    arXiv:2503.01924.
    """
    counts = enumerate(zip(np.asarray(correct), np.asarray(total), strict=True))
    recalls = {label: Fraction(int(right), int(count)) for label, (right, count) in counts if count > 0}
    # Fractions, since the rounded mean of equal recalls may be above all of them.
    mean = sum(recalls.values()) / max(len(recalls), 1)
    return [label for label, recall in recalls.items() if recall < mean]


def few_images(total: ArrayLike) -> list[int]:
    """Return the labels of the classes with fewer than `FEW_PER_CLASS` test images, including classes with none."""
    return [int(label) for label in np.flatnonzero(np.asarray(total) < FEW_PER_CLASS)]


def flip_rate(clean_predictions: ArrayLike, predictions: ArrayLike) -> float:
    """Return the share of images whose predicted class changes under attack, mean 1{F(x') != F(x)}; nan without images.

    Labels are not used: an image that changes from one wrong class to another counts too. Both arguments are
    predicted classes, (N,).
    """
    flipped = np.asarray(clean_predictions) != np.asarray(predictions)
    return _ratio(flipped.sum(), flipped.size).item()


def class_flip_rate(
    clean_predictions: ArrayLike, predictions: ArrayLike, labels: ArrayLike, num_classes: int
) -> Floats:
    """Return the flip rate among the images of each true class, (C,) in [0, 1]; nan where a class has no images."""
    flipped = np.asarray(clean_predictions) != np.asarray(predictions)
    return per_class_accuracy(*class_counts(flipped, labels, num_classes))


def class_errors(
    clean_correct: ArrayLike, correct: ArrayLike, labels: ArrayLike, num_classes: int
) -> tuple[Floats, Floats]:
    """Return `(natural, boundary)`, the two parts of the robust error of each class, (C,) in [0, 1] each.

        natural_c = P(F(x) != y | y = c),   boundary_c = P(F(x) = y and F(x') != y | y = c)

    Their sum is the share of the class for which the image or its adversarial example is misclassified: x itself lies
    in the ball, so a misclassified image that an attack happens to correct stays an error. `clean_correct` and
    `correct` are the masks without and under attack; a class without images is nan.
    Source: Zhang, Yu, Jiao, Xing, El Ghaoui, Jordan, "Theoretically principled trade-off between robustness and
    accuracy" (TRADES), ICML 2019, arXiv:1901.08573, section 3.
    """
    before, after = np.asarray(clean_correct, dtype=bool), np.asarray(correct, dtype=bool)
    natural = per_class_accuracy(*class_counts(~before, labels, num_classes))
    return natural, per_class_accuracy(*class_counts(before & ~after, labels, num_classes))


def worst_case(masks: ArrayLike) -> Mask:
    """Return which images are correct under the first attack, the first two, ..., all of them, (A, N).

    `masks` (A, N) holds one mask per attack. The last row is the exact worst case: an image counts only if it is
    correct under every attack.
    """
    return np.logical_and.accumulate(np.asarray(masks, dtype=bool), axis=0)


def median_distance(distances: ArrayLike) -> float:
    """Return the median of the perturbation norms (N,) over the images that were classified correctly before.

    0 stands for an image that was misclassified before and is left out; nan stands for a failed attack and counts as
    infinitely far. The median is nan if half of the attacks or more failed, or if no image was correct before.
    """
    values = np.asarray(distances, dtype=np.float64)
    values = values[values != 0]
    median = float(np.median(np.where(np.isnan(values), np.inf, values))) if values.size else math.inf
    return median if math.isfinite(median) else math.nan


def pairwise_auc(scores: ArrayLike, labels: ArrayLike) -> NDArray[np.float32]:
    """Return how well the score of each class separates it from each other class, A (C, C) in [0, 1].

        A[j, k] = P(s_j(x) > s_j(x')) + P(s_j(x) = s_j(x')) / 2   for x drawn from class j and x' from class k

    This is the area under the ROC curve of score j on these two classes alone, by counting pairs (Mann and Whitney);
    nan on the diagonal and where one of the two classes has no images. `scores` (N, C) must be finite and comparable
    between images: softmax probabilities, not logits, whose common offset is arbitrary. The result is in single
    precision, as cards store it. Time: O(N C log N).
    Source: Hand, Till, "A simple generalisation of the area under the ROC curve for multiple class classification
    problems", Machine Learning 45, 2001, section 3; their Â(j|k).
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
        matrix[label] = 1 - _ratio(lost, len(own) * total)
    np.fill_diagonal(matrix, np.nan)
    return matrix


def roc_auc(matrix: ArrayLike) -> float:
    """Return the macro one-versus-one area under the ROC curve in [0, 1]: the mean of the matrix over all pairs.

        M = 2 / (K (K - 1)) sum_{j < k} (A[j, k] + A[k, j]) / 2

    over the K classes with images; `matrix` is the result of `pairwise_auc`; nan with fewer than two classes.
    Source: Hand, Till, Machine Learning 45, 2001, section 3; their M.
    """
    areas = np.asarray(matrix, dtype=np.float64)
    known = ~np.isnan(areas)
    return float(areas[known].mean()) if known.any() else math.nan


def largest_standard_error(total: ArrayLike) -> float:
    """Return the largest standard error that a balanced accuracy on n_c images of each class c can have.

    sqrt(sum_c p_c (1 - p_c)/n_c)/K at p_c = 1/2, that is sqrt(sum_c 1/n_c)/(2K), over the K classes with images.
    """
    counts = np.asarray(total, dtype=np.float64)
    counts = counts[counts > 0]
    return float(np.sqrt((1 / counts).sum()) / (2 * len(counts))) if len(counts) else math.nan


def wilson_interval(correct: ArrayLike, total: ArrayLike, level: float = 0.95) -> tuple[Floats, Floats]:
    """Return the score interval `(low, high)` of a proportion, in the shape of the counts; nan where the total is 0.

    With p = correct/total, n = total and z the normal quantile of (1 + level)/2:

        (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)

    Unlike p -+ z sqrt(p(1-p)/n) it keeps its coverage for small n, stays in [0, 1] and has a width above 0 at p = 0 and
    p = 1. scipy computes it for one proportion at a time; here all classes are computed at once. Source: Wilson,
    "Probable inference, the law of succession, and statistical inference", JASA 22, 1927.
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

    It covers the true mean recall at least with probability `level`, within the noise of `benchmarks/coverage.py`, for
    classes of 1 to 1,000 images: `taet.intervals.mean_recall_limits`, over the classes that have test images. A
    stratified bootstrap (`bootstrap_interval`) has zero width for a class that is completely right or completely wrong,
    which is common for small tail classes.
    """
    counts = tuple((int(k), int(n)) for k, n in zip(np.ravel(correct), np.ravel(total), strict=True) if n > 0)
    return _balanced_interval(counts, level) if counts else (math.nan, math.nan)


@functools.lru_cache(maxsize=4096)
def _balanced_interval(counts: tuple[tuple[int, int], ...], level: float) -> tuple[float, float]:
    right, count = np.array(counts).T
    low, high = mean_recall_limits(right, count, level)
    return float(low), float(high)


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of McNemar's exact test that two classifiers are equally accurate, in [0, 1].

        p = min(1, 2 sum_{i <= min(b, c)} binom(m, i) / 2^m),   m = b + c

    with b = `only_first` and c = `only_second` the numbers of images that only one of the two classifies correctly: if
    the classifiers do not differ, each of these images belongs to either with probability 1/2.
    Source: McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
    Psychometrika 12, 1947; in its exact binomial form.
    """
    from scipy import special  # imported here to keep the command line fast

    return min(1.0, 2 * float(special.bdtr(min(only_first, only_second), only_first + only_second, 0.5)))


def student_quantile(level: float, degrees: int) -> float:
    """Return the two-sided quantile of Student's t distribution, e.g. 4.303 for level 0.95 and 2 degrees of freedom."""
    from scipy import special

    return float(special.stdtrit(degrees, (1 + level) / 2))


def mean_and_standard_error(values: ArrayLike) -> tuple[Floats, Floats]:
    """Return the mean over the first axis of `values`, (n, ...), and its standard error, (...) each.

    With s the sample standard deviation, sqrt(sum_i (v_i - mean)^2 / (n - 1)), the standard error is s / sqrt(n). It is
    nan for a single value; without values the mean is nan as well.
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
    return np.argsort(_largest_first(train_counts))


def class_groups(train_counts: ArrayLike) -> dict[str, list[int]]:
    """Return the labels of each group of classes, largest class first; a group may be empty with few classes.

    With classes ranked 1..C by training count: head is 1..floor(C/3), tail is ceil(2C/3)..C, body the rest (REAT);
    last_half is the last floor(C/2) (TAET).
    """
    order = _largest_first(train_counts).tolist()
    count = len(order)
    head, tail = count // 3, math.ceil(2 * count / 3) - 1
    return {
        "head": order[:head],
        "body": order[head:tail],
        "tail": order[tail:],
        "last_half": order[count - count // 2 :],
    }


def _largest_first(train_counts: ArrayLike) -> Ints:
    return np.argsort(-np.asarray(train_counts, dtype=np.int64), kind="stable")


def _ratio(part: ArrayLike, whole: ArrayLike) -> Floats:
    numerator, denominator = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    quotient = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), np.nan)
    np.divide(numerator, denominator, out=quotient, where=denominator > 0)
    return quotient
