"""A step on a device that shares no memory with the host: a tensor left behind, or a value read
back, is an error.

Tensors of the device `meta` have a place and a shape and no values, so this needs no GPU. It stands
for CUDA, whose backward pass asks the driver even for fake tensors.
"""

import contextlib
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from taet.attacks.noise import Source
from taet.data.loader import Batch
from taet.methods.base import Attack
from taet.settings import Run, Threat, Training
from taet.training.state import State, build_optimizer
from taet.training.step import training_step
from tests.methods.conftest import Case, Network

DEVICE, SAMPLES, CLASSES = "meta", 8, 10
THREAT = Threat(eps=8 / 255, step_size=4 / 255, steps=2, start="uniform")


@dataclass(frozen=True)
class OnDevice(Source):
    """Draws of the device itself, which has no generator of its own here."""

    def normal(self, like: Tensor) -> Tensor:
        return torch.randn_like(like)

    def uniform(self, like: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand_like(like)


@pytest.mark.sample(3)
def test_a_step_stays_on_its_device(
    case: Case, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrapped method's at perturbed weights."""
    # which does not know the device
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    method = case.build()
    model = network(CLASSES, head=method.task.head).to(DEVICE)
    training = Training(awp=0.01 if "base" in case.knobs else 0.0, lr=0.05)
    state = State(
        model,
        method.to(DEVICE),
        build_optimizer(model, training),
        Run(training=training),
        epoch=case.epoch,
    )
    x, y, index = torch.rand(SAMPLES, 1, 8, 8), torch.arange(SAMPLES), torch.arange(SAMPLES)
    attack = Attack(THREAT, OnDevice(torch.Generator()))
    for _ in range(2):
        loss = training_step(state, Batch(*(values.to(DEVICE) for values in (index, x, y))), attack)
        state.sums.add(loss, y.to(DEVICE), SAMPLES)
    assert {value.device.type for value in (loss.total, loss.logits, *loss.parts.values())} == {
        DEVICE
    }
    assert state.sums.counts.device.type == DEVICE
