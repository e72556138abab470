"""DeepFool: steps to the nearest decision boundary of the linearised model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from taet.attacks.ball import (
    Norm,
    Size,
    choose,
    distance,
    finite,
    frozen,
    lengths,
    refuse_unsound,
    spread,
    unit,
)
from taet.attacks.inputs import validate_inputs
from taet.attacks.noise import Draws
from taet.attacks.objectives import fooled
from taet.attacks.spec import FIXED, AttackSpec, Model
from taet.losses.long_tail import full_precision, is_label
from taet.settings.types import Count, NonNegative

NAMES = {
    "deepfool": "nearest L2 boundary by linearisation, fast (Moosavi-Dezfooli et al. 2016); 501 "
    "passes at most"
}

Candidates = Annotated[int, Field(ge=2)]
# added to the length of a step, so that it ends beyond the boundary; from the authors' public code
BEYOND = 1e-4


@validate_inputs
def deepfool(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    steps: Count = 50,
    overshoot: NonNegative = 0.02,
    eps: Size | None = None,
    candidates: Annotated[Candidates, FIXED] = 10,
    checked: bool = False,
) -> Tensor:
    """Step to the nearest boundary of the linearised model until it is crossed.

        x' = clip_[0,1](x + (1 + overshoot) r)

    With w_k = grad (z_k - z_y) and d_k = |z_k - z_y| / ||w_k||_2 at x', a step adds (d_l + 1e-4)
    w_l / ||w_l||_2 to r for the nearest class l = argmin_k d_k. The model is linearised at x'
    itself, with overshoot and clip. An image that is not fooled is returned unchanged. A step takes
    one forward and `candidates` - 1 backward passes.

    Args:
        model, x, y, eps, checked: as in `cw_l2`.
        steps: maximum number of steps.
        overshoot: distance beyond the boundary, as a share of the perturbation.
        candidates: classes whose boundaries are considered, those of the largest logits and the
            label's, 2 or more.

    Errors are those of `cw_l2`. Source: Moosavi-Dezfooli, Fawzi, Frossard, "DeepFool: a simple and
    accurate method to fool deep neural networks", CVPR 2016, arXiv:1511.04599, algorithm 2, with
    the settings of the authors' public code.

    Example:
        >>> import torch
        >>> from taet.attacks import deepfool
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> x, y = torch.rand(4, 1, 8, 8), torch.arange(4)
        >>> x_adv = deepfool(model, x, y)
        >>> x_adv.shape
        torch.Size([4, 1, 8, 8])
    """
    del checked  # `validate_inputs` has read it
    origin = full_precision(x.detach())
    total, x_adv, sound = torch.zeros_like(origin), origin, torch.ones_like(y, dtype=torch.bool)
    with frozen(model):
        for _ in range(steps):
            with torch.enable_grad():
                x_adv = x_adv.detach().requires_grad_()
                logits = full_precision(model(x_adv))
                sound = sound & finite(logits)
                active = ~fooled(logits, y)
                if not bool(active.any()):
                    break
                step = _step_to_boundary(logits, y, x_adv, candidates)
            sound = sound & (finite(step) | ~active)
            total = choose(active, total + step, total)
            x_adv = (origin + (1 + overshoot) * total).clamp(0, 1)
        x_adv = x_adv.detach()
        with torch.no_grad():
            logits = full_precision(model(x_adv))
    refuse_unsound("deepfool", sound & finite(logits))
    success = fooled(logits, y)
    if eps is not None:
        success &= distance(x_adv, origin, "l2") <= eps
    return choose(success, x_adv, origin)


def _step_to_boundary(logits: Tensor, y: Tensor, x: Tensor, candidates: int) -> Tensor:
    """Return the shortest step to a boundary of the model linearised at `x`, (N, ...).

    It is NaN where gradients are not finite.
    """
    others = logits.detach().masked_fill(is_label(logits, y), -torch.inf)
    rivals = others.topk(min(candidates, logits.shape[1]) - 1).indices
    gaps = logits.gather(1, rivals) - logits.gather(1, y[:, None])
    step, nearest = torch.zeros_like(x), torch.full_like(gaps[:, 0], torch.inf, dtype=torch.float64)
    for gap in gaps.unbind(1):
        (gradient,) = torch.autograd.grad(gap.sum(), x, retain_graph=True)
        reach = gap.detach().abs() / lengths(gradient)
        nearer = reach < nearest
        length = (reach + BEYOND).clamp(max=torch.finfo(x.dtype).max).to(x.dtype)
        step = choose(nearer, spread(length, x) * unit(gradient), step) + 0 * gradient
        nearest = torch.where(nearer, reach, nearest)
    return step


@dataclass(frozen=True, kw_only=True)
class DeepFool(AttackSpec, of=deepfool):
    """Nearest boundary of the linearised model, step by step, unbounded (50 steps, overshoot
    0.02)."""

    names: ClassVar[Mapping[str, Norm | None]] = {"deepfool": "l2"}
    order: ClassVar[int] = 6
    minimal: ClassVar[bool] = True
    not_transferable: ClassVar[str] = "which leaves some images as they are"
    random: ClassVar[bool] = False

    def run(self, model: Model, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        return deepfool(model, x, y, eps=self.eps, **self.options, checked=True)

    def passes(self, num_classes: int) -> int:
        candidates: int = min(self.options["candidates"], num_classes)
        steps: int = self.options["steps"]
        return candidates * steps + 1
