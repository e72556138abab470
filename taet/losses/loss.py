"""The return value of a loss with several terms."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Loss(NamedTuple):
    """A training loss with several terms.

    total is the scalar to minimise, parts its terms by name, logits (N, C) those of the examples trained on.
    """

    total: Tensor
    parts: dict[str, Tensor]
    logits: Tensor

    def __repr__(self) -> str:
        terms = {"total": self.total, **self.parts}
        return (
            f"Loss({', '.join(f'{name} {_short(term)}' for name, term in terms.items())}, logits {_shape(self.logits)})"
        )


def _short(term: Tensor) -> str:
    return f"{term.item():.4g}" if term.numel() == 1 else _shape(term)


def _shape(values: Tensor) -> str:
    return f"({', '.join(map(str, values.shape))})"
