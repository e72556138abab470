"""A model as an attack sees it: checked logits, gradients that are watched, and a count of the work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from taet.attacks.ball import finite
from taet.errors import UserError


class Counted(nn.Module):
    """Wrap a classifier: every answer is a fresh float32 tensor (N, C), and images that pass through are counted.

    Fresh, because an attack may write into the logits it is given, and a model may return a view of something it keeps.
    What it gives for finite images is watched for values that are not finite, which some attacks pass over in silence.

    Where a `view` of the model is given, the same function in a cheaper form, attacks are answered by the view. What
    counts in the end, whether their examples are right, the model alone decides: `judge`.
    """

    def __init__(self, model: nn.Module, view: nn.Module | None = None) -> None:
        super().__init__()
        self.model = model
        self.view = view
        self.forwards = 0
        self.backwards = 0
        self._unsound: Tensor | bool = False  # on the model's device, so that watching does not wait for it
        self.tick: Callable[[], None] | None = None  # called after each forward

    @property
    def passes(self) -> int:
        """Images that passed through, forward or backward."""
        return self.forwards + self.backwards

    def unsound(self) -> bool:
        """Was any logit or image gradient not finite since this was last asked?"""
        found, self._unsound = bool(self._unsound), False
        return found

    def forward(self, x: Tensor) -> Tensor:
        return self._answer(self.model if self.view is None else self.view, x)

    def judge(self, x: Tensor) -> Tensor:
        """Return the logits of the model itself."""
        return self._answer(self.model, x)

    def _answer(self, network: nn.Module, x: Tensor) -> Tensor:
        proper = finite(x.detach())
        if x.requires_grad and torch.is_grad_enabled():
            x = x.view_as(x)  # its gradient is that of this answer alone
            x.register_hook(lambda gradient: self._watch(gradient, proper))  # type: ignore[no-untyped-call]
        output: Any = network(x)
        if not isinstance(output, Tensor):
            raise UserError(f"model output: got a {type(output).__name__}; allowed: one tensor of logits (N, classes)")
        if output.ndim != 2 or len(output) != len(x):
            raise UserError(f"model output: got shape {tuple(output.shape)}; allowed: logits ({len(x)}, classes)")
        logits = output.to(torch.float32, copy=True)
        self._watch(logits.detach(), proper)
        self.forwards += len(x)
        if self.tick is not None:
            self.tick()
        if logits.requires_grad:
            logits.register_hook(self._count_backward)  # type: ignore[no-untyped-call]
        return logits

    def _watch(self, values: Tensor, proper: Tensor) -> None:
        """Note it if `values` (N, ...) are not finite for an image that is, `proper` (N,)."""
        self._unsound = self._unsound | (proper & ~finite(values)).any()

    def _count_backward(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)
