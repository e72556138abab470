"""Projected gradient ascent in the L-infinity or the L2 ball."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple, Self, TypeVar, get_args

import torch
from torch import Tensor

from taet.attacks.ball import (
    BNMode,
    Norm,
    Start,
    check_noise,
    check_size,
    check_sizes,
    choose,
    draw_noise,
    finite,
    frozen,
    per_sample,
    project,
    unit,
)
from taet.attacks.draws import Draws
from taet.attacks.inputs import refusing
from taet.attacks.noise import Source
from taet.attacks.objectives import (
    Objective,
    ObjectiveName,
    Target,
    check_callable,
    check_objective,
    fooled,
    named_objective,
    target_classes,
    target_passes,
    towards,
)
from taet.attacks.spec import FIXED, AttackSpec, Fields, Model, Option
from taet.errors import UserError, unknown
from taet.fields import Count, Positive, Whole, check_value
from taet.losses.long_tail import cross_entropy, full_precision
from taet.settings import Evaluation

NAMES = {
    "pgd": "pgd-N: N signed gradient steps from a random start, the standard measure (Madry et al. 2018);"
    " 2N passes per restart",
    "pgd-l2": "pgd-l2-N: N gradient steps in the L2 ball, a norm that training did not use (Madry et al. 2018);"
    " 2N passes per restart",
}

Each = TypeVar("Each")
Size = float | Tensor


@refusing
def pgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: Size,
    steps: int,
    step_size: Size | Sequence[Size],
    norm: Norm = "linf",
    start: Start = "uniform",
    start_noise: Tensor | torch.Generator | None = None,
    objective: Objective | Sequence[Objective] = cross_entropy,
    targeted: bool = False,
    restarts: int = 1,
    bn_mode: BNMode = "eval",
    observe: Callable[[int, Tensor], None] | None = None,
    checked: bool = False,
) -> Tensor:
    """Ascend an objective in the ball: x' <- clip_[0,1](project(x' + step_size direction(grad_x' objective))).

    The direction is the sign of the gradient in the L-infinity ball, and in L2 the gradient of each sample divided by
    its norm; a zero gradient moves nothing. A sample whose gradient is not finite is returned as NaN, which
    `taet.attacks.ball.verify` refuses, so that a broken model never counts as robust. The model's modes, parameters,
    gradients and (with `bn_mode="eval"`) statistics, the inputs and the global random state are not changed.

    Args:
        model: from x (N, ...) to logits (N, C).
        x: images (N, ...), floating point in [0, 1].
        y: labels (N,), int64, passed to the objective; the target classes if `targeted`.
        eps: radius of the ball, a number or one per sample (N,), in units of the image range, e.g. 8/255.
        steps: number of steps, 0 or more; with 0 steps the start noise itself is returned, projected into the ball.
        step_size: length of a step in `norm`, a number or one per sample (N,), same units; or a sequence of these, one
            per step. A sample with length 0 does not move.
        norm: "linf" or "l2".
        start: "uniform" in the ball, or "positive", in the part of it above x, both clipped to [0, 1]; "gaussian"
            0.001 N(0, 1), not projected before the first step; or "none".
        start_noise: noise to use instead of a draw, in the shape of x, or (restarts, *x.shape); or its generator, on
            x's device, by default a new one seeded with 0.
        objective: maximised function from (logits, labels) to (N,); logits are float32 or wider. Or a sequence of
            these, one per step; the last one compares restarts.
        targeted: minimise the objective, for the target class.
        restarts: number of starts, 1 or more. With several, each sample keeps the first result that fools the model (or
            reaches its target) or is not finite, else that of the highest objective, at one more forward pass each.
        bn_mode: "eval", or "train" for batch statistics, which also updates the running ones in every step.
        observe: called as observe(step, logits) before the update of each step, in every restart.
        checked: skip the checks of the model, images, labels and values of tensors, which wait for the device once per
            call. With `start_noise`, such a call can be captured in a CUDA graph.

    Returns:
        Adversarial images, detached, in the shape of x; float32, or float64 if x is.

    Raises:
        UserError: invalid inputs: images that are not floating point in [0, 1], labels that are not one class per
            image, a model that does not return logits; a setting out of its range; a tensor of another shape.

    Source: Madry, Makelov, Schmidt, Tsipras, Vladu, "Towards deep learning models resistant to adversarial attacks",
    ICLR 2018, arXiv:1706.06083.
    """
    _check_choices(norm, start, steps, restarts)
    check_size("eps", eps, x, norm)
    origin = full_precision(x.detach())
    starts = _starts(origin, eps, start, norm, restarts, start_noise)
    objectives = _each_step("objective", objective, steps)
    check_callable(objectives)
    sizes: Sequence[Size] = _each_step("step size", step_size, steps)
    for size in sizes:
        check_size("step size", size, x, norm)
    if not checked:
        check_sizes("step size", sizes, norm)
        check_noise(start_noise)
    lengths = [per_sample(size, origin) for size in sizes[:steps]]
    if targeted:
        objectives = [towards(one) for one in objectives]
    climb = _Climb(model, y, norm, lengths, objectives, _inside(origin, eps, norm), observe)
    with frozen(model, bn_mode):
        if restarts == 1:
            return climb.run(next(starts))
        return _best((climb.run(begin) for begin in starts), lambda x_adv: climb.judge(x_adv, targeted))


class _Climb(NamedTuple):
    """The steps of one restart."""

    model: Model
    y: Tensor
    norm: Norm
    lengths: Sequence[Size]
    objectives: Sequence[Objective]
    inside: Callable[[Tensor], Tensor]
    observe: Callable[[int, Tensor], None] | None

    def run(self, x_adv: Tensor) -> Tensor:
        for step, length in enumerate(self.lengths):
            logits, gradient = slope(self.model, x_adv, self.y, self.objectives[step])
            if self.observe is not None:
                self.observe(step, logits)
            x_adv = self.inside(x_adv.detach() + length * direction(gradient, self.norm))
        return self.inside(x_adv)

    def judge(self, x_adv: Tensor, targeted: bool) -> tuple[Tensor, Tensor]:
        """Return success and objective of each sample; what is not finite is a success, so that it is kept and seen."""
        with torch.no_grad():
            logits = full_precision(self.model(x_adv))
            sound = finite(logits) & finite(x_adv)
            return fooled(logits, self.y, targeted) | ~sound, self.objectives[-1](logits, self.y)


def slope(model: Model, x_adv: Tensor, y: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
    """Return the logits, and the gradient of the objective summed over samples, which are independent."""
    with torch.enable_grad():
        x_adv.requires_grad_()
        logits = full_precision(model(x_adv))
        total = objective(logits, y).sum()
        # Without this, autocast would also change the backward pass of what ran in float32.
        with torch.autocast(x_adv.device.type, enabled=False):
            (gradient,) = torch.autograd.grad(total, x_adv)
    return logits.detach(), gradient


def direction(gradient: Tensor, norm: Norm) -> Tensor:
    """Return the move of length 1 in `norm` that raises the linearised objective most."""
    if norm == "l2":
        return unit(gradient)
    return gradient.sign() + 0 * gradient  # NaN if the gradient is not finite; sign(NaN) is 0


def _inside(origin: Tensor, eps: Size, norm: Norm) -> Callable[[Tensor], Tensor]:
    """Return the projection into the ball and into [0, 1]."""
    if norm == "l2":
        return lambda x_adv: project(x_adv, origin, eps, norm)
    radius = per_sample(eps, origin)  # the L-infinity ball inside [0, 1] is a box with the same corners in every step
    box = ((origin - radius).clamp(0, 1), (origin + radius).clamp(0, 1))
    return lambda x_adv: x_adv.clamp(*box)


def _check_choices(norm: str, start: str, steps: int, restarts: int) -> None:
    for what, name, allowed in (("norm", norm, get_args(Norm)), ("start", start, get_args(Start))):
        if name not in allowed:
            raise unknown(what, str(name), allowed)
    check_value("steps", steps, Whole)
    check_value("restarts", restarts, Count)
    if steps == 0 and start == "none":
        raise UserError("steps: got 0 with start none, which attacks nothing; allowed: 1 or more")


def _each_step(what: str, given: Each | Sequence[Each], steps: int) -> Sequence[Each]:
    """Return one value per step, of one for all or a sequence of them."""
    if not isinstance(given, Sequence) or isinstance(given, str):
        return [given] * max(steps, 1)
    if len(given) != steps:
        raise UserError(f"{what}: got {len(given)} for {steps} steps; allowed: one, or one per step")
    return given


def _starts(
    origin: Tensor, eps: Size, start: Start, norm: Norm, restarts: int, given: Tensor | torch.Generator | None
) -> Iterator[Tensor]:
    """Return the start of each restart."""
    noises: Iterable[Tensor]
    if isinstance(given, Tensor):
        noises = given if given.ndim > origin.ndim else given[None]
        if len(noises) != restarts:
            raise UserError(f"start noise: got {len(noises)}; allowed: one per restart, {restarts}")
    elif start == "none" and restarts > 1:
        raise UserError("restarts: got several of start none, which are all the same; allowed: 1")
    else:
        source = Source(given or torch.Generator(origin.device).manual_seed(0))
        noises = (draw_noise(origin, eps, start, source, norm) for _ in range(restarts))
    begins = (origin + noise for noise in noises)
    return (project(x_adv, origin, eps, norm) if start in ("uniform", "positive") else x_adv for x_adv in begins)


def _best(climbed: Iterator[Tensor], judge: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    """Keep for each sample the first successful result, else that of the highest objective, without branches.

    `judge` returns success and objective of each sample.
    """
    best = next(climbed)
    broken, highest = judge(best)
    for x_adv in climbed:
        breaks, height = judge(x_adv)
        better = ~broken & (breaks | (height > highest))
        best, highest = choose(better, x_adv, best), torch.where(better, height, highest)
        broken = broken | breaks
    return best


@dataclass(frozen=True, kw_only=True)
class ProjectedAscent(AttackSpec):
    """`pgd` from start noise that is drawn per image; a subclass says what is maximised."""

    stored_first: ClassVar[tuple[str, ...]] = (
        *("steps", "step_size", "start", "restarts", "seed"),
        *("objective", "factor", "target"),
    )

    steps: Annotated[Count, FIXED]
    """Number of steps, N of the name."""
    step_size: Annotated[Positive, Option("step")]
    """Length of a step. Default: that of the evaluation, in proportion to eps."""
    start: Literal["uniform", "gaussian", "none"] = "uniform"
    """Start noise: uniform in the ball, 0.001 N(0, 1) or none."""
    restarts: Count = 1
    """Number of starts; an image is robust if it resists all of them."""
    target: Target | None = None
    """Aim at this class, chosen on the clean image or at random; any misclassification is a success."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start == "none" and self.restarts > 1:
            raise self._refused("got several restarts from one start; allowed: start=uniform")
        if self.target is not None and self.restarts > 1:
            raise self._refused("got several restarts with a target; allowed: one or the other")

    @classmethod
    def make(cls, given: Fields, settings: Evaluation, radius: float) -> Self:
        two = given["norm"] == "l2"
        usual, step = (settings.eps_l2, settings.step_size_l2) if two else (radius, settings.step_size)
        eps = given.get("eps", usual)
        # In proportion to the ball, so that as many steps cross a ball of another size.
        size = step if eps == usual else step * eps / usual
        return super().make({"step_size": size, **given}, settings, radius)

    @abstractmethod
    def objective_of(self, model: Model, x: Tensor) -> Objective:
        """Return what is maximised."""

    def run(self, model: Model, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        eps, norm = self.radius, self.norm or "linf"
        aim = y if self.target is None else target_classes(self.target, model, x, y, draws, norm)
        noise = torch.stack([draws.start(x, eps, self.start, norm, restart) for restart in range(self.restarts)])
        ball: Fields = {"eps": eps, "norm": norm, "steps": self.steps, "step_size": self.step_size}
        starts: Fields = {"start": self.start, "restarts": self.restarts, "start_noise": noise}
        objective, targeted = self.objective_of(model, x), self.target is not None
        return pgd(model, x, aim, **ball, **starts, objective=objective, targeted=targeted, checked=True)

    def passes(self, num_classes: int) -> int:
        return self.restarts * (2 * self.steps + (self.restarts > 1)) + target_passes(self.target, num_classes) + 1

    @property
    def ascent_steps(self) -> int:
        return self.steps


@dataclass(frozen=True, kw_only=True)
class Pgd(ProjectedAscent):
    """N steps of `--step-size` (1/255 in protocol `taet`), started from U(-eps, eps), drawn per image.

    In L2 (radius 1, step 0.2): uniform start inside the ball, steps along the normalised gradient.
    """

    names: ClassVar[Mapping[str, Norm | None]] = {"pgd-N": "linf", "pgd-l2-N": "l2"}
    order: ClassVar[int] = 2
    unstored: ClassVar[Mapping[str, object]] = {"objective": "ce"}

    objective: ObjectiveName = "ce"
    """Maximised function: cross-entropy (ce), margin of the logits (cw), difference of logits ratio (dlr), margin of
    the probabilities (pm), or divergence from the clean prediction (kl)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.objective == "kl" and self.start == "none":
            raise self._refused("got no start noise with the objective kl, which has no gradient there")
        if self.objective == "kl" and self.target is not None:
            raise self._refused("got a target with the objective kl, which sees no label")

    def objective_of(self, model: Model, x: Tensor) -> Objective:
        return named_objective(self.objective, model, x)

    def passes(self, num_classes: int) -> int:
        return super().passes(num_classes) + (self.objective == "kl" and self.restarts == 1)

    @property
    def on_margin(self) -> bool:
        return self.objective == "cw"

    def check_classes(self, num_classes: int) -> None:
        check_objective(self.name, self.objective, num_classes)
