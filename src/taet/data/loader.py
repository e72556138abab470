"""Training batches, from a uint8 tensor on the device or streamed from memory or disk."""

from collections.abc import Generator, Iterator
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from taet.data.augmentation import POLICIES, apply, crop_flip, to_unit
from taet.data.dataset import Split
from taet.data.extra import Mixture
from taet.data.storage import Pixels, ahead, kept, pieces
from taet.distributed import batch_slice
from taet.randomness import generator
from taet.settings import Training

AHEAD = 3  # most batches that are read in advance


class Shard(NamedTuple):
    """The images of a batch that one process takes."""

    begin: int
    """Position of its first image in the batch."""
    total: int
    """Images in the batch of all processes."""


class Batch(NamedTuple):
    """Positions in the split (N,), images (N, C, H, W) in [0, 1], labels (N,)."""

    index: Tensor  # type: ignore[assignment]
    x: Tensor
    y: Tensor


def resampled(labels: Tensor, draws: torch.Generator, sampling: str = "class-balanced") -> Tensor:
    """Draw N positions for labels (N,), with replacement: first a class that is present, then an
    image of it.

    The image is drawn uniformly. `class-balanced`: so is the class, the sampling that RoBal is
    compared with (Wu et al., CVPR 2021, arXiv:2104.02703). `square-root`: class c with n_c images
    is drawn in proportion to n_c^(1/2) (Mahajan et al., ECCV 2018, arXiv:1805.00932). On the CPU.
    """
    grouped = labels.argsort(stable=True)
    counts = labels.bincount()
    counts = counts[counts > 0]
    first = counts.cumsum(0) - counts
    if sampling == "class-balanced":
        drawn = torch.randint(len(counts), labels.shape, generator=draws)
    else:
        drawn = counts.double().sqrt().multinomial(len(labels), replacement=True, generator=draws)
    place = torch.rand(labels.shape, generator=draws, dtype=torch.float64) * counts[drawn]
    return grouped[first[drawn] + place.long()]


def joined(first: Split, second: Split) -> Pixels:
    """Return the images of both splits as one array: on disk, written once, if those of either
    are."""
    if isinstance(first.images, np.memmap) or isinstance(second.images, np.memmap):
        shape = (len(first) + len(second), *first.images.shape[1:])
        return kept(
            chain(pieces(first.images), pieces(second.images)),
            shape,
            f"{first.sha256} and {second.sha256}",
        )
    return np.concatenate([first.images, second.images])


def fits(images: Pixels, device: torch.device) -> bool:
    """Whether all `images` are kept on the device: on a GPU, if they need at most half of its free
    memory."""
    if isinstance(images, np.memmap):
        return False
    return device.type != "cuda" or 2 * images.nbytes <= torch.cuda.mem_get_info(device)[0]


def batch_bounds(images: int, batch_size: int, mixed: bool = False) -> list[tuple[int, int]]:
    """Return where the batches of an epoch begin and end; a single image left over joins the batch
    before it.

    Batch normalisation cannot train on one image. Batches with extra images, `mixed`, are all full.
    """
    if mixed:
        return [(first, first + batch_size) for first in range(0, images, batch_size)]
    ends = list(range(batch_size, images, batch_size))
    if ends and images - ends[-1] == 1:
        ends.pop()
    return list(zip([0, *ends], [*ends, images], strict=True))


class Loader:
    """Shuffled, augmented batches as in `training`; every random number is seeded by (seed,
    purpose, epoch, step).

    Any epoch can thus be resumed at any step. Each image comes once per epoch, or as `resampled`
    draws it. The process `rank` of `world_size` gets an even, contiguous share of every batch,
    which may be empty; numbers are drawn for the whole batch. Images on disk, or too large for the
    GPU, are streamed by a thread: the batches are the same bits.

    With `extra` images every batch is whole: the `mixture` says how many of them are extra, drawn
    with replacement, and the others go through the split in successive random orders, of which an
    epoch takes a part.
    """

    def __init__(
        self,
        split: Split,
        training: Training,
        *,
        seed: int,
        mirror: bool,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
        extra: Split | None = None,
        mixture: Mixture | None = None,
    ) -> None:
        self.device, self.seed, self.training = device, seed, training
        # a policy works on the CPU
        storage = torch.device("cpu") if training.augment in POLICIES else device
        images, labels = split.images, torch.from_numpy(split.labels)
        self.real, self.mixture = len(split), mixture
        if extra is not None:
            images, labels = (
                joined(split, extra),
                torch.cat([labels, torch.from_numpy(extra.labels)]),
            )
        self.images: Tensor | Pixels = (
            torch.from_numpy(images).to(storage) if fits(images, storage) else images
        )
        self.labels = labels.to(device)
        self.mirror = mirror and training.augment != "crop"
        self.bounds = batch_bounds(self.real, training.batch_size, mixture is not None)
        self.slices = [batch_slice(end - begin, rank, world_size) for begin, end in self.bounds]

    def __len__(self) -> int:
        return len(self.bounds)

    def shard(self, step: int) -> Shard:
        """Return which images of the batch of `step` are those of this process."""
        begin, end = self.bounds[step]
        return Shard(self.slices[step].start, end - begin)

    def epoch(self, epoch: int, first_step: int = 0) -> Generator[Batch, None, None]:
        """Yield this process's share of the batches of `epoch` from `first_step` on."""
        steps = range(first_step, len(self))
        order = self._order(epoch)
        if isinstance(self.images, Tensor):
            order = order.to(self.images.device)
        indices = [order[slice(*self.bounds[step])][self.slices[step]] for step in steps]
        for step, chosen, images in zip(
            steps, indices, self._images(epoch, steps, indices), strict=True
        ):
            augmented = images
            if self.training.augment != "none":
                draws = generator(self.device, self.seed, "augment", epoch, step)
                begin, total = self.shard(step)
                augmented = crop_flip(images, draws, mirror=self.mirror, begin=begin, total=total)
            index = self._to_device(chosen)
            yield Batch(
                index,
                to_unit(augmented, channels_last=self.training.channels_last),
                self.labels[index],
            )

    def _order(self, epoch: int) -> Tensor:
        # On the CPU, so that the order does not depend on the device.
        if self.mixture is not None:
            return self._mixed(self.mixture, epoch)
        draws = generator("cpu", self.seed, "order", epoch)
        if self.training.sampling != "shuffled":
            return resampled(self.labels.cpu(), draws, self.training.sampling)
        return torch.randperm(len(self.labels), generator=draws)

    def _mixed(self, mixture: Mixture, epoch: int) -> Tensor:
        """Return the order of an epoch of mixed batches; extra images have random places, so all
        processes get some."""
        steps, own = len(self), mixture.batch - mixture.extra
        begin, end = epoch * steps * own, (epoch + 1) * steps * own
        rounds = range(begin // self.real, -(-end // self.real))
        orders = [
            torch.randperm(self.real, generator=generator("cpu", self.seed, "order", n))
            for n in rounds
        ]
        begin -= rounds[0] * self.real
        originals = torch.cat(orders)[begin : begin + steps * own].view(steps, own)
        size, drawing = (steps, mixture.extra), generator("cpu", self.seed, "extra", epoch)
        extras = self.real + torch.randint(len(self.labels) - self.real, size, generator=drawing)
        draws = torch.rand(
            steps, mixture.batch, generator=generator("cpu", self.seed, "places", epoch)
        )
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
            rows = (index.numpy() for index in indices)
            read = ahead(
                lambda of: self._pinned(torch.from_numpy(np.asarray(images[of]))),
                rows,
                AHEAD,
                threads=1,
            )
        if self.training.augment in POLICIES:
            policy, begins = self.training.augment, (self.slices[step].start for step in steps)
            read = (
                apply(policy, batch.numpy(), self.seed, "policy", epoch, step, begin=begin)
                for step, begin, batch in zip(steps, begins, read, strict=True)
            )
        return map(self._to_device, read)

    def _to_device(self, images: Tensor) -> Tensor:
        if images.device.type == self.device.type:
            return images
        # From pinned memory the copy does not wait for steps that are still queued on the device.
        return self._pinned(images).to(self.device, non_blocking=True)

    def _pinned(self, images: Tensor) -> Tensor:
        return images.pin_memory() if self.device.type == "cuda" else images
