"""How far the adversarial examples of the same images move from one epoch to the next (REAT, figure 3)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from taet.data import Split
from taet.data.augmentation import to_unit
from taet.distributed import global_sum, rank, share, world_size
from taet.training.curve import per_class

QUARTILES = (0.25, 0.5, 0.75)


class Drift:
    """Attacked versions of the first images of every class, kept from epoch to epoch.

    Images are not augmented and the start noise is always the same, so that only the model changes the distance.
    """

    def __init__(self, split: Split, images_per_class: int, device: torch.device) -> None:
        chosen = [np.flatnonzero(split.labels == c)[:images_per_class] for c in range(len(split.class_names))]
        rows = np.concatenate(chosen)
        self.images = torch.from_numpy(split.images[rows]).to(device)
        self.labels = torch.from_numpy(split.labels[rows]).to(device)
        self.num_classes = len(split.class_names)
        self.before: Tensor | None = None
        """Examples of the previous epoch, (N, C, H, W)."""
        self.quartiles: list[list[float]] | None = None
        """Quartiles of the last measured distances, [25 %, 50 %, 75 %] of each class."""

    def measure(
        self, attack: Callable[[int, tuple[int, int], Tensor, Tensor], Tensor], batch_size: int
    ) -> list[float] | None:
        """Mean L2 distance per class between the examples of this and of the previous epoch, in image units.

        attack(number, place, x, y) returns the examples of this process's share of a batch; `place` is (first image of
        the share, images of the batch). None in the first epoch and without images; 0 for a class without images.
        """
        if not len(self.labels):
            return None
        found = torch.zeros_like(to_unit(self.images))
        for number, start in enumerate(range(0, len(found), batch_size)):
            total = min(batch_size, len(found) - start)
            mine = share(total, rank(), world_size())
            rows = slice(start + mine.start, start + mine.stop)
            place = (mine.start, total)
            found[rows] = attack(number, place, to_unit(self.images[rows]), self.labels[rows])
        found = global_sum(found)  # zero for images of other processes
        before, self.before = self.before, found
        self.quartiles = None
        if before is None:
            return None
        distances = (found - before).flatten(1).norm(dim=1).double()
        total = distances.new_zeros(self.num_classes).index_add(0, self.labels, distances)
        images = per_class(self.labels, torch.ones_like(self.labels), self.num_classes)
        labels, values = self.labels.cpu().numpy(), distances.cpu().numpy()
        each = (values[labels == label] for label in range(self.num_classes))
        self.quartiles = [np.quantile(one, QUARTILES).tolist() if one.size else [0.0] * 3 for one in each]
        return [float(value) for value in total / images.clamp(min=1)]

    def state_dict(self) -> Tensor | None:
        """Return the examples of the previous epoch."""
        return self.before

    def load_state_dict(self, before: Tensor | None) -> None:
        """Restore the examples from a checkpoint; those of other images raise a ValueError."""
        if before is not None and before.shape != to_unit(self.images).shape:
            raise ValueError("other images")
        self.before = None if before is None else before.to(self.labels.device)
