"""What a loss function with several terms returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Loss(NamedTuple):
    """A training loss: the scalar to minimise, its terms by name, and the logits (N, C) of the examples trained on."""

    total: Tensor
    parts: dict[str, Tensor]
    logits: Tensor
