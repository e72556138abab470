"""Carlini and Wagner's attack: the smallest L2 perturbation that fools the model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Self

import torch
from torch import Tensor

from taet.attacks.ball import Norm, Size, choose, distance, finite, frozen, refuse_unsound
from taet.attacks.inputs import validate_inputs
from taet.attacks.noise import Draws
from taet.attacks.objectives import fooled, margin
from taet.attacks.spec import FIXED, AttackSpec, Fields, Model
from taet.losses.long_tail import full_precision
from taet.settings import Evaluation
from taet.settings.types import Count, NonNegative, Positive

NAMES = {
    "cw-l2": "smallest L2 perturbation by Adam, any norm or within eps (Carlini, Wagner 2017); 201 "
    "passes, c=search 1801"
}

# keeps atanh(2x - 1) finite, and the slope of sin above 0, at 0 and 1; from the authors' public
# code
BOX = 0.9999995
Boxed = Literal["tanh", "sine"]
SQUASH = {"tanh": (torch.atanh, torch.tanh), "sine": (torch.asin, torch.sin)}
# of Carlini & Wagner (S&P 2017, arXiv:1608.04644), who search over c
SEARCH_STEPS, INITIAL_CONSTANT = 9, 1e-3


@validate_inputs
def cw_l2(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    c: Positive | None = 10.0,
    kappa: NonNegative = 0.0,
    steps: Count = 100,
    lr: Positive = 0.01,
    search_steps: Count = SEARCH_STEPS,
    initial_c: Positive = INITIAL_CONSTANT,
    box: Boxed | None = None,
    eps: Size | None = None,
    checked: bool = False,
) -> Tensor:
    """Look for the smallest L2 perturbation that fools the model, with Adam.

        minimise ||x' - x||_2^2 + c max(z_y - max_{k != y} z_k, -kappa)
        over w, with x' = (tanh(w) + 1) / 2

    A success is an image that fools the model by a margin of kappa or more. The result of each
    sample, (N, ...), is the success of smallest norm among all iterates of all rounds and the clean
    image; without one, it is the clean image.

    Args:
        model, x, y, checked: as in `pgd`.
        c: weight of the margin. None: searched per sample, from `initial_c` up by factors of 10
            until a round succeeds, then by bisection, in `search_steps` rounds.
        kappa: required margin, in logits.
        steps: gradient steps of each round; the iterate before each step is evaluated.
        lr: learning rate of Adam.
        box: how w becomes pixels; "sine" is x' = (1 + sin w) / 2, which is ours. Default: tanh, as
            published, for a given c, and sine for the search: from a pixel of exactly 0 or 1, 100
            steps of 0.01 reach 2e-6 with tanh and 0.23 with sine.
        eps: L2 radius inside which successes count, a number or one per sample (N,); None:
            unbounded.

    Errors are those of `pgd`, and logits or gradients that are not finite at some iterate. Source:
    Carlini, Wagner, "Towards evaluating the robustness of neural networks", S&P 2017,
    arXiv:1608.04644, section VI A; the search and its defaults are those of the authors' public
    code.

    Example:
        >>> import torch
        >>> from taet.attacks import cw_l2
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> x, y = torch.rand(4, 1, 8, 8), torch.arange(4)
        >>> x_adv = cw_l2(model, x, y, steps=20)
        >>> x_adv.shape
        torch.Size([4, 1, 8, 8])
    """
    del checked  # `validate_inputs` has read it
    origin = full_precision(x.detach())
    unsquash, squash = SQUASH[box or ("sine" if c is None else "tanh")]

    def margin_and_success(logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the margin z_y - max_{k != y} z_k of each sample, and whether it is a success."""
        gap = -margin(logits, y)
        return gap, fooled(logits, y) & (gap <= -kappa)

    def descend(
        weight: Tensor, best: Tensor, smallest: Tensor, sound: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Run one round; return the best images and their squared norms.

        Then for each image whether all was finite, and whether there was a success.
        """
        succeeded = torch.zeros_like(sound)
        w = unsquash(BOX * (2 * origin - 1)).requires_grad_()
        adam = torch.optim.Adam([w], lr=lr)
        for _ in range(steps):
            with torch.enable_grad():
                x_adv = (squash(w) + 1) / 2
                logits = full_precision(model(x_adv))
                gap, success = margin_and_success(logits)
                squared = (x_adv - origin).square().flatten(1).sum(1)
                (w.grad,) = torch.autograd.grad((squared + weight * gap.clamp(min=-kappa)).sum(), w)
            sound = sound & finite(logits) & finite(w.grad)
            adam.step()
            x_adv, squared = x_adv.detach(), squared.detach()
            better = success & (squared < smallest)
            best, smallest = choose(better, x_adv, best), torch.where(better, squared, smallest)
            succeeded = succeeded | success
        return best, smallest, sound, succeeded

    with frozen(model):
        weight = origin.new_full((len(origin),), initial_c if c is None else c)
        # the c that failed and succeeded
        lower, upper = torch.zeros_like(weight), torch.full_like(weight, torch.inf)
        with torch.no_grad():
            logits = full_precision(model(origin))
        _, success = margin_and_success(logits)
        sound, best, smallest = finite(logits), origin, torch.where(success, 0, upper)
        for _ in range(search_steps if c is None else 1):
            best, smallest, sound, success = descend(weight, best, smallest, sound)
            lower, upper = torch.where(success, lower, weight), torch.where(success, weight, upper)
            weight = torch.where(upper.isinf(), 10 * weight, (lower + upper) / 2)
    refuse_unsound("cw-l2", sound)
    return best if eps is None else choose(distance(best, origin, "l2") <= eps, best, origin)


@dataclass(frozen=True, kw_only=True)
class CwL2(AttackSpec, of=cw_l2):
    """Smallest L2 perturbation, by Adam on ||delta||^2 + c margin, unbounded; TAET's CW (c = 10,
    100 steps).

    `c=search` finds c by binary search, `eps=1` counts only successes inside that ball: defaults of
    protocol `reat`.
    """

    names: ClassVar[Mapping[str, Norm | None]] = {"cw-l2": "l2"}
    order: ClassVar[int] = 5
    minimal: ClassVar[bool] = True
    not_transferable: ClassVar[str] = "which leaves some images as they are"
    random: ClassVar[bool] = False

    c: Positive | Literal["search"] = 10.0
    """Weight of the margin, or search. Default: that of the evaluation."""
    search_steps: Annotated[Count | None, FIXED] = None
    initial_c: Annotated[Positive | None, FIXED] = None
    box: Annotated[Boxed | None, FIXED] = None  # None: tanh, as in cards that are older than `sine`

    @classmethod
    def make(cls, given: Fields, settings: Evaluation, radius: float) -> Self:
        c = given.get("c", "search" if settings.cw_constant is None else settings.cw_constant)
        search = {"search_steps": SEARCH_STEPS, "initial_c": INITIAL_CONSTANT, "box": "sine"}
        eps = settings.eps_l2 if settings.cw_bounded else None
        return super().make(
            {"c": c, "eps": eps, **(search if c == "search" else {}), **given}, settings, radius
        )

    def run(self, model: Model, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        descent = {name: self.options[name] for name in ("kappa", "steps", "lr")}
        rounds, initial_c = self.search_steps or SEARCH_STEPS, self.initial_c or INITIAL_CONSTANT
        search: Fields = {
            "c": None if self.c == "search" else self.c,
            "search_steps": rounds,
            "initial_c": initial_c,
        }
        box = self.box or "tanh"
        return cw_l2(model, x, y, **descent, **search, box=box, eps=self.eps, checked=True)

    def passes(self, num_classes: int) -> int:
        steps: int = self.options["steps"]
        return 2 * steps * (self.search_steps or 1) + 1
