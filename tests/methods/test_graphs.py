"""Steps that are recorded once and replayed train as eager ones, for every method; and what happens where they cannot.

The recording is a graph of tensor operations here, which is as blind as one of CUDA kernels: what Python decided while
it was made stays decided, and it reads and writes the memory that was there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from taet.attacks.noise import Source
from taet.data.loader import Batch
from taet.methods import Method
from taet.methods.base import Attack, Loss
from taet.models import Classifier
from taet.models.view import make_view
from taet.settings import Run, Threat, Training
from taet.training.graphs import WARM_UP, Graphs
from taet.training.optimizer import build_optimizer, set_learning_rate
from taet.training.state import State
from taet.training.step import training_step

THREAT = Threat(eps=8 / 255, step_size=4 / 255, steps=1, start="uniform")
SAMPLES, CLASSES, STEPS = 8, 10, WARM_UP + 3

Case = Any  # of conftest.py
Network = Callable[..., Classifier]
MakeCase = Callable[..., Case]


class Trained:
    """A model under way: its step by step losses, and everything that moves."""

    def __init__(self, case: Case, network: Network, graphs: Graphs | None = None, awp: float = 0.0) -> None:
        self.method: Method = case.build()
        self.model = network(CLASSES, head=self.method.task.head)
        self.optimizer = build_optimizer(self.model, Training(lr=0.05))
        self.view = make_view(self.model, (1, 8, 8))
        self.graphs, self.awp = graphs, awp

    def run(self, steps: Sequence[int], samples: int = SAMPLES) -> list[Tensor]:
        losses = []
        for number in steps:
            draws = torch.Generator().manual_seed(number)
            x, y = torch.rand(samples, 1, 8, 8, generator=draws), torch.randint(CLASSES, (samples,), generator=draws)
            set_learning_rate(self.optimizer, 0.05 / (1 + number))
            loss = training_step(
                State(
                    self.model,
                    self.method,
                    self.optimizer,
                    run=Run(training=Training(awp=self.awp)),
                    step=1,
                    view=self.view,
                    graphs=self.graphs,
                ),
                Batch(torch.arange(samples), x, y),
                Attack(THREAT, Source(draws)),
            )
            losses += [loss.total, loss.logits, *loss.parts.values()]
        return losses

    def parameters(self) -> list[Tensor]:
        return [*self.model.parameters(), *self.method.parameters()]

    def tensors(self) -> list[Tensor]:
        momenta = [state["momentum_buffer"] for state in self.optimizer.state.values()]
        return [*self.parameters(), *self.model.buffers(), *self.method.buffers(), *momenta]


def recorder(training: Callable[[], Trained]) -> Callable[[Callable[[], Loss]], tuple[Callable[[], None], Loss]]:
    """What records a step without leaving a trace of having run it."""

    def record(function: Callable[[], Loss]) -> tuple[Callable[[], None], Loss]:
        state, parameters = training().tensors(), training().parameters()
        before = [tensor.detach().clone() for tensor in state]
        names: list[str] = []

        def flat() -> list[Tensor]:
            loss = function()
            names[:] = loss.parts
            slopes = [parameter.grad for parameter in parameters if parameter.grad is not None]
            return [loss.total, loss.logits, *loss.parts.values(), *slopes]

        graph = make_fx(flat)()
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


def assert_trains_alike(case: Case, network: Network, awp: float = 0.0) -> None:
    held: list[Trained] = []
    graphs = Graphs(recorder(lambda: held[0]))
    eager, replayed = Trained(case, network, awp=awp), Trained(case, network, graphs, awp)
    held.append(replayed)
    for step in range(STEPS):
        if step == STEPS - 1:
            assert graphs.recorded == 1, graphs.refused
            for training in (eager, replayed):
                training.method.start_epoch(case.epoch, torch.arange(CLASSES) + 1.0)
        for found, value in zip(replayed.run([step]), eager.run([step]), strict=True):
            torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-6)
    for found, value in zip(replayed.tensors(), eager.tensors(), strict=True):
        torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-6)


@pytest.mark.sample(24)
def test_replayed_steps_train_as_eager_ones(plain_case: Case, network: Network) -> None:
    assert_trains_alike(plain_case, network)


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("name", "knobs", "awp"),
    [("robust-lt", {"base": "taet"}, 0.0), ("at", {}, 0.01), ("trades", {}, 0.01)],
    ids=["a wrapped method", "perturbed weights", "perturbed weights of two passes"],
)
def test_so_do_those_of(name: str, knobs: dict[str, Any], awp: float, network: Network, make_case: MakeCase) -> None:
    assert_trains_alike(make_case(name, knobs, "adversarial", 4), network, awp)


@pytest.mark.full
def test_a_step_of_another_kind_is_recorded_by_itself(network: Network, make_case: MakeCase) -> None:
    case = make_case("taet", {}, "adversarial", 4)
    held: list[Trained] = []
    graphs = Graphs(recorder(lambda: held[0]))
    held.append(Trained(case, network, graphs))
    held[0].run(range(STEPS))
    held[0].run(range(STEPS), samples=5)  # a short batch
    held[0].method.enter(0)  # the clean stage
    held[0].run(range(STEPS))
    assert graphs.recorded == 3


def refused(case: Case, network: Network, record: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> str:
    """Train on, with graphs that are refused, as without any; return what the log says."""
    graphs = Graphs(record)
    eager, tried = Trained(case, network), Trained(case, network, graphs)
    for found, value in zip(tried.run(range(STEPS)), eager.run(range(STEPS)), strict=True):
        assert torch.equal(found, value)
    assert all(torch.equal(found, value) for found, value in zip(tried.tensors(), eager.tensors(), strict=True))
    assert graphs.recorded == 0
    (line,) = caplog.messages
    return line


def test_where_recording_fails_steps_stay_eager_and_the_log_says_why(
    network: Network, make_case: MakeCase, caplog: pytest.LogCaptureFixture
) -> None:
    def record(function: Callable[[], Loss]) -> None:
        function()  # half of the work is done
        raise TypeError("operation not permitted\nwhen stream is capturing")

    line = refused(make_case("harl", {}, "adversarial", 4), network, record, caplog)
    assert "are not captured" in line
    assert "operation not permitted when stream is capturing" in line


def test_a_replay_that_does_something_else_is_not_believed(
    network: Network, make_case: MakeCase, caplog: pytest.LogCaptureFixture
) -> None:
    def record(_: Callable[[], Loss]) -> tuple[Callable[[], None], Loss]:
        return lambda: None, Loss(torch.zeros(()), {}, torch.zeros(SAMPLES, CLASSES))

    assert "moved the weights otherwise" in refused(make_case("harl", {}, "adversarial", 4), network, record, caplog)


def test_nor_is_one_whose_recording_did_the_work(
    network: Network, make_case: MakeCase, caplog: pytest.LogCaptureFixture
) -> None:
    """What runs while it is recorded, as on the stream of another device, is no replay."""

    def record(function: Callable[[], Loss]) -> tuple[Callable[[], None], Loss]:
        return lambda: None, function()

    line = refused(make_case("harl", {}, "adversarial", 4), network, record, caplog)
    assert "moved the weights otherwise" in line
