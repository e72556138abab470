"""A step that was recorded once does the right thing ever after: on other images, weights, draws and in other epochs.

`torch.compile` and CUDA graphs record a step and replay it. Here it becomes a graph of tensor operations, which is
blind in the same way: what Python decided while it was recorded stays decided, and it reads and writes the memory that
was there.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from taet.attacks.noise import Source
from taet.data.loader import Batch
from taet.methods import Method
from taet.methods.base import Attack, Loss
from taet.models.view import make_view
from taet.settings import Run, Threat, Training
from taet.training.state import State, build_optimizer
from taet.training.step import training_step, update
from tests.methods.conftest import Case, Network

THREAT = Threat(eps=8 / 255, step_size=4 / 255, steps=1, start="uniform")
SAMPLES, CLASSES = 8, 10
EAGER, STEPS = 3, 6  # steps before the recording, so that momentum and caches exist, and all steps


@dataclass(frozen=True)
class Kept(Source):
    """A source whose draws keep their memory: they are drawn at first use, and again by `redraw`."""

    kept: list[tuple[Tensor, tuple[float, float] | None]] = field(default_factory=list)  # bounds of uniform ones
    left: list[Tensor] = field(default_factory=list)  # what the current pass has not used yet

    def redraw(self, source: Source) -> None:
        for values, bounds in self.kept:
            values.copy_(source.normal(values) if bounds is None else source.uniform(values, *bounds))

    def normal(self, like: Tensor) -> Tensor:
        return self.left.pop(0) if self.left else self._keep(super().normal(like), None)

    def uniform(self, like: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
        return self.left.pop(0) if self.left else self._keep(super().uniform(like, low, high), (low, high))

    def _keep(self, values: Tensor, bounds: tuple[float, float] | None) -> Tensor:
        self.kept.append((values, bounds))
        return values


def drawn(number: int) -> tuple[Batch, Attack]:
    draws = torch.Generator().manual_seed(number)
    x, y = torch.rand(SAMPLES, 1, 8, 8, generator=draws), torch.randint(CLASSES, (SAMPLES,), generator=draws)
    return Batch(torch.arange(SAMPLES), x, y), Attack(THREAT, Source(draws))


class Trained:
    """A model under way."""

    def __init__(self, method: Method, network: Network, awp: float) -> None:
        model = network(CLASSES, head=method.task.head)
        run, optimizer = Run(training=Training(awp=awp)), build_optimizer(model, Training(lr=0.05))
        self.state = State(model, method, optimizer, run, step=1, view=make_view(model, (1, 8, 8)))

    def step(self, number: int) -> list[Tensor]:
        loss = training_step(self.state, *drawn(number))
        return [loss.total, loss.logits, *loss.parts.values()]

    def parameters(self) -> list[Tensor]:
        return [*self.state.model.parameters(), *self.state.method.parameters()]

    def tensors(self) -> list[Tensor]:
        momenta = [state["momentum_buffer"] for state in self.state.optimizer.state.values()]
        return [*self.parameters(), *self.state.model.buffers(), *self.state.method.buffers(), *momenta]


def waits(graph: fx.GraphModule) -> list[str]:
    """Operations that wait for the device: their result's shape, or a number in Python, depends on values."""
    found = []
    for node in graph.graph.nodes:
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        inputs = [getattr(graph, n.target) if n.op == "get_attr" else n.meta.get("val") for n in node.all_input_nodes]
        if node.target in (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default):
            dynamic = any(isinstance(value, Tensor) and value.dtype == torch.bool for value in inputs[1:])
        else:
            dynamic = bool({torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output} & set(node.target.tags))
        # What is copied from a number or a list in Python comes from the host.
        if dynamic or node.target is torch.ops.aten.lift_fresh_copy.default:
            found.append(str(node.target))
    return found


def recorded(trained: Trained) -> Callable[[State, Batch, Attack], Loss]:
    """Return the update of the model as a recording, which leaves no trace of having run."""
    state, names = trained.tensors(), list[str]()
    before = [tensor.detach().clone() for tensor in state]
    batch, attack = drawn(0)
    place, source = Batch(*(values.clone() for values in batch)), Kept(attack.source.generator)

    def function() -> Loss:
        return update(trained.state, place, replace(attack, source=source))

    function()  # draws for the first time
    source.left[:] = [values for values, _ in source.kept]

    def flat() -> list[Tensor]:
        loss = function()
        names[:] = loss.parts
        slopes = [parameter.grad for parameter in trained.parameters() if parameter.grad is not None]
        return [loss.total, loss.logits, *loss.parts.values(), *slopes]

    graph = make_fx(flat)()
    assert waits(graph) == []
    with torch.no_grad():
        for tensor, values in zip(state, before, strict=True):
            tensor.copy_(values)
    moved = [parameter for parameter in trained.parameters() if parameter.grad is not None]

    @torch.no_grad()
    def replay(_: State, batch: Batch, attack: Attack) -> Loss:
        for held, values in zip(place, batch, strict=True):
            held.copy_(values)
        source.redraw(attack.source)
        total, logits, *rest = graph()
        for parameter, slope in zip(moved, rest[len(names) :], strict=True):
            parameter.grad = slope
        return Loss(total, dict(zip(names, rest, strict=False)), logits)

    return replay


def assert_trains_alike(
    build: Callable[[], Method], network: Network, epoch: int, monkeypatch: pytest.MonkeyPatch, awp: float = 0.0
) -> None:
    eager, replayed = (Trained(build(), network, awp) for _ in range(2))
    for number in range(EAGER):
        assert all(map(torch.equal, replayed.step(number), eager.step(number)))
    replay = recorded(replayed)
    for number in range(EAGER, STEPS):
        if number == STEPS - 1:
            for training in (eager, replayed):
                training.state.method.start_epoch(epoch, torch.arange(CLASSES) + 1.0)
        expected = eager.step(number)
        with monkeypatch.context() as patched:
            patched.setattr("taet.training.step.update", replay)
            found = replayed.step(number)
        for one, other in zip([*found, *replayed.tensors()], [*expected, *eager.tensors()], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.sample(8)
def test_replayed_steps_train_as_eager_ones(
    plain_case: Case, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_trains_alike(plain_case.build, network, plain_case.epoch, monkeypatch)


@pytest.mark.sample(8)
def test_so_do_those_of_a_wrapped_method_at_perturbed_weights(
    wrapped_case: Case, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_trains_alike(wrapped_case.build, network, wrapped_case.epoch, monkeypatch, awp=0.01)
