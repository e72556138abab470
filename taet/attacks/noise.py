"""Random draws for the samples of a global batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Source:
    """Draws from `generator`, made for the whole global batch and cut to the samples of this process.

    The noise of a sample therefore does not depend on the number of processes. One process has the whole batch.
    """

    generator: torch.Generator
    begin: int = 0
    """Index of this process's first sample in the global batch."""
    total: int | None = None
    """Samples in the global batch. Default: those of this process."""

    def _empty(self, like: Tensor) -> Tensor:
        # Contiguous for any layout of `like`, so that the layout does not change which pixel gets which number.
        return torch.empty((self.total or len(like), *like.shape[1:]), dtype=like.dtype, device=like.device)

    def _share(self, drawn: Tensor, like: Tensor) -> Tensor:
        mine = drawn[self.begin : self.begin + len(like)]
        # In the layout of `like`, because operations on two layouts are several times as slow on a CPU.
        return mine if mine.stride() == like.stride() else torch.empty_like(like).copy_(mine)

    def normal(self, like: Tensor) -> Tensor:
        """N(0, 1) in the shape (N, ...) and type of `like`."""
        return self._share(self._empty(like).normal_(generator=self.generator), like)

    def uniform(self, like: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
        """U(low, high) in the shape (N, ...) and type of `like`."""
        return self._share(self._empty(like).uniform_(low, high, generator=self.generator), like)
