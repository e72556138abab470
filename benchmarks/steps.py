"""Training steps of a method on random images, as runs make them: to time them, and to count operations and memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from taet.attacks.noise import Source
from taet.data.loader import Batch
from taet.experiments.memory import peak_bytes
from taet.experiments.steps import MethodSteps, Workload
from taet.settings import Threat


class Steps(MethodSteps):
    """One method in the last stage of its run, and one batch."""

    def __init__(
        self,
        name: str,
        knobs: Mapping[str, Any] | None = None,
        *,
        counts: tuple[int, ...],
        shape: tuple[int, int, int] = (3, 32, 32),
        batch_size: int = 128,
        share: slice = slice(None),
        model: str = "resnet8",
        attack_steps: int = Threat.default("steps"),
        awp: float = 0.0,
        bf16: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        """`counts` are training images per class; `share` says which images of the batch this process holds."""
        workload = Workload(model, shape, counts)
        begin = range(batch_size)[share].start
        torch.manual_seed(0)
        super().__init__(
            name,
            knobs,
            workload,
            attack_steps=attack_steps,
            precision="bf16" if bf16 else "float32",
            device=device,
        )
        self.awp, self.source = awp, Source(torch.Generator(device).manual_seed(0), begin, batch_size)
        self.batch = Batch(*(part[share] for part in workload.batch(batch_size, device)))
        self.enter(self.epochs - 1)
        # A strategy that learns in every k-th step makes a cycle of k.
        self.cycle = getattr(getattr(self.method, "published", None), "interval", 1)

    def run(self, cycles: int = 1) -> None:
        """Make the steps of whole cycles."""
        for number in range(cycles * self.cycle):
            self.step(self.batch, number)

    def flops(self) -> float:
        """Floating-point operations of convolutions and products of matrices, forwards and backwards, in a step."""
        return operations(self.run) / self.cycle

    def peak_mb(self) -> float:
        """Most memory that tensors take together in a step, with weights and gradients, in 10^6 bytes."""
        self.run()  # so that the optimiser has its state
        return peak_bytes(lambda: self.step(self.batch), [*self.batch, *self.held()], self.device) / 1e6


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the multiplications and additions of convolutions and matrix products, by torch's own formulas.

    FlopCounterMode has the same, but its tracking of modules refuses a gradient of the image.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        self.total += 0 if formula is None else int(formula(*args, **(kwargs or {}), out_val=result))
        return result


def operations(function: Callable[[], Any]) -> int:
    """Return the multiplications and additions, apart, of convolutions and matrix products in a function."""
    counter = _Operations()
    with counter:
        function()
    return counter.total
