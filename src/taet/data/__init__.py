"""Data sets of uint8 images: their sources, and how they are cut to a long tail."""

from taet.data.dataset import DataFacts, Dataset, Split
from taet.data.long_tail import balanced_small_counts, long_tail_counts, long_tail_indices
from taet.data.sources import facts, full_name, is_cut, is_own, load, load_all, source

__all__ = [
    "DataFacts",
    "Dataset",
    "Split",
    "facts",
    "full_name",
    "is_cut",
    "is_own",
    "load",
    "load_all",
    "source",
]
__all__ += ["balanced_small_counts", "long_tail_counts", "long_tail_indices"]
