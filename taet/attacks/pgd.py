"""Projected gradient ascent in the L-infinity ball."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from taet.attacks.ball import BNMode, Start, check_floating, draw_noise, frozen, per_sample, project
from taet.attacks.noise import Source
from taet.config import check_ball
from taet.losses.consistency import kl_divergence
from taet.losses.long_tail import cross_entropy, full_precision

NAMES = {
    "pgd": "projected gradient ascent of N steps in the L-infinity ball, written pgd-N, e.g. pgd-20 (Madry et al. 2018)"
}

Objective = Callable[[Tensor, Tensor], Tensor]


def natural_divergence(model: Callable[[Tensor], Tensor], x: Tensor) -> Objective:
    """The objective KL(f(x) || f(x')) of TRADES, which uses no labels; f(x) is computed once, for all steps.

    So the model has to hold still from here to the last step, as `frozen` makes it. Source: Zhang et al., TRADES, ICML
    2019, arXiv:1901.08573.
    """
    with torch.no_grad():
        natural = model(x)
    return lambda logits, _: kl_divergence(natural, logits)


def pgd(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    *,
    eps: float | Tensor,
    steps: int,
    step_size: float | Tensor,
    start: Start = "uniform",
    objective: Objective = cross_entropy,
    bn_mode: BNMode = "eval",
    generator: torch.Generator | None = None,
    start_noise: Tensor | None = None,
    active: Tensor | None = None,
    observe: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Ascend an objective in the ball: x' <- clip_[0,1](clip_[x-eps,x+eps](x' + step_size sign(grad_x' objective))).

    The objective is summed over samples, so that each moves by its own gradient alone. Afterwards the model's modes,
    parameters, gradients and (with `bn_mode="eval"`) statistics, the inputs and the global random state are as before.
    Nothing synchronises with the device and no branch depends on values, so the whole can be captured in a CUDA graph,
    given `start_noise`.

    Args:
        model: from x (N, ...) to logits (N, C).
        x: images (N, ...), floating point in [0, 1].
        y: labels (N,), handed to the objective.
        eps: radius of the ball, a number or one per sample (N,), in units of the image range. Numbers are checked;
            tensors are not, since reading them would wait for the device.
        steps: number of steps, 0 or more; after 0 steps the start itself is returned, inside the ball.
        step_size: length of a step, a number or one per sample (N,), same units.
        start: "uniform" U(-eps, eps) or "positive" U(0, eps), clipped to [0, 1]; "gaussian" 0.001 N(0, 1), not clipped
            before the first step; or "none".
        objective: from (logits, labels) to (N,), to be made large; logits arrive in float32 or wider.
        bn_mode: "eval", or "train" for batch statistics, which moves the running ones in every step.
        generator: source of the start noise, on x's device; without it, a fresh one seeded with 0.
        start_noise: noise in the shape of x that stands in for the draw.
        active: truth values, (N,) or (steps, N): which samples move, always or in each step.
        observe: called as observe(step, logits) before the update of each step.

    Returns:
        Adversarial images, detached, in the shape of x; float32, or float64 where x is.

    Raises:
        UserError: an eps or step_size outside [0, 1], images that are not floating point.

    Source: Madry, Makelov, Schmidt, Tsipras, Vladu, "Towards deep learning models resistant to adversarial attacks",
    ICLR 2018, arXiv:1706.06083.
    """
    check_floating(x)
    for what, size in (("eps", eps), ("step size", step_size)):
        if not isinstance(size, Tensor):
            check_ball(what, size)
    origin = full_precision(x.detach())
    if start_noise is None:
        start_noise = draw_noise(origin, eps, start, None if generator is None else Source(generator))
    x_adv = origin + start_noise
    if start in ("uniform", "positive"):
        x_adv = project(x_adv, origin, eps)
    length = per_sample(step_size, origin)
    moves = None if active is None else active.expand(steps, -1)
    with frozen(model, bn_mode):
        for step in range(steps):
            with torch.enable_grad():
                x_adv.requires_grad_()
                logits = full_precision(model(x_adv))
                (gradient,) = torch.autograd.grad(objective(logits, y).sum(), x_adv)
            x_adv = x_adv.detach()
            if observe is not None:
                observe(step, logits.detach())
            update = length * gradient.sign()
            if moves is not None:
                update = update * per_sample(moves[step], origin)
            x_adv = project(x_adv + update, origin, eps)
    return project(x_adv, origin, eps)
