"""Numbers that cards stored for each attack before schema 4; they are verified and kept there."""

import math
from collections.abc import Mapping

import numpy as np

from taet.card.column import Column
from taet.card.summary import Summary
from taet.files import Json
from taet.metrics import accuracies

LAST_SCHEMA = 3  # the last one with these numbers
# in the order in which cards of this schema store a summary
ORDER = (
    *("correct", "total", "accuracy", "accuracy_interval", "balanced", "balanced_interval"),
    *("per_class", "per_class_interval", "groups", "group_intervals", "worst_class"),
    *("flip_rate", "class_flip_rate", "natural_error", "boundary_error"),
    *("weak_classes", "few_images", "median_distance", "roc_auc"),
)


def with_retired_numbers(summary: Summary, column: Column, clean: Column | None) -> Json:
    """Return a summary as cards before schema 4 store it."""
    numbers = summary.to_json()
    numbers["flip_rate"] = _none_for_nan(flip_rate(column, clean))
    numbers["weak_classes"] = weak_classes(summary)
    numbers["roc_auc"] = _none_for_nan(mean_auc(column))
    return _ordered(numbers)


def _ordered(numbers: Mapping[str, object]) -> Json:
    return {name: numbers[name] for name in ORDER}


def _none_for_nan(value: float) -> float | None:
    return None if math.isnan(value) else value


def flip_rate(column: Column, clean: Column | None) -> float:
    """Return the share of images whose predicted class is not the clean one; nan if not known."""
    if clean is None:
        return math.nan
    flipped = clean.predictions != column.predictions
    return accuracies.accuracy(flipped.sum(), flipped.size)


def weak_classes(summary: Summary) -> list[int]:
    """Return the labels of the classes whose recall is below the balanced accuracy.

    Source: the weak classes of TAET, CVPR 2025, arXiv:2503.01924.
    """
    # Equal recalls are not below their own mean, which may be rounded.
    below = summary.per_class < summary.balanced - 1e-12
    return [int(label) for label in np.flatnonzero(below)]


def mean_auc(column: Column) -> float:
    """Return the macro one-versus-one area under the ROC curve; nan if it was not measured.

    The mean of A[j, k] over the pairs of classes with images: how well the score of class j
    separates it from class k. Source: Hand, Till, Machine Learning 45, 2001, section 3.
    """
    if column.roc_auc is None:
        return math.nan
    areas = column.roc_auc.astype(np.float64)
    known = ~np.isnan(areas)
    return float(areas[known].mean()) if known.any() else math.nan
