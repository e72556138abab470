"""Cross-entropy and losses for long-tailed data. Each returns one value per sample, (N,), in at least float32.

Class counts are (C,) training images per class. A class without images counts as one image, so that all is finite.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from taet.distributed import global_sum
from taet.errors import UserError, unknown
from taet.fields import NonNegative, Positive, check_value

FocalForm = Literal["softmax", "sigmoid"]
NO_CLASS = -(2**63)  # the label that cross-entropy skips: PyTorch's default, -100, could be a user's mistake


def full_precision(values: Tensor) -> Tensor:
    """Return `values` in float32, or unchanged if float64: losses are never computed in half precision."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def positive_counts(class_counts: Tensor) -> Tensor:
    """Return class counts (C,) as floats, with 1 in place of 0; expected counts may lie between 0 and 1."""
    counts = full_precision(torch.as_tensor(class_counts))
    return torch.where(counts > 0, counts, 1)


def log_prior(class_counts: Tensor) -> Tensor:
    """Logarithm of each class's share of the training set, log pi_c with pi_c = n_c / N -> (C,).

    Logit adjustment adds it to the logits in training. The post-hoc form subtracts it from the logits of a model that
    was trained without it, argmax(z - tau log pi). Do not do both. Source: Menon et al., ICLR 2021, arXiv:2007.07314,
    equations 9 and 10.
    """
    counts = positive_counts(class_counts)
    return (counts / counts.sum()).log()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy per sample, in float32 or float64.

    CE_i = logsumexp(z_i) - z_{i, y_i}

    logits (N, C), labels (N,) int64 -> (N,), at least 0. Raises UserError for labels of another type or shape and, on
    the CPU, for a label outside the C classes; on a GPU such a label ends in an assertion.

    Example:
        >>> import torch
        >>> from taet.losses import cross_entropy
        >>> logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        >>> cross_entropy(logits, torch.tensor([0, 2]))
        tensor([0.2395, 1.5514])
    """
    check_labels(logits, labels)
    try:
        return functional.cross_entropy(full_precision(logits), labels, reduction="none", ignore_index=NO_CLASS)
    except IndexError:
        raise out_of_range(labels, logits.shape[1]) from None


def check_labels(logits: Tensor, labels: Tensor) -> None:
    """Raise a `UserError` unless there is one int64 label for each row of logits; values are not read."""
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or labels.dtype != torch.int64:
        got = f"{labels.dtype} {tuple(labels.shape)} with values {tuple(logits.shape)}"
        raise UserError(f"labels: got {got}; allowed: torch.int64 (N,) with (N, C)")


def counts_of(class_counts: Tensor, logits: Tensor) -> Tensor:
    """Return class counts in the type of the logits; raise a `UserError` unless there is one for each logit."""
    class_counts = torch.as_tensor(class_counts)
    if class_counts.shape != logits.shape[1:]:
        got = f"shape {tuple(class_counts.shape)} with logits {tuple(logits.shape)}"
        raise UserError(f"class counts: got {got}; allowed: ({logits.shape[-1]},), one per logit")
    return class_counts.to(logits)


def out_of_range(labels: Tensor, classes: int) -> UserError:
    """Return the error for labels outside the classes."""
    wrong = labels[(labels < 0) | (labels >= classes)]
    return UserError(f"labels: got {int(wrong[0])}; allowed: 0 to {classes - 1}, one per logit")


def logit_adjustment(logits: Tensor, labels: Tensor, class_counts: Tensor, tau: float = 1.0) -> Tensor:
    """Logit-adjusted cross-entropy: the log prior of the classes is added to the logits.

    CE(z + tau log pi, y),   pi_c = n_c / N

    logits (N, C), labels (N,), class_counts (C,), tau at least 0 -> (N,), at least 0. Predict from the logits without
    the shift. Source: Menon et al., Long-tail learning via logit adjustment, ICLR 2021, arXiv:2007.07314, equation 10.

    Example:
        >>> import torch
        >>> from taet.losses import logit_adjustment
        >>> logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        >>> logit_adjustment(logits, torch.tensor([0, 2]), torch.tensor([80, 15, 5]), tau=0.5)
        tensor([0.0884, 2.2730])
    """
    check_value("tau", tau, NonNegative)
    logits = full_precision(logits)
    return cross_entropy(logits + tau * log_prior(counts_of(class_counts, logits)), labels)


def balanced_softmax(logits: Tensor, labels: Tensor, class_counts: Tensor) -> Tensor:
    """Balanced softmax: the logarithm of the class counts is added to the logits.

    CE(z + log n, y)

    logits (N, C), labels (N,), class_counts (C,) -> (N,), at least 0. It equals `logit_adjustment` with tau = 1,
    because softmax ignores a constant shift. Predict from the logits without the shift. Source: Ren et al., Balanced
    Meta-Softmax, NeurIPS 2020, arXiv:2007.10740, equation 4; in adversarial training: Yue et al., arXiv:2403.10073.

    Example:
        >>> import torch
        >>> from taet.losses import balanced_softmax
        >>> logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        >>> balanced_softmax(logits, torch.tensor([0, 2]), torch.tensor([60, 30, 10]))
        tensor([0.0864, 2.7183])
    """
    logits = full_precision(logits)
    return cross_entropy(logits + positive_counts(counts_of(class_counts, logits)).log(), labels)


def focal(logits: Tensor, labels: Tensor, gamma: float = 2.0, form: FocalForm = "softmax") -> Tensor:
    """Focal loss: cross-entropy with less weight on samples whose label is already likely.

    softmax   (1 - p_y)^gamma CE                           on p = softmax(z)
    sigmoid   sum_c -(1 - p_c)^gamma log p_c               with p_y = sigmoid(z_y) and p_c = sigmoid(-z_c) elsewhere

    logits (N, C), labels (N,), gamma at least 0 -> (N,), at least 0. The gradient also flows through the factor. Raises
    UserError for another `form` or `gamma`. Source: Lin et al., ICCV 2017, arXiv:1708.02002, equation 4 (sigmoid); the
    softmax form is the usual one in long-tailed recognition (Cao et al., NeurIPS 2019).

    Example:
        >>> import torch
        >>> from taet.losses import focal
        >>> logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        >>> focal(logits, torch.tensor([0, 2]), gamma=2.0)
        tensor([0.0109, 0.9635])
    """
    check_value("gamma", gamma, NonNegative)
    logits = full_precision(logits)
    if form == "softmax":
        loss = cross_entropy(logits, labels)
        # 1 - p_y; above 0, since the slope of x^gamma at 0 is infinite for gamma < 1.
        return (-torch.expm1(-loss)).clamp(min=torch.finfo(loss.dtype).tiny) ** gamma * loss
    if form == "sigmoid":
        check_labels(logits, labels)
        if labels.device.type == "cpu" and ((labels < 0) | (labels >= logits.shape[1])).any():
            raise out_of_range(labels, logits.shape[1])
        signed = torch.where(is_label(logits, labels), logits, -logits)
        return -((gamma * functional.logsigmoid(-signed)).exp() * functional.logsigmoid(signed)).sum(1)
    raise unknown("focal form", form, get_args(FocalForm))


def effective_number_weights(class_counts: Tensor, beta: float) -> Tensor:
    """Class weights by the effective number of images.

    w_c = (1 - beta) / (1 - beta^n_c), scaled to sum C

    class_counts (C,), beta in [0, 1) -> (C,). With beta = 0 all classes weigh the same. For n_c << 1 / (1 - beta) the
    weights are close to the inverse frequency: relative to the rarest class and at the usual 0.9999, a class of 500
    images has 1.02 times the weight that 1 / n gives, and one of 5000, the largest of CIFAR-10-LT, 1.27 times. Raises
    UserError for another beta. Source: Cui et al., Class-Balanced Loss, CVPR 2019, arXiv:1901.05555.

    Example:
        >>> import torch
        >>> from taet.losses import effective_number_weights
        >>> effective_number_weights(torch.tensor([5000, 500, 50]), beta=0.9999)
        tensor([0.0341, 0.2752, 2.6907])
    """
    if not 0 <= beta < 1:
        raise UserError(f"beta: got {beta:g}; allowed: 0 up to, not including, 1")
    log_beta = math.log(beta) if beta else -math.inf
    # 1 - beta^n, which float32 would round away at beta near 1; the numerator cancels in the scaling.
    return sum_to_classes(1 / -torch.expm1(positive_counts(class_counts) * log_beta))


def class_balanced(logits: Tensor, labels: Tensor, class_counts: Tensor, beta: float = 0.9999) -> Tensor:
    """Class-balanced cross-entropy: weighted by the effective number of images of the label's class.

    w_y CE,   w of `effective_number_weights`

    logits (N, C), labels (N,), class_counts (C,), beta in [0, 1) -> (N,), at least 0. Take the plain mean over the
    batch, as the authors' code does; a weighted mean would divide by the sum of the batch's weights. For
    n_c << 1 / (1 - beta) the weights are about 1 / n_c. UserError for another beta. Source: Cui et al., CVPR 2019.

    Example:
        >>> import torch
        >>> from taet.losses import class_balanced
        >>> logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        >>> class_balanced(logits, torch.tensor([0, 2]), torch.tensor([5000, 500, 50]))
        tensor([0.0082, 4.1745])
    """
    loss = cross_entropy(logits, labels)
    return effective_number_weights(counts_of(class_counts, full_precision(logits)), beta)[labels] * loss


def ldam_margins(class_counts: Tensor, max_margin: float = 0.5) -> Tensor:
    """Label-distribution-aware margins, m_c = max_margin (min_k n_k / n_c)^(1/4) -> (C,).

    The rarest class has `max_margin`. Source: Cao et al., LDAM-DRW, NeurIPS 2019, arXiv:1906.07413.
    """
    counts = positive_counts(class_counts)
    return max_margin * (counts.min() / counts) ** 0.25


def less_margin(logits: Tensor, labels: Tensor, margins: Tensor) -> Tensor:
    """Subtract the margin m_y of the label from its logit, z_y - m_y: logits (N, C), margins (C,) -> (N, C)."""
    check_labels(logits, labels)
    return torch.where(is_label(logits, labels), logits - margins, logits)


def ldam(cosines: Tensor, labels: Tensor, class_counts: Tensor, max_margin: float = 0.5, scale: float = 30.0) -> Tensor:
    """Label-distribution-aware margin loss (LDAM): the rarer a class, the larger its margin.

    CE(scale (cos - m_y at the label), y),   m_c = max_margin (min_k n_k / n_c)^(1/4)

    cosines (N, C) in [-1, 1], labels (N,), class_counts (C,) -> (N,), at least 0. The cosines come from normalised
    features and a normalised head without bias; on unbounded logits the margins have no meaning. Source: Cao et al.,
    LDAM-DRW, NeurIPS 2019, arXiv:1906.07413.

    Example:
        >>> import torch
        >>> from taet.losses import ldam
        >>> cosines = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.5, 0.4]])
        >>> ldam(cosines, torch.tensor([0, 2]), torch.tensor([80, 15, 5]), max_margin=0.5, scale=5.0)
        tensor([0.0978, 3.2413])
    """
    check_value("max margin", max_margin, NonNegative)
    check_value("scale", scale, Positive)
    cosines = full_precision(cosines)
    margins = ldam_margins(counts_of(class_counts, cosines), max_margin)
    return cross_entropy(scale * less_margin(cosines, labels, margins), labels)


def rebalancing_weights(class_counts: Tensor, predicted_counts: Tensor) -> Tensor:
    """REAT's class weights (RBL) for adversarial examples: the inverse effective number of predictions of each class.

    w_c = 1 / (E_c + 1e-5), scaled to sum C,   E_c = (1 - b_c^m_c) / (1 - b_c),  b_c = (n_c - 1) / n_c

    class_counts (C,) n_c, predicted_counts (C,) m_c -> (C,). m_c is the number of adversarial training examples that
    the model predicted as class c in the previous epoch. A class that was never predicted gets almost all the weight.
    Source: Li et al., REAT, arXiv:2307.10205; the constant is that of its public code.

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
    """Mask (N, C) of the label's logit: logits (N, C), labels (N,) -> bool; unlike one_hot it does not synchronise."""
    return labels[:, None] == torch.arange(logits.shape[1], device=labels.device)


@torch.no_grad()
def class_sums(values: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Sums of values (N, K) over each class's images in the global batch (C, K), and their number (C,); float64.

    A matrix product is used because index_add_ on a GPU adds in a different order every time.
    """
    one_hot = is_label(values.new_empty(0, num_classes), labels).double()
    sums = global_sum(one_hot.T @ torch.cat([values.double(), torch.ones_like(one_hot[:, :1])], 1))
    return sums[:, :-1], sums[:, -1]
