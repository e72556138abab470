"""Logit adjustment: the log prior of the classes, times a factor, is part of the loss."""

from typing import Self

from torch import Tensor

from taet.losses.label_loss import Classes, LabelLoss
from taet.losses.long_tail import counts_of, full_precision, log_prior
from taet.settings import Outer
from taet.settings.types import NonNegative, check_value

NAMES = {"logit-adjustment": "tau times the log prior of the classes is added to the logits"}


class LogitAdjustment(LabelLoss):
    """CE(z + tau log pi, y): see `taet.losses.logit_adjustment`.

    Example:
        >>> import torch
        >>> from taet.losses import LogitAdjustment
        >>> logits, labels = torch.tensor([[1.0, 1.0]]), torch.tensor([1])
        >>> LogitAdjustment(torch.tensor([100, 10]))(logits, labels)
        tensor([2.3979])
    """

    reference = "Menon et al., ICLR 2021, arXiv:2007.07314"
    adds_prior = True

    def __init__(self, class_counts: Tensor, tau: float = 1.0) -> None:
        super().__init__(class_counts)
        check_value("tau", tau, NonNegative)
        self.shift = tau * log_prior(self.class_counts)

    @classmethod
    def of_run(cls, outer: Outer, classes: Classes) -> Self:
        return cls(classes.counts, outer.tau)


def logit_adjustment(
    logits: Tensor, labels: Tensor, class_counts: Tensor, tau: float = 1.0
) -> Tensor:
    """Logit-adjusted cross-entropy: the log prior of the classes is added to the logits.

    CE(z + tau log pi, y),   pi_c = n_c / N

    logits (N, C), labels (N,), class_counts (C,), tau at least 0 -> (N,), at least 0. Predict from
    the logits without the shift. Source: Menon et al., Long-tail learning via logit adjustment,
    ICLR 2021, arXiv:2007.07314, equation 10.

    Example:
        >>> import torch
        >>> from taet.losses import logit_adjustment
        >>> logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        >>> logit_adjustment(logits, torch.tensor([0, 2]), torch.tensor([80, 15, 5]), tau=0.5)
        tensor([0.0884, 2.2730])
    """
    logits = full_precision(logits)
    return LogitAdjustment(counts_of(class_counts, logits), tau)(logits, labels)
