"""One step of gradient ascent, as long as the ball is wide."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from taet.attacks.objectives import Objective
from taet.attacks.pgd import pgd
from taet.losses.long_tail import cross_entropy

NAMES = {
    "fgsm": "one signed gradient step, no random start: cheap, a warning where it beats pgd (Goodfellow et al. 2015);"
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
) -> Tensor:
    """Return clip_[0,1](x + eps sign(grad_x objective)), in the shape of x; arguments and guarantees as in `pgd`.

    With `targeted`, y are the classes aimed at and the step goes down. Source: Goodfellow, Shlens, Szegedy, "Explaining
    and harnessing adversarial examples", ICLR 2015, arXiv:1412.6572.
    """
    return pgd(model, x, y, eps=eps, steps=1, step_size=eps, start="none", objective=objective, targeted=targeted)
