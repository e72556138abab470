"""Cross-entropy and its long-tailed relatives; each returns one value per sample, (N,), in at least float32."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from taet.errors import unknown


def full_precision(values: Tensor) -> Tensor:
    """Return `values` in float32, or in float64 if they are: losses are never computed in half precision."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, CE_i = logsumexp(z_i) - z_{i, y_i}: logits (N, C), labels (N,) int64 -> (N,), at least 0."""
    return functional.cross_entropy(full_precision(logits), labels, reduction="none")


def _positive(class_counts: Tensor, logits: Tensor) -> Tensor:
    """Counts in the precision of the loss; 0 becomes 1, whose logarithm is finite."""
    return class_counts.to(full_precision(logits).dtype).clamp(min=1)


def logit_adjustment(logits: Tensor, labels: Tensor, class_counts: Tensor, tau: float = 1.0) -> Tensor:
    """Logit-adjusted cross-entropy, CE(z + tau log pi, y) with pi_c = n_c / N -> (N,).

    A class without a training image counts as one. Source: Menon et al., Long-tail learning via logit adjustment, ICLR
    2021, arXiv:2007.07314, equation 10.
    """
    counts = _positive(class_counts, logits)
    return cross_entropy(full_precision(logits) + tau * (counts / counts.sum()).log(), labels)


def balanced_softmax(logits: Tensor, labels: Tensor, class_counts: Tensor) -> Tensor:
    """Balanced softmax, CE(z + log n, y) -> (N,).

    It equals `logit_adjustment` at tau = 1, since softmax ignores a shift. A class without a training image counts as
    one. Source: Ren et al., Balanced Meta-Softmax, NeurIPS 2020, arXiv:2007.10740, equation 4; in adversarial training:
    Yue et al., AT-BSL, CVPR 2024, arXiv:2403.10073.
    """
    counts = _positive(class_counts, logits)
    return cross_entropy(full_precision(logits) + counts.log(), labels)


OuterLoss = Callable[[Tensor, Tensor, Tensor], Tensor]

OUTER_LOSSES: dict[str, OuterLoss] = {
    "cross-entropy": lambda logits, labels, _: cross_entropy(logits, labels),
    "balanced-softmax": balanced_softmax,
    "logit-adjustment": logit_adjustment,
}


def outer_loss(name: str) -> OuterLoss:
    """Return the loss (logits, labels, class_counts) -> (N,) that `--outer` names."""
    if name not in OUTER_LOSSES:
        raise unknown("outer loss", name, OUTER_LOSSES)
    return OUTER_LOSSES[name]
