"""The numbers of one column of a result card, computed from its masks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from taet import statistics
from taet.errors import UserError
from taet.evaluation.column import Column, Json, plain
from taet.formatting import short
from taet.statistics import Floats, Ints

Interval = tuple[float, float]
TOLERANCE = 1e-9
"""Between a stored and a recomputed share: far above rounding, far below one image."""
CHANGED_3 = ("balanced_interval", "group_intervals")
"""Intervals whose computation changed with schema 3; older ones are not compared, only the numbers behind them."""


@dataclass(frozen=True, eq=False, repr=False)
class Summary:
    """The numbers of one column; shares are in [0, 1], intervals at 95 %, and a class without test images is nan."""

    correct: Ints
    """(C,): test images classified correctly."""
    total: Ints
    """(C,): test images."""
    accuracy: float
    accuracy_interval: Interval
    balanced: float
    """Mean recall over the classes that have test images."""
    balanced_interval: Interval
    per_class: Floats
    per_class_interval: tuple[Floats, Floats]
    """(low, high), each (C,)."""
    groups: dict[str, float]
    """Balanced accuracy of head, body, tail and last_half; empty if the training counts are not known."""
    group_intervals: dict[str, Interval]
    worst_class: tuple[int, float]
    """(label, recall) of the class with the lowest recall."""
    flip_rate: float
    """Share of images whose predicted class is not the clean one; nan without a clean column, as the next three."""
    class_flip_rate: Floats
    """(C,)."""
    natural_error: Floats
    """(C,): share that is misclassified clean."""
    boundary_error: Floats
    """(C,): share that is classified correctly clean and misclassified here."""
    weak_classes: tuple[int, ...]
    """Labels of the classes whose recall is below the balanced accuracy."""
    few_images: tuple[int, ...]
    """Labels of the classes with fewer than `statistics.FEW_PER_CLASS` test images."""
    median_distance: float
    """Median norm of the perturbations, with failed attacks counted as infinitely far; nan if not measured."""
    roc_auc: float
    """Macro one-versus-one area under the ROC curve; nan if not measured."""

    def __repr__(self) -> str:
        low, high = self.balanced_interval
        worst, recall = self.worst_class
        groups = "".join(f", {name} {100 * share:.1f}" for name, share in self.groups.items())
        return (
            f"Summary(balanced {100 * self.balanced:.1f} % [{100 * low:.1f}, {100 * high:.1f}], "
            f"accuracy {100 * self.accuracy:.1f} of {self.total.sum()} images, "
            f"worst class {worst} with {100 * recall:.1f}{groups})"
        )

    def to_json(self) -> Json:
        """Return plain lists and numbers, None for nan."""
        return dict(plain(vars(self)))


def summarise(
    column: Column, clean: Column | None, labels: Ints, num_classes: int, train_counts: Sequence[int] | None
) -> Summary:
    """Compute the numbers of a column on images with the given labels (N,).

    Flip rates and errors need a `clean` column, groups of classes need the training counts (C,).
    """
    correct, total = statistics.class_counts(column.correct, labels, num_classes)
    groups = statistics.class_groups(train_counts) if train_counts is not None else {}
    low, high = statistics.wilson_interval(correct.sum(), total.sum())
    flip_rate, class_flip_rate = math.nan, np.full(num_classes, np.nan)
    natural, boundary = class_flip_rate, class_flip_rate
    if clean is not None:
        flip_rate = statistics.flip_rate(clean.predictions, column.predictions)
        class_flip_rate = statistics.class_flip_rate(clean.predictions, column.predictions, labels, num_classes)
        natural, boundary = statistics.class_errors(clean.correct, column.correct, labels, num_classes)
    return Summary(
        correct=correct,
        total=total,
        accuracy=statistics.accuracy(correct, total),
        accuracy_interval=(float(low), float(high)),
        balanced=statistics.balanced_accuracy(correct, total),
        balanced_interval=statistics.balanced_interval(correct, total),
        per_class=statistics.per_class_accuracy(correct, total),
        per_class_interval=statistics.wilson_interval(correct, total),
        groups=statistics.group_accuracy(correct, total, groups),
        group_intervals={name: statistics.balanced_interval(correct[of], total[of]) for name, of in groups.items()},
        worst_class=statistics.worst_class(correct, total),
        flip_rate=flip_rate,
        class_flip_rate=class_flip_rate,
        natural_error=natural,
        boundary_error=boundary,
        weak_classes=tuple(statistics.weak_classes(correct, total)),
        few_images=tuple(statistics.few_images(total)),
        median_distance=math.nan if column.distances is None else statistics.median_distance(column.distances),
        roc_auc=math.nan if column.roc_auc is None else statistics.roc_auc(column.roc_auc),
    )


def check_stored(where: str, stored: Mapping[str, Any], computed: Summary, schema: int) -> None:
    """Raise a `UserError` if a number of a stored summary, by its schema, differs from the recomputed one."""
    known = computed.to_json()
    for name, value in stored.items():
        if name in known and (schema >= 3 or name not in CHANGED_3):
            for message in disagreements(f"{where} {name}", value, known[name]):
                raise UserError(message)


def disagreements(where: str, stored: Any, computed: Any) -> Iterator[str]:
    """Yield a message for every stored number that differs from the recomputed one by more than rounding."""
    if isinstance(computed, dict) and isinstance(stored, dict) and stored.keys() == computed.keys():
        for key, value in computed.items():
            yield from disagreements(f"{where} {key}", stored[key], value)
    elif isinstance(computed, list) and isinstance(stored, list) and len(stored) == len(computed):
        for index, value in enumerate(computed):
            yield from disagreements(f"{where}[{index}]", stored[index], value)
    elif stored != computed and not (
        {type(stored), type(computed)} <= {int, float} and math.isclose(stored, computed, rel_tol=0, abs_tol=TOLERANCE)
    ):
        yield f"{where}: stored {short(stored)}, recomputed from the masks {short(computed)}"
