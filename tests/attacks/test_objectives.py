"""Objectives against loops over their definitions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from taet import registry
from taet.attacks.objectives import fooled, margin, natural_divergence


def drawn(classes: int, seed: int = 0, count: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(count, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (count,), generator=generator)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_margin_is_the_best_other_logit_less_that_of_the_label(classes: int) -> None:
    logits, y = drawn(classes)
    rows = zip(logits.tolist(), y.tolist(), strict=True)
    expected = [max(value for k, value in enumerate(row) if k != label) - row[label] for row, label in rows]
    assert margin(logits, y).tolist() == pytest.approx(expected)
    assert torch.equal(margin(logits, y) > 0, fooled(logits, y))


def test_natural_divergence_compares_with_the_clean_prediction_made_once() -> None:
    calls = []

    def model(x: Tensor) -> Tensor:
        calls.append(len(x))
        return 2 * x

    x, _ = drawn(4)
    objective = natural_divergence(model, x.requires_grad_())
    logits, y = drawn(4, seed=1)
    expected = F.kl_div(logits.log_softmax(1), (2 * x).softmax(1), reduction="none").sum(1)
    torch.testing.assert_close(objective(logits, y), expected)
    assert not objective(logits, y).requires_grad
    assert calls == [12]


def test_every_attack_says_what_it_is_and_costs() -> None:
    for name, entry in registry.entries("attacks").items():
        title, _, cost = entry.title.partition("; ")
        assert title, name
        assert "pass" in cost or title == "the same in L2", name
