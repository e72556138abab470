"""Label-distribution-aware margins (LDAM): the rarer a class, the larger its margin."""

from typing import Self

from torch import Tensor, nn

from taet.losses.label_loss import Classes, LabelLoss
from taet.losses.long_tail import counts_of, full_precision, less_margin, positive_counts
from taet.settings import Outer
from taet.settings.types import NonNegative, Positive, check_value

NAMES = {"ldam": "margins on cosines, larger for rarer classes (LDAM)"}


class Ldam(LabelLoss):
    """CE(z - s m_y at the label, y) on logits z = s cos: see `taet.losses.ldam`.

    Example:
        >>> import torch
        >>> from taet.losses import Ldam
        >>> logits, labels = torch.tensor([[1.0, 1.0]]), torch.tensor([1])
        >>> Ldam(torch.tensor([100, 10]))(logits, labels)
        tensor([15.])
    """

    reference = "Cao et al., NeurIPS 2019, arXiv:1906.07413"
    on_cosines = True

    def __init__(self, class_counts: Tensor, max_margin: float = 0.5, scale: float = 30.0) -> None:
        super().__init__(class_counts)
        check_value("max margin", max_margin, NonNegative)
        check_value("scale", scale, Positive)
        margins = scale * ldam_margins(self.class_counts, max_margin)
        self.margins = nn.Buffer(margins, persistent=False)

    @classmethod
    def of_run(cls, outer: Outer, classes: Classes) -> Self:
        return cls(classes.images, outer.max_margin, classes.scale)

    def prepared(self, logits: Tensor, labels: Tensor) -> Tensor:
        return less_margin(logits, labels, self.margins.to(logits))


def ldam_margins(class_counts: Tensor, max_margin: float = 0.5) -> Tensor:
    """Label-distribution-aware margins, m_c = max_margin (min_k n_k / n_c)^(1/4) -> (C,).

    The rarest class has `max_margin`. Source: Cao et al., LDAM-DRW, NeurIPS 2019, arXiv:1906.07413.
    """
    counts = positive_counts(class_counts)
    return max_margin * (counts.min() / counts) ** 0.25


def ldam(
    cosines: Tensor,
    labels: Tensor,
    class_counts: Tensor,
    max_margin: float = 0.5,
    scale: float = 30.0,
) -> Tensor:
    """Label-distribution-aware margin loss (LDAM): the rarer a class, the larger its margin.

    CE(scale (cos - m_y at the label), y),   m_c = max_margin (min_k n_k / n_c)^(1/4)

    cosines (N, C) in [-1, 1], labels (N,), class_counts (C,) -> (N,), at least 0. The cosines come
    from normalised features and a normalised head without bias; on unbounded logits the margins
    have no meaning. Source: Cao et al., LDAM-DRW, NeurIPS 2019, arXiv:1906.07413.

    Example:
        >>> import torch
        >>> from taet.losses import ldam
        >>> cosines = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.5, 0.4]])
        >>> class_counts = torch.tensor([80, 15, 5])
        >>> ldam(cosines, torch.tensor([0, 2]), class_counts, max_margin=0.5, scale=5.0)
        tensor([0.0978, 3.2413])
    """
    cosines = full_precision(cosines)
    loss = Ldam(counts_of(class_counts, cosines), max_margin, scale)
    return loss(scale * cosines, labels)
