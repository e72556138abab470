"""Accuracies by class and by group, their intervals, and paired differences."""

from taet.metrics.accuracies import (
    accuracy,
    balanced_accuracy,
    class_counts,
    class_groups,
    group_accuracy,
    per_class_accuracy,
)
from taet.metrics.intervals import balanced_interval, exact_interval, wilson_interval
from taet.metrics.paired import difference

__all__ = [
    "accuracy",
    "balanced_accuracy",
    "balanced_interval",
    "class_counts",
    "class_groups",
    "difference",
    "exact_interval",
    "group_accuracy",
    "per_class_accuracy",
    "wilson_interval",
]
