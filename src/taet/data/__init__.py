"""Data sets of uint8 images: their sources, and how they are cut to a long tail."""

from taet.data.dataset import DataFacts, Dataset, Split
from taet.data.long_tail import balanced_small_counts, long_tail_counts, long_tail_indices
from taet.data.sources import facts, is_own, load

__all__ = [
    "DataFacts",
    "Dataset",
    "Split",
    "balanced_small_counts",
    "facts",
    "is_own",
    "load",
    "long_tail_counts",
    "long_tail_indices",
]
