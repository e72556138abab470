"""Data sets of uint8 images: their sources, and how they are cut to a long tail."""

from typing import TYPE_CHECKING, Any

from taet.data.dataset import DataFacts, Dataset, Split
from taet.data.description import describe, render
from taet.data.long_tail import balanced_small_counts, long_tail_counts, long_tail_indices
from taet.data.sources import facts, full_name, image_listing, is_own, load

if TYPE_CHECKING:
    from taet.data.sampler import ClassBalancedSampler

__all__ = [
    "ClassBalancedSampler",
    "DataFacts",
    "Dataset",
    "Split",
    "balanced_small_counts",
    "describe",
    "facts",
    "full_name",
    "image_listing",
    "is_own",
    "load",
    "long_tail_counts",
    "long_tail_indices",
    "render",
]


def __getattr__(name: str) -> Any:
    """Import the sampler on first use, because importing torch takes seconds."""
    if name != "ClassBalancedSampler":
        raise AttributeError(name)
    from taet.data.sampler import ClassBalancedSampler

    return ClassBalancedSampler
