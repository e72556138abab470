"""The sums of the current epoch: losses, and examples per class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from taet.distributed import global_sum, rank
from taet.losses import Loss


def per_class(labels: Tensor, hits: Tensor, num_classes: int) -> Tensor:
    """Count the samples with `hits` (N,) per class, (C,) int64, without synchronising the device."""
    return torch.zeros(num_classes, dtype=torch.int64, device=labels.device).index_add_(0, labels, hits.long())


@dataclass
class EpochSums:
    """Sums over the steps of one epoch; they stay on the device, and every checkpoint holds them.

    The counts cover the images of this process until `together` adds them up; losses cover whole batches.
    """

    counts: Tensor
    """Per class: correct training examples, all training examples, and predictions, (3, C)."""
    sums: dict[str, Tensor] = field(default_factory=dict)
    """The loss and its parts, each weighted by the images of its batch."""
    images: int = 0

    @classmethod
    def empty(cls, num_classes: int, device: torch.device) -> EpochSums:
        """Return sums that are all zero."""
        return cls(torch.zeros(3, num_classes, dtype=torch.int64, device=device))

    def add(self, loss: Loss, labels: Tensor, total: int) -> None:
        """Add one step on a batch of `total` images; no value is read, so nothing waits for the device."""
        predictions, everything = loss.logits.argmax(1), torch.ones_like(labels)
        counted = ((labels, predictions == labels), (labels, everything), (predictions, everything))
        self.counts = self.counts + torch.stack([per_class(*each, self.counts.shape[1]) for each in counted])
        for name, value in {"total": loss.total, **loss.parts}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.double() * total
        self.images += total

    def together(self) -> Tensor:
        """Return the counts over all processes, (3, C)."""
        return global_sum(self.counts)

    def state_dict(self) -> dict[str, Any]:
        """Return the sums over all processes."""
        correct, total, predicted = self.together()
        return {"correct": correct, "total": total, "predicted": predicted, "sums": self.sums, "images": self.images}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore sums over all processes: the first process takes the counts."""
        device, counts = self.counts.device, torch.stack([state[name] for name in ("correct", "total", "predicted")])
        if (counts.shape, counts.dtype) != (self.counts.shape, self.counts.dtype):
            raise ValueError("sums have another shape or type than in this run")
        self.counts = int(rank() == 0) * counts.to(device)
        self.sums, self.images = {n: value.to(device) for n, value in state["sums"].items()}, state["images"]
