"""PGD with scaled logits in its objective, for models whose logit scale hides the gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from taet.attacks.ball import Norm
from taet.attacks.objectives import Objective, scaled
from taet.attacks.pgd import ProjectedAscent
from taet.attacks.spec import Model
from taet.fields import Positive
from taet.losses.long_tail import cross_entropy

NAMES = {
    "adaptive": "adaptive-pgd-N, adaptive-pgd-l2-N: pgd with logits x10 (factor=F), against flat softmax (REAT 2023);"
    " 2N passes per restart"
}


@dataclass(frozen=True, kw_only=True)
class AdaptivePgd(ProjectedAscent):
    """PGD with the logits times 10 in the objective, for models whose logit scale hides gradients.

    There is no adaptive CW, because a factor on the logits does not change the margin's steps. Source: Li et al., REAT,
    arXiv:2307.10205, section 5.
    """

    names: ClassVar[Mapping[str, Norm | None]] = {"adaptive-pgd-N": "linf", "adaptive-pgd-l2-N": "l2"}
    order: ClassVar[int] = 4

    factor: Positive = 10.0
    """Factor of the logits in the objective."""

    def objective_of(self, model: Model, x: Tensor) -> Objective:
        return cross_entropy if self.factor == 1 else scaled(cross_entropy, self.factor)
