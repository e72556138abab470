"""A model as an attack sees it: checked logits, and a count of the work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from taet.errors import UserError


class Counted(nn.Module):
    """Wrap a classifier: every answer is a fresh float32 tensor (N, C), and images that pass through are counted.

    Fresh, because an attack may write into the logits it is given, and a model may return a view of something it keeps.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.forwards = 0
        self.backwards = 0
        self.tick: Callable[[], None] | None = None  # called after each forward

    @property
    def passes(self) -> int:
        """Images that passed through, forward or backward."""
        return self.forwards + self.backwards

    def forward(self, x: Tensor) -> Tensor:
        output: Any = self.model(x)
        if not isinstance(output, Tensor):
            raise UserError(f"model output: got a {type(output).__name__}; allowed: one tensor of logits (N, classes)")
        if output.ndim != 2 or len(output) != len(x):
            raise UserError(f"model output: got shape {tuple(output.shape)}; allowed: logits ({len(x)}, classes)")
        logits = output.to(torch.float32, copy=True)
        self.forwards += len(x)
        if self.tick is not None:
            self.tick()
        if logits.requires_grad:
            logits.register_hook(self._count_backward)  # type: ignore[no-untyped-call]
        return logits

    def _count_backward(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)
