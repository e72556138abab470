"""FGSM: one signed step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from taet.attacks import fgsm
from taet.attacks.objectives import margin
from taet.losses import cross_entropy


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()


def images() -> tuple[Tensor, Tensor]:
    return torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(6) % 5


@pytest.mark.parametrize("objective", [cross_entropy, margin])
@pytest.mark.parametrize("targeted", [False, True])
def test_it_is_one_signed_step_up_or_down_to_the_target(objective: Any, targeted: bool) -> None:
    model, (x, y) = network(), images()
    leaf = x.clone().requires_grad_()
    objective(model(leaf), y).sum().backward()
    assert leaf.grad is not None
    step = (-0.05 if targeted else 0.05) * leaf.grad.sign()
    x_adv = fgsm(model, x, y, eps=0.05, objective=objective, targeted=targeted)
    torch.testing.assert_close(x_adv, (x + step).clamp(0, 1))


def test_a_radius_per_sample_is_as_many_calls() -> None:
    model, (x, y) = network(), images()
    eps = torch.tensor([0.0, 0.01, 0.02, 0.03, 0.04, 0.5])
    x_adv = fgsm(model, x, y, eps=eps)
    for i in range(6):
        torch.testing.assert_close(x_adv[i : i + 1], fgsm(model, x[i : i + 1], y[i : i + 1], eps=float(eps[i])))
