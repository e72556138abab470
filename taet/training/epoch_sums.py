"""The sums of the current epoch: losses, and examples per class."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from taet.distributed import global_sum, rank
from taet.losses import Loss
from taet.training.curve import per_class


@dataclass
class EpochSums:
    """Sums over the steps of one epoch; they stay on the device, and every checkpoint holds them.

    The counts cover this process's shares until `together` adds them up; losses cover the whole batches.
    """

    correct: Tensor
    """Examples trained on that were classified correctly, per class, (C,)."""
    total: Tensor
    """Examples trained on, per class, (C,)."""
    predicted: Tensor
    """Predicted classes of the examples trained on, (C,)."""
    sums: dict[str, Tensor] = field(default_factory=dict)
    """The loss and its parts, each weighted by the images of its batch."""
    images: int = 0

    @classmethod
    def empty(cls, num_classes: int, device: torch.device) -> EpochSums:
        """Return the sums before the first step."""
        correct, total, predicted = torch.zeros(3, num_classes, dtype=torch.int64, device=device)
        return cls(correct, total, predicted)

    def add(self, loss: Loss, labels: Tensor, total: int) -> None:
        """Add one step, of a batch of `total` images; no value is read, so nothing waits for the device."""
        classes = len(self.total)
        predictions = loss.logits.argmax(1)
        everything = torch.ones_like(labels)
        self.correct = self.correct + per_class(labels, predictions == labels, classes)
        self.total = self.total + per_class(labels, everything, classes)
        self.predicted = self.predicted + per_class(predictions, everything, classes)
        for name, value in {"total": loss.total, **loss.parts}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.double() * total
        self.images += total

    def together(self) -> EpochSums:
        """Return the sums over all processes."""
        correct, total, predicted = global_sum(torch.stack([self.correct, self.total, self.predicted]))
        return EpochSums(correct, total, predicted, self.sums, self.images)

    def divided(self) -> EpochSums:
        """Return this process's part of sums over all processes: the first one keeps the counts."""
        kept = int(rank() == 0)
        return EpochSums(kept * self.correct, kept * self.total, kept * self.predicted, self.sums, self.images)

    def to(self, device: torch.device) -> EpochSums:
        """Return these sums on `device`."""
        sums = {name: value.to(device) for name, value in self.sums.items()}
        return EpochSums(self.correct.to(device), self.total.to(device), self.predicted.to(device), sums, self.images)
