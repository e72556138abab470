"""Losses as pure functions. They need nothing else from this package, so they work in any training loop.

Logits are (N, C), labels (N,) int64, class counts (C,) training images per class. Losses return one value per sample,
(N,), unless their docstring says otherwise: take the mean for training.
"""

from taet.losses.consistency import boosted_cross_entropy, kl_divergence
from taet.losses.equalization import Loss, hierarchical_equalization
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
from taet.losses.tail_margin import tail_margin

__all__ = ["Loss", "balanced_softmax", "boosted_cross_entropy", "class_balanced", "cross_entropy"]
__all__ += ["effective_number_weights", "focal", "hierarchical_equalization", "kl_divergence", "ldam"]
__all__ += ["logit_adjustment", "rebalancing_weights", "tail_margin"]
