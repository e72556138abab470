"""Losses as pure functions, usable in anyone's training loop."""

from taet.losses.consistency import kl_divergence
from taet.losses.equalization import hierarchical_equalization
from taet.losses.long_tail import balanced_softmax, cross_entropy, logit_adjustment
from taet.losses.loss import Loss

__all__ = [
    "Loss",
    "balanced_softmax",
    "cross_entropy",
    "hierarchical_equalization",
    "kl_divergence",
    "logit_adjustment",
]
