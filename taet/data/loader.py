"""Training batches, from a uint8 tensor on the device or streamed from memory or disk."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taet.data.ahead import ahead
from taet.data.augmentation import crop_flip, to_unit
from taet.data.dataset import Split
from taet.data.extra import Extra, Mixture
from taet.data.policies import POLICIES, PolicyBatch, apply_all
from taet.data.storage import Pixels
from taet.distributed import share
from taet.randomness import generator
from taet.settings import Training

AHEAD = 3
"""Most batches that are read in advance."""


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


def joined(first: Pixels, second: Pixels) -> Pixels | Joined:
    """Return both sets of images concatenated, in memory if both are."""
    if isinstance(first, np.memmap) or isinstance(second, np.memmap):
        return Joined(first, second)
    return np.concatenate([first, second])


def fits(images: Pixels | Joined, device: torch.device) -> TypeGuard[NDArray[np.uint8]]:
    """Whether all `images` are kept on the device: on a GPU, if they need at most half of its free memory."""
    if not isinstance(images, np.ndarray) or isinstance(images, np.memmap):
        return False
    return device.type != "cuda" or 2 * images.nbytes <= torch.cuda.mem_get_info(device)[0]


def batch_bounds(images: int, batch_size: int, mixed: bool = False) -> list[tuple[int, int]]:
    """Return where the batches of an epoch begin and end; a single image left over joins the batch before it.

    Batches with extra images, `mixed`, are all full.
    """
    if mixed:
        return [(first, first + batch_size) for first in range(0, images, batch_size)]
    ends = list(range(batch_size, images, batch_size))
    if ends and images - ends[-1] == 1:
        ends.pop()
    return list(zip([0, *ends], [*ends, images], strict=True))


@dataclass(frozen=True)
class Joined:
    """The images of a split followed by extra ones, read by position without copying."""

    first: Pixels
    second: Pixels

    def __getitem__(self, positions: NDArray[np.int64]) -> NDArray[np.uint8]:
        found = np.empty((len(positions), *self.first.shape[1:]), np.uint8)
        own = positions < len(self.first)
        found[own], found[~own] = self.first[positions[own]], self.second[positions[~own] - len(self.first)]
        return found


class Supply:
    """The extra images of every batch, drawn with replacement: a class by its probability, then an image of it."""

    def __init__(self, labels: Tensor, first: int, mixture: Mixture) -> None:
        """Take the labels (M,) of the extra images; the first of them has position `first`."""
        counts = labels.bincount(minlength=len(mixture.draw))
        self.places = labels.argsort(stable=True) + first
        self.counts, self.begins = counts, counts.cumsum(0) - counts
        self.bounds = torch.tensor(mixture.draw, dtype=torch.float64).cumsum(0)
        self.mixture = mixture

    def draw(self, steps: int, draws: torch.Generator) -> Tensor:
        """Return the positions of the extra images of `steps` batches, (steps, k)."""
        size = steps, self.mixture.extra
        of_class, of_image = torch.rand(2, *size, generator=draws, dtype=torch.float64)
        chosen = torch.searchsorted(self.bounds / self.bounds[-1], of_class, right=True)
        return self.places[self.begins[chosen] + (of_image * self.counts[chosen]).long()]


class Loader:
    """Shuffled, augmented batches; every random number is seeded by (seed, purpose, epoch, step).

    So any epoch can be resumed at any step with the same batches. Each image comes once per epoch, or as
    `class_balanced` draws it. The last batch is shorter; a single remaining image joins the batch before it, since
    batch normalisation cannot train on one image.

    Process `part` of `parts` gets an even, contiguous share of every batch, which may be empty. Random numbers are
    drawn for the whole batch, so that the shares together are the batch of a single process.

    Images on disk, or too large for the GPU, are streamed: a thread reads the next batches in advance. The batches are
    the same, bit for bit.

    Size, order and augmentation of the batches are those of `training`. Its `workers` processes apply a policy in
    advance, if it has one (see `taet.data.policies`); the batches do not depend on their number. Python starts them by
    importing the user's script, so the script's own work must be below `if __name__ == "__main__":`.

    With `extra` images every batch is whole: the `mixture` says how many of them are extra and of which classes, and
    the others go through the split in successive random orders, of which an epoch takes a part.
    """

    def __init__(
        self,
        split: Split,
        training: Training,
        *,
        seed: int,
        mirror: bool,
        device: torch.device,
        part: int = 0,
        parts: int = 1,
        extra: Extra | None = None,
        mixture: Mixture | None = None,
    ) -> None:
        self.device = device
        place = torch.device("cpu") if training.augment in POLICIES else device  # a policy works on the CPU
        images: Pixels | Joined = split.images
        labels, self.real, self.supply = torch.from_numpy(split.labels), len(split), None
        if extra is not None and mixture is not None:
            added = torch.from_numpy(extra.split.labels)
            self.supply = Supply(added, self.real, mixture)
            images, labels = joined(split.images, extra.split.images), torch.cat([labels, added])
        self.images: Tensor | Pixels | Joined = images
        if fits(images, place):
            self.images = torch.from_numpy(images).to(place)
        self.labels = labels.to(device)
        self.seed, self.training = seed, training
        self.mirror = mirror and training.augment != "crop"
        self.bounds = batch_bounds(self.real, training.batch_size, self.supply is not None)
        self.shares = [share(end - begin, part, parts) for begin, end in self.bounds]

    def __len__(self) -> int:
        """Steps per epoch."""
        return len(self.bounds)

    @property
    def per_epoch(self) -> int:
        """Images of an epoch."""
        return self.bounds[-1][1]

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
            if self.training.augment != "none":
                draws = generator(self.device, self.seed, "augment", epoch, step)
                begin, total = self.place(step)
                images = crop_flip(images, draws, mirror=self.mirror, begin=begin, total=total)
            index = self._moved(index)
            yield Batch(index, to_unit(images, channels_last=self.training.channels_last), self.labels[index])

    def _order(self, epoch: int) -> Tensor:
        # On the CPU, so that the order does not depend on the device.
        if self.supply is not None:
            return self._mixed(self.supply, epoch)
        draws = generator("cpu", self.seed, "order", epoch)
        if self.training.sampling == "class-balanced":
            return class_balanced(self.labels.cpu(), draws)
        return torch.randperm(len(self.labels), generator=draws)

    def _mixed(self, supply: Supply, epoch: int) -> Tensor:
        """Positions of an epoch of mixed batches.

        The extra images have random places in the batch, so that every process gets its share of them.
        """
        steps, own = len(self), supply.mixture.batch - supply.mixture.extra
        begin, end = epoch * steps * own, (epoch + 1) * steps * own
        rounds = range(begin // self.real, -(-end // self.real))
        orders = [torch.randperm(self.real, generator=generator("cpu", self.seed, "order", one)) for one in rounds]
        begin -= rounds[0] * self.real
        originals = torch.cat(orders)[begin : begin + steps * own].view(steps, own)
        extras = supply.draw(steps, generator("cpu", self.seed, "extra", epoch))
        draws = torch.rand(steps, supply.mixture.batch, generator=generator("cpu", self.seed, "places", epoch))
        places = draws.argsort(dim=1, stable=True)
        # Sorted, so that the images of the split stay in their order.
        mixed = torch.empty_like(places).scatter_(1, places[:, :own].sort(1).values, originals)
        return mixed.scatter_(1, places[:, own:], extras).flatten()

    def _images(self, epoch: int, steps: range, indices: list[Tensor]) -> Iterator[Tensor]:
        """Return the images of every batch on the device, after the policy if there is one."""
        images = self.images
        read: Iterator[Tensor]
        if isinstance(images, Tensor):
            read = (images[index] for index in indices)
        else:
            read = ahead(self._read, indices, AHEAD, threads=1)
        if self.training.augment in POLICIES:
            work = (
                PolicyBatch(batch.numpy(), self.seed, ("policy", epoch, step), self.shares[step].start)
                for step, batch in zip(steps, read, strict=True)
            )
            read = apply_all(self.training.augment, work, self.training.workers)
        return map(self._moved, read)

    def _read(self, index: Tensor) -> Tensor:
        assert not isinstance(self.images, Tensor)
        return self._pinned(torch.from_numpy(np.asarray(self.images[index.numpy()])))

    def _moved(self, images: Tensor) -> Tensor:
        if images.device.type == self.device.type:
            return images
        # From pinned memory the copy does not wait for steps that are still queued on the device.
        return self._pinned(images).to(self.device, non_blocking=True)

    def _pinned(self, images: Tensor) -> Tensor:
        return images.pin_memory() if self.device.type == "cuda" else images
