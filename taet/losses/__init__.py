"""Losses as pure functions, usable in anyone's training loop."""

from taet.losses.consistency import boosted_cross_entropy, kl_divergence
from taet.losses.equalization import hierarchical_equalization
from taet.losses.long_tail import (
    balanced_softmax,
    class_balanced,
    cross_entropy,
    effective_number_weights,
    focal,
    ldam,
    logit_adjustment,
    rebalancing_weights,
)
from taet.losses.loss import Loss
from taet.losses.tail_margin import tail_margin

__all__ = [
    "Loss",
    "balanced_softmax",
    "boosted_cross_entropy",
    "class_balanced",
    "cross_entropy",
    "effective_number_weights",
    "focal",
    "hierarchical_equalization",
    "kl_divergence",
    "ldam",
    "logit_adjustment",
    "rebalancing_weights",
    "tail_margin",
]
