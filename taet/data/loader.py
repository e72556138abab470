"""Batches of a training split, from a uint8 tensor on the device or streamed from memory or disk."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import NamedTuple, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taet.data.ahead import ahead
from taet.data.augmentation import crop_flip, to_unit
from taet.data.dataset import Split
from taet.data.policies import POLICIES, PolicyBatch, apply_all
from taet.data.store import Images, Stored
from taet.distributed import share
from taet.randomness import generator

AHEAD = 3
"""Batches that are read at most before the first of them is used up."""


class Batch(NamedTuple):  # `index` shadows tuple.index, which is not needed
    """Positions in the split (N,), images (N, C, H, W) in [0, 1], labels (N,)."""

    index: Tensor  # type: ignore[assignment]
    x: Tensor
    y: Tensor


def class_balanced(labels: Tensor, draws: torch.Generator) -> Tensor:
    """Draw N positions for labels (N,), with replacement: first a class that is present, then an image of it.

    Both are drawn uniformly: an image of class c with n_c images has probability 1 / (C n_c). The class-balanced
    sampling that RoBal is compared with (Wu et al., CVPR 2021, arXiv:2104.02703). On the CPU.
    """
    grouped = labels.argsort(stable=True)
    counts = labels.bincount()
    counts = counts[counts > 0]
    first = counts.cumsum(0) - counts
    drawn = torch.randint(len(counts), labels.shape, generator=draws)
    place = torch.rand(labels.shape, generator=draws, dtype=torch.float64) * counts[drawn]
    return grouped[first[drawn] + place.long()]


def fits(images: Images, device: torch.device) -> TypeGuard[NDArray[np.uint8]]:
    """Whether all `images` are kept on the device: on a GPU, if they take at most half of its free memory."""
    if isinstance(images, Stored):
        return False
    return device.type != "cuda" or 2 * images.nbytes <= torch.cuda.mem_get_info(device)[0]


def batch_bounds(images: int, batch_size: int) -> list[tuple[int, int]]:
    """Return where the batches of an epoch begin and end; a single image left over joins the batch before it."""
    ends = list(range(batch_size, images, batch_size))
    if ends and images - ends[-1] == 1:
        ends.pop()
    return list(zip([0, *ends], [*ends, images], strict=True))


class Loader:
    """Shuffled, augmented batches; every random number is seeded by (seed, purpose, epoch, step).

    So any epoch can be started at any step and gives the same batches. Each image comes once per epoch, or as
    `class_balanced` draws it. The last batch is shorter; a single remaining image joins the batch before it, since
    batch normalisation cannot train on one image.

    Process `part` of `parts` gets an even, contiguous share of every batch, which may be empty. Random numbers are
    drawn for the whole batch, so that the shares together are the batch of a single process.

    Images on disk, or too large for the GPU, are streamed: a thread reads the next batches in advance. The batches are
    the same, bit for bit.

    `workers` processes apply the policy of `augment` in advance, if it is one (see `taet.data.policies`); the batches
    do not depend on their number. Python starts them by importing the user's script, whose own work must therefore be
    below `if __name__ == "__main__":`.
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
        part: int = 0,
        parts: int = 1,
    ) -> None:
        self.device = device
        place = torch.device("cpu") if augment in POLICIES else device  # a policy works on the CPU
        self.images: Tensor | Images = split.images
        if fits(split.images, place):
            self.images = torch.from_numpy(split.images).to(place)
        self.labels = torch.from_numpy(split.labels).to(device)
        self.seed = seed
        self.augment = augment
        self.mirror = mirror and augment != "crop"
        self.channels_last = channels_last
        self.sampling = sampling
        self.workers = workers
        self.bounds = batch_bounds(len(split), batch_size)
        self.shares = [share(end - begin, part, parts) for begin, end in self.bounds]

    def __len__(self) -> int:
        """Steps per epoch."""
        return len(self.bounds)

    def place(self, step: int) -> tuple[int, int]:
        """Return the position of the first image of this share in the batch of `step`, and the size of that batch."""
        begin, end = self.bounds[step]
        return self.shares[step].start, end - begin

    def epoch(self, epoch: int, first_step: int = 0) -> Generator[Batch, None, None]:
        """Yield this process's share of the batches of `epoch` from `first_step` on."""
        steps = range(first_step, len(self))
        order = self._order(epoch)
        if isinstance(self.images, Tensor):
            order = order.to(self.images.device)
        indices = [order[slice(*self.bounds[step])][self.shares[step]] for step in steps]
        for step, index, images in zip(steps, indices, self._images(epoch, steps, indices), strict=True):
            if self.augment != "none":
                draws = generator(self.device, self.seed, "augment", epoch, step)
                begin, total = self.place(step)
                images = crop_flip(images, draws, mirror=self.mirror, begin=begin, total=total)
            index = self._moved(index)
            yield Batch(index, to_unit(images, channels_last=self.channels_last), self.labels[index])

    def _order(self, epoch: int) -> Tensor:
        # On the CPU, so that the order does not depend on the device.
        draws = generator("cpu", self.seed, "order", epoch)
        if self.sampling == "class-balanced":
            return class_balanced(self.labels.cpu(), draws)
        return torch.randperm(len(self.labels), generator=draws)

    def _images(self, epoch: int, steps: range, indices: list[Tensor]) -> Iterator[Tensor]:
        """Return the images of every batch on the device, after the policy if there is one."""
        images = self.images
        read: Iterator[Tensor]
        if isinstance(images, Tensor):
            read = (images[index] for index in indices)
        else:
            read = ahead(self._read, indices, AHEAD, threads=1)
        if self.augment in POLICIES:
            work = (
                PolicyBatch(batch.numpy(), self.seed, ("policy", epoch, step), self.shares[step].start)
                for step, batch in zip(steps, read, strict=True)
            )
            read = apply_all(self.augment, work, self.workers)
        return map(self._moved, read)

    def _read(self, index: Tensor) -> Tensor:
        assert not isinstance(self.images, Tensor)
        return self._pinned(torch.from_numpy(self.images[index.numpy()]))

    def _moved(self, images: Tensor) -> Tensor:
        if images.device.type == self.device.type:
            return images
        # From pinned memory the copy does not wait for steps that are still queued on the device.
        return self._pinned(images).to(self.device, non_blocking=True)

    def _pinned(self, images: Tensor) -> Tensor:
        return images.pin_memory() if self.device.type == "cuda" else images
