"""Batches of a training split that lies on the device as one uint8 tensor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from taet.data.augmentation import crop_flip, to_unit
from taet.data.dataset import Split
from taet.randomness import generator


class Batch(NamedTuple):  # `index` shadows tuple.index, which nobody calls on a batch
    """Positions in the split (N,), images (N, C, H, W) in [0, 1], labels (N,)."""

    index: Tensor  # type: ignore[assignment]
    x: Tensor
    y: Tensor


class Loader:
    """Shuffled, augmented batches; each image once per epoch, every draw from (seed, purpose, epoch, step).

    So any epoch can be entered at any step and gives the same batches. The last batch is shorter; a single image left
    over joins the batch before it, since batch normalisation cannot train on one.
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        seed: int,
        augment: str,
        mirror: bool,
        channels_last: bool,
        device: torch.device,
    ) -> None:
        self.images = torch.from_numpy(split.images).to(device)
        self.labels = torch.from_numpy(split.labels).to(device)
        self.seed = seed
        self.augment = augment
        self.mirror = mirror and augment == "crop-flip"
        self.channels_last = channels_last
        ends = list(range(batch_size, len(split), batch_size))
        if ends and len(split) - ends[-1] == 1:
            ends.pop()
        self.bounds = list(zip([0, *ends], [*ends, len(split)], strict=True))

    def __len__(self) -> int:
        """Steps per epoch."""
        return len(self.bounds)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of `epoch` from `first_step` on."""
        device = self.images.device
        # On the CPU, so that an epoch has the same order on every device.
        order = torch.randperm(len(self.images), generator=generator("cpu", self.seed, "order", epoch)).to(device)
        for step, (begin, end) in enumerate(self.bounds):
            if step < first_step:
                continue
            index = order[begin:end]
            images = self.images[index]
            if self.augment != "none":
                images = crop_flip(images, generator(device, self.seed, "augment", epoch, step), mirror=self.mirror)
            yield Batch(index, to_unit(images, channels_last=self.channels_last), self.labels[index])
