"""The optimiser and the learning rate's way over a run."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from taet import models, protocols
from taet.errors import UserError
from taet.models import CosineHead, Head
from taet.settings import Run, Training, override
from taet.training.optimizer import build_optimizer
from taet.training.schedule import learning_rate


def rates(run: Run, steps: int) -> list[float]:
    return [learning_rate(run, epoch, step, steps) for epoch in range(run.training.epochs) for step in range(steps)]


def recipe(**changes: object) -> Run:
    return override(protocols.start("taet", "at", "vit"), {f"training.{key}": value for key, value in changes.items()})


def test_the_rate_rises_evenly_to_the_whole_and_falls_along_half_a_cosine() -> None:
    found = rates(recipe(epochs=10, warmup=0.2, lr=0.5), steps=5)
    assert found[:10] == pytest.approx([0.05 * step for step in range(1, 11)])
    assert found[10] == 0.5
    assert found[30] == pytest.approx(0.25)  # half of the 40 steps after the rise
    assert found[49] == pytest.approx(0.25 * (1 + math.cos(math.pi * 39 / 40)))
    assert found[10:] == sorted(found[10:], reverse=True)


@pytest.mark.parametrize("warmup", [0.0, 0.3, 0.45])
def test_one_cycle_is_torchs(warmup: float) -> None:
    found = rates(recipe(epochs=4, warmup=warmup, decay="one-cycle", lr=0.2), steps=25)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.2)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.2, total_steps=100, pct_start=warmup or 0.3, cycle_momentum=False
    )
    expected = []
    for _ in range(100):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        cycle.step() if len(expected) < 100 else None
    assert found == pytest.approx(expected, rel=1e-12)
    assert max(found) == pytest.approx(0.2)


def test_without_a_rise_the_rate_is_that_of_the_papers_to_the_last_bit() -> None:
    run = protocols.taet("at")
    assert [learning_rate(run, epoch, 7, 100) for epoch in (0, 74, 75, 90)] == [0.1, 0.1, 0.1 * 0.1, 0.1 * 0.1**2]


@pytest.mark.parametrize("name", ["resnet8", "vit-mini-p4"])
@pytest.mark.parametrize("head", [Head(), Head("cosine")], ids=["linear", "cosine"])
def test_adamw_decays_the_weights_of_layers_alone(name: str, head: Head) -> None:
    """No bias, no gain of a normalisation, and of a transformer neither class token nor position embedding."""
    model = models.build(name, 3, (3, 8, 8), head=head)
    optimizer = build_optimizer(model, Training(optimizer="adamw", lr=1e-3, weight_decay=0.05))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    layers = nn.Conv2d | nn.Linear | nn.MultiheadAttention | CosineHead
    expected = {
        id(parameter): 0.05 if isinstance(module, layers) and not part.endswith("bias") else 0.0
        for module in model.modules()
        for part, parameter in module.named_parameters(recurse=False)
    }
    assert decay == expected
    if name == "vit-mini-p4":
        assert decay[id(model.body.class_token)] == decay[id(model.body.encoder.pos_embedding)] == 0.0


def test_adamw_takes_the_published_step() -> None:
    """The first step of AdamW is the sign of the gradient, after the decay: w (1 - lr wd) - lr g / (|g| + eps)."""
    layer = nn.Linear(2, 1, bias=False, dtype=torch.float64)
    nn.init.constant_(layer.weight, 2.0)
    optimizer = build_optimizer(layer, Training(optimizer="adamw", lr=0.1, weight_decay=0.5))
    layer.weight.grad = torch.tensor([[3.0, -0.01]], dtype=torch.float64)
    optimizer.step()
    expected = torch.tensor([[2 * 0.95 - 0.1, 2 * 0.95 + 0.1]], dtype=torch.float64)
    torch.testing.assert_close(layer.weight.detach(), expected, rtol=0, atol=1e-6)


def test_what_does_not_go_with_adamw_is_refused() -> None:
    with pytest.raises(UserError, match=r"momentum: got 0\.5; allowed: with optimizer sgd only"):
        Training(optimizer="adamw", momentum=0.5)
    with pytest.raises(UserError, match=r"warmup: got 1; allowed: 0 up to, not including, 1"):
        Training(warmup=1.0)
    with pytest.raises(UserError, match=r"unknown recipe 'vti'.*did you mean 'vit'"):
        protocols.start("taet", "at", "vti")
