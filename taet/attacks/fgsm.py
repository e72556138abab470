"""FGSM: one step of gradient ascent, as long as the radius."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from taet.attacks.ball import Norm, Size
from taet.attacks.noise import Draws
from taet.attacks.objectives import Objective
from taet.attacks.pgd import pgd
from taet.attacks.spec import AttackSpec, Model
from taet.losses.long_tail import cross_entropy

NAMES = {
    "fgsm": "one signed gradient step, no random start; a warning sign if it beats pgd (Goodfellow et al. 2015);"
    " 2 passes"
}


def fgsm(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: Size,
    objective: Objective = cross_entropy,
    targeted: bool = False,
    checked: bool = False,
) -> Tensor:
    """Return clip_[0,1](x + eps sign(grad_x objective)), in the shape of x; arguments and guarantees as in `pgd`.

    With `targeted`, y are the target classes and the step goes down. Source: Goodfellow, Shlens, Szegedy, "Explaining
    and harnessing adversarial examples", ICLR 2015, arXiv:1412.6572.
    """
    return pgd(
        model,
        x,
        y,
        eps=eps,
        steps=1,
        step_size=eps,
        start="none",
        objective=objective,
        targeted=targeted,
        checked=checked,
    )


@dataclass(frozen=True, kw_only=True)
class Fgsm(AttackSpec):
    """One step of length eps along the sign of the gradient, without a random start."""

    names: ClassVar[Mapping[str, Norm | None]] = {"fgsm": "linf"}
    order: ClassVar[int] = 1
    one_step: ClassVar[bool] = True
    random: ClassVar[bool] = False

    def run(self, model: Model, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        return fgsm(model, x, y, eps=self.radius, checked=True)

    def passes(self, num_classes: int) -> int:
        return 3

    @property
    def ascent_steps(self) -> int:
        return 1

    @property
    def parameters(self) -> dict[str, object]:
        return {"steps": 1, "step_size": self.eps, "start": "none", **super().parameters}
