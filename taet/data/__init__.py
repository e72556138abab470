"""Image sets as uint8 arrays: where they come from, and how they are made long-tailed."""

from taet.data.dataset import Dataset, Split, describe, render
from taet.data.long_tail import expected_absent_classes, long_tail_counts, long_tail_indices
from taet.data.sources import load

__all__ = [
    "Dataset",
    "Split",
    "describe",
    "expected_absent_classes",
    "load",
    "long_tail_counts",
    "long_tail_indices",
    "render",
]
