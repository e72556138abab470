"""A model that counts the images that pass through it, and whose logits decide exactly."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from taet.attacks.arithmetic import SearchPrecision, arithmetic
from taet.attacks.ball import finite
from taet.attacks.inputs import check_output

# wall-clock time, and images that passed through the model
WORK = ("seconds", "forwards", "backwards")
TICK_SECONDS = 0.5  # between two reports of progress


class CountingModel(nn.Module):
    """A classifier that counts the images that pass through it.

    It returns a new float32 tensor (N, C): an attack may write into the logits, and a model may
    return a view of its own state. Values that are not finite for finite images are recorded,
    because some attacks ignore them.

    A `view`, the same function at less cost, is attacked. The model itself decides whether an image
    is broken: `exact_logits`.
    """

    def __init__(self, model: nn.Module, view: nn.Module | None = None) -> None:
        super().__init__()
        self.model, self.view, self.forwards, self.backwards = model, view, 0, 0
        self.precision: SearchPrecision = "float32"
        # on the model's device, so that checking does not wait for it
        self._unsound: Tensor | bool = False
        self._tick: Callable[[], None] = lambda: None  # called after each forward

    @property
    def passes(self) -> int:
        """Number of images that passed through, forward or backward."""
        return self.forwards + self.backwards

    def unsound(self) -> bool:
        """Return whether any logit or image gradient was not finite since the last call."""
        unsound, self._unsound = bool(self._unsound), False
        return unsound

    def measure(self) -> Callable[[], dict[str, NDArray[np.generic]]]:
        """Return a function that gives the seconds and passes since now, named as in `WORK`."""

        def now() -> tuple[float, ...]:
            return time.perf_counter(), self.forwards, self.backwards

        began = now()
        return lambda: {
            name: np.asarray(end - start)
            for name, start, end in zip(WORK, began, now(), strict=True)
        }

    @contextmanager
    def ticking(self, expected: float, report: Callable[[float], None]) -> Iterator[None]:
        """Within this context, report at most twice a second how many passes were made.

        The number is never above `expected`.
        """
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
            self._tick = lambda: None

    @contextmanager
    def searching(self, precision: SearchPrecision, device_type: str) -> Iterator[None]:
        """Within this context, attacks compute in this precision; `exact_logits` does not."""
        before, self.precision = self.precision, precision
        try:
            # Autocast is for the forward pass alone: the backward pass follows it, the attack's own
            # sums stay exact.
            with arithmetic(device_type, precision), torch.autocast(device_type, enabled=False):
                yield
        finally:
            self.precision = before

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self.model if self.view is None else self.view, x, self.precision)

    def exact_logits(self, x: Tensor) -> Tensor:
        """Return the logits of the model itself, in exact float32, as no search changes them."""
        return self._forward(self.model, x, "float32")

    def _forward(self, network: nn.Module, x: Tensor, precision: SearchPrecision) -> Tensor:
        valid = finite(x.detach())
        if x.requires_grad and torch.is_grad_enabled():
            x = x.view_as(x)  # so that the hook sees the gradient of this call only
            x.register_hook(lambda gradient: self._record(gradient, valid))  # type: ignore[no-untyped-call]
        if self.precision == "float32":  # the caller has set this arithmetic
            output = network(x)
        else:
            with arithmetic(x.device.type, precision):
                output = network(x)
        logits = check_output(output, x).to(torch.float32, copy=True)
        self._record(logits.detach(), valid)
        self.forwards += len(x)
        self._tick()
        if logits.requires_grad:
            logits.register_hook(self._count_backward)  # type: ignore[no-untyped-call]
        return logits

    def _record(self, values: Tensor, valid: Tensor) -> None:
        """Record whether any of `values` (N, ...) is not finite although its image is.

        `valid` (N,) is true for images that are finite.
        """
        self._unsound = self._unsound | (valid & ~finite(values)).any()

    def _count_backward(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)
