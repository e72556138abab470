"""A step that was captured once does the right thing ever after: on other images, weights, draws and in other epochs.

On a GPU a step becomes one graph of kernels, recorded once per stage and replayed. Here it becomes a graph of tensor
operations, which is blind in the same way: what Python decided while it was recorded stays decided.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from taet.attacks.ball import frozen
from taet.distributed import global_mean
from taet.losses import cross_entropy
from taet.methods import Method, Task
from taet.methods.base import Adversarial, Attack, Loss
from taet.models import Classifier
from taet.settings import Threat
from taet.training.step import perturbed_weights

THREAT = Threat(eps=8 / 255, step_size=4 / 255, steps=1, start="uniform")
SAMPLES, CLASSES = 8, 10

Case = Any  # of conftest.py
Network = Callable[..., Classifier]


class Recorded:
    """A source of noise whose draws keep their place in memory: the same ones in every step until they are redrawn."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self.draws: list[tuple[Tensor, tuple[float, float] | None]] = []
        self.taken = 0

    def normal(self, like: Tensor) -> Tensor:
        return self._take(like, None)

    def uniform(self, like: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
        return self._take(like, (low, high))

    def _take(self, like: Tensor, bounds: tuple[float, float] | None) -> Tensor:
        if self.taken == len(self.draws):
            self.draws.append((self._draw(torch.empty_like(like), bounds), bounds))
        self.taken += 1
        return self.draws[self.taken - 1][0]

    def _draw(self, values: Tensor, bounds: tuple[float, float] | None) -> Tensor:
        if bounds is None:
            return values.normal_(generator=self.generator)
        return values.uniform_(*bounds, generator=self.generator)

    def redraw(self) -> None:
        for values, bounds in self.draws:
            self._draw(values, bounds)


@contextmanager
def put_back(model: Classifier) -> Iterator[None]:
    """Weights and statistics are afterwards as they were, in place."""
    held = [*model.parameters(), *model.buffers()]
    before = [value.detach().clone() for value in held]
    yield
    with torch.no_grad():
        for value, old in zip(held, before, strict=True):
            value.copy_(old)


def waits(graph: fx.GraphModule) -> list[str]:
    """Operations that wait for the device: their result's shape, or a number in Python, depends on values."""
    found = []
    for node in graph.graph.nodes:
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        inputs = [getattr(graph, n.target) if n.op == "get_attr" else n.meta.get("val") for n in node.all_input_nodes]
        by_mask = any(isinstance(value, Tensor) and value.dtype == torch.bool for value in inputs[1:])
        if node.target in (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default):
            dynamic = by_mask
        else:
            dynamic = bool({torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output} & set(node.target.tags))
        # What is copied from a number or a list in Python comes from the host.
        if dynamic or node.target is torch.ops.aten.lift_fresh_copy.default:
            found.append(str(node.target))
    return found


def assert_replays(method: Method, model: Classifier, epoch: int, awp: float = 0.0) -> None:
    """Record a step; on other images, draws, weights and predictions its replay gives what the method itself does."""
    generator = torch.Generator().manual_seed(0)
    source: Any = Recorded(generator)
    parameters = [*model.parameters(), *method.parameters()]

    def step(x: Tensor, y: Tensor) -> list[Tensor]:
        """Examples, loss and gradients, as the training step makes them."""
        source.taken = 0
        with frozen(model):
            adversarial = method.perturb(model, x, y, Attack(THREAT, source))

        def outer_loss() -> Loss:
            return method.loss(model, x, y, adversarial)

        model.train()
        with perturbed_weights(model, lambda: outer_loss().total, awp):
            loss = outer_loss()
            gradients = torch.autograd.grad(loss.total, parameters, allow_unused=True)
        values = (adversarial.x, *adversarial.info.values(), loss.total, loss.logits, *loss.parts.values(), *gradients)
        return [value.detach().clone() for value in values if value is not None]

    def images() -> tuple[Tensor, Tensor]:
        x = torch.rand(SAMPLES, 1, 8, 8, generator=generator)
        return x, torch.randint(CLASSES, (SAMPLES,), generator=generator)

    inputs = images()
    with put_back(model):
        before = step(*inputs)
    with put_back(model):
        graph = make_fx(step)(*inputs)
    assert waits(graph) == []

    inputs = images()
    source.redraw()
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    method.start_epoch(epoch, torch.rand(CLASSES, generator=generator) * 50)
    with put_back(model), torch.no_grad():
        replayed = graph(*inputs)
    with put_back(model):
        expected = step(*inputs)
    assert len(replayed) == len(expected) == len(before)
    assert not torch.equal(before[0], expected[0])
    for found, value in zip(replayed, expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-6, atol=1e-7)


@pytest.mark.sample(8)
def test_a_recorded_step_follows_what_changes(plain_case: Case, network: Network) -> None:
    method = plain_case.build()
    assert_replays(method, network(CLASSES, head=method.task.head), plain_case.epoch)


@pytest.mark.sample(4)
def test_a_recorded_step_of_a_wrapped_method_at_perturbed_weights_does(wrapped_case: Case, network: Network) -> None:
    method = wrapped_case.build()
    assert_replays(method, network(CLASSES, head=method.task.head), wrapped_case.epoch, awp=0.01)


class Careless(Method):
    """Adversarial training whose loss has a factor that changes from epoch to epoch, kept in the wrong place."""

    def __init__(self, habit: str, task: Task) -> None:
        super().__init__(Method.Config(), task)
        self.habit = habit
        self.number = 1.0
        self.register_buffer("factor", torch.ones(()))

    def start_epoch(self, epoch: int, predicted_counts: Tensor) -> None:
        if self.habit == "a new tensor":
            self.factor = predicted_counts[0].clone()
        self.factor.copy_(predicted_counts[0])
        self.number = float(predicted_counts[0]) if self.habit == "a number of the data" else self.number + 1

    def loss(self, model: Classifier, x: Tensor, y: Tensor, adversarial: Adversarial) -> Loss:
        factor: Any = self.factor
        if self.habit in ("a number of the data", "a counter of epochs"):
            factor = self.number
        elif self.habit == "a number read from a buffer":
            factor = self.factor.item()
        elif self.habit == "a number from the host":
            factor = torch.tensor([1.0, 2.0]).to(x).mean()
        x_adv = adversarial.x + torch.rand_like(x) if self.habit == "noise of its own" else adversarial.x
        logits = model(x_adv)
        losses = cross_entropy(logits, y)
        if self.habit == "a branch on values" and losses.mean() > 1:
            losses = losses.square()
        elif self.habit == "a choice of samples":
            losses = losses[y > 2]
        elif self.habit == "a loop over samples":
            losses = torch.stack([loss * int(label) for loss, label in zip(losses, y, strict=True)])
        return Loss(factor * global_mean(losses), {}, logits)


def test_a_buffer_written_in_place_is_followed(network: Network, task: Callable[..., Task]) -> None:
    assert_replays(Careless("none", task()), network(CLASSES), epoch=3)


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    "habit",
    [
        "a new tensor",
        "a number of the data",
        "a counter of epochs",
        "a number read from a buffer",
        "a number from the host",
        "noise of its own",
        "a branch on values",
        "a choice of samples",
        "a loop over samples",
    ],
)
def test_a_method_that_cannot_be_replayed_is_found_out(habit: str, network: Network, task: Callable[..., Task]) -> None:
    with pytest.raises((AssertionError, RuntimeError)):
        assert_replays(Careless(habit, task()), network(CLASSES), epoch=3)
