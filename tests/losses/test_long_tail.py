"""Cross-entropy, its long-tailed relatives and the divergence: golden numbers, gradients, symmetries and precision."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from taet.errors import UserError
from taet.losses import balanced_softmax, cross_entropy, kl_divergence, logit_adjustment
from taet.losses.long_tail import OUTER_LOSSES, outer_loss

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "losses.json").read_text())
COUNTS = torch.tensor([400.0, 90.0, 25.0, 10.0, 3.0])

# The mean that each golden number is, from the tensors of its inputs.
MEANS: dict[str, Callable[..., Tensor]] = {
    "at_ce_mean": lambda i: cross_entropy(i["logits"], i["labels"]).mean(),
    "balanced_softmax": lambda i: balanced_softmax(i["logits"], i["labels"], i["class_counts"]).mean(),
    "logit_adjust_train_tau1.0": lambda i: logit_adjustment(i["logits"], i["labels"], i["class_counts"], 1.0).mean(),
    "logit_adjust_train_tau1.5": lambda i: logit_adjustment(i["logits"], i["labels"], i["class_counts"], 1.5).mean(),
    "trades_outer_beta6": lambda i: kl_divergence(i["logits_nat"], i["logits_adv"]).mean(),
}


def golden_inputs(key: str, dtype: torch.dtype) -> dict[str, Any]:
    """Inputs of a golden number: labels as int64, lists of numbers as `dtype`."""
    return {
        name: torch.tensor(value, dtype=torch.int64 if name == "labels" else dtype)
        if isinstance(value, list)
        else value
        for name, value in GOLDEN[key]["inputs"].items()
    }


def batch(dtype: torch.dtype = torch.float64, samples: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    logits = 3 * torch.randn(samples, len(COUNTS), generator=generator, dtype=torch.float64)
    return logits.to(dtype), torch.randint(len(COUNTS), (samples,), generator=generator)


def losses_on(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Every per-sample loss of this folder on one batch."""
    return {
        "cross_entropy": cross_entropy(logits, labels),
        "balanced_softmax": balanced_softmax(logits, labels, COUNTS),
        "logit_adjustment": logit_adjustment(logits, labels, COUNTS, 0.7),
        "kl_divergence": kl_divergence(logits.flip(0), logits),
    }


@pytest.mark.parametrize("key", MEANS)
def test_losses_are_golden(key: str) -> None:
    expected = GOLDEN[key]["expected"]
    expected = expected["kl_batchmean"] if isinstance(expected, dict) else expected
    exact = MEANS[key](golden_inputs(key, torch.float64))
    assert exact.dtype == torch.float64
    assert exact.item() == pytest.approx(expected, rel=0, abs=GOLDEN[key]["tolerance"])
    single = MEANS[key](golden_inputs(key, torch.float32))
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(expected, rel=1e-5)


def test_losses_agree_with_loops_over_samples_and_classes() -> None:
    logits, labels = batch()
    counts = COUNTS.tolist()
    for i, (z, y) in enumerate(zip(logits.tolist(), labels.tolist(), strict=True)):
        ce = math.log(sum(map(math.exp, z))) - z[y]
        assert cross_entropy(logits, labels)[i].item() == pytest.approx(ce, rel=1e-12)
        shifted = math.log(sum(n * math.exp(v) for n, v in zip(counts, z, strict=True))) - z[y] - math.log(counts[y])
        assert balanced_softmax(logits, labels, COUNTS)[i].item() == pytest.approx(shifted, rel=1e-12)
        p, q = ([math.exp(v) / sum(map(math.exp, row)) for v in row] for row in (logits.flip(0)[i].tolist(), z))
        kl = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        assert kl_divergence(logits.flip(0), logits)[i].item() == pytest.approx(kl, rel=1e-9, abs=1e-12)


def test_balanced_softmax_is_logit_adjustment_with_tau_1_and_tau_0_is_cross_entropy() -> None:
    logits, labels = batch()
    torch.testing.assert_close(
        balanced_softmax(logits, labels, COUNTS), logit_adjustment(logits, labels, COUNTS), rtol=1e-12, atol=1e-12
    )
    adjusted = logit_adjustment(logits, labels, COUNTS, tau=0.0)
    torch.testing.assert_close(adjusted, cross_entropy(logits, labels), rtol=1e-12, atol=1e-12)
    # The prior makes a rare class harder and a frequent one easier: that is the point of both losses.
    rare, frequent = torch.full((1,), 4), torch.full((1,), 0)
    even = torch.zeros(1, 5, dtype=torch.float64)
    assert balanced_softmax(even, rare, COUNTS) > cross_entropy(even, rare)
    assert balanced_softmax(even, frequent, COUNTS) < cross_entropy(even, frequent)


def test_divergence_is_zero_between_equals_positive_otherwise_and_not_symmetric() -> None:
    logits, _ = batch()
    other = logits.flip(0)
    torch.testing.assert_close(
        kl_divergence(logits, logits + 7), torch.zeros(12, dtype=torch.float64), rtol=0, atol=1e-12
    )
    assert (kl_divergence(other, logits) > 0).all()
    assert not torch.allclose(kl_divergence(other, logits), kl_divergence(logits, other))


@pytest.mark.parametrize("name", ["cross_entropy", "balanced_softmax", "logit_adjustment", "kl_divergence"])
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    logits, labels = batch(samples=4)
    assert torch.autograd.gradcheck(lambda z: losses_on(z, labels)[name], (logits.requires_grad_(),))


def test_divergence_has_a_gradient_in_both_arguments() -> None:
    target, logits = (batch()[0] + shift for shift in (0, torch.arange(5.0)))
    assert torch.autograd.gradcheck(kl_divergence, (target[:3].requires_grad_(), logits[:3].requires_grad_()))


def test_classes_may_be_renumbered() -> None:
    logits, labels = batch()
    order = torch.tensor([3, 0, 4, 1, 2])  # new class j is old class order[j]
    renumbered = balanced_softmax(logits[:, order], order.argsort()[labels], COUNTS[order])
    torch.testing.assert_close(renumbered, balanced_softmax(logits, labels, COUNTS), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_logits_give_the_loss_of_the_same_logits_in_float32(half: torch.dtype) -> None:
    logits, labels = batch(half)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reduced = losses_on(logits, labels)
    for name, expected in losses_on(logits.float(), labels).items():
        assert reduced[name].dtype == torch.float32, name
        assert torch.equal(reduced[name], expected), name


def test_huge_logits_stay_finite() -> None:
    logits = torch.tensor([[3e4, -3e4, 0.0, 0.0, 0.0]], requires_grad=True)
    for name, values in losses_on(logits, torch.tensor([1])).items():
        (gradient,) = torch.autograd.grad(values.sum(), logits)
        assert torch.isfinite(values).all(), name
        assert torch.isfinite(gradient).all(), name


def test_outer_losses_go_by_name() -> None:
    logits, labels = batch()
    for name, expected in (("cross-entropy", "cross_entropy"), ("balanced-softmax", "balanced_softmax")):
        assert torch.equal(outer_loss(name)(logits, labels, COUNTS), losses_on(logits, labels)[expected])
    adjusted = logit_adjustment(logits, labels, COUNTS, tau=1.0)
    assert torch.equal(outer_loss("logit-adjustment")(logits, labels, COUNTS), adjusted)
    for loss in OUTER_LOSSES.values():
        assert loss(logits, labels, COUNTS).shape == (len(labels),)
    with pytest.raises(UserError, match=r"unknown outer loss 'balanced'.*did you mean 'balanced-softmax'\?"):
        outer_loss("balanced")


@pytest.mark.parametrize("loss", [balanced_softmax, logit_adjustment])
def test_a_class_without_a_training_image_counts_as_one(loss: Any) -> None:
    logits, labels = torch.zeros(2, 3), torch.tensor([2, 0])
    torch.testing.assert_close(
        loss(logits, labels, torch.tensor([4, 2, 0])), loss(logits, labels, torch.tensor([4, 2, 1]))
    )
