"""Focal loss: less weight on samples whose label is already likely."""

from typing import Literal, Self, get_args

import torch
from torch import Tensor
from torch.nn import functional

from taet.errors import unknown
from taet.losses.label_loss import Classes, LabelLoss
from taet.losses.long_tail import (
    check_labels,
    cross_entropy,
    full_precision,
    is_label,
    out_of_range,
)
from taet.settings import Outer
from taet.settings.types import NonNegative, check_value

NAMES = {"focal": "less weight on samples whose label is already likely"}

FocalForm = Literal["softmax", "sigmoid"]


class Focal(LabelLoss):
    """(1 - p_y)^gamma CE(z, y), or its sigmoid form: see `taet.losses.focal`.

    Example:
        >>> import torch
        >>> from taet.losses import Focal
        >>> logits, labels = torch.tensor([[1.0, 1.0]]), torch.tensor([1])
        >>> Focal(torch.tensor([100, 10]))(logits, labels)
        tensor([0.1733])
    """

    reference = "Lin et al., ICCV 2017, arXiv:1708.02002"

    def __init__(
        self, class_counts: Tensor, gamma: float = 2.0, form: FocalForm = "softmax"
    ) -> None:
        super().__init__(class_counts)
        self.gamma, self.form = gamma, form

    @classmethod
    def of_run(cls, outer: Outer, classes: Classes) -> Self:
        return cls(classes.counts, outer.gamma, outer.focal_form)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return focal(logits, labels, self.gamma, self.form)


def focal(
    logits: Tensor, labels: Tensor, gamma: float = 2.0, form: FocalForm = "softmax"
) -> Tensor:
    """Focal loss: cross-entropy with less weight on samples whose label is already likely.

    softmax   (1 - p_y)^gamma CE               on p = softmax(z)
    sigmoid   sum_c -(1 - p_c)^gamma log p_c   with p_y = sigmoid(z_y), other p_c = sigmoid(-z_c)

    logits (N, C), labels (N,), gamma at least 0 -> (N,), at least 0. The gradient also flows
    through the factor. Raises UserError for another `form` or `gamma`. Source: Lin et al., ICCV
    2017, arXiv:1708.02002, equation 4 (sigmoid); the softmax form is the usual one in long-tailed
    recognition (Cao et al., NeurIPS 2019).

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
        return -(
            (gamma * functional.logsigmoid(-signed)).exp() * functional.logsigmoid(signed)
        ).sum(1)
    raise unknown("focal form", form, get_args(FocalForm))
