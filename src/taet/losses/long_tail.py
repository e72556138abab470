"""Cross-entropy, class weights, and what losses for long-tailed data are made of.

Class counts are (C,) training images per class. A class without images counts as one image, so that
all is finite.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from taet.distributed import global_sum
from taet.errors import UserError
from taet.metrics.counts_in_order import in_class_order

# the label that cross-entropy skips: PyTorch's default, -100, could be a user's mistake
NO_CLASS = -(2**63)


def full_precision(values: Tensor) -> Tensor:
    """Return `values` in float32, or unchanged if they are float64.

    Losses are never computed in half precision.
    """
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _as_tensor(class_counts: Any) -> Tensor:
    """Return class counts as a tensor; those of pandas may be in another order than the classes."""
    if isinstance(class_counts, Tensor):
        return class_counts
    return torch.as_tensor(in_class_order(class_counts))


def positive_counts(class_counts: Tensor) -> Tensor:
    """Return class counts (C,) as floats, with 1 in place of 0.

    Expected counts may lie between 0 and 1.
    """
    counts = full_precision(_as_tensor(class_counts))
    return torch.where(counts > 0, counts, 1)


def log_prior(class_counts: Tensor) -> Tensor:
    """Logarithm of each class's share of the training set, log pi_c with pi_c = n_c / N -> (C,).

    Logit adjustment adds it to the logits in training. The post-hoc form subtracts it from the
    logits of a model that was trained without it, argmax(z - tau log pi). Do not do both. Source:
    Menon et al., ICLR 2021, arXiv:2007.07314, equations 9 and 10.
    """
    counts = positive_counts(class_counts)
    return (counts / counts.sum()).log()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy per sample, in float32 or float64.

    CE_i = logsumexp(z_i) - z_{i, y_i}

    logits (N, C), labels (N,) int64 -> (N,), at least 0. Raises UserError for labels of another
    type or shape and, on the CPU, for a label outside the C classes; on a GPU such a label ends in
    an assertion.

    Example:
        >>> import torch
        >>> from taet.losses import cross_entropy
        >>> logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        >>> cross_entropy(logits, torch.tensor([0, 2]))
        tensor([0.2395, 1.5514])
    """
    check_labels(logits, labels)
    try:
        return functional.cross_entropy(
            full_precision(logits), labels, reduction="none", ignore_index=NO_CLASS
        )
    except IndexError:
        raise out_of_range(labels, logits.shape[1]) from None


def check_labels(logits: Tensor, labels: Tensor) -> None:
    """Raise a `UserError` unless there is one int64 label for each row of logits.

    The values of the labels are not read.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or labels.dtype != torch.int64:
        got = f"{labels.dtype} {tuple(labels.shape)} with values {tuple(logits.shape)}"
        raise UserError(f"labels: got {got}; allowed: torch.int64 (N,) with (N, C)")


def counts_of(class_counts: Tensor, logits: Tensor) -> Tensor:
    """Return class counts in the type of the logits.

    It is a `UserError` if there is not one for each logit.
    """
    class_counts = _as_tensor(class_counts)
    if class_counts.shape != logits.shape[1:]:
        got = f"shape {tuple(class_counts.shape)} with logits {tuple(logits.shape)}"
        raise UserError(f"class counts: got {got}; allowed: ({logits.shape[-1]},), one per logit")
    return class_counts.to(logits)


def out_of_range(labels: Tensor, classes: int) -> UserError:
    """Return the error for labels outside the classes."""
    wrong = labels[(labels < 0) | (labels >= classes)]
    return UserError(f"labels: got {int(wrong[0])}; allowed: 0 to {classes - 1}, one per logit")


def effective_number_weights(class_counts: Tensor, beta: float) -> Tensor:
    """Class weights by the effective number of images.

    w_c = (1 - beta) / (1 - beta^n_c), scaled to sum C

    class_counts (C,), beta in [0, 1) -> (C,). With beta = 0 all classes weigh the same. For n_c <<
    1 / (1 - beta) the weights are close to the inverse frequency: relative to the rarest class and
    at the usual 0.9999, a class of 500 images has 1.02 times the weight that 1 / n gives, and one
    of 5000, the largest of CIFAR-10-LT, 1.27 times. Raises UserError for another beta. Source: Cui
    et al., Class-Balanced Loss, CVPR 2019, arXiv:1901.05555.

    Example:
        >>> import torch
        >>> from taet.losses import effective_number_weights
        >>> effective_number_weights(torch.tensor([5000, 500, 50]), beta=0.9999)
        tensor([0.0341, 0.2752, 2.6907])
    """
    if not 0 <= beta < 1:
        raise UserError(f"beta: got {beta:g}; allowed: 0 up to, not including, 1")
    log_beta = math.log(beta) if beta else -math.inf
    # 1 - beta^n, which float32 would round away at beta near 1; the numerator cancels in the
    # scaling.
    return sum_to_classes(1 / -torch.expm1(positive_counts(class_counts) * log_beta))


def less_margin(logits: Tensor, labels: Tensor, margins: Tensor) -> Tensor:
    """Subtract the margin m_y of the label from its logit, z_y - m_y.

    logits (N, C), margins (C,) -> (N, C).
    """
    check_labels(logits, labels)
    return torch.where(is_label(logits, labels), logits - margins, logits)


def rebalancing_weights(class_counts: Tensor, predicted_counts: Tensor) -> Tensor:
    """REAT's class weights (RBL), the inverse effective number of predictions of each class.

    w_c = 1 / (E_c + 1e-5), scaled to sum C
    E_c = (1 - b_c^m_c) / (1 - b_c),   b_c = (n_c - 1) / n_c

    class_counts (C,) n_c, predicted_counts (C,) m_c -> (C,). m_c is the number of adversarial
    training examples that the model predicted as class c in the previous epoch. A class that was
    never predicted gets almost all the weight. Source: Li et al., REAT, arXiv:2307.10205; the
    constant is that of its public code.

    Example:
        >>> import torch
        >>> from taet.losses import rebalancing_weights
        >>> rebalancing_weights(torch.tensor([80, 15, 5]), torch.tensor([85, 12, 3]))
        tensor([0.1043, 0.6491, 2.2466])
    """
    counts = positive_counts(class_counts).clamp(min=1)
    # m log b = m log(1 - 1/n), and 0 where m is, also at n = 1.
    log_power = torch.special.xlog1py(torch.as_tensor(predicted_counts).to(counts), -1 / counts)
    return sum_to_classes(1 / (-torch.expm1(log_power) * counts + 1e-5))


def sum_to_classes(weights: Tensor) -> Tensor:
    """Scale class weights (C,) to the sum C."""
    return weights * (len(weights) / weights.sum())


def is_label(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mask (N, C) of the label's logit, bool.

    logits (N, C), labels (N,). Unlike one_hot it does not synchronise.
    """
    return labels[:, None] == torch.arange(logits.shape[1], device=labels.device)


@torch.no_grad()
def class_sums(values: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return the sums of values over the images of each class, and the number of images.

    values (N, K) -> sums (C, K) over the global batch, and numbers (C,), in float64.

    A matrix product is used because index_add_ on a GPU adds in a different order every time.
    """
    one_hot = is_label(values.new_empty(0, num_classes), labels).double()
    sums = global_sum(one_hot.T @ torch.cat([values.double(), torch.ones_like(one_hot[:, :1])], 1))
    return sums[:, :-1], sums[:, -1]
