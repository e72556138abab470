"""Random draws of attacks: for the samples of a global batch in training, for each image in an
evaluation."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taet.attacks.ball import Norm, Size, Start, per_sample, spread, unit
from taet.randomness import generator

GAUSSIAN_SCALE = 0.001  # of the start noise of TRADES (Zhang et al., ICML 2019, arXiv:1901.08573)


@dataclass(frozen=True)
class Source:
    """Draws from `generator`, made for the whole global batch, of which this process takes its
    samples.

    The noise of a sample therefore does not depend on the number of processes.
    """

    generator: torch.Generator
    begin: int = 0  # index of this process's first sample in the global batch
    total: int | None = None  # samples in the global batch; default: those of this process

    def _empty(self, like: Tensor) -> Tensor:
        # Contiguous for any layout of `like`, so that the layout does not change which pixel gets
        # which number.
        return torch.empty(
            (self.total or len(like), *like.shape[1:]), dtype=like.dtype, device=like.device
        )

    def _share(self, drawn: Tensor, like: Tensor) -> Tensor:
        mine = drawn[self.begin : self.begin + len(like)]
        # In the layout of `like`, because operations on two layouts are several times as slow on a
        # CPU.
        return mine if mine.stride() == like.stride() else torch.empty_like(like).copy_(mine)

    def normal(self, like: Tensor) -> Tensor:
        """Return N(0, 1) in the shape (N, ...) and type of `like`."""
        return self._share(self._empty(like).normal_(generator=self.generator), like)

    def uniform(self, like: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Return U(low, high) in the shape (N, ...) and type of `like`."""
        return self._share(self._empty(like).uniform_(low, high, generator=self.generator), like)


def draw_noise(x: Tensor, eps: Size, start: Start, source: Source, norm: Norm = "linf") -> Tensor:
    """Return start noise in the shape of `x`.

    It is 0.001 N(0, 1), uniform in the ball or in its positive part, or zeros.

    Uniform is U(-eps, eps) per value in the L-infinity ball, positive U(0, eps). In the L2 ball of
    D values it is eps u^(1/D) n / ||n|| with n ~ N(0, 1) and u ~ U(0, 1), positive its absolute
    value.
    """
    if start == "none":
        return torch.zeros_like(x)
    if start == "gaussian":
        return GAUSSIAN_SCALE * source.normal(x)
    radius = per_sample(eps, x)
    if norm == "linf":
        return radius * source.uniform(x, 0.0 if start == "positive" else -1.0, 1.0)
    direction = unit(source.normal(x))
    share = source.uniform(x.new_empty(len(x))) ** (1 / math.prod(x.shape[1:]))
    return radius * spread(share, x) * (direction.abs() if start == "positive" else direction)


@dataclass(frozen=True)
class Draws:
    """Random draws of an attack, made for each image separately, so that they do not depend on the
    batches."""

    seed: int
    purpose: str  # noise key of the attack: attacks with the same key draw the same numbers
    rows: NDArray[np.int64]  # place of each image in the test set, (N,)

    def start(
        self, x: Tensor, eps: float, start: Start = "uniform", norm: Norm = "linf", restart: int = 0
    ) -> Tensor:
        """Return start noise as `draw_noise` does, in the shape of x; each restart has its own."""
        purpose = f"{self.purpose} {restart}" if restart else self.purpose
        blank = torch.empty(1, *x.shape[1:], dtype=torch.float32)
        sources = (Source(generator("cpu", self.seed, purpose, int(row))) for row in self.rows)
        return torch.cat([draw_noise(blank, eps, start, source, norm) for source in sources]).to(
            x.device
        )
