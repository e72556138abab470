"""Carlini and Wagner's attack: the smallest L2 perturbation that fools the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor

from taet.attacks.ball import Norm, check_size, choose, distance, finite, frozen, refuse_unsound
from taet.attacks.draws import Draws
from taet.attacks.inputs import refusing
from taet.attacks.objectives import Target, fooled, margin, target_classes, target_passes
from taet.attacks.spec import FIXED, AttackSpec, Fields, Model
from taet.fields import Count, NonNegative, Positive, check_value
from taet.losses.long_tail import full_precision
from taet.settings import Evaluation

NAMES = {
    "cw-l2": "smallest L2 perturbation by Adam, any norm or within eps (Carlini, Wagner 2017); 200 passes,"
    " c=search 1800",
}

BOX = 0.9999995  # keeps atanh(2x - 1) finite, and the slope of sin above 0, at 0 and 1; from the authors' public code
Boxed = Literal["tanh", "sine"]
SQUASH = {"tanh": (torch.atanh, torch.tanh), "sine": (torch.asin, torch.sin)}
SEARCH_STEPS, INITIAL_CONSTANT = 9, 1e-3  # of Carlini & Wagner (S&P 2017, arXiv:1608.04644), who search over c


@refusing
def cw_l2(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    *,
    c: float | None = 10.0,
    kappa: float = 0.0,
    steps: int = 100,
    lr: float = 0.01,
    search_steps: int = 9,
    initial_c: float = 1e-3,
    box: Boxed | None = None,
    eps: float | Tensor | None = None,
    targeted: bool = False,
    checked: bool = False,
) -> Tensor:
    """Minimise ||x' - x||_2^2 + c max(z_y - max_{k != y} z_k, -kappa) over x' = (tanh(w) + 1) / 2 with Adam.

    A success is an image that fools the model by a margin of kappa or more, max_{k != y} z_k - z_y >= kappa. Each
    sample keeps the success of smallest norm among all iterates of all rounds and the clean image, so that an image
    that is already misclassified by kappa is returned unchanged. Samples are independent and no step synchronises with
    the device. The model, the inputs and the global random state are not changed.

    Args:
        model: from x (N, ...) to logits (N, C) with C of 2 or more.
        x: images (N, ...), floating point in [0, 1].
        y: labels (N,); the target classes if `targeted`.
        c: weight of the margin. None: searched per sample, from `initial_c` up by factors of 10 until a round succeeds,
            then by bisection between the largest weight that failed and the smallest that succeeded.
        kappa: required margin, in logits, 0 or more.
        steps: gradient steps in each round, 1 or more; the iterate before each step is evaluated.
        lr: learning rate of Adam, on w.
        search_steps: rounds of the search, 1 or more.
        initial_c: first weight of the search.
        box: how w becomes pixels; "sine" is x' = (1 + sin w) / 2. Default: tanh, as published, for a given c, and sine
            for the search. From a pixel of exactly 0 or 1, 100 steps of 0.01 reach 2e-6 with tanh and (1 - cos 1)/2 =
            0.23 with sine, so that tanh finds no success that needs many such pixels. Sine is ours.
        eps: L2 radius inside which successes count, a number or one per sample (N,); None: unbounded.
        targeted: reach class y by kappa: minimise max(max_{k != y} z_k - z_y, -kappa) instead.
        checked: skip the checks of the model, images, labels and values of eps, as in `pgd`.

    Returns:
        Adversarial images, detached, in the shape of x, and the clean image if none was found; float32, or float64 if
        x is.

    Raises:
        UserError: invalid inputs, as in `pgd`; a setting out of range; a model whose logits or gradients are
            not finite at some iterate.

    Source: Carlini, Wagner, "Towards evaluating the robustness of neural networks", S&P 2017, arXiv:1608.04644,
    section VI A; the search and its defaults are those of the authors' public code.
    """
    del checked  # `refusing` has read it
    check_value("c", c, Positive | None)
    for what, value in (("lr", lr), ("initial c", initial_c)):
        check_value(what, value, Positive)
    check_value("kappa", kappa, NonNegative)
    check_value("box", box, Boxed | None)
    for what, count in (("steps", steps), ("search steps", search_steps)):
        check_value(what, count, Count)
    if eps is not None:
        check_size("eps", eps, x, "l2")
    origin = full_precision(x.detach())
    descent = _Descent(model, origin, y, SQUASH[box or ("sine" if c is None else "tanh")], kappa, lr, targeted)
    weight = origin.new_full((len(origin),), initial_c if c is None else c)
    fails, succeeds = torch.zeros_like(weight), torch.full_like(weight, torch.inf)
    with frozen(model):
        with torch.no_grad():
            logits = full_precision(model(origin))
            _, success = descent.judge(logits)
        sound = finite(logits)
        best, smallest = origin, torch.where(success, 0, succeeds)
        for _ in range(search_steps if c is None else 1):
            best, smallest, success, whole = descent.run(steps, weight, best, smallest)
            sound = sound & whole
            fails, succeeds = torch.where(success, fails, weight), torch.where(success, weight, succeeds)
            weight = torch.where(succeeds.isinf(), 10 * weight, (fails + succeeds) / 2)
    refuse_unsound("cw-l2", sound)
    return best if eps is None else choose(distance(best, origin, "l2") <= eps, best, origin)


class _Descent(NamedTuple):
    """A round of Adam on the weighted sum of distance and margin."""

    model: Model
    origin: Tensor
    y: Tensor
    box: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]
    kappa: float
    lr: float
    targeted: bool

    def judge(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the margin that is to fall, and whether it fell below -kappa, of each sample."""
        gap = margin(logits, self.y) if self.targeted else -margin(logits, self.y)
        return gap, fooled(logits, self.y, self.targeted) & (gap <= -self.kappa)

    def run(self, steps: int, weight: Tensor, best: Tensor, smallest: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the best images, their squared norms, any success, and whether all was finite."""
        succeeded, sound = torch.zeros_like(weight, dtype=torch.bool), torch.ones_like(weight, dtype=torch.bool)
        unsquash, squash = self.box
        w = unsquash(BOX * (2 * self.origin - 1)).requires_grad_()
        adam = torch.optim.Adam([w], lr=self.lr)
        for _ in range(steps):
            with torch.enable_grad():
                x_adv = (squash(w) + 1) / 2
                logits = full_precision(self.model(x_adv))
                gap, success = self.judge(logits)
                squared = (x_adv - self.origin).square().flatten(1).sum(1)
                (w.grad,) = torch.autograd.grad((squared + weight * gap.clamp(min=-self.kappa)).sum(), w)
            sound = sound & finite(logits) & finite(w.grad)
            adam.step()
            x_adv, squared = x_adv.detach(), squared.detach()
            better = success & (squared < smallest)
            best, smallest = choose(better, x_adv, best), torch.where(better, squared, smallest)
            succeeded = succeeded | success
        return best, smallest, succeeded, sound


@dataclass(frozen=True, kw_only=True)
class CwL2(AttackSpec):
    """Smallest L2 perturbation, by Adam on ||delta||^2 + c margin, unbounded; TAET's CW (c = 10, 100 steps).

    `c=search` finds c by binary search and `eps=1` counts only successes inside that ball; both are the default of
    protocol `reat`.
    """

    names: ClassVar[Mapping[str, Norm | None]] = {"cw-l2": "l2"}
    order: ClassVar[int] = 5
    minimal: ClassVar[bool] = True

    c: Positive | Literal["search"] = 10.0
    """Weight of the margin, or search. Default: that of the evaluation."""
    kappa: NonNegative = 0.0
    """Required margin, in logits."""
    steps: Count = 100
    """Gradient steps of each round."""
    lr: Positive = 0.01
    """Learning rate of Adam."""
    search_steps: Annotated[Count | None, FIXED] = None
    """Rounds of the search for c."""
    initial_c: Annotated[Positive | None, FIXED] = None
    """First weight of the search."""
    box: Annotated[Boxed | None, FIXED] = None
    """How the search keeps pixels in [0, 1]; none: tanh, as in cards from before `sine` existed."""
    target: Target | None = None
    """Aim at this class, chosen on the clean image or at random; any misclassification is a success."""

    @classmethod
    def make(cls, given: Fields, settings: Evaluation, radius: float) -> Self:
        c = given.get("c", "search" if settings.cw_constant is None else settings.cw_constant)
        own = {"search_steps": SEARCH_STEPS, "initial_c": INITIAL_CONSTANT, "box": "sine"}
        search = own if c == "search" else {}
        fields = {
            "c": c,
            "eps": settings.eps_l2 if settings.cw_bounded else None,
            "seed": settings.seed if given.get("target") == "random" else None,
        }
        return super().make({**fields, **search, **given}, settings, radius)

    def run(self, model: Model, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        aim = y if self.target is None else target_classes(self.target, model, x, y, draws, "l2")
        descent: Fields = {"kappa": self.kappa, "steps": self.steps, "lr": self.lr, "box": self.box or "tanh"}
        search: Fields = {
            "c": None if isinstance(self.c, str) else self.c,
            "search_steps": self.search_steps or SEARCH_STEPS,
            "initial_c": self.initial_c or INITIAL_CONSTANT,
        }
        return cw_l2(model, x, aim, **descent, **search, eps=self.eps, targeted=self.target is not None, checked=True)

    def passes(self, num_classes: int) -> int:
        return 2 * self.steps * (self.search_steps or 1) + target_passes(self.target, num_classes) + 1
