"""Training steps of one method on random images, as in runs, to measure their time, passes and memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from taet import methods, models
from taet.attacks.noise import Source
from taet.data.loader import Batch
from taet.data.long_tail import long_tail_counts
from taet.errors import UserError
from taet.experiments.memory import held_bytes, peak_bytes
from taet.fields import Count, Settings
from taet.methods import Attack, Method, Task
from taet.models import Classifier, memory_layout
from taet.models.view import make_view
from taet.settings import Threat, Training, epoch_at
from taet.statistics import Floats
from taet.training.optimizer import build_optimizer
from taet.training.speed import precision as fastest_precision
from taet.training.step import training_step

CYCLE = 20  # steps between two updates of LAS-AT's strategy network and of LIET's labels, the rarest events of a step
TOTAL, RATIO = 50_000, 10.0  # images and imbalance ratio of CIFAR-10-LT and CIFAR-100-LT before and after the cut
LR = 1e-3  # keeps the weights finite on random labels


class Workload(Settings):
    """What is trained, as far as its cost depends on it: the images are random."""

    model: str = "resnet8"
    """A model's name, as `taet.models.build` takes it."""
    image_shape: tuple[Count, Count, Count] = (3, 32, 32)
    """(C,H,W)."""
    class_counts: tuple[int, ...] = tuple(long_tail_counts(10, TOTAL // 10, RATIO))
    """Training images of each class, (C,); their sum is an epoch."""

    def batch(self, size: int, device: torch.device | str = "cpu") -> Batch:
        """Return `size` random images with random labels, the same in every call."""
        draw = torch.Generator().manual_seed(0)
        x = torch.rand(size, *self.image_shape, generator=draw).to(device)
        y = torch.randint(len(self.class_counts), (size,), generator=draw).to(device)
        return Batch(torch.arange(size).to(device), x.contiguous(memory_format=torch.channels_last), y)


class MethodSteps:
    """One method with its own network, optimiser and attacked view, as in a run."""

    def __init__(
        self,
        name: str,
        settings: Mapping[str, Any] | None = None,
        workload: Workload | None = None,
        *,
        epochs: int = Training.default("epochs"),
        attack_steps: int = Threat.default("steps"),
        precision: str = Training.default("precision"),
        device: torch.device | str = "cpu",
    ) -> None:
        self.workload, self.device = workload or Workload(), torch.device(device)
        self.epochs, self.attack_steps = epochs, attack_steps
        self.awp, self.source = 0.0, Source(torch.Generator(device).manual_seed(0))
        counts, shape = self.workload.class_counts, self.workload.image_shape
        milestones = tuple(epoch_at(share, epochs) for share in Training.default("milestones"))
        task = Task(counts, shape, epochs=epochs, steps_per_epoch=CYCLE, milestones=milestones)
        self.method: Method = methods.build(name, settings, task).to(device)
        self.model = models.build(self.workload.model, len(counts), shape, head=self.method.task.head).to(device)
        self.model.to(memory_format=torch.channels_last)
        memory_layout.guard(self.model, self.method)
        if self.method.uses_features and not isinstance(self.model, Classifier):
            raise UserError(f"methods: {name} reads the features of a network, and {self.workload.model} gives none")
        self.optimizer = build_optimizer(self.model, Training(lr=LR))
        chosen = fastest_precision(self.model, shape, self.device).value if precision == "auto" else precision
        self.bf16 = chosen == "bf16"
        self.view = make_view(self.model, shape, torch.bfloat16 if self.bf16 else None)
        self.attacked = self.model if self.view is None else self.view.module
        stages = self.method.task.stages
        self.stages = [(stages.index(stage), stages.count(stage) / epochs) for stage in dict.fromkeys(stages)]
        """First epoch of each stage, and its share of the run."""
        self.cycle = CYCLE if self.method.optimizers or self.method.single_step else 2
        """Number of steps measured per stage: without learned state outside the network, all steps are alike."""
        self.enter(0)

    def enter(self, epoch: int) -> None:
        """Begin an epoch."""
        self.method.enter(epoch)
        self.method.start_epoch(epoch, self.method.class_counts)

    def attack(self, steps: int | None = None) -> Attack:
        """Return the protocol's attack, with `attack_steps` or with `steps`."""
        return Attack(Threat(steps=self.attack_steps if steps is None else steps), self.source)

    def step(self, batch: Batch, number: int = 0, *, steps: int | None = None, viewed: bool = True) -> None:
        """Make one training step as in a run, but never from a CUDA graph; `viewed`: attack the view."""
        own, attack, view = (self.model, self.method, self.optimizer), self.attack(steps), self.view if viewed else None
        training_step(*own, batch, attack, autocast=self.bf16, awp=self.awp, number=number, view=view)

    def mean(self, cost: Callable[[], Floats], batch: Batch, *, viewed: bool = True) -> Floats:
        """Return the increase of `cost` by a step, mean over a run."""
        total = np.zeros_like(cost())
        for epoch, share in self.stages:
            self.enter(epoch)
            before = cost()
            for number in range(self.cycle):
                self.step(batch, number, viewed=viewed)
            total += share * (cost() - before) / self.cycle
        return total

    def passes(self) -> tuple[float, float]:
        """Return the forward and backward passes of the network per image and step, mean over a run."""
        images = np.zeros(2)  # that passed forward and backward

        def backward(gradient: Tensor) -> None:
            images[1] += len(gradient)

        # A plain function, which a copy of the network shares.
        def forward(_: nn.Module, __: object, output: Tensor) -> None:
            images[0] += len(output)
            if output.requires_grad:
                output.register_hook(backward)  # type: ignore[no-untyped-call]

        body = self.model.body if isinstance(self.model, Classifier) else self.model.get_submodule("network")
        batch = self.workload.batch(2, self.device)
        with body.register_forward_hook(forward):
            forwards, backwards = (self.mean(images.copy, batch, viewed=False) / len(batch.y)).tolist()
        return forwards, backwards

    def seconds(self, batch: Batch) -> float:
        """Return the seconds of a step, mean over a run."""
        return float(self.mean(lambda: np.array(self.now()), batch))

    def timed(self, work: Callable[[], object], repeats: int = 1) -> float:
        """Return the mean seconds of `work()`."""
        begun = self.now()
        for _ in range(repeats):
            work()
        return (self.now() - begun) / repeats

    def memory(self, batch: Batch) -> tuple[float, float]:
        """Return the memory of weights, optimiser, view and batch between steps, and the peak, in 10^6 bytes."""
        self.step(batch)  # so that the optimiser has its state
        self.optimizer.zero_grad(set_to_none=True)
        held = [*self.held(), *batch]

        def twice() -> None:  # the gradients of the first step still exist when the second begins, as in a run
            self.step(batch)
            self.step(batch)

        return held_bytes(held) / 1e6, peak_bytes(twice, held, self.device) / 1e6

    def now(self) -> float:
        """Return the seconds on a clock, after the device has finished its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def held(self) -> Iterator[Tensor]:
        """Yield the tensors that exist between steps: parameters, buffers, gradients, the optimiser's state."""
        for module in (self.model, self.attacked, self.method):
            yield from module.buffers()
            yield from module.parameters()
            yield from (parameter.grad for parameter in module.parameters() if parameter.grad is not None)
        for state in self.optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))
