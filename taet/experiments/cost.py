"""What a method costs: passes through the network and seconds per step, beside PGD-10 adversarial training."""

from __future__ import annotations

import statistics
import time
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from taet import methods, models, registry
from taet.attacks.noise import Source
from taet.attacks.progress import Progress
from taet.config import Threat
from taet.data.loader import Batch
from taet.data.long_tail import long_tail_counts
from taet.methods import Attack, Method, Task
from taet.training.environment import environment
from taet.training.step import training_step

EPOCHS = 100  # of the protocol taet, over which stages are weighed
MILESTONES = (75, 90)  # the same
SHAPE = (3, 32, 32)
NETWORK = "resnet8"
CYCLE = 20  # steps after which the rarest event of a step, LAS-AT's strategy update, comes again (CVPR 2022, its code)


@dataclass(frozen=True)
class Cost:
    """Mean cost of a training step over a whole run."""

    name: str
    settings: Mapping[str, Any]
    forwards: float
    """Forward passes of the classifier per image of a batch."""
    backwards: float
    """Backward passes, likewise."""
    passes_ratio: float
    """Both, over those of PGD-10 AT: 11 and 11."""
    seconds_ratio: float
    """Median over rounds of the seconds over those of PGD-10 AT in the same round."""
    spread: tuple[float, float]
    """Least and largest such ratio."""


def _task() -> Task:
    counts = tuple(long_tail_counts(10, 5000, 10))
    return Task(counts, SHAPE, epochs=EPOCHS, steps_per_epoch=CYCLE, milestones=MILESTONES)


def _batch(size: int, device: torch.device) -> Batch:
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(size, *SHAPE, generator=draw).to(device).contiguous(memory_format=torch.channels_last)
    return Batch(torch.arange(size, device=device), x, torch.randint(10, (size,), generator=draw).to(device))


def everything() -> list[tuple[str, dict[str, Any]]]:
    """Every method with its defaults, and with each other value of its knob `variant`."""
    pairs: list[tuple[str, dict[str, Any]]] = []
    for name in registry.entries("methods"):
        hints = typing.get_type_hints(methods.find(name).Config)
        default, *others = typing.get_args(hints.get("variant")) or (None,)
        pairs += [(name, {}), *((name, {"variant": other}) for other in others if default is not None)]
    return pairs


@contextmanager
def _counted(body: nn.Module) -> Iterator[dict[str, int]]:
    """Count the images that pass through `body` and through its copies, forwards and backwards."""
    count = {"forwards": 0, "backwards": 0}

    def backward(gradient: Tensor) -> None:
        count["backwards"] += len(gradient)

    # A plain function, which a copy of the network shares.
    def forward(_: nn.Module, __: object, output: Tensor) -> None:
        count["forwards"] += len(output)
        if output.requires_grad:
            output.register_hook(backward)  # type: ignore[no-untyped-call]

    handle = body.register_forward_hook(forward)
    try:
        yield count
    finally:
        handle.remove()


class _Bench:
    """One method with a network and optimiser of its own."""

    def __init__(self, name: str, settings: Mapping[str, Any], device: torch.device) -> None:
        self.method: Method = methods.build(name, settings, _task()).to(device)
        self.model = models.build(NETWORK, 10, SHAPE, head=self.method.head()).to(device)
        self.model.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)
        stages = [self.method.stage_at(epoch) for epoch in range(EPOCHS)]
        self.stages = [(stages.index(stage), stages.count(stage) / EPOCHS) for stage in dict.fromkeys(stages)]
        # Where nothing of its own learns between steps, fewer tell as much.
        self.steps = CYCLE if self.method.optimizers else 2

    def run(self, batch: Batch) -> Iterator[float]:
        """Run the steps of each stage; yield the share of the run that each has, when it is over."""
        draw = torch.Generator(batch.x.device).manual_seed(0)
        for epoch, share in self.stages:
            self.method.enter(epoch)
            self.method.start_epoch(epoch, self.method.class_counts)
            for number in range(self.steps):
                attack = Attack(Threat(), Source(draw))
                training_step(self.model, self.method, self.optimizer, batch, attack, autocast=False, number=number)
            yield share

    def passes(self) -> tuple[float, float]:
        """Forward and backward passes per image and step."""
        totals, size = [0.0, 0.0], 2
        with _counted(self.model.get_submodule("body")) as count:
            for share in self.run(_batch(size, self.method.class_counts.device)):
                for place, name in enumerate(("forwards", "backwards")):
                    totals[place] += share * count[name] / (size * self.steps)
                    count[name] = 0
        return totals[0], totals[1]

    def seconds(self, batch: Batch) -> float:
        """Seconds per step."""
        total, device = 0.0, batch.x.device
        wait: Callable[[], object] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
        wait()
        mark = time.perf_counter()
        for share in self.run(batch):
            wait()
            now = time.perf_counter()
            total, mark = total + share * (now - mark) / self.steps, now
        return total


def measure(
    wanted: Sequence[tuple[str, Mapping[str, Any]]] | None = None,
    *,
    batch_size: int = 32,
    rounds: int = 3,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure methods, given as (name, knobs), or everything, on ResNet-8 and random 32 x 32 images.

    Passes are counted; seconds are taken `rounds` times, each method right after PGD-10 AT, in float32, and given as
    ratios to it. Returns {"costs": [...], "batch_size", "rounds", "network", "environment"}.
    """
    place = torch.device(device)
    pairs = everything() if wanted is None else wanted
    batch, base = _batch(batch_size, place), _Bench("at", {}, place)
    unit = sum(base.passes())
    costs = []
    for number, (name, settings) in enumerate(pairs):
        if progress is not None:
            progress(number, len(pairs), name)
        bench = _Bench(name, settings, place)
        forwards, backwards = bench.passes()
        bench.seconds(batch)  # once for the caches
        unit_itself = name == "at" and not settings
        ratios = [1.0] if unit_itself else sorted(bench.seconds(batch) / base.seconds(batch) for _ in range(rounds))
        costs.append(
            Cost(
                name,
                dict(settings),
                round(forwards, 2),
                round(backwards, 2),
                round((forwards + backwards) / unit, 3),
                round(statistics.median(ratios), 3),
                (round(ratios[0], 3), round(ratios[-1], 3)),
            )
        )
    return {
        "costs": [asdict(cost) for cost in costs],
        "network": NETWORK,
        "batch_size": batch_size,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "environment": environment(place),
    }
