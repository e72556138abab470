"""Objectives against loops over their definitions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from taet import registry
from taet.attacks.objectives import dlr, fooled, margin, natural_divergence
from taet.errors import UserError


def drawn(classes: int, seed: int = 0, count: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(count, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (count,), generator=generator)


def naive_margin(logits: list[float], label: int) -> float:
    return max(value for k, value in enumerate(logits) if k != label) - logits[label]


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_margin_is_the_best_other_logit_less_that_of_the_label(classes: int) -> None:
    logits, y = drawn(classes)
    expected = [naive_margin(row, label) for row, label in zip(logits.tolist(), y.tolist(), strict=True)]
    assert margin(logits, y).tolist() == pytest.approx(expected)
    assert torch.equal(margin(logits, y) > 0, fooled(logits, y))


@pytest.mark.parametrize("classes", [3, 10])
def test_dlr_is_the_margin_over_the_spread_of_the_three_largest(classes: int) -> None:
    logits, y = drawn(classes)
    for value, row, label in zip(dlr(logits, y).tolist(), logits.tolist(), y.tolist(), strict=True):
        first, _, third, *_ = sorted(row, reverse=True)
        assert value == pytest.approx(naive_margin(row, label) / (first - third))


def test_dlr_needs_three_classes_and_stays_finite_where_they_are_equal() -> None:
    with pytest.raises(UserError, match=r"objective dlr: got 2 classes; allowed: 3 or more \(use cw\)"):
        dlr(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))
    logits = torch.zeros(1, 4, requires_grad=True)
    value = dlr(logits, torch.zeros(1, dtype=torch.int64))
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert value.tolist() == [0]
    assert bool(gradient.isfinite().all())


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
    entries = registry.entries("attacks")
    for name in ("fgsm", "pgd", "pgd-l2", "adaptive", "cw-linf", "cw-l2", "deepfool"):
        title, _, cost = entries[name].title.partition("; ")
        assert title, name
        assert "passes" in cost or cost == "cost as without", name
