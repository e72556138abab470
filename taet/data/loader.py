"""Batches of a training split, which lies as one uint8 tensor where it is read: on the device, or for a policy here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from taet.data.augmentation import crop_flip, to_unit
from taet.data.dataset import Split
from taet.data.policies import POLICIES, Work, apply_all
from taet.randomness import generator


class Batch(NamedTuple):  # `index` shadows tuple.index, which nobody calls on a batch
    """Positions in the split (N,), images (N, C, H, W) in [0, 1], labels (N,)."""

    index: Tensor  # type: ignore[assignment]
    x: Tensor
    y: Tensor


def class_balanced(labels: Tensor, draws: torch.Generator) -> Tensor:
    """Draw as many positions as there are labels (N,), with return: first a class that is present, then an image of it.

    Both uniformly: an image of class c with n_c images comes with probability 1 / (C n_c). The class-balanced sampling
    that RoBal is compared with (Wu et al., CVPR 2021, arXiv:2104.02703). All on the CPU.
    """
    grouped = labels.argsort(stable=True)
    counts = labels.bincount()
    counts = counts[counts > 0]
    first = counts.cumsum(0) - counts
    drawn = torch.randint(len(counts), labels.shape, generator=draws)
    place = torch.rand(labels.shape, generator=draws, dtype=torch.float64) * counts[drawn]
    return grouped[first[drawn] + place.long()]


class Loader:
    """Shuffled, augmented batches; every draw from (seed, purpose, epoch, step).

    So any epoch can be entered at any step and gives the same batches. Each image comes once per epoch, or as
    `class_balanced` draws it. The last batch is shorter; a single image left over joins the batch before it, since
    batch normalisation cannot train on one.

    `workers` processes apply the policy of `augment` ahead, if it is one (see `taet.data.policies`); they give the same
    batches for any number. Python starts them by importing the user's script, whose own work then has to stand below
    `if __name__ == "__main__":`.
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
        sampling: str = "shuffled",
        workers: int = 0,
    ) -> None:
        self.device = device
        # A policy works on the CPU.
        self.images = torch.from_numpy(split.images).to("cpu" if augment in POLICIES else device)
        self.labels = torch.from_numpy(split.labels).to(device)
        self.seed = seed
        self.augment = augment
        self.mirror = mirror and augment != "crop"
        self.channels_last = channels_last
        self.sampling = sampling
        self.workers = workers
        ends = list(range(batch_size, len(split), batch_size))
        if ends and len(split) - ends[-1] == 1:
            ends.pop()
        self.bounds = list(zip([0, *ends], [*ends, len(split)], strict=True))

    def __len__(self) -> int:
        """Steps per epoch."""
        return len(self.bounds)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of `epoch` from `first_step` on."""
        steps = range(first_step, len(self))
        order = self._order(epoch).to(self.images.device)
        indices = [order[begin:end] for begin, end in self.bounds[first_step:]]
        for step, index, images in zip(steps, indices, self._images(epoch, steps, indices), strict=True):
            if self.augment != "none":
                draws = generator(self.device, self.seed, "augment", epoch, step)
                images = crop_flip(images, draws, mirror=self.mirror)
            index = index.to(self.device)
            yield Batch(index, to_unit(images, channels_last=self.channels_last), self.labels[index])

    def _order(self, epoch: int) -> Tensor:
        # On the CPU, so that an epoch has the same order on every device.
        draws = generator("cpu", self.seed, "order", epoch)
        if self.sampling == "class-balanced":
            return class_balanced(self.labels.cpu(), draws)
        return torch.randperm(len(self.labels), generator=draws)

    def _images(self, epoch: int, steps: range, indices: list[Tensor]) -> Iterator[Tensor]:
        """The images of every batch on the device, changed by the policy if there is one."""
        batches = (self.images[index] for index in indices)
        if self.augment not in POLICIES:
            return batches
        work = (
            Work(images.numpy(), self.seed, ("policy", epoch, step))
            for step, images in zip(steps, batches, strict=True)
        )
        return map(self._moved, apply_all(self.augment, work, self.workers))

    def _moved(self, images: Tensor) -> Tensor:
        # From pinned memory the copy does not wait for the steps that are still queued on the device.
        return images.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else images
