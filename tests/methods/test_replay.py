"""A step that was recorded once does the right thing ever after: on other images, weights, draws and in other epochs.

On a GPU a step becomes one graph of kernels, recorded once per stage and replayed. Here it becomes a graph of tensor
operations, which is blind in the same way: what Python decided while it was recorded stays decided, and it reads and
writes the memory that was there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

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
from taet.training.graphs import WARM_UP, Graphs
from taet.training.optimizer import build_optimizer, set_learning_rate
from taet.training.state import State
from taet.training.step import training_step
from tests.methods.conftest import Case, Network

THREAT = Threat(eps=8 / 255, step_size=4 / 255, steps=1, start="uniform")
SAMPLES, CLASSES, STEPS = 8, 10, WARM_UP + 3


class Trained:
    """A model under way: its step by step losses, and everything that moves."""

    def __init__(self, method: Method, network: Network, graphs: Graphs | None = None, awp: float = 0.0) -> None:
        self.method, self.model = method, network(CLASSES, head=method.task.head)
        run, optimizer = Run(training=Training(awp=awp)), build_optimizer(self.model, Training(lr=0.05))
        view = make_view(self.model, (1, 8, 8))
        self.state = State(self.model, method, optimizer, run, step=1, view=view, graphs=graphs)

    def run(self, steps: Sequence[int], samples: int = SAMPLES) -> list[Tensor]:
        losses = []
        for number in steps:
            draws = torch.Generator().manual_seed(number)
            x, y = torch.rand(samples, 1, 8, 8, generator=draws), torch.randint(CLASSES, (samples,), generator=draws)
            set_learning_rate(self.state.optimizer, 0.05 / (1 + number))
            batch, attack = Batch(torch.arange(samples), x, y), Attack(THREAT, Source(draws))
            loss = training_step(self.state, batch, attack)
            losses += [loss.total, loss.logits, *loss.parts.values()]
        return losses

    def parameters(self) -> list[Tensor]:
        return [*self.model.parameters(), *self.method.parameters()]

    def tensors(self) -> list[Tensor]:
        momenta = [state["momentum_buffer"] for state in self.state.optimizer.state.values()]
        return [*self.parameters(), *self.model.buffers(), *self.method.buffers(), *momenta]


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


def recorder(held: list[Trained]) -> Callable[[Callable[[], Loss]], tuple[Callable[[], None], Loss]]:
    """What records a step without leaving a trace of having run it."""

    def record(function: Callable[[], Loss]) -> tuple[Callable[[], None], Loss]:
        state, parameters = held[0].tensors(), held[0].parameters()
        before = [tensor.detach().clone() for tensor in state]
        names: list[str] = []

        def flat() -> list[Tensor]:
            loss = function()
            names[:] = loss.parts
            slopes = [parameter.grad for parameter in parameters if parameter.grad is not None]
            return [loss.total, loss.logits, *loss.parts.values(), *slopes]

        graph = make_fx(flat)()
        assert waits(graph) == []
        with torch.no_grad():
            places = [torch.empty_like(values) for values in graph()]
            for tensor, values in zip(state, before, strict=True):
                tensor.copy_(values)
        slopes = iter(places[2 + len(names) :])
        for parameter in parameters:
            parameter.grad = None if parameter.grad is None else next(slopes)

        def replay() -> None:
            with torch.no_grad():
                for place, values in zip(places, graph(), strict=True):
                    place.copy_(values)

        return replay, Loss(places[0], dict(zip(names, places[2:], strict=False)), places[1])

    return record


def assert_trains_alike(build: Callable[[], Method], network: Network, epoch: int, awp: float = 0.0) -> None:
    held: list[Trained] = []
    graphs = Graphs(recorder(held))
    eager, replayed = Trained(build(), network, awp=awp), Trained(build(), network, graphs, awp)
    held.append(replayed)
    for step in range(STEPS):
        if step == STEPS - 1:
            assert graphs.recorded == 1, graphs.refused
            for training in (eager, replayed):
                training.method.start_epoch(epoch, torch.arange(CLASSES) + 1.0)
        for found, value in zip(replayed.run([step]), eager.run([step]), strict=True):
            torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-6)
    for found, value in zip(replayed.tensors(), eager.tensors(), strict=True):
        torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-6)


@pytest.mark.sample(8)
def test_replayed_steps_train_as_eager_ones(plain_case: Case, network: Network) -> None:
    assert_trains_alike(plain_case.build, network, plain_case.epoch)


@pytest.mark.sample(8)
def test_so_do_those_of_a_wrapped_method_at_perturbed_weights(wrapped_case: Case, network: Network) -> None:
    assert_trains_alike(wrapped_case.build, network, wrapped_case.epoch, awp=0.01)


@pytest.mark.full
def test_a_step_of_another_kind_is_recorded_by_itself(network: Network) -> None:
    held: list[Trained] = []
    graphs = Graphs(recorder(held))
    held.append(Trained(Case("taet", {}, "adversarial", 4).build(), network, graphs))
    held[0].run(range(STEPS))
    held[0].run(range(STEPS), samples=5)  # a short batch
    held[0].method.enter(0)  # the clean stage
    held[0].run(range(STEPS))
    assert graphs.recorded == 3


def not_permitted(function: Callable[[], Loss]) -> Any:
    function()  # half of the work is done
    raise TypeError("operation not permitted\nwhen stream is capturing")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (not_permitted, "are not captured.*operation not permitted when stream is capturing"),
        (lambda _: (lambda: None, Loss(torch.zeros(()), {}, torch.zeros(SAMPLES, CLASSES))), "moved the weights other"),
        (lambda function: (lambda: None, function()), "moved the weights otherwise"),  # as on another device's stream
    ],
    ids=["fails", "does something else", "did the work itself"],
)
def test_where_recording_fails_steps_stay_eager_and_the_log_says_why(
    record: Any, message: str, network: Network, caplog: pytest.LogCaptureFixture
) -> None:
    graphs, case = Graphs(record), Case("harl", {}, "adversarial", 4)
    eager, tried = Trained(case.build(), network), Trained(case.build(), network, graphs)
    for found, value in zip(tried.run(range(STEPS)), eager.run(range(STEPS)), strict=True):
        assert torch.equal(found, value)
    assert all(torch.equal(found, value) for found, value in zip(tried.tensors(), eager.tensors(), strict=True))
    assert graphs.recorded == 0
    assert [line for line in caplog.messages if re.search(message, line)] == caplog.messages[:1]
