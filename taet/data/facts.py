"""Facts about a data set that are known without its images, often even without its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from taet.config import Data
from taet.data.dataset import Dataset
from taet.data.selection import select
from taet.data.sources import mirrors, outline


@dataclass(frozen=True)
class DataFacts:
    """Class counts, shape and sizes of a data set as a run uses it: after cut, split and resizing."""

    class_counts: tuple[int, ...]
    """Training images of each class, (C,)."""
    image_shape: tuple[int, int, int]
    """(C,H,W), as a model takes it."""
    sizes: Mapping[str, int]
    """Images of each split: "train", "test" and, if there is one, "validation"."""
    class_names: tuple[str, ...] | None = None
    """In the order of the labels; None if they are in files that are not there."""
    mirror: bool = True
    """Whether a mirrored image keeps its label."""
    test_counts: tuple[int, ...] = ()
    """Test images of each class, (C,)."""

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return len(self.class_counts)

    @classmethod
    def of(cls, dataset: Dataset) -> DataFacts:
        """Return the facts of a data set that is loaded."""
        return cls(
            tuple(dataset.class_counts.tolist()),
            dataset.image_shape,
            {part: len(split) for part, split in dataset.splits.items()},
            dataset.class_names,
            dataset.mirror,
            tuple(dataset.test.class_counts.tolist()),
        )


def facts(data: Data) -> DataFacts | None:
    """Return the facts about `taet.data.load(data)` that are known without reading images, or None.

    Published sets are known from their constants, so that their files need not be there: digits, CIFAR, Fashion-MNIST,
    Tiny-ImageNet, GTSRB, and six sets of MedMNIST. User data are listed: image files by their headers, arrays by their
    labels. None: a set of a plugin, or one whose class counts are in files that are not there. Settings that `load`
    refuses raise the same `UserError`.
    """
    found = outline(data)
    if found is None:
        return None
    data, source = found
    chosen, _ = select(source.splits, data)
    counts = {part: choice.of(source.splits).class_counts for part, choice in chosen.items()}
    channels, height, width = source.image_shape
    height, width = (height, width) if data.size is None else (data.size, data.size)
    return DataFacts(
        tuple(counts["train"].tolist()),
        (channels, height, width),
        {part: int(count.sum()) for part, count in counts.items()},
        source.splits["train"].class_names if source.named else None,
        mirrors(data, source.mirror, source.splits["train"].class_names if source.named else ()),
        tuple(counts["test"].tolist()),
    )
