"""The cheap tier: short attacks on margins and towards the nearest classes, with more where the margin is small."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor

from taet.attacks.ball import Norm, check_size, choose, draw_noise, finite, frozen
from taet.attacks.counted import Counted
from taet.attacks.draws import Draws
from taet.attacks.inputs import refusing
from taet.attacks.noise import Source
from taet.attacks.objectives import Objective, fooled, margin, probability_margin
from taet.attacks.pgd import Size, pgd
from taet.attacks.spec import FIXED, AttackSpec, Fields, Model
from taet.attacks.targets import nearest_classes
from taet.errors import UserError
from taet.fields import Count, Share, check_value
from taet.losses.long_tail import full_precision
from taet.settings import Evaluation

NAMES = {
    "quick": "the cheap tier, an upper bound close to autoattack on models that raise no flag;"
    " 341 passes for a robust image, 1141 if it is close",
    "quick-l2": "the same in L2",
}

FIRST_STEPS = 5  # on the margin; they break most images of a model that has no defence
MARGIN_STEPS = 20  # of each of the two runs on the probability margin
TARGET_STEPS = 40  # towards each of the nearest classes
WIDER = ((3, 12), (2, 12))  # radii in units of eps, and steps in them, of a run in a shrinking ball
SCHEDULE: Literal["shrinking"] = "shrinking"  # in the settings of a column: another order of runs is another attack
ROUNDS = 4  # of new starts for images that came close
CANDIDATES = 20  # likeliest other classes, which are ordered by their distance


class Gap(NamedTuple):
    """How far the cheap tier was above the official AutoAttack, as measured (results/verdicts.json)."""

    models: int
    """Pairs of a model and a ball."""
    images: int
    largest: float
    """Points of balanced accuracy."""
    mean: float

    def __str__(self) -> str:
        where = f"on {self.models} pairs of model and ball with {self.images} images"
        return (
            f"an upper bound, {where} at most {self.largest:.2f} points above AutoAttack, {self.mean:+.2f} on average"
        )


MEASURED = Gap(models=30, images=17400, largest=0.33, mean=-0.20)
"""From results/verdicts.json."""


def margin_lengths(steps: int) -> list[float]:
    """Return the length of each step over eps: two half cosines from 2 to 0, the first from its second step on.

    Source: PMA, Xie et al., CVPR 2025, arXiv:2411.15210.
    """
    half = steps // 2
    phases = [step - 1 if step <= half else step - half - 1 for step in range(steps)]
    return [1 + math.cos(math.pi * phase / (steps - half)) for phase in phases]


def margin_objectives(steps: int, run: int) -> list[Objective]:
    """Return what each step of run 0 or 1 maximises, in probabilities p = softmax(z).

    The first step raises p_y, to leave a flat start. Up to half of the steps, run 0 lowers p_y, run 1 raises the
    largest other p, and from there both raise the margin of p. Source: as `margin_lengths`.
    """
    first = _lowered if run == 0 else _rival
    return [_raised, *[first] * (steps // 2 - 1), *[probability_margin] * (steps - steps // 2)]


def cosine_lengths(steps: int) -> list[float]:
    """Return the length of each step over eps: half a cosine from 2 to 0."""
    return [1 + math.cos(math.pi * step / steps) for step in range(steps)]


@refusing
def quick(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: Size,
    norm: Norm = "linf",
    targets: int = 3,
    near: float = 0.3,
    judge: Model | None = None,
    noise: Callable[[int], Tensor] | None = None,
    checked: bool = False,
) -> Tensor:
    """Return images that fool the model, and the last iterate where none did, each attacked separately.

    1. A misclassified image stays as it is.
    2. `pgd` with 5 steps on the margin, then two runs of 20 on the probability margin (`margin_objectives`).
    3. 40 steps on z_t - z_y for each of the `targets` nearest classes t (`nearest_classes`, of the 20 likeliest), in a
       shrinking ball: 12 of radius 3 eps, 12 of 2 eps, 16 of eps.
    4. Where the least margin z_y - max_{k != y} z_k of all iterates is at most `near` times that of the clean image,
       four rounds of new starts: 40 steps towards the class that came closest in 3, 40 steps on the margin in a
       shrinking ball, and 20 steps half as long on the probability margin.

    Steps begin at twice the radius and fall along a cosine; every run starts uniformly in its ball. An image is fooled
    at any iterate inside the ball of eps, if `judge` agrees, and is not attacked further. A path through a larger ball
    reaches minima that no start inside the ball leads to. With C classes a robust image costs 92 + min(20, C - 1) +
    80 min(3, C - 1) passes, and 800 more if an iterate comes close to the boundary. A bound from above: it has no
    attack without gradients, so it must not be used where gradients mislead.

    Args:
        model: from x (N, ...) to logits (N, C) with C of 2 or more.
        x: images (N, ...), floating point in [0, 1].
        y: labels (N,).
        eps: radius of the ball, a number or one per sample (N,), in units of the image range.
        norm: "linf" or "l2".
        targets: classes to aim at, 1 or more.
        near: share of the clean margin, 0 to 1.
        judge: the model that decides whether an image is fooled, by default `model`.
        noise: start noise of run 0, 1, ... in the shape of x, inside the ball. Default: drawn from a generator seeded
            with 0.
        checked: skip the checks of the model, images, labels and values of eps, as in `pgd`.

    Raises:
        UserError: invalid inputs, as in `pgd`; a setting out of range.

    Source: our composition of PMA (arXiv:2411.15210), MALT (arXiv:2407.02240) and the radii of Croce, Hein, "Mind the
    box: l1-APGD for sparse adversarial attacks on image classifiers", ICML 2021, arXiv:2103.01208, section 4.2.
    """
    del checked  # `refusing` has read it
    check_size("eps", eps, x, norm)
    check_value("targets", targets, Count)
    check_value("near", near, Share)
    if noise is None:
        source = Source(torch.Generator(x.device).manual_seed(0))
        noise = lambda _: draw_noise(full_precision(x.detach()), eps, "uniform", source, norm)  # noqa: E731
    with frozen(model), frozen(judge):
        hunt = _Hunt(model, judge or model, full_precision(x.detach()), y, eps, norm, noise)
        hunt.climb(hunt.standing, margin, cosine_lengths(FIRST_STEPS))
        for run in (0, 1):
            hunt.climb(hunt.standing, margin_objectives(MARGIN_STEPS, run), margin_lengths(MARGIN_STEPS))
        if len(hunt.standing):
            hunt.refine(hunt.aim(targets), near)
    return hunt.x_adv


@dataclass
class _Hunt:
    """The images that are still correct, their adversarial images, and the smallest margin that they reached."""

    model: Model
    judge: Model
    x: Tensor
    y: Tensor
    eps: Size
    norm: Norm
    noise: Callable[[int], Tensor]
    runs: int = 0

    def __post_init__(self) -> None:
        with torch.no_grad():
            logits = full_precision(self.judge(self.x))
        self.clean = -margin(logits, self.y)
        self.least = self.clean.clone()
        self.x_adv = choose(finite(logits), self.x, torch.full_like(self.x, torch.nan))
        self.standing = (~fooled(logits, self.y) & finite(logits)).nonzero().flatten()

    def close(self, share: float) -> Tensor:
        """Return the images that are still correct, with a least margin of at most this share of the clean one."""
        return self.standing[(self.least <= share * self.clean)[self.standing]]

    def aim(self, targets: int) -> Tensor:
        """Run towards the nearest classes of each image that is still correct; return the closest class, (N,)."""
        rows, closest = self.standing, self.y.clone()
        nearest = nearest_classes(self.model, self.x[rows], self.y[rows], self.norm, CANDIDATES)[:, :targets]
        order = self.y[:, None].repeat(1, nearest.shape[1])
        order[rows] = nearest
        reached = torch.full_like(self.least, torch.inf)
        for target in order.unbind(1):
            rows = self.standing
            least = self.shrink(rows, _towards(target[rows]))
            closest[rows] = torch.where(least < reached[rows], target[rows], closest[rows])
            reached[rows] = torch.minimum(reached[rows], least)
        return closest

    def refine(self, closest: Tensor, near: float) -> None:
        """Start again where the margin is small, towards the class that came closest, (N,)."""
        long, short = cosine_lengths(TARGET_STEPS), [length / 2 for length in margin_lengths(MARGIN_STEPS)]
        for _ in range(ROUNDS):
            rows = self.close(near)
            self.climb(rows, _towards(closest[rows]), long)
            self.shrink(self.close(near), margin)
            self.climb(self.close(near), margin_objectives(MARGIN_STEPS, 0), short)

    def shrink(self, rows: Tensor, objective: Objective) -> Tensor:
        """Run TARGET_STEPS steps in a ball that shrinks to that of eps; return the least margins inside that one."""
        steps = TARGET_STEPS - sum(steps for _, steps in WIDER)
        return self.climb(rows, objective, cosine_lengths(steps), WIDER)

    def climb(
        self,
        rows: Tensor,
        objective: Objective | Sequence[Objective],
        lengths: Sequence[float],
        wider: Sequence[tuple[float, int]] = (),
    ) -> Tensor:
        """Run `pgd` on these images from new starts, and return their least margins; `lengths` are in units of eps.

        With `wider`, it begins in these larger balls, in which no success counts.
        """
        noise, self.runs = self.noise(self.runs)[rows], self.runs + 1
        if not len(rows):
            return self.least[rows]
        for index, (ratio, steps) in enumerate(wider):
            begin = noise if index else ratio * noise
            noise = self._ascend(self.model, rows, objective, cosine_lengths(steps), begin, ratio) - self.x[rows]
        watched = _Watched(self.model, self.x[rows], self.y[rows])
        last = self._ascend(watched, rows, objective, lengths, noise)
        sound = finite(last)  # an image of NaN stays so, and is refused by who verifies it
        broken = watched.met & sound
        if bool(broken.any()):
            with torch.no_grad():
                logits = full_precision(self.judge(watched.kept[broken]))
            broken[broken.clone()] = fooled(logits, self.y[rows][broken])
        self.x_adv[rows] = choose(broken, watched.kept, last)
        self.least[rows] = torch.minimum(self.least[rows], watched.least)
        self.standing = self.standing[~torch.isin(self.standing, rows[broken | ~sound])]
        return watched.least

    def _ascend(
        self,
        model: Model,
        rows: Tensor,
        objective: Objective | Sequence[Objective],
        lengths: Sequence[float],
        noise: Tensor,
        ratio: float = 1,
    ) -> Tensor:
        """Run `pgd` in the ball of `ratio` eps; `lengths` are in units of its radius."""
        eps = self.eps[rows] if isinstance(self.eps, Tensor) and self.eps.ndim else self.eps
        radius = _capped(ratio * eps, self.norm)
        sizes = [_capped(length * radius, self.norm) for length in lengths]
        ball: Fields = {"eps": radius, "norm": self.norm, "steps": len(sizes), "step_size": sizes}
        return pgd(model, self.x[rows], self.y[rows], **ball, objective=objective, start_noise=noise, checked=True)


class _Watched:
    """A model that keeps the first image of each row that fools it, and the least margin of all iterates."""

    def __init__(self, model: Model, x: Tensor, y: Tensor) -> None:
        self.model, self.y, self.kept = model, y, x.clone()
        self.met, self.least = torch.zeros_like(y, dtype=torch.bool), x.new_full((len(y),), torch.inf)

    def __call__(self, x: Tensor) -> Tensor:
        logits = full_precision(self.model(x))
        left = -margin(logits.detach(), self.y)
        self.kept = choose((left < 0) & ~self.met, x.detach(), self.kept)
        self.met, self.least = self.met | (left < 0), torch.minimum(self.least, left)
        return logits


def _capped(length: Size, norm: Norm) -> Size:
    """Return a length that `pgd` takes: in L-infinity none is longer than the range of the image."""
    if norm == "l2":
        return length
    return length.clamp(max=1.0) if isinstance(length, Tensor) else min(length, 1.0)


def _raised(logits: Tensor, y: Tensor) -> Tensor:
    return logits.softmax(1).gather(1, y[:, None]).squeeze(1)


def _lowered(logits: Tensor, y: Tensor) -> Tensor:
    return -_raised(logits, y)


def _rival(logits: Tensor, y: Tensor) -> Tensor:
    return probability_margin(logits, y) + _raised(logits, y)


def _towards(target: Tensor) -> Objective:
    """Return the objective z_t - z_y for one target class t per image."""
    return lambda logits, y: (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None])).squeeze(1)


@dataclass(frozen=True, kw_only=True)
class Quick(AttackSpec):
    """Short runs on margins, then runs to the 3 nearest classes in a shrinking ball, and more where margins are small.

    A bound from above for development, never a headline.
    """

    names: ClassVar[Mapping[str, Norm | None]] = {"quick": "linf", "quick-l2": "l2"}
    order: ClassVar[int] = 7
    skips_misclassified: ClassVar[bool] = True
    bound: ClassVar[str] = str(MEASURED)

    targets: Count = 3
    """Nearest classes to aim at."""
    near: Share = 0.3
    """Share of the clean margin: images that come this close are attacked again."""
    schedule: Annotated[Literal["shrinking"] | None, FIXED] = None
    """Order of the runs; none: the schedule before the shrinking ball, found in older cards and no longer run."""

    @classmethod
    def make(cls, given: Fields, settings: Evaluation, radius: float) -> Self:
        return super().make({"schedule": SCHEDULE, **given}, settings, radius)

    def run(self, model: Model, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        if self.schedule != SCHEDULE:
            raise UserError("quick: got the runs of an earlier version; allowed: a new evaluation with quick")
        ball: Fields = {"eps": self.radius, "norm": self.norm or "linf"}
        given: Fields = {
            "judge": model.judge if isinstance(model, Counted) else None,
            "noise": lambda run: draws.start(x, self.radius, "uniform", ball["norm"], run),
        }
        return quick(model, x, y, **ball, **given, targets=self.targets, near=self.near, checked=True)

    def passes(self, num_classes: int) -> int:
        """Estimated passes of a robust image that came close to the boundary."""
        aims = min(self.targets, num_classes - 1)
        margins, order = 2 * FIRST_STEPS + 4 * MARGIN_STEPS, 1 + min(CANDIDATES, num_classes - 1)
        last = ROUNDS * 2 * (2 * TARGET_STEPS + MARGIN_STEPS)
        return 1 + margins + order + aims * 2 * TARGET_STEPS + last + 1
