"""Cross-entropy and its long-tailed relatives; each returns one value per sample, (N,), in at least float32.

Class counts are (C,) training images per class; a class without one counts as one image, which keeps every logarithm,
root and weight finite.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from taet.errors import UserError, unknown

FocalForm = Literal["softmax", "sigmoid"]


def full_precision(values: Tensor) -> Tensor:
    """Return `values` in float32, or in float64 if they are: losses are never computed in half precision."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def positive_counts(class_counts: Tensor) -> Tensor:
    """Return class counts (C,) as numbers of at least 1."""
    return full_precision(class_counts).clamp(min=1)


def log_prior(class_counts: Tensor) -> Tensor:
    """Logarithm of each class's share of the training set, log pi_c with pi_c = n_c / N -> (C,).

    Added to logits in training it is logit adjustment; taken from those of a model trained without it, argmax(z - tau
    log pi) is the post-hoc form. Do not do both. Source: Menon et al., ICLR 2021, arXiv:2007.07314, equations 9 and 10.
    """
    counts = positive_counts(class_counts)
    return (counts / counts.sum()).log()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, CE_i = logsumexp(z_i) - z_{i, y_i}: logits (N, C), labels (N,) int64 -> (N,), at least 0."""
    return functional.cross_entropy(full_precision(logits), labels, reduction="none")


def logit_adjustment(logits: Tensor, labels: Tensor, class_counts: Tensor, tau: float = 1.0) -> Tensor:
    """Logit-adjusted cross-entropy, CE(z + tau log pi, y) with pi_c = n_c / N -> (N,).

    Source: Menon et al., Long-tail learning via logit adjustment, ICLR 2021, arXiv:2007.07314, equation 10.
    """
    logits = full_precision(logits)
    return cross_entropy(logits + tau * log_prior(class_counts.to(logits.dtype)), labels)


def balanced_softmax(logits: Tensor, labels: Tensor, class_counts: Tensor) -> Tensor:
    """Balanced softmax, CE(z + log n, y) -> (N,).

    It equals `logit_adjustment` at tau = 1, since softmax ignores a shift. Source: Ren et al., Balanced Meta-Softmax,
    NeurIPS 2020, arXiv:2007.10740, equation 4; in adversarial training: Yue et al., AT-BSL, CVPR 2024,
    arXiv:2403.10073.
    """
    logits = full_precision(logits)
    return cross_entropy(logits + positive_counts(class_counts.to(logits.dtype)).log(), labels)


def focal(logits: Tensor, labels: Tensor, gamma: float = 2.0, form: FocalForm = "softmax") -> Tensor:
    """Focal loss: cross-entropy that counts less, the surer the model is of the label -> (N,), at least 0.

    softmax   (1 - p_y)^gamma CE                           on p = softmax(z)
    sigmoid   sum_c -(1 - p_c)^gamma log p_c               with p_y = sigmoid(z_y) and p_c = sigmoid(-z_c) elsewhere

    Gradients flow through the factor too. Source: Lin et al., ICCV 2017, arXiv:1708.02002, equation 4 (sigmoid); the
    softmax form is the one that long-tailed recognition compares with (Cao et al., NeurIPS 2019).
    """
    logits = full_precision(logits)
    if form == "softmax":
        loss = cross_entropy(logits, labels)
        # 1 - p_y; above 0, since the slope of x^gamma at 0 is infinite for gamma < 1.
        return (-torch.expm1(-loss)).clamp(min=torch.finfo(loss.dtype).tiny) ** gamma * loss
    if form == "sigmoid":
        toward = torch.where(is_label(logits, labels), logits, -logits)
        return -((gamma * functional.logsigmoid(-toward)).exp() * functional.logsigmoid(toward)).sum(1)
    raise unknown("focal form", form, get_args(FocalForm))


def effective_number_weights(class_counts: Tensor, beta: float) -> Tensor:
    """Weights by the effective number of images, w_c = (1 - beta) / (1 - beta^n_c), scaled to sum C -> (C,).

    beta in [0, 1): 0 weighs all classes alike. For n_c << 1 / (1 - beta) it is the inverse frequency in all but name:
    beside the rarest class, at the usual 0.9999, a class of 500 images has 1.03 times the weight that 1 / n would give
    it, and one of 5000, the largest of CIFAR-10-LT, 1.27 times. Raises UserError for another beta. Source: Cui et al.,
    Class-Balanced Loss Based on Effective Number of Samples, CVPR 2019, arXiv:1901.05555.
    """
    if not 0 <= beta < 1:
        raise UserError(f"beta: got {beta:g}; allowed: 0 up to, not including, 1")
    log_beta = math.log(beta) if beta else -math.inf
    # 1 - beta^n, which float32 would round away at beta near 1; the numerator cancels in the scaling.
    return sum_to_classes(1 / -torch.expm1(positive_counts(class_counts) * log_beta))


def class_balanced(logits: Tensor, labels: Tensor, class_counts: Tensor, beta: float = 0.9999) -> Tensor:
    """Class-balanced cross-entropy, w_y CE with w of `effective_number_weights` -> (N,), at least 0.

    The mean over the batch divides by its size, as the authors' code does; a weighted mean would divide by the sum of
    the batch's weights. For n_c << 1 / (1 - beta), about inverse frequency. Source: Cui et al., CVPR 2019,
    arXiv:1901.05555.
    """
    loss = cross_entropy(logits, labels)
    return effective_number_weights(class_counts.to(loss.dtype), beta)[labels] * loss


def ldam_margins(class_counts: Tensor, max_margin: float = 0.5) -> Tensor:
    """Label-distribution-aware margins, m_c = max_margin (min_k n_k / n_c)^(1/4) -> (C,): the rarest has max_margin.

    Source: Cao et al., LDAM-DRW, NeurIPS 2019, arXiv:1906.07413.
    """
    counts = positive_counts(class_counts)
    return max_margin * (counts.min() / counts) ** 0.25


def less_margin(logits: Tensor, labels: Tensor, margins: Tensor) -> Tensor:
    """Return logits (N, C) less the margin of the label, z_y - m_y, at the label alone; margins (C,)."""
    return torch.where(is_label(logits, labels), logits - margins, logits)


def ldam(cosines: Tensor, labels: Tensor, class_counts: Tensor, max_margin: float = 0.5, scale: float = 30.0) -> Tensor:
    """Label-distribution-aware margin loss, CE(scale (cos - m_y at the label), y) with m of `ldam_margins` -> (N,).

    cosines (N, C) in [-1, 1] come from normalised features and a normalised head without bias; on unbounded logits the
    margins lose their meaning. Source: Cao et al., LDAM-DRW, NeurIPS 2019, arXiv:1906.07413.
    """
    cosines = full_precision(cosines)
    margins = ldam_margins(class_counts.to(cosines.dtype), max_margin)
    return cross_entropy(scale * less_margin(cosines, labels, margins), labels)


def rebalancing_weights(class_counts: Tensor, predicted_counts: Tensor) -> Tensor:
    """REAT's weights of adversarial examples: the effective number of predictions of each class, inverted -> (C,).

    E_c = (1 - b_c^m_c) / (1 - b_c), b_c = (n_c - 1) / n_c, w_c = 1 / (E_c + 1e-5), scaled to sum C; m_c is how many
    adversarial training examples the model took for class c in the epoch before. A class that was never predicted
    takes almost all the weight. Source: Li et al., REAT, arXiv:2307.10205; the constant is that of its public code.
    """
    counts = positive_counts(class_counts)
    # m log b = m log(1 - 1/n), and 0 where m is, also at n = 1.
    log_power = torch.special.xlog1py(predicted_counts.to(counts.dtype), -1 / counts)
    return sum_to_classes(1 / (-torch.expm1(log_power) * counts + 1e-5))


def sum_to_classes(weights: Tensor) -> Tensor:
    """Class weights (C,) times what makes their sum C."""
    return weights * (len(weights) / weights.sum())


def is_label(logits: Tensor, labels: Tensor) -> Tensor:
    """Which of the logits (N, C) are those of the labels (N,), (N, C) bool; unlike one_hot it waits for no device."""
    return labels[:, None] == torch.arange(logits.shape[1], device=labels.device)
