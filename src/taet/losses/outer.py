"""The outer loss of a run: it replaces the cross-entropy on labels in the loss of every method that
has one."""

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from taet import registry
from taet.errors import UserError
from taet.losses.class_balanced import weighted_by_class
from taet.losses.label_loss import Classes, LabelLoss
from taet.losses.long_tail import cross_entropy, effective_number_weights, full_precision
from taet.settings import Outer


def find(name: str) -> type[LabelLoss]:
    """Return the class of the label loss called `name`, the one `LabelLoss` that its file defines.

    Raises UserError for an unknown name, and for a file with another number of label losses.

    Example:
        >>> from taet.losses import find
        >>> find("balanced-softmax").reference
        'Ren et al., NeurIPS 2020, arXiv:2007.10740'
    """
    module = registry.find("losses", name).load()
    kinds = [
        kind
        for kind in vars(module).values()
        if inspect.isclass(kind)
        and issubclass(kind, LabelLoss)
        and kind.__module__ == module.__name__
    ]
    if len(kinds) != 1:
        raise UserError(
            f"{module.__file__}: got {len(kinds)} label losses; allowed: one class that extends "
            "LabelLoss"
        )
    return kinds[0]


class OuterLoss(nn.Module):
    """The label loss that `outer` names, with class weights and label smoothing.

    logits (N, C), labels (N,) -> (N,). Training minimises its `global_mean`. The losses are those
    of `taet.losses`: CE(z, y) by default, or another `LabelLoss`.

    Class weights: class-balanced and, from epoch `drw_from` on (counted from 0), `outer.drw`
    multiply the loss by the weights of `effective_number_weights` (deferred re-weighting: Cao et
    al., LDAM-DRW, NeurIPS 2019, arXiv:1906.07413). The result is divided by the mean weight of the
    global batch, so that its mean is the weighted mean, or with divide_by "batch" it is not.

    Label smoothing s replaces the label by the target (1 - s) 1_y + s q. Without a shift q is
    uniform (Szegedy et al., CVPR 2016, arXiv:1512.00567). Under balanced-softmax and
    logit-adjustment q = softmax(shift), the class prior to the power tau: the smoothed term is then
    least where all deployed logits are equal, as without a shift; a uniform q would raise rare
    classes (ours). The class weight is that of the label. focal and ldam do not support s.

    class_counts (C,) are training images per class; with extra images or `training.sampling`, the
    images that an epoch draws on average. The margins of ldam use `unique_class_counts` (C,).
    Raises UserError for `drw` without a starting epoch.
    """

    by_class: bool = False
    """Whether losses are finally multiplied by the `factor` of their label (C,), which a method
    sets."""

    def __init__(
        self,
        outer: Outer,
        class_counts: Sequence[float] | Tensor,
        scale: float = 1.0,
        drw_from: int | None = None,
        unique_class_counts: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        begin = drw_from if outer.drw else 0
        if begin is None:
            got = "got a schedule without a milestone before its end"
            raise UserError(f"outer drw: {got}; allowed: one at which it can begin")
        # In float64, whatever the logits are in: casting down loses nothing that they could hold.
        counts = torch.as_tensor(class_counts, dtype=torch.float64)
        unique = class_counts if unique_class_counts is None else unique_class_counts
        images = torch.as_tensor(unique, dtype=torch.float64)
        self.outer, self.begin = outer, begin
        self.label_loss = find(outer.name).of_run(outer, Classes(counts, images, scale))
        # Not saved: they follow from the task and the epoch.
        self.balanced = nn.Buffer(effective_number_weights(counts, outer.beta), persistent=False)
        self.weights = nn.Buffer(torch.ones_like(counts), persistent=False)
        self.factor = nn.Buffer(torch.ones_like(counts), persistent=False)
        self.enter(0)

    def enter(self, epoch: int) -> None:
        """Set the class weights of `epoch`, counted from 0, in place."""
        self.weights.copy_(self.balanced if epoch >= self.begin else torch.ones_like(self.balanced))

    def shifted(self, logits: Tensor) -> Tensor:
        """Return logits (N, C) plus the class prior where the label loss adds it."""
        return self.label_loss.shifted(full_precision(logits))

    def prepared(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the logits (N, C) whose cross-entropy the label loss is; focal loss has none."""
        return self.label_loss.prepared(full_precision(logits), labels)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of every image, (N,)."""
        if self.outer.label_smoothing:
            losses = self.smoothed(logits, labels)
        else:
            losses = self.label_loss(full_precision(logits), labels)
            if losses.shape != labels.shape:
                got = f"got shape {tuple(losses.shape)} for {len(labels)} labels"
                raise UserError(
                    f"outer loss {self.outer.name}: {got}; allowed: one value per label"
                )
        return self.weighed(losses, labels)

    def smoothed(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return (1 - s) times the loss plus s times the cross-entropy with q, (N,)."""
        prepared = self.prepared(logits, labels)
        share, shift = self.outer.label_smoothing, self.label_loss.shift
        q = torch.zeros_like(self.factor) if shift is None else shift
        q = q.softmax(0).to(prepared.dtype)
        losses = cross_entropy(prepared, labels)
        return (1 - share) * losses - share * (q * prepared.log_softmax(1)).sum(1)

    def weighed(self, losses: Tensor, labels: Tensor) -> Tensor:
        """Return losses (N,) times the weights of their classes.

        These are the class weights of class-balanced and `drw`, times `factor` if `by_class`.
        """
        if self.outer.drw or self.label_loss.class_weighted:
            losses = weighted_by_class(losses, labels, self.weights, self.outer.divide_by)
        return self.factor.to(losses.dtype)[labels] * losses if self.by_class else losses
