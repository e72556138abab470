"""Random draws for the samples of a global batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Source:
    """Draws from `generator`, made for the whole global batch and cut to the samples that this process holds.

    So the noise of a sample does not depend on how many processes share the batch. One process holds all of it.
    """

    generator: torch.Generator
    begin: int = 0
    """Place of this process's first sample in the global batch."""
    total: int | None = None
    """Samples in the global batch; None: those at hand."""

    def _empty(self, like: Tensor) -> Tensor:
        # Contiguous whatever the layout of `like`, so that the layout moves no draw to another pixel.
        return torch.empty((self.total or len(like), *like.shape[1:]), dtype=like.dtype, device=like.device)

    def _share(self, drawn: Tensor, like: Tensor) -> Tensor:
        mine = drawn[self.begin : self.begin + len(like)]
        # In the layout of `like`, once: every operation on two layouts is several times as slow on a CPU.
        return mine if mine.stride() == like.stride() else torch.empty_like(like).copy_(mine)

    def normal(self, like: Tensor) -> Tensor:
        """N(0, 1) in the shape (N, ...) and type of `like`."""
        return self._share(self._empty(like).normal_(generator=self.generator), like)

    def uniform(self, like: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
        """U(low, high) in the shape (N, ...) and type of `like`."""
        return self._share(self._empty(like).uniform_(low, high, generator=self.generator), like)
