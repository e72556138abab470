"""The model as attacks see it: whose gradients they are given, and who judges."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from taet.attacks import pgd
from taet.attacks.autoattack import run_parts
from taet.attacks.counted import Counted


class Linear(nn.Module):
    """Logits (x . w, 0); the sign of w says which way is up."""

    def __init__(self, sign: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(sign * torch.ones(12))

    def forward(self, x: Tensor) -> Tensor:
        logit = (x - 0.5).flatten(1) @ self.weight
        return torch.stack([logit, torch.zeros_like(logit)], 1)


@pytest.mark.full
def test_an_example_that_breaks_the_view_alone_breaks_nothing() -> None:
    """The view falls to every attack, the model to none: what counts is the model."""
    x, y = torch.full((3, 3, 2, 2), 0.6), torch.zeros(3, dtype=torch.int64)

    class Steady(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([1.0, 0.0]).expand(len(x), 2) + 0 * x.flatten(1)[:, :2]

    view = Linear(1.0)
    x_adv = pgd(view, x, y, eps=0.2, steps=2, step_size=0.2)
    assert (view(x_adv).argmax(1) == 1).all()
    outcome = run_parts(Counted(Steady(), view), x, y, eps=0.2, version="10")
    assert outcome.correct.all()
    assert not run_parts(Counted(view), x, y, eps=0.2, version="10").correct.any()
