"""The outer loss of a run: it replaces the cross-entropy on labels in the loss of every method that has one."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from taet.distributed import global_mean
from taet.errors import UserError
from taet.losses.long_tail import (
    cross_entropy,
    effective_number_weights,
    focal,
    full_precision,
    ldam_margins,
    less_margin,
    log_prior,
    positive_counts,
)
from taet.settings import Outer


class OuterLoss(nn.Module):
    """The label loss selected by `outer`: logits (N, C), labels (N,) -> (N,). Training minimises its `global_mean`.

    cross-entropy       CE(z, y)
    balanced-softmax    CE(z + log n, y)                          (see `taet.losses` for each and its source)
    logit-adjustment    CE(z + tau log pi, y)
    focal               (1 - p_y)^gamma CE(z, y), or its sigmoid form
    class-balanced      w_y CE(z, y) with w of `effective_number_weights`
    ldam                CE(z - scale m_y at the label, y) on logits of a cosine head that has multiplied by `scale`

    `outer.drw` adds deferred re-weighting to any of them: the weights of class-balanced apply from epoch `drw_from` on,
    counted from 0 (Cao et al., LDAM-DRW, NeurIPS 2019, arXiv:1906.07413). A weighted loss is divided by the mean weight
    of the global batch, so that its mean is the weighted mean; with divide_by "batch" it is not divided. Class counts
    are (C,) training images per class; with extra images or `training.sampling`, the images that an epoch draws on
    average. The margins of ldam use the `distinct` images (C,). Raises UserError for `drw` without a starting epoch.

    `outer.label_smoothing` s replaces the label by the target (1 - s) 1_y + s q. Without a shift q is uniform (Szegedy
    et al., CVPR 2016, arXiv:1512.00567). Under balanced-softmax and logit-adjustment q = softmax(shift), the class
    prior to the power tau: the smoothed term is then least where all deployed logits are equal, as without a shift; a
    uniform q would raise rare classes (ours). The class weight is that of the label. focal and ldam do not support s.
    """

    by_class: bool = False
    """Whether losses are finally multiplied by the `factor` of their label (C,), which a method sets."""

    def __init__(
        self,
        outer: Outer,
        class_counts: Sequence[float] | Tensor,
        scale: float = 1.0,
        drw_from: int | None = None,
        distinct: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        begin = drw_from if outer.drw else 0
        if begin is None:
            got = "got a schedule without a milestone before its end"
            raise UserError(f"outer drw: {got}; allowed: one at which it can begin")
        self.outer, self.begin = outer, begin
        # In float64, whatever the logits are in: casting down loses nothing that they could hold.
        counts = torch.as_tensor(class_counts, dtype=torch.float64)
        images = counts if distinct is None else torch.as_tensor(distinct, dtype=torch.float64)
        shifts = {"balanced-softmax": positive_counts(counts).log(), "logit-adjustment": outer.tau * log_prior(counts)}
        # Not saved: they follow from the task and the epoch.
        self.shift = nn.Buffer(shifts.get(outer.name, torch.zeros_like(counts)), persistent=False)
        self.margins = nn.Buffer(scale * ldam_margins(images, outer.max_margin), persistent=False)
        self.balanced = nn.Buffer(effective_number_weights(counts, outer.beta), persistent=False)
        self.weights, self.factor = (nn.Buffer(torch.ones_like(counts), persistent=False) for _ in range(2))
        self.enter(0)

    def enter(self, epoch: int) -> None:
        """Set the class weights of `epoch`, counted from 0, in place."""
        self.weights.copy_(self.balanced if epoch >= self.begin else torch.ones_like(self.balanced))

    def shifted(self, logits: Tensor) -> Tensor:
        """Return logits (N, C) plus the log prior under balanced-softmax and logit-adjustment, otherwise unchanged."""
        logits, shifts = full_precision(logits), self.outer.name in ("balanced-softmax", "logit-adjustment")
        return logits + self.shift.to(logits.dtype) if shifts else logits

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.outer.name == "focal":
            losses = focal(full_precision(logits), labels, self.outer.gamma, self.outer.focal_form)
        else:
            prepared = self.prepared(logits, labels)
            losses = self.smoothed(cross_entropy(prepared, labels), prepared)
        return self.weighed(losses, labels)

    def smoothed(self, losses: Tensor, prepared: Tensor) -> Tensor:
        """Return (1 - s) times `losses` (N,), plus s times the cross-entropy with q on the `prepared` logits (N, C)."""
        share = self.outer.label_smoothing
        if not share:
            return losses
        q = self.shift.softmax(0).to(prepared.dtype)
        return (1 - share) * losses - share * (q * prepared.log_softmax(1)).sum(1)

    def prepared(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return logits (N, C) for the cross-entropy: shifted by the prior or, under ldam, lowered by the margin.

        Focal loss uses the logits unchanged.
        """
        logits = self.shifted(logits)
        if self.outer.name != "ldam":
            return logits
        return less_margin(logits, labels, self.margins.to(logits.dtype))

    def weighed(self, losses: Tensor, labels: Tensor) -> Tensor:
        """Return losses (N,) times class weights under class-balanced and `drw`, and times `factor` if `by_class`."""
        if self.outer.drw or self.outer.name == "class-balanced":
            weights = self.weights.to(losses.dtype)[labels]
            if self.outer.divide_by == "weights":
                weights = weights / global_mean(weights)
            losses = weights * losses
        return self.factor.to(losses.dtype)[labels] * losses if self.by_class else losses
