"""Cross-entropy and its long-tailed relatives: golden numbers, gradients, symmetries and precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from taet.errors import UserError
from taet.losses import (
    balanced_softmax,
    class_balanced,
    cross_entropy,
    effective_number_weights,
    focal,
    ldam,
    logit_adjustment,
    rebalancing_weights,
)
from taet.losses.long_tail import ldam_margins

COUNTS = torch.tensor([400.0, 90.0, 25.0, 10.0, 3.0])

# (logits, labels, class_counts) -> (N,), every per-sample loss of the file.
LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "cross_entropy": lambda z, y, _: cross_entropy(z, y),
    "balanced_softmax": balanced_softmax,
    "logit_adjustment": lambda z, y, n: logit_adjustment(z, y, n, 0.7),
    "focal-softmax": lambda z, y, _: focal(z, y),
    "focal-softmax-half": lambda z, y, _: focal(z, y, 0.5),
    "focal-sigmoid": lambda z, y, _: focal(z, y, form="sigmoid"),
    "focal-sigmoid-half": lambda z, y, _: focal(z, y, 0.5, "sigmoid"),
    "class_balanced": class_balanced,
    "ldam": ldam,
}

# What each golden number is, from its inputs i; the key may end in /field of what is expected.
NUMBERS: dict[str, Callable[[dict[str, Any]], Tensor]] = {
    "at_ce_mean": lambda i: cross_entropy(i["logits"], i["labels"]).mean(),
    "balanced_softmax": lambda i: balanced_softmax(i["logits"], i["labels"], i["class_counts"]).mean(),
    "logit_adjust_train_tau1.0": lambda i: logit_adjustment(**i).mean(),
    "logit_adjust_train_tau1.5": lambda i: logit_adjustment(**i).mean(),
    "focal_softmax_gamma2": lambda i: focal(**i).mean(),
    "focal_sigmoid_gamma2": lambda i: focal(**i, form="sigmoid").mean(),
    "cb_weights_beta0.9999": lambda i: effective_number_weights(**i),
    "cb_softmax/divide_by_B": lambda i: class_balanced(**i).mean(),
    "cb_softmax/divide_by_sum_w": lambda i: (
        class_balanced(**i).sum() / effective_number_weights(i["class_counts"], i["beta"])[i["labels"]].sum()
    ),
    "cb_focal_sigmoid_beta0.9999_gamma2": lambda i: (
        effective_number_weights(i["class_counts"], i["beta"])[i["labels"]]
        * focal(i["logits"], i["labels"], i["gamma"], "sigmoid")
    ).mean(),
    "ldam_s30_m0.5/margins": lambda i: ldam_margins(i["class_counts"], i["max_m"]),
    "ldam_s30_m0.5/loss": lambda i: ldam(i["cosines"], i["labels"], i["class_counts"], i["max_m"], i["s"]).mean(),
    "reat_rbl/weights": lambda i: rebalancing_weights(i["class_counts"], i["adv_pred_counts"]),
    "reat_rbl/loss": lambda i: rebalanced(**i),
    "reat_rbl_zero_count/weights": lambda i: rebalancing_weights(i["class_counts"], i["adv_pred_counts"]),
}


def rebalanced(logits: Tensor, labels: Tensor, class_counts: Tensor, adv_pred_counts: Tensor) -> Tensor:
    weights = rebalancing_weights(class_counts, adv_pred_counts)[labels]
    return (weights * cross_entropy(logits, labels)).sum() / weights.sum()


def batch(dtype: torch.dtype = torch.float64, samples: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    logits = 3 * torch.randn(samples, len(COUNTS), generator=generator, dtype=torch.float64)
    return logits.to(dtype), torch.randint(len(COUNTS), (samples,), generator=generator)


@pytest.mark.parametrize("key", NUMBERS)
def test_golden(key: str, golden: Any) -> None:
    name, _, field = key.partition("/")
    number = golden(name)
    number.check(NUMBERS[key](number.inputs), field or None)


def test_losses_agree_with_loops_over_samples_and_classes() -> None:
    logits, labels = batch()
    found = {name: loss(logits, labels, COUNTS) for name, loss in LOSSES.items()}
    n = COUNTS.tolist()
    weights = [1e-4 / (1 - 0.9999**c) for c in n]
    for i, (z, y) in enumerate(zip(logits.tolist(), labels.tolist(), strict=True)):
        p_y = math.exp(z[y]) / sum(map(math.exp, z))
        binary = [1 / (1 + math.exp(-v if c == y else v)) for c, v in enumerate(z)]
        margins = [0.5 * c**-0.25 / 3**-0.25 for c in n]
        moved = [30 * (v - margins[c] * (c == y)) for c, v in enumerate(z)]
        expected = {
            "cross_entropy": -math.log(p_y),
            "balanced_softmax": -math.log(
                n[y] * math.exp(z[y]) / sum(c * math.exp(v) for c, v in zip(n, z, strict=True))
            ),
            "logit_adjustment": -math.log(
                n[y] ** 0.7 * math.exp(z[y]) / sum(c**0.7 * math.exp(v) for c, v in zip(n, z, strict=True))
            ),
            "focal-softmax": -((1 - p_y) ** 2) * math.log(p_y),
            "focal-softmax-half": -((1 - p_y) ** 0.5) * math.log(p_y),
            "focal-sigmoid": sum(-((1 - q) ** 2) * math.log(q) for q in binary),
            "focal-sigmoid-half": sum(-((1 - q) ** 0.5) * math.log(q) for q in binary),
            "class_balanced": -5 * weights[y] / sum(weights) * math.log(p_y),
            "ldam": math.log(sum(math.exp(v - moved[y]) for v in moved)),
        }
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            assert found[name][i].item() == pytest.approx(value, rel=1e-8, abs=1e-12), name


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


@pytest.mark.parametrize("name", ["balanced_softmax", "logit_adjustment", "class_balanced", "ldam"])
def test_a_class_without_a_training_image_counts_as_one(name: str) -> None:
    logits, labels = torch.zeros(2, 3), torch.tensor([2, 0])
    none, one = (LOSSES[name](logits, labels, torch.tensor([4, 2, last])) for last in (0, 1))
    assert torch.isfinite(none).all()
    torch.testing.assert_close(none, one)


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(UserError, match=r"unknown focal form 'soft'.*did you mean 'softmax'\?"):
        focal(torch.zeros(2, 3), torch.tensor([0, 1]), form="soft")  # type: ignore[arg-type]
