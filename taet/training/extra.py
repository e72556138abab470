"""The record of a run's extra images."""

from __future__ import annotations

from taet.data.extra import Extra
from taet.training.record import ExtraRecord
from taet.training.resolve import Resolved


def describe_extra(extra: Extra, resolved: Resolved) -> ExtraRecord:
    """Return the record of the extra images of a new run; every table repeats its sentence."""
    mixture = resolved.mixture
    assert mixture is not None
    return ExtraRecord(
        source=resolved.run.data.extra_source or "",
        saw_removed_tail="unknown",
        sha256=extra.split.sha256,
        class_counts=tuple(extra.split.class_counts.tolist()),
        per_batch=mixture.extra,
        batch_size=mixture.batch,
        classes="as they come",
        draw=mixture.draw,
        exposure=mixture.exposure,
        test_sha256=extra.test_sha256,
    )
