"""Balanced softmax: the class prior is part of the loss, and not of the deployed model."""

from torch import Tensor

from taet.losses.label_loss import LabelLoss
from taet.losses.long_tail import counts_of, full_precision

NAMES = {"balanced-softmax": "the logarithm of the class counts is added to the logits"}


class BalancedSoftmax(LabelLoss):
    """CE(z + log n, y): see `taet.losses.balanced_softmax`.

    Example:
        >>> import torch
        >>> from taet.losses import BalancedSoftmax
        >>> logits, labels = torch.tensor([[1.0, 1.0]]), torch.tensor([1])
        >>> BalancedSoftmax(torch.tensor([100, 10]))(logits, labels)
        tensor([2.3979])
    """

    reference = "Ren et al., NeurIPS 2020, arXiv:2007.10740"
    adds_prior = True

    def __init__(self, class_counts: Tensor) -> None:
        super().__init__(class_counts)
        self.shift = self.class_counts.log()


def balanced_softmax(logits: Tensor, labels: Tensor, class_counts: Tensor) -> Tensor:
    """Balanced softmax: the logarithm of the class counts is added to the logits.

    CE(z + log n, y)

    logits (N, C), labels (N,), class_counts (C,) -> (N,), at least 0. It equals `logit_adjustment`
    with tau = 1, because softmax ignores a constant shift. Predict from the logits without the
    shift. Source: Ren et al., Balanced Meta-Softmax, NeurIPS 2020, arXiv:2007.10740, equation 4; in
    adversarial training: Yue et al., arXiv:2403.10073.

    Example:
        >>> import torch
        >>> from taet.losses import balanced_softmax
        >>> logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        >>> balanced_softmax(logits, torch.tensor([0, 2]), torch.tensor([60, 30, 10]))
        tensor([0.0864, 2.7183])
    """
    logits = full_precision(logits)
    return BalancedSoftmax(counts_of(class_counts, logits))(logits, labels)
