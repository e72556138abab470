"""FGSM: one step of gradient ascent, as long as the radius."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import Tensor

from taet.attacks.ball import Norm
from taet.attacks.draws import Draws
from taet.attacks.objectives import (
    OBJECTIVES,
    LabelObjectiveName,
    Objective,
    Target,
    check_objective,
    target_classes,
    target_passes,
)
from taet.attacks.pgd import pgd
from taet.attacks.spec import AttackSpec, Fields, Model
from taet.losses.long_tail import cross_entropy
from taet.settings import Evaluation

NAMES = {
    "fgsm": "one signed gradient step, no random start; a warning sign if it beats pgd (Goodfellow et al. 2015);"
    " 2 passes"
}


def fgsm(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    *,
    eps: float | Tensor,
    objective: Objective = cross_entropy,
    targeted: bool = False,
    checked: bool = False,
) -> Tensor:
    """Return clip_[0,1](x + eps sign(grad_x objective)), in the shape of x; arguments and guarantees as in `pgd`.

    With `targeted`, y are the target classes and the step goes down. Source: Goodfellow, Shlens, Szegedy, "Explaining
    and harnessing adversarial examples", ICLR 2015, arXiv:1412.6572.
    """
    step: dict[str, Any] = {"steps": 1, "step_size": eps, "start": "none", "checked": checked}
    return pgd(model, x, y, eps=eps, objective=objective, targeted=targeted, **step)


@dataclass(frozen=True, kw_only=True)
class Fgsm(AttackSpec):
    """One step of length eps along the sign of the gradient, without a random start."""

    names: ClassVar[Mapping[str, Norm | None]] = {"fgsm": "linf"}
    order: ClassVar[int] = 1
    one_step: ClassVar[bool] = True
    unstored: ClassVar[Mapping[str, object]] = {"objective": "ce"}

    objective: LabelObjectiveName = "ce"
    """Maximised function: cross-entropy (ce), margin of the logits (cw), difference of logits ratio (dlr), or margin of
    the probabilities (pm)."""
    target: Target | None = None
    """Aim at this class, chosen on the clean image or at random; any misclassification is a success."""

    @classmethod
    def make(cls, given: Fields, settings: Evaluation, radius: float) -> Self:
        draws = {"seed": settings.seed if given.get("target") == "random" else None}
        return super().make({**draws, **given}, settings, radius)

    def run(self, model: Model, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        aim = y if self.target is None else target_classes(self.target, model, x, y, draws)
        objective, targeted = OBJECTIVES[self.objective], self.target is not None
        return fgsm(model, x, aim, eps=self.radius, objective=objective, targeted=targeted, checked=True)

    def passes(self, num_classes: int) -> int:
        return 3 + target_passes(self.target, num_classes)

    @property
    def on_margin(self) -> bool:
        return self.objective == "cw"

    def check_classes(self, num_classes: int) -> None:
        check_objective(self.name, self.objective, num_classes)

    @property
    def ascent_steps(self) -> int:
        return 1

    @property
    def parameters(self) -> dict[str, object]:
        return {"steps": 1, "step_size": self.eps, "start": "none", **super().parameters}
