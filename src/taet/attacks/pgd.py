"""Gradient ascent in the L-infinity or the L2 ball: FGSM, PGD, and PGD on the margin or on scaled
logits."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import torch
from torch import Tensor

from taet.attacks import ball
from taet.attacks.ball import BNMode, Norm, Size, Start
from taet.attacks.counting_model import CountingModel
from taet.attacks.inputs import validate_inputs
from taet.attacks.noise import Draws, Source, draw_noise
from taet.attacks.objectives import OBJECTIVES, Objective, ObjectiveName, fooled, margin, scaled
from taet.attacks.spec import FIXED, AttackSpec, Fields, Model, Option
from taet.errors import UserError
from taet.losses.long_tail import cross_entropy, full_precision
from taet.settings import Evaluation
from taet.settings.step_sizes import step_size_for
from taet.settings.types import Count, Positive, Whole, check_value, got_text

NAMES = {
    "fgsm": "one signed gradient step, no random start; a warning sign if it beats pgd (Goodfellow "
    "et al. 2015); 3 passes",
    "pgd": "pgd-N: N signed gradient steps from a random start, the standard measure (Madry et al. "
    "2018); 2N + 1 passes per restart",
    "pgd-l2": "pgd-l2-N: N gradient steps in the L2 ball, a norm that training did not use (Madry "
    "et al. 2018); 2N + 1 passes per restart",
    "cw-linf": "cw-linf-N: pgd-N on the margin, independent of the logit scale (REAT's CW); 2N + 1 "
    "passes per restart",
    "adaptive": "adaptive-pgd-N, adaptive-pgd-l2-N: pgd with logits x10 (factor=F), against flat "
    "softmax (REAT 2023); 2N + 1 passes per restart",
}

WHOLE_RANGE = 1.0  # of pixels: the radius of a ball of all images, and a step across it
T = TypeVar("T")


@validate_inputs
def pgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: Size,
    steps: Whole,
    step_size: Size | Sequence[Size],
    norm: Norm = "linf",
    start: Start = "uniform",
    start_noise: Tensor | torch.Generator | Source | None = None,
    objective: Objective | Sequence[Objective] = cross_entropy,
    targeted: bool = False,
    restarts: Count = 1,
    bn_mode: BNMode = "eval",
    observe: Callable[[int, Tensor], None] | None = None,
    checked: bool = False,
) -> Tensor:
    """Ascend an objective in the ball by projected gradient steps, and return the result.

        x' <- clip_[0,1](project(x' + step_size direction(grad_x' objective)))

    The direction is the gradient's sign in the L-infinity ball, in L2 the gradient over its norm. A
    sample whose gradient is not finite becomes NaN, which `taet.attacks.ball.verify` refuses. A
    Module is attacked in eval mode; it, the inputs and the global random state stay as they were.
    If the model is a function, networks keep their mode.

    Args:
        model: maps images to logits (N, C).
        x: images (N, ...) in [0, 1].
        y: labels (N,), int64; the target classes if `targeted`.
        eps: radius of the ball in `norm`, a number or one per sample (N,), in units of the image
            range, e.g. 8/255.
        steps: number of steps, 0 or more.
        step_size: length of a step, as eps; or a sequence of these, one per step.
        norm: "linf" or "l2".
        start: "uniform" in the ball or "positive" (above x), clipped to [0, 1]; "gaussian" (0.001
            N(0, 1)); "none".
        start_noise: noise in the shape of x, or (restarts, *x.shape); or its generator, by default
            seeded with 0.
        objective: function from (logits, labels) to (N,), which is maximised, or minimised if
            `targeted`; or a sequence of these, one per step.
        targeted: whether y are the classes to reach instead of the true ones.
        restarts: with several, each sample keeps the first result that fools the model, else that
            of the highest objective, at one more forward pass each.
        bn_mode: "eval", or "train" for batch statistics, which also updates the running ones in
            every step.
        observe: called as observe(step, logits) before the update of each step.
        checked: skip the checks of model, images, labels and tensors of sizes, which would wait for
            a GPU.

    Raises:
        UserError: invalid inputs or settings, in one line.

    Source: Madry et al., "Towards deep learning models resistant to adversarial attacks", ICLR
    2018, arXiv:1706.06083.

    Example:
        >>> import torch
        >>> from taet.attacks import pgd
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> x, y = torch.rand(4, 1, 8, 8), torch.arange(4)
        >>> x_adv = pgd(model, x, y, eps=8 / 255, step_size=2 / 255, steps=10)
        >>> bool((x_adv - x).abs().max() <= 8 / 255 + 1e-6)
        True
    """
    objectives = _each_step("objective", objective, steps)
    if not all(map(callable, objectives)):
        allowed = (
            "a function from (logits, labels) to one value per image, e.g. of "
            "taet.attacks.objectives.OBJECTIVES"
        )
        raise UserError(f"objective: got {got_text(objective)}; allowed: {allowed}")
    sizes: Sequence[Size] = _each_step("step size", step_size, steps)
    for size in sizes:
        ball.check_size("step size", size, x, norm, values=not checked)
    origin = full_precision(x.detach())
    project = ball.projection(origin, eps, norm)
    noisy = (origin + noise for noise in _noises(origin, eps, start, norm, restarts, start_noise))
    starts = map(project, noisy) if start in ("uniform", "positive") else noisy
    lengths = [ball.per_sample(size, origin) for size in sizes[:steps]]

    def to_maximise(logits: Tensor, step: int) -> Tensor:
        value = objectives[step](logits, y)
        form = getattr(value, "shape", type(value).__name__)
        if form != y.shape:  # the mean of a batch could not choose a restart for each image
            got = f"{form if isinstance(form, str) else tuple(form)} for {len(y)} images"
            raise UserError(
                f"objective: got {got}; allowed: one value per image, e.g. reduction='none'"
            )
        return -value if targeted else value

    def ascend(x_adv: Tensor) -> Tensor:
        for step, length in enumerate(lengths):
            with torch.enable_grad():
                x_adv.requires_grad_()
                logits = full_precision(model(x_adv))
                total = to_maximise(logits, step).sum()
                # Without this, autocast would also change the backward pass of what ran in float32.
                with torch.autocast(x_adv.device.type, enabled=False):
                    (gradient,) = torch.autograd.grad(total, x_adv)
            if observe is not None:
                observe(step, logits.detach())
            # NaN if the gradient is not finite; sign(NaN) is 0
            direction = ball.unit(gradient) if norm == "l2" else gradient.sign() + 0 * gradient
            x_adv = project(x_adv.detach() + length * direction)
        return project(x_adv)

    exact_logits = model.exact_logits if isinstance(model, CountingModel) else model

    def success_and_objective(x_adv: Tensor) -> tuple[Tensor, Tensor]:
        """Return both for each sample; NaN counts as a success, so that the result shows it."""
        with torch.no_grad():
            logits = full_precision(exact_logits(x_adv))
            sound = ball.finite(logits) & ball.finite(x_adv)
            return fooled(logits, y, targeted) | ~sound, to_maximise(logits, -1)

    with ball.frozen(model, bn_mode):
        best = ascend(next(starts))
        if restarts == 1:
            return best
        broken, highest = success_and_objective(best)
        for x_start in starts:  # without branches on values, which would wait for a GPU
            x_adv = ascend(x_start)
            breaks, value = success_and_objective(x_adv)
            better = ~broken & (breaks | (value > highest))
            best, highest = ball.choose(better, x_adv, best), torch.where(better, value, highest)
            broken = broken | breaks
        return best


def _each_step(what: str, given: T | Sequence[T], steps: int) -> Sequence[T]:
    """Return one value per step, given one value for all steps or a sequence."""
    if not isinstance(given, Sequence) or isinstance(given, str):
        return [given] * max(steps, 1)
    if len(given) != steps:
        raise UserError(
            f"{what}: got {len(given)} for {steps} steps; allowed: one, or one per step"
        )
    return given


def _noises(
    x: Tensor,
    eps: Size,
    start: Start,
    norm: Norm,
    restarts: int,
    given: Tensor | torch.Generator | Source | None,
) -> Iterable[Tensor]:
    """Return the start noise of each restart."""
    if isinstance(given, Tensor):
        noises = given if given.ndim > x.ndim else given[None]
        if len(noises) != restarts:
            raise UserError(f"start noise: got {len(noises)}; allowed: one per restart, {restarts}")
        return noises
    if start == "none" and restarts > 1:
        raise UserError("restarts: got several of start none, which are all the same; allowed: 1")
    if isinstance(given, torch.Generator) and given.device.type != x.device.type:
        raise UserError(f"start noise: got a generator on {given.device}; allowed: on {x.device}")
    source = (
        given
        if isinstance(given, Source)
        else Source(given or torch.Generator(x.device).manual_seed(0))
    )
    return (draw_noise(x, eps, start, source, norm) for _ in range(restarts))


def fgsm(model: Model, x: Tensor, y: Tensor, *, eps: Size, **settings: Any) -> Tensor:
    """Take one step of length eps along the sign of the gradient.

        x' = clip_[0,1](x + eps sign(grad_x objective))

    The result has the shape of x. Other settings, guarantees and errors are those of `pgd`.

    Source: Goodfellow, Shlens, Szegedy, "Explaining and harnessing adversarial examples", ICLR
    2015, arXiv:1412.6572.

    Example:
        >>> import torch
        >>> from taet.attacks import fgsm
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> x, y = torch.rand(4, 1, 8, 8), torch.arange(4)
        >>> x_adv = fgsm(model, x, y, eps=8 / 255)
        >>> bool((x_adv - x).abs().max() <= 8 / 255 + 1e-6)
        True
    """
    return pgd(model, x, y, eps=eps, steps=1, step_size=eps, start="none", **settings)


def cw_linf(model: Model, x: Tensor, y: Tensor, **settings: Any) -> Tensor:
    """Run `pgd` on the margin max_{k != y} z_k - z_y in the L-infinity ball.

    Settings, guarantees and errors are those of `pgd`. Source: the margin of Carlini, Wagner, S&P
    2017, arXiv:1608.04644, as objective of PGD in Madry et al., ICLR 2018.

    Example:
        >>> import torch
        >>> from taet.attacks import cw_linf
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> x, y = torch.rand(4, 1, 8, 8), torch.arange(4)
        >>> x_adv = cw_linf(model, x, y, eps=8 / 255, step_size=2 / 255, steps=10)
        >>> bool((x_adv - x).abs().max() <= 8 / 255 + 1e-6)
        True
    """
    return pgd(model, x, y, objective=margin, **settings)


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
    def parameters(self) -> dict[str, object]:
        return {"steps": 1, "step_size": self.eps, "start": "none", **super().parameters}


@dataclass(frozen=True, kw_only=True)
class ProjectedAscent(AttackSpec):
    """N steps of `--step-size` (1/255 in protocol `taet`), started from U(-eps, eps), drawn per
    image. `cw-linf` ascends the margin (REAT's CW), `adaptive-pgd` the cross-entropy of the logits
    times 10.

    In L2 (radius 1, step 0.2): uniform start inside the ball, steps along the normalised gradient.
    The factor is for models whose logit scale hides gradients: Li et al., REAT, arXiv:2307.10205,
    section 5.
    """

    names: ClassVar[Mapping[str, Norm | None]] = {
        **{"pgd-N": "linf", "pgd-l2-N": "l2", "cw-linf-N": "linf"},
        **{"adaptive-pgd-N": "linf", "adaptive-pgd-l2-N": "l2"},
    }
    order: ClassVar[int] = 2
    unstored: ClassVar[Fields] = {"precision": "float32", "objective": "ce", "factor": 1.0}

    # Declared here and not made from `pgd`, as other attacks' options are from their functions:
    # `pgd` also takes tensors, functions and a value for each step, which no text can name.
    steps: Annotated[Count, FIXED]  # N of the name
    step_size: Annotated[Positive, Option("step")]  # its option
    """Length of a step. Default: that of the evaluation, in proportion to eps, in the L-infinity
    ball at most 1."""
    start: Literal["uniform", "gaussian", "none"] = "uniform"
    """Start noise: uniform in the ball, 0.001 N(0, 1) or none."""
    restarts: Count = 1
    """Number of starts; an image is robust if it resists all of them."""
    objective: ObjectiveName = "ce"
    """Maximised function: cross-entropy (ce), margin of the logits (cw), or margin of the
    probabilities (pm)."""
    factor: Positive = 1.0
    """Factor of the logits in the objective."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_value(f"attack '{self.name}': step", self.step_size, ball.RADII[self.norm or "linf"])
        if self.start == "none" and self.restarts > 1:
            raise self._refused("got several restarts from one start; allowed: start=uniform")

    @classmethod
    def make(cls, given: Fields, settings: Evaluation, radius: float) -> Self:
        is_l2 = given["norm"] == "l2"
        usual_eps = settings.eps_l2 if is_l2 else radius
        usual_step = settings.step_size_l2 if is_l2 else settings.step_size
        step_size = step_size_for(given.get("eps", usual_eps), usual_step, meant_for=usual_eps)
        if not is_l2:
            # a longer step ends at the same pixels
            step_size = min(step_size, WHOLE_RANGE)
        defaults: dict[str, Any] = {"step_size": step_size}
        if given["name"].startswith("adaptive-"):
            defaults["factor"] = 10.0
        if given["name"].startswith("cw-"):
            defaults["objective"] = "cw"
            if (objective := given.get("objective", "cw")) != "cw":
                raise UserError(
                    f"attack '{given['name']}': got objective '{objective}'; allowed: cw; pgd-N "
                    "takes any"
                )
        return super().make({**defaults, **given}, settings, radius)

    def run(self, model: Model, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        eps, norm, objective = self.radius, self.norm or "linf", OBJECTIVES[self.objective]
        noise = torch.stack(
            [draws.start(x, eps, self.start, norm, restart) for restart in range(self.restarts)]
        )
        sizes: Fields = {"eps": eps, "norm": norm, "steps": self.steps, "step_size": self.step_size}
        starts: Fields = {"start": self.start, "restarts": self.restarts, "start_noise": noise}
        objective = objective if self.factor == 1 else scaled(objective, self.factor)
        return pgd(model, x, y, **sizes, **starts, objective=objective, checked=True)

    def passes(self, num_classes: int) -> int:
        return self.restarts * (2 * self.steps + (self.restarts > 1)) + 1
