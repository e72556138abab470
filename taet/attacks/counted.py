"""A model as attacks see it: logits and gradients are checked, and passes are counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from taet.attacks.ball import finite
from taet.attacks.inputs import check_output
from taet.attacks.precision import SearchPrecision, arithmetic, exact_float32

WORK = ("seconds", "forwards", "backwards")
"""What an attack costs: wall-clock time, and images that passed through the model."""
TICK_SECONDS = 0.5  # often enough to watch, too rare to cost


class Counted(nn.Module):
    """Wrap a classifier: it returns a new float32 tensor (N, C) and counts the images that pass through.

    The tensor is new because an attack may write into the logits, and a model may return a view of its own state.
    Values that are not finite for finite images are recorded, because some attacks ignore them.

    A `view` computes the same function more cheaply; attacks use it. Whether an adversarial image succeeds is decided
    by the model itself: `judge`.
    """

    def __init__(self, model: nn.Module, view: nn.Module | None = None) -> None:
        super().__init__()
        self.model = model
        self.view = view
        self.precision: SearchPrecision = "float32"
        self.forwards = 0
        self.backwards = 0
        self._unsound: Tensor | bool = False  # on the model's device, so that checking does not wait for it
        self._tick: Callable[[], None] | None = None  # called after each forward

    @property
    def passes(self) -> int:
        """Number of images that passed through, forward or backward."""
        return self.forwards + self.backwards

    def unsound(self) -> bool:
        """Return whether any logit or image gradient was not finite since the last call."""
        found, self._unsound = bool(self._unsound), False
        return found

    @contextmanager
    def seen_as(self, view: nn.Module) -> Iterator[None]:
        """Within this context, attacks run on `view`."""
        before, self.view = self.view, view
        try:
            yield
        finally:
            self.view = before

    def measure(self) -> Callable[[], dict[str, NDArray[np.generic]]]:
        """Return a function that gives the seconds and passes since this call, named as in `WORK`."""
        began = time.perf_counter(), self.forwards, self.backwards

        def since() -> dict[str, NDArray[np.generic]]:
            now = time.perf_counter(), self.forwards, self.backwards
            return {name: np.asarray(end - start) for name, start, end in zip(WORK, began, now, strict=True)}

        return since

    @contextmanager
    def ticking(self, expected: float, report: Callable[[float], None]) -> Iterator[None]:
        """Within this context, report at most twice a second how many passes were made, never more than `expected`."""
        began, reported = self.passes, time.monotonic()

        def tick() -> None:
            nonlocal reported
            if time.monotonic() - reported >= TICK_SECONDS:
                report(min(self.passes - began, expected))
                reported = time.monotonic()

        self._tick = tick
        try:
            yield
        finally:
            self._tick = None

    @contextmanager
    def searching(self, precision: SearchPrecision, device_type: str) -> Iterator[None]:
        """Within this context, attacks compute in this precision on this device; `judge` stays in exact float32."""
        before, self.precision = self.precision, precision
        try:
            # Autocast is for the forward pass alone: the backward pass follows it, the attack's own sums stay exact.
            with arithmetic(device_type, precision), torch.autocast(device_type, enabled=False):
                yield
        finally:
            self.precision = before

    def forward(self, x: Tensor) -> Tensor:
        network = self.model if self.view is None else self.view
        if self.precision == "float32":
            return self._answer(network, x)
        with arithmetic(x.device.type, self.precision):
            return self._answer(network, x)

    def judge(self, x: Tensor) -> Tensor:
        """Return the logits of the model itself, in exact float32, whatever the precision of the search."""
        if self.precision == "float32":
            return self._answer(self.model, x)
        with exact_float32(x.device.type):
            return self._answer(self.model, x)

    def _answer(self, network: nn.Module, x: Tensor) -> Tensor:
        proper = finite(x.detach())
        if x.requires_grad and torch.is_grad_enabled():
            x = x.view_as(x)  # so that its gradient is that of this call only
            x.register_hook(lambda gradient: self._watch(gradient, proper))  # type: ignore[no-untyped-call]
        logits = check_output(network(x), x).to(torch.float32, copy=True)
        self._watch(logits.detach(), proper)
        self.forwards += len(x)
        if self._tick is not None:
            self._tick()
        if logits.requires_grad:
            logits.register_hook(self._count_backward)  # type: ignore[no-untyped-call]
        return logits

    def _watch(self, values: Tensor, proper: Tensor) -> None:
        """Record whether `values` (N, ...) are not finite for a finite image, `proper` (N,)."""
        self._unsound = self._unsound | (proper & ~finite(values)).any()

    def _count_backward(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)
