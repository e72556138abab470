"""Training steps as CUDA graphs: recorded once, then replayed without Python and without a launch per kernel.

A replay uses the memory that was recorded. Images and labels are therefore copied into the recorded tensors, random
numbers are drawn again into the tensors of the first draws, and everything else that changes (weights, statistics,
class weights, the learning rate) is kept in tensors that are written in place.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from taet.attacks.noise import Source
from taet.data.loader import Batch
from taet.methods.base import Attack, Loss

WARM_UP = 3  # eager steps before one is recorded, so that state and caches exist; as PyTorch's notes on CUDA graphs do
AGREEMENT = 0.1  # largest relative difference of a replayed update from the eager one: rounding flips some signs

StepPart = Callable[[Batch, Attack], Loss]
StateTensors = Callable[[], Sequence[Tensor]]
Recorder = Callable[[Callable[[], Loss]], tuple[Callable[[], None], Loss]]

_logger = logging.getLogger(__name__)


def cuda_graph(function: Callable[[], Loss]) -> tuple[Callable[[], None], Loss]:
    """Record `function` without running it; return a function that replays it, and the tensors for its result."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads read the next batches
        result = function()
    return graph.replay, result


@dataclass(frozen=True)
class Kept(Source):
    """A source whose draws keep their memory: they are drawn at first use, and again by `redraw`."""

    kept: list[tuple[Tensor, tuple[float, float] | None]] = field(default_factory=list)  # bounds of uniform ones
    left: list[Tensor] = field(default_factory=list)  # what the current pass has not used yet

    def redraw(self, source: Source) -> None:
        """Overwrite the kept draws, in their order, with draws of `source`."""
        for values, bounds in self.kept:
            values.copy_(source.normal(values) if bounds is None else source.uniform(values, *bounds))

    def normal(self, like: Tensor) -> Tensor:
        return self.left.pop(0) if self.left else self._keep(super().normal(like), None)

    def uniform(self, like: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
        return self.left.pop(0) if self.left else self._keep(super().uniform(like, low, high), (low, high))

    def _keep(self, values: Tensor, bounds: tuple[float, float] | None) -> Tensor:
        self.kept.append((values, bounds))
        return values


@dataclass
class _Graph:
    calls: int = 0
    source: Kept | None = None
    replay: StepPart | None = None


class Graphs:
    """A graph for every kind of step: stage, weight perturbation and shape of the batch.

    A recorded step is used if one replay changed all weights as the eager step does from the same state. If it cannot
    be recorded or does not agree, all steps stay eager, `refused` says why, and the log does.
    """

    def __init__(self, record: Recorder = cuda_graph) -> None:
        self.record, self.refused = record, ""
        self._graphs: dict[Hashable, _Graph] = {}

    @property
    def recorded(self) -> int:
        return sum(graph.replay is not None for graph in self._graphs.values())

    def run(
        self,
        part: StepPart,
        kind: Hashable,
        batch: Batch,
        attack: Attack,
        state: StateTensors,
        optimizer: torch.optim.Optimizer,
    ) -> Loss:
        """Run `part` on the tensors of `state`; steps that take different branches in Python have different `kind`s."""
        graph = self._graphs.setdefault((kind, tuple(batch.x.shape)), _Graph())
        if graph.replay is not None:
            return graph.replay(batch, attack)
        graph.calls += 1
        if self.refused or graph.calls < WARM_UP:
            return part(batch, attack)
        if graph.source is None:
            for group in optimizer.param_groups:  # on the device, where a recorded step can read it
                group["lr"] = torch.as_tensor(group["lr"], device=group["params"][0].device)
            graph.source = Kept(**vars(attack.source))
            return part(batch, replace(attack, source=graph.source))
        return self._tried(graph, part, batch, attack, state)

    def _tried(self, graph: _Graph, part: StepPart, batch: Batch, attack: Attack, state: StateTensors) -> Loss:
        """Record a step, replay it, and repeat it eagerly from the same state; return the eager result."""
        before, draws = _copies(state()), attack.source.generator.get_state()
        replayed, why = before, ""
        try:
            graph.replay = self._recorded(graph, part, batch, attack, state)
            _put_back(state(), before)  # in case a part of it has run
            devices = [batch.x.device] if batch.x.device.type == "cuda" else []
            with torch.random.fork_rng(devices):  # so that a custom model draws the same numbers again below
                graph.replay(batch, attack)
            replayed = _copies(state())
        except Exception as error:  # a model may do things that cannot be recorded
            why = " ".join(str(error).split())[:200]
        _put_back(state(), before)
        attack.source.generator.set_state(draws)
        loss = part(batch, attack)
        # Only parameters: counts of steps and large variances would hide their differences.
        learned = [i for i, tensor in enumerate(state()) if tensor.requires_grad]
        eager, tried, start = (
            torch.cat([each[i].detach().flatten() for i in learned]) for each in (state(), replayed, before)
        )
        share = float((tried - eager).norm() / (start - eager).norm())
        if not share <= AGREEMENT:
            self.refused = why or f"a replayed step moved the weights otherwise, by {share:.2g} of a step"
            self._graphs.clear()
            _logger.warning("taet: steps are not captured in a CUDA graph and run one by one: %s", self.refused)
        return loss

    def _recorded(self, graph: _Graph, part: StepPart, batch: Batch, attack: Attack, state: StateTensors) -> StepPart:
        """Record the step on copies of the batch; return its replay on another batch, with draws of its attack."""
        assert graph.source is not None
        place, source = Batch(*(values.clone(memory_format=torch.preserve_format) for values in batch)), graph.source
        source.left[:] = [values for values, _ in source.kept]
        with torch.cuda.device(batch.x.device) if batch.x.device.type == "cuda" else nullcontext():
            replay, (total, parts, logits) = self.record(lambda: part(place, replace(attack, source=source)))
        gradients = [(tensor, tensor.grad) for tensor in state() if tensor.is_leaf and tensor.requires_grad]

        def again(batch: Batch, attack: Attack) -> Loss:
            for held, values in zip(place, batch, strict=True):
                held.copy_(values)
            source.redraw(attack.source)
            replay()
            for parameter, gradient in gradients:  # which other code may have dropped
                parameter.grad = gradient
            return Loss(total.clone(), {name: value.clone() for name, value in parts.items()}, logits.clone())

        return again


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


@torch.no_grad()
def _put_back(tensors: Sequence[Tensor], before: Sequence[Tensor]) -> None:
    for tensor, values in zip(tensors, before, strict=True):
        tensor.copy_(values)
