"""A model whose passes are counted, and the arithmetic in which attacks search and their results are judged."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from taet.attacks.ball import finite, frozen
from taet.attacks.inputs import check_output
from taet.errors import UserError

SearchPrecision = Literal["float32", "bf16", "tf32"]
WORK = ("seconds", "forwards", "backwards")  # wall-clock time, and images that passed through the model
TICK_SECONDS = 0.5  # between two reports of progress


@contextmanager
def arithmetic(device_type: str, precision: SearchPrecision = "float32") -> Iterator[None]:
    """Compute in a precision: exact float32, bfloat16 by autocast, or the TF32 of NVIDIA GPUs; restore the switches.

    TF32 keeps 10 bits of the mantissa, which can flip predictions near the decision boundary, where attacks search.
    """
    if precision == "tf32" and device_type != "cuda":
        raise UserError(f"search precision: got tf32 on {device_type}; allowed: float32 or bf16 (tf32 needs CUDA)")
    gpu, cpu = torch.backends.cudnn, torch.backends.mkldnn
    switches = [torch.backends.cuda.matmul, gpu.conv, gpu.rnn, cpu.matmul, cpu.conv, cpu.rnn]  # type: ignore[attr-defined]
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        with torch.autocast(device_type, torch.bfloat16, precision == "bf16"):
            yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value


@contextmanager
def still(device_type: str, *models: nn.Module) -> Iterator[None]:
    """Put models in eval mode with frozen parameters and exact float32; restore all and the random state afterwards."""
    exact, random = arithmetic(device_type), torch.random.fork_rng(range(torch.cuda.device_count()))
    with torch.inference_mode(False), ExitStack() as stack, exact, random:  # gradients exist inside inference mode too
        for model in models:
            stack.enter_context(frozen(model))
        yield


@contextmanager
def training_arithmetic(device_type: str) -> Iterator[None]:
    """On NVIDIA GPUs use cuDNN's fastest algorithms, and exact float32 in place of torch's default, TF32."""
    if device_type != "cuda":
        yield
        return
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        with arithmetic(device_type):
            yield
    finally:
        torch.backends.cudnn.benchmark = before


class Counted(nn.Module):
    """Wrap a classifier: it returns a new float32 tensor (N, C) and counts the images that pass through.

    The tensor is new because an attack may write into the logits, and a model may return a view of its own state.
    Values that are not finite for finite images are recorded, because some attacks ignore them.

    A `view`, the same function at less cost, is attacked. The model itself decides whether an image is broken: `judge`.
    """

    def __init__(self, model: nn.Module, view: nn.Module | None = None) -> None:
        super().__init__()
        self.model, self.view, self.forwards, self.backwards = model, view, 0, 0
        self.precision: SearchPrecision = "float32"
        self._unsound: Tensor | bool = False  # on the model's device, so that checking does not wait for it
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
        """Return a function that gives the seconds and passes since this call, named as in `WORK`."""

        def now() -> tuple[float, ...]:
            return time.perf_counter(), self.forwards, self.backwards

        began = now()
        return lambda: {name: np.asarray(end - start) for name, start, end in zip(WORK, began, now(), strict=True)}

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
            self._tick = lambda: None

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
        return self._forward(self.model if self.view is None else self.view, x, self.precision)

    def judge(self, x: Tensor) -> Tensor:
        """Return the logits of the model itself, in exact float32, whatever the precision of the search."""
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
        """Record whether any of `values` (N, ...) is not finite although its image is, where `valid` (N,) is true."""
        self._unsound = self._unsound | (valid & ~finite(values)).any()

    def _count_backward(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)
