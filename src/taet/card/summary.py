"""The numbers of a result card: what is computed from the masks of one column."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from taet.card.column import Column, to_jsonable
from taet.errors import shortened
from taet.files import Json
from taet.formatting import percent, percent_interval
from taet.metrics import accuracies, intervals
from taet.metrics.accuracies import Ints

TOLERANCE = 1e-9  # between a stored and a recomputed share: far above rounding, far below one image

NUMBERS = (
    *("correct", "total", "accuracy", "accuracy_interval", "balanced", "balanced_interval"),
    *("per_class", "per_class_interval", "groups", "group_intervals", "worst_class"),
    *("class_flip_rate", "natural_error", "boundary_error", "few_images", "median_distance"),
)
"""What a card stores of a `Summary`, in this order."""


class Summary:
    """The numbers of one column; shares are in [0, 1], intervals at 95 %, and a class without test
    images is nan.

    Example:
        >>> import taet
        >>> summary = taet.Card.load("runs/example/evaluation.json").summary("pgd-2")
        >>> summary.per_class.shape, 0 <= summary.balanced <= 1
        ((10,), True)
    """

    def __init__(
        self,
        column: Column,
        clean: Column | None,
        labels: Ints,
        num_classes: int,
        train_counts: Sequence[int] | None,
    ) -> None:
        # (C,)
        self.correct, self.total = correct, total = accuracies.class_counts(
            column.correct, labels, num_classes
        )
        low, high = intervals.wilson_interval(correct.sum(), total.sum())
        self.accuracy = accuracies.accuracy(correct, total)
        self.accuracy_interval = float(low), float(high)
        # mean recall over classes with test images
        self.balanced = accuracies.balanced_accuracy(correct, total)
        self.balanced_interval = intervals.balanced_interval(correct, total)
        self.per_class = accuracies.per_class_accuracy(correct, total)
        # (low, high), each (C,)
        self.per_class_interval = intervals.wilson_interval(correct, total)
        groups = {} if train_counts is None else accuracies.class_groups(train_counts)
        # balanced: head, body, tail and last_half
        self.groups = accuracies.group_accuracy(correct, total, groups)
        counts = {name: (correct[members], total[members]) for name, members in groups.items()}
        self.group_intervals = {
            name: intervals.balanced_interval(*each) for name, each in counts.items()
        }
        self.worst_class = accuracies.worst_class(correct, total)  # label and recall
        unknown = np.full(num_classes, np.nan)
        # (C,): share whose predicted class is not the clean one
        self.class_flip_rate = unknown
        # (C,): wrong clean; right clean and wrong here
        self.natural_error, self.boundary_error = unknown, unknown
        if clean is not None:
            # also from one wrong class to another
            flipped = clean.predictions != column.predictions
            self.class_flip_rate = accuracies.class_shares(flipped, labels, num_classes)
            # The two parts of the robust error (Zhang et al., ICML 2019, arXiv:1901.08573, section
            # 3); x itself lies in the ball, so an image that an attack happens to correct stays an
            # error.
            self.natural_error = accuracies.class_shares(~clean.correct, labels, num_classes)
            self.boundary_error = accuracies.class_shares(
                clean.correct & ~column.correct, labels, num_classes
            )
        self.few_images = tuple(accuracies.few_images(total))  # labels
        # Median norm of the perturbations, with failed attacks counted as infinitely far; nan if
        # not measured.
        self.median_distance = (
            math.nan if column.distances is None else accuracies.median_distance(column.distances)
        )

    def __repr__(self) -> str:
        balanced = f"{percent(self.balanced)} % ({percent_interval(*self.balanced_interval)})"
        return f"Summary(balanced accuracy {balanced}, accuracy {percent(self.accuracy)} %)"

    def to_json(self) -> Json:
        """Return plain lists and numbers, None for nan."""
        return {name: to_jsonable(getattr(self, name)) for name in NUMBERS}


def disagreements(where: str, stored: Any, computed: Any) -> Iterator[str]:
    """Yield a message for every stored number that differs from the recomputed one by more than
    rounding."""
    if isinstance(computed, dict) and isinstance(stored, dict) and stored.keys() == computed.keys():
        for key, value in computed.items():
            yield from disagreements(f"{where} {key}", stored[key], value)
    elif isinstance(computed, list) and isinstance(stored, list) and len(stored) == len(computed):
        for index, value in enumerate(computed):
            yield from disagreements(f"{where}[{index}]", stored[index], value)
    elif stored != computed and not (
        {type(stored), type(computed)} <= {int, float}
        and math.isclose(stored, computed, rel_tol=0, abs_tol=TOLERANCE)
    ):
        yield (
            f"{where}: stored {shortened(repr(stored))}, recomputed from the masks "
            f"{shortened(repr(computed))}"
        )
