"""Objectives against loops over their definitions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from taet import registry
from taet.attacks.objectives import OBJECTIVES, dlr, fooled, margin, natural_divergence, scaled
from taet.errors import UserError
from taet.losses import cross_entropy


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


@given(seed=st.integers(0, 10**6), shift=st.floats(-100, 100), factor=st.floats(0.01, 100), classes=st.integers(3, 12))
@settings(deadline=None)
def test_neither_shift_nor_scale_of_the_logits_changes_dlr(
    seed: int, shift: float, factor: float, classes: int
) -> None:
    logits, y = drawn(classes, seed)
    torch.testing.assert_close(dlr(factor * logits + shift, y), dlr(logits, y), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(margin(factor * logits + shift, y), factor * margin(logits, y), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("objective", [margin, dlr])
def test_one_logit_is_one_line(objective: Any) -> None:
    with pytest.raises(UserError, match=r"got (logits of shape \(3, 1\)|1 classes); allowed: .* or more"):
        objective(torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64))


def test_dlr_needs_three_classes_and_stays_finite_where_they_are_equal() -> None:
    with pytest.raises(UserError, match=r"objective dlr: got 2 classes; allowed: 3 or more \(use cw\)"):
        dlr(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))
    logits = torch.zeros(1, 4, requires_grad=True)
    value = dlr(logits, torch.zeros(1, dtype=torch.int64))
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert value.tolist() == [0]
    assert bool(gradient.isfinite().all())


def test_fooled_is_another_class_or_the_one_aimed_at() -> None:
    logits, y = torch.tensor([[1.0, 2.0], [2.0, 1.0]]), torch.tensor([0, 0])
    assert fooled(logits, y).tolist() == [True, False]
    assert fooled(logits, y, targeted=True).tolist() == [False, True]


def test_scaled_multiplies_the_logits_before_the_objective() -> None:
    logits, y = drawn(5)
    torch.testing.assert_close(scaled(cross_entropy, 10.0)(logits, y), cross_entropy(10 * logits, y))
    torch.testing.assert_close(scaled(margin, 10.0)(logits, y), 10 * margin(logits, y))


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


def test_half_precision_logits_are_compared_in_float32() -> None:
    logits, y = drawn(5)
    for objective in OBJECTIVES.values():
        assert objective(logits.half(), y).dtype == torch.float32


def test_every_attack_says_what_it_is_and_costs() -> None:
    entries = registry.entries("attacks")
    for name in ("fgsm", "pgd", "pgd-l2", "adaptive", "cw-linf", "cw-l2", "deepfool"):
        title, _, cost = entries[name].title.partition("; ")
        assert title, name
        assert "passes" in cost or cost == "cost as without", name
