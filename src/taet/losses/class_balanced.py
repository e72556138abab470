"""Class-balanced loss: cross-entropy weighted by the effective number of images of a class."""

from typing import Literal

from torch import Tensor

from taet.distributed import global_mean
from taet.losses.label_loss import LabelLoss
from taet.losses.long_tail import (
    counts_of,
    cross_entropy,
    effective_number_weights,
    full_precision,
)

NAMES = {"class-balanced": "weighted by the effective number of images of the label's class"}

DivideBy = Literal["weights", "batch"]


class ClassBalanced(LabelLoss):
    """w_y CE(z, y): see `taet.losses.class_balanced`; the weights are those of `OuterLoss`.

    Example:
        >>> import torch
        >>> from taet.losses import ClassBalanced
        >>> loss = ClassBalanced(torch.tensor([100, 10]))
        >>> loss(torch.tensor([[1.0, 1.0]]), torch.tensor([1]))  # training applies the weights
        tensor([0.6931])
    """

    reference = "Cui et al., CVPR 2019, arXiv:1901.05555"
    class_weighted = True


def weighted_by_class(
    losses: Tensor, labels: Tensor, class_weights: Tensor, divide_by: DivideBy = "batch"
) -> Tensor:
    """Return losses (N,) times the weight of the label's class, w_y l.

    class_weights (C,). With divide_by "weights" the result is divided by the mean weight of the
    global batch, so that its mean is the weighted mean.
    """
    weights = class_weights.to(losses.dtype)[labels]
    if divide_by == "weights":
        weights = weights / global_mean(weights)
    return weights * losses


def class_balanced(
    logits: Tensor, labels: Tensor, class_counts: Tensor, beta: float = 0.9999
) -> Tensor:
    """Cross-entropy weighted by the effective number of images of the label's class.

    w_y CE,   w of `effective_number_weights`

    logits (N, C), labels (N,), class_counts (C,), beta in [0, 1) -> (N,), at least 0. Take the
    plain mean over the batch, as the authors' code does; a weighted mean would divide by the sum of
    the batch's weights. For n_c << 1 / (1 - beta) the weights are about 1 / n_c. UserError for
    another beta. Source: Cui et al., CVPR 2019.

    Example:
        >>> import torch
        >>> from taet.losses import class_balanced
        >>> logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        >>> class_balanced(logits, torch.tensor([0, 2]), torch.tensor([5000, 500, 50]))
        tensor([0.0082, 4.1745])
    """
    losses = cross_entropy(logits, labels)
    class_weights = effective_number_weights(counts_of(class_counts, full_precision(logits)), beta)
    return weighted_by_class(losses, labels, class_weights)
