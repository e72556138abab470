"""Losses as pure functions, for any training loop, and the label losses of runs as modules.

Logits are (N, C), labels (N,) int64, class counts (C,) training images per class. Losses return one
value per sample, (N,), unless their docstring says otherwise: take the mean for training. Training
uses the same code: `balanced_softmax` is the module `BalancedSoftmax`, which `--outer` names.
"""

from taet.losses.balanced_softmax import BalancedSoftmax, balanced_softmax
from taet.losses.class_balanced import ClassBalanced, class_balanced
from taet.losses.consistency import boosted_cross_entropy, kl_divergence
from taet.losses.cross_entropy import CrossEntropy
from taet.losses.equalization import Loss, hierarchical_equalization
from taet.losses.focal import Focal, focal
from taet.losses.label_loss import LabelLoss
from taet.losses.ldam import Ldam, ldam
from taet.losses.logit_adjustment import LogitAdjustment, logit_adjustment
from taet.losses.long_tail import cross_entropy, effective_number_weights, rebalancing_weights
from taet.losses.outer import find
from taet.losses.tail_margin import tail_margin

__all__ = [
    "BalancedSoftmax",
    "ClassBalanced",
    "CrossEntropy",
    "Focal",
    "LabelLoss",
    "Ldam",
    "LogitAdjustment",
    "Loss",
    "balanced_softmax",
    "boosted_cross_entropy",
    "class_balanced",
    "cross_entropy",
    "effective_number_weights",
    "find",
    "focal",
    "hierarchical_equalization",
    "kl_divergence",
    "ldam",
    "logit_adjustment",
    "rebalancing_weights",
    "tail_margin",
]
