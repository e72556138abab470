"""Losses that compare two predictions: golden numbers, loops, gradients and precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from taet.losses import boosted_cross_entropy, kl_divergence
from taet.losses.consistency import misclassification_kl, runner_up_penalty

# (target_logits, logits, labels) -> (N,)
LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "kl": lambda target, logits, _: kl_divergence(target, logits),
    "misclassification-kl": misclassification_kl,
    "boosted": lambda _, logits, labels: boosted_cross_entropy(logits, labels),
    "runner-up": lambda _, logits, labels: runner_up_penalty(logits, labels),
}


def batch(samples: int = 12, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    target, logits = 3 * torch.randn(2, samples, 5, generator=generator, dtype=torch.float64)
    return target.to(dtype), logits.to(dtype), torch.randint(5, (samples,), generator=generator)


def test_trades_is_golden(golden: Any) -> None:
    number = golden("trades_outer_beta6")
    i = number.inputs
    divergence = kl_divergence(i["logits_nat"], i["logits_adv"]).mean()
    number.check(divergence, "kl_batchmean")
    natural = torch.nn.functional.cross_entropy(i["logits_nat"], i["labels"])
    number.check(natural, "ce_nat")
    number.check(natural + i["beta"] * divergence, "loss")


@pytest.mark.parametrize("key", ["mart_outer_beta5", "mart_outer_beta6"])
def test_mart_is_golden(key: str, golden: Any) -> None:
    number = golden(key)
    i = number.inputs
    boosted = boosted_cross_entropy(i["logits_adv"], i["labels"]).mean()
    divergence = misclassification_kl(i["logits_nat"], i["logits_adv"], i["labels"]).mean()
    number.check(boosted, "bce")
    number.check(divergence, "weighted_kl")
    number.check(boosted + i["beta"] * divergence, "loss")


def test_losses_agree_with_loops_over_samples_and_classes() -> None:
    target, logits, labels = batch()
    found = {name: loss(target, logits, labels) for name, loss in LOSSES.items()}
    for i, y in enumerate(labels.tolist()):
        p, q = ([math.exp(v) / sum(map(math.exp, z)) for v in z] for z in (target[i].tolist(), logits[i].tolist()))
        penalty = -math.log(1.0001 - max(v for c, v in enumerate(q) if c != y) + 1e-12)
        expected = {
            "kl": sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)),
            "misclassification-kl": sum(a * (math.log(a) - math.log(b + 1e-12)) for a, b in zip(p, q, strict=True))
            * (1.0000001 - p[y]),
            "boosted": -math.log(q[y]) + penalty,
            "runner-up": penalty,
        }
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            assert found[name][i].item() == pytest.approx(value, rel=1e-9, abs=1e-12), name


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences_in_both_arguments(name: str) -> None:
    target, logits, labels = batch(samples=3)
    if name in ("kl", "misclassification-kl"):
        target.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda t, z: LOSSES[name](t, z, labels), (target, logits.requires_grad_()), check_undefined_grad=False
    )
