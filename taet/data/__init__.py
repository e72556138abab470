"""Image sets as uint8 arrays: where they come from, and how they are made long-tailed."""

from taet.data.dataset import Dataset, Split, describe, render
from taet.data.long_tail import long_tail_counts, long_tail_indices
from taet.data.sources import load

__all__ = ["Dataset", "Split", "describe", "load", "long_tail_counts", "long_tail_indices", "render"]
