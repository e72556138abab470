"""Facts for the diagnostics, measured on a sample of the images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taet.attacks import pgd
from taet.attacks.ball import finite
from taet.attacks.differentiable import Replaced, Replacement
from taet.attacks.draws import Draws
from taet.attacks.objectives import Objective, margin, scaled
from taet.attacks.units import Unit, run_units
from taet.data.long_tail import even_sample
from taet.evaluation import trial
from taet.evaluation.facts import ModelFacts
from taet.evaluation.runner import Runner
from taet.losses.long_tail import cross_entropy

STEPS = 20
STEP_SHARE = 1 / 8  # of eps: 1/255 for the ball of 8/255, as in the TAET and REAT papers' PGD-20
FEWEST = 16  # images, however short the attacks are


def passes(runner: Runner) -> int:
    """Return the passes of an image that `probe` takes: three forward beside the trial's, and two or four PGD."""
    chains = 4 if any(runner.sites.values()) else 2
    return trial.PASSES + 3 + chains * (2 * STEPS + 1)


def count(runner: Runner, attacked: float) -> int:
    """Return the number of probed images: one batch, or fewer where that would take more than the attacks' passes."""
    return min(runner.batch_size, len(runner.labels), max(FEWEST, int(attacked / passes(runner))))


def is_of(facts: Mapping[str, int | float], seed: int, images: int) -> bool:
    """Return whether these are all the facts that `probe` finds with this seed, of as many images or more.

    Older cards have fewer facts.
    """
    names = {*ModelFacts.model_fields} - {"batch_size"}
    return facts.get("seed") == seed and facts.keys() >= names and facts["images"] >= images


def probe(runner: Runner, eps: float, images: int, progress: Callable[[float], None]) -> dict[str, int | float]:
    """Try the model on `images` images drawn evenly over the classes, in the L-infinity ball, and return the facts.

    These are the seed and the fields of `ModelFacts`. `progress` gets the passes so far.
    """
    (facts,) = run_units(
        1,
        lambda _: _measure(runner, eps, images, progress),
        state=runner.store("probe", [eps, images, runner.seed]),
        key=lambda _: "facts",
        valid=lambda _, unit: all(one.shape == () for one in unit.values()),
    )
    progress(images * passes(runner))
    return {name: value.item() for name, value in facts.items()}


def _measure(runner: Runner, eps: float, images: int, progress: Callable[[float], None]) -> Unit:
    rows = even_sample(runner.labels, images, runner.seed)
    x, y = runner.batch(rows)
    noise = Draws(runner.seed, "probe", rows).start(x, eps)
    with runner.still(), runner.model.ticking(len(rows) * passes(runner), progress):
        first = trial.attempt(runner.model, x, y)
        facts = first.facts()
        watch = _Watch(runner.model, first.nonfinite)

        def survives(objective: Objective, replacement: Replacement | None = None) -> Tensor:
            ball: dict[str, Any] = {"eps": eps, "steps": STEPS, "step_size": STEP_SHARE * eps, "start_noise": noise}
            network = runner.model.model
            seen = nullcontext() if replacement is None else runner.model.seen_as(Replaced(network, replacement))
            with seen:
                x_adv = pgd(watch, x, y, objective=objective, checked=True, **ball)
            with torch.no_grad():
                return watch(x_adv).max(1).indices == y

        steep = scaled(cross_entropy, facts.logit_factor)
        plain, magnified = survives(cross_entropy), survives(steep)
        straight = smooth = torch.zeros_like(plain)
        if replaced := sum(map(bool, runner.sites.values())):
            straight, smooth = survives(steep, "straight-through"), survives(margin, "smooth")
        later = first.repeat_difference()
    masks = {
        "nonfinite_gradients": watch.broken,
        "pgd_correct": plain,
        "scaled_pgd_correct": magnified,
        "only_pgd_correct": plain & ~magnified,
        "only_scaled_pgd_correct": magnified & ~plain,
        "straight_pgd_correct": straight,
        "only_straight_pgd_correct": straight & ~plain,
        "smooth_pgd_correct": smooth,
        "only_smooth_pgd_correct": smooth & ~plain,
    }
    counts = {name: int(mask.sum()) for name, mask in masks.items()}
    facts = facts.changed(later_difference=later, sites=len(runner.sites), replaced=replaced, **counts)
    found = {"seed": runner.seed, **{name: value for name, value in vars(facts).items() if name != "batch_size"}}
    return {name: np.asarray(value) for name, value in found.items()}


class _Watch:
    """A model that records for which images of its batch a logit or a gradient was not finite."""

    def __init__(self, model: Callable[[Tensor], Tensor], broken: Tensor) -> None:
        self.model, self.broken = model, broken

    def __call__(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            x.register_hook(self._note)  # type: ignore[no-untyped-call]
        logits = self.model(x)
        self._note(logits.detach())
        return logits

    def _note(self, values: Tensor) -> None:
        self.broken = self.broken | ~finite(values)
