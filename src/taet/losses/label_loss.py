"""The interface of label losses: what `--outer` may name, in this package or in a plug-in.

A label loss is one `LabelLoss` in one file. The file names it by a literal
`NAMES = {"my-loss": "one line about it"}`.
"""

from typing import ClassVar, NamedTuple, Self

from torch import Tensor, nn

from taet.losses.long_tail import cross_entropy, positive_counts
from taet.settings import Outer


class Classes(NamedTuple):
    """The classes of a run, as its label loss sees them."""

    counts: Tensor
    """Images of each class that an epoch draws on average, (C,), float64."""
    images: Tensor
    """Different images of each class, (C,), float64."""
    scale: float
    """Factor of the cosines of a cosine head; 1 for a linear head."""


class LabelLoss(nn.Module):
    """A loss on the labels: logits (N, C), float32 or float64, and labels (N,) int64 -> (N,).

    It is the cross-entropy of the `prepared` logits. A subclass overrides `prepared`, or `forward`
    if its loss is another one.

    Example:
        >>> import torch
        >>> from taet.losses import LabelLoss
        >>> class Halved(LabelLoss):
        ...     def prepared(self, logits, labels):
        ...         return logits / 2
        >>> Halved(torch.tensor([100, 10]))(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
        tensor([0.3133])
    """

    reference: ClassVar[str] = ""
    """Where the loss is published."""
    on_cosines: ClassVar[bool] = False
    """Whether the logits have to come from a cosine head, by default of scale --outer.scale."""
    adds_prior: ClassVar[bool] = False
    """Whether the loss adds the class prior to the logits, so that predictions need no other."""
    class_weighted: ClassVar[bool] = False
    """Whether training multiplies the loss by the class weights of `effective_number_weights`."""

    class_counts: Tensor
    """Images of each class, (C,), with 1 in place of 0."""
    shift: Tensor | None
    """What is added to the logits of every image, (C,)."""

    def __init__(self, class_counts: Tensor) -> None:
        super().__init__()
        self.register_buffer("class_counts", positive_counts(class_counts), persistent=False)
        self.register_buffer("shift", None, persistent=False)

    @classmethod
    def of_run(cls, outer: Outer, classes: Classes) -> Self:
        """Return the loss with the constants of a run."""
        return cls(classes.counts)

    def shifted(self, logits: Tensor) -> Tensor:
        """Return logits (N, C) plus the `shift`."""
        return logits if self.shift is None else logits + self.shift.to(logits)

    def prepared(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the logits (N, C) whose cross-entropy is the loss."""
        return self.shifted(logits)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of every image, (N,)."""
        return cross_entropy(self.prepared(logits, labels), labels)
