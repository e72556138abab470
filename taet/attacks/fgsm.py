"""One step of gradient ascent, as long as the ball is wide."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from taet.attacks.pgd import Objective, pgd
from taet.losses.long_tail import cross_entropy

NAMES = {"fgsm": "one gradient step of length eps, no random start (Goodfellow et al. 2015)"}


def fgsm(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    *,
    eps: float | Tensor,
    objective: Objective = cross_entropy,
) -> Tensor:
    """Return clip_[0,1](x + eps sign(grad_x objective)), in the shape of x; arguments and guarantees as in `pgd`.

    Source: Goodfellow, Shlens, Szegedy, "Explaining and harnessing adversarial examples", ICLR 2015, arXiv:1412.6572.
    """
    return pgd(model, x, y, eps=eps, steps=1, step_size=eps, start="none", objective=objective)
