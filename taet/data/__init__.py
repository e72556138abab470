"""Image sets as uint8 arrays: where they come from, and how they are made long-tailed."""

from taet.data.dataset import Dataset, Split, describe, render
from taet.data.long_tail import (
    balanced_small_counts,
    expected_absent_classes,
    long_tail_counts,
    long_tail_indices,
)
from taet.data.sources import holds_groups, is_own, load, survey

__all__ = [
    "Dataset",
    "Split",
    "balanced_small_counts",
    "describe",
    "expected_absent_classes",
    "holds_groups",
    "is_own",
    "load",
    "long_tail_counts",
    "long_tail_indices",
    "render",
    "survey",
]
