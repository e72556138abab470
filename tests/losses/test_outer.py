"""The run's outer loss: each name is its function, weights as asked, deferred where asked."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from taet import registry
from taet.losses import (
    balanced_softmax,
    class_balanced,
    cross_entropy,
    effective_number_weights,
    focal,
    ldam,
    logit_adjustment,
)
from taet.losses.outer import OuterLoss
from taet.settings import Outer

COUNTS = [400, 90, 25, 10, 3]
NUMBERS = torch.tensor(COUNTS)
NAMES = [name for name, loss in registry.entries("losses").items() if loss.path is None]
# None of them a default.
SETTINGS: dict[str, dict[str, Any]] = {
    "logit-adjustment": {"tau": 1.5},
    "focal": {"gamma": 1.3},
    "class-balanced": {"beta": 0.99},
    "ldam": {"max_margin": 0.4},
}
SCALE = 8.0

# What each name is without weights, on (logits, labels).
PLAIN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross-entropy": cross_entropy,
    "balanced-softmax": lambda z, y: balanced_softmax(z, y, NUMBERS),
    "logit-adjustment": lambda z, y: logit_adjustment(z, y, NUMBERS, 1.5),
    "focal": lambda z, y: focal(z, y, 1.3),
    "class-balanced": cross_entropy,
    "ldam": lambda z, y: ldam(z / SCALE, y, NUMBERS, 0.4, SCALE),
}


def outer(name: str, drw_from: int | None = None, **changes: Any) -> OuterLoss:
    own = SETTINGS.get(name, {}) | ({"beta": 0.99} if changes.get("drw") else {})
    return OuterLoss(Outer(name=name, **{**own, **changes}), COUNTS, SCALE, drw_from)  # type: ignore[arg-type]


def batch(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    logits = 3 * torch.randn(12, len(COUNTS), generator=generator, dtype=torch.float64)
    return logits.to(dtype), torch.randint(len(COUNTS), (12,), generator=generator)


def weighted(name: str) -> Tensor:
    """The weighted mean of the loss without weights, as a framework's weighted mean has it."""
    logits, labels = batch()
    weights = effective_number_weights(NUMBERS.double(), 0.99)[labels]
    return (weights * PLAIN[name](logits, labels)).sum() / weights.sum()


def close(value: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


def test_class_balanced_is_the_weighted_mean_or_divides_by_the_batch() -> None:
    close(outer("class-balanced")(*batch()).mean(), weighted("class-balanced"))
    close(
        outer("class-balanced", divide_by="batch")(*batch()),
        class_balanced(*batch(), NUMBERS, 0.99),
    )


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_deferred_to_an_epoch_whatever_the_loss(name: str) -> None:
    loss = outer(name, drw=True, drw_from=3)
    plain = PLAIN[name](*batch())
    # The order is that of a run that resumed: the weights follow from the epoch alone.
    for epoch in (0, 2, 3, 9, 1, 4):
        loss.enter(epoch)
        value = loss(*batch())
        if epoch < 3:
            close(value, plain)
        else:
            close(value.mean(), weighted(name))
    assert outer(name, drw=True, drw_from=0).weights[4] > 1


@pytest.mark.parametrize("name", ["cross-entropy", "class-balanced"])
def test_smoothing_without_a_prior_is_torchs(name: str) -> None:
    loss, (logits, labels) = outer(name, label_smoothing=0.3), batch()
    smoothed = torch.nn.functional.cross_entropy(
        logits, labels, reduction="none", label_smoothing=0.3
    )
    close(loss(logits, labels), loss.weighed(smoothed, labels))


@pytest.mark.parametrize(("name", "tau"), [("balanced-softmax", 1.0), ("logit-adjustment", 1.5)])
def test_smoothing_spreads_by_the_prior_that_the_loss_adds(name: str, tau: float) -> None:
    logits, labels = batch()
    prior = NUMBERS.double() ** tau / (NUMBERS.double() ** tau).sum()
    target = 0.7 * torch.nn.functional.one_hot(labels, len(COUNTS)).double() + 0.3 * prior
    shifted = logits + tau * NUMBERS.double().log()
    close(
        outer(name, label_smoothing=0.3)(logits, labels), -(target * shifted.log_softmax(1)).sum(1)
    )
