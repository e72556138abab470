"""Training steps of a method on random images, as runs make them: to be timed, their arithmetic and memory counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from taet import methods, models
from taet.attacks.noise import Source
from taet.config import Threat, Training
from taet.data.loader import Batch
from taet.experiments.memory import peak_bytes
from taet.methods import Attack, Method, Task
from taet.models.view import make_view
from taet.training.optimizer import build_optimizer
from taet.training.step import training_step

EPOCHS, MILESTONES = 100, (75, 90)  # of the protocol taet
LR = 1e-3  # keeps the weights finite on labels that say nothing


class Steps:
    """One method in the last stage of its run, with a network, a view of it to attack, an optimiser and one batch."""

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
        attack_steps: int = Threat.steps,
        awp: float = 0.0,
        bf16: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        """`counts` are training images per class; `share` says which images of the batch this process holds."""
        task = Task(counts, shape, epochs=EPOCHS, steps_per_epoch=1, milestones=MILESTONES)
        torch.manual_seed(0)
        self.method: Method = methods.build(name, knobs, task).to(device)
        self.model = models.build(model, len(counts), shape, head=self.method.head()).to(device)
        self.model.to(memory_format=torch.channels_last)
        self.optimizer = build_optimizer(self.model, Training(lr=LR))
        self.view = make_view(self.model, shape, torch.bfloat16 if bf16 else None)
        self.threat, self.awp, self.bf16, self.device = Threat(steps=attack_steps), awp, bf16, torch.device(device)
        draw = torch.Generator().manual_seed(0)
        x, y = torch.rand(batch_size, *shape, generator=draw), torch.randint(len(counts), (batch_size,), generator=draw)
        index = torch.arange(batch_size)[share]
        x = x[index].to(device).contiguous(memory_format=torch.channels_last)
        self.batch = Batch(index.to(device), x, y[index].to(device))
        self.source = Source(torch.Generator(device).manual_seed(0), int(index[0]), batch_size)
        self.method.enter(EPOCHS - 1)
        self.method.start_epoch(EPOCHS - 1, self.method.class_counts)
        # A strategy that learns in every k-th step makes a cycle of k.
        self.cycle: int = getattr(getattr(self.method, "published", None), "interval", 1)

    def step(self, batch: Batch, number: int = 0) -> None:
        """One training step."""
        training_step(
            self.model,
            self.method,
            self.optimizer,
            batch,
            Attack(self.threat, self.source),
            autocast=self.bf16,
            awp=self.awp,
            number=number,
            view=self.view,
        )

    def run(self, cycles: int = 1) -> None:
        """The steps of whole cycles."""
        for number in range(cycles * self.cycle):
            self.step(self.batch, number)

    def flops(self) -> float:
        """Floating-point operations of convolutions and products of matrices, forwards and backwards, in a step."""
        return operations(self.run) / self.cycle

    def peak_mb(self) -> float:
        """Most memory that tensors take together in a step, with weights and gradients, in 10^6 bytes."""
        self.run()  # so that the optimiser has its state
        return peak_bytes(lambda: self.step(self.batch), list(self._held()), self.device) / 1e6

    def _held(self) -> Iterator[Tensor]:
        """What is held between steps."""
        yield from self.batch
        for module in (self.model, self.method, *([] if self.view is None else [self.view.module])):
            yield from module.buffers()
            for parameter in module.parameters():
                yield parameter
                if parameter.grad is not None:
                    yield parameter.grad
        for state in self.optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))


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
