"""What attacks can be fooled by, tried on the first images: facts for the diagnostics."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taet.attacks import pgd
from taet.attacks.objectives import scaled
from taet.attacks.progress import ticking
from taet.attacks.units import Arrays, run_units
from taet.evaluation.columns import Bench
from taet.evaluation.perturb import Draws
from taet.evaluation.state import Units
from taet.losses.long_tail import cross_entropy
from taet.training.checkpoint import digest

STEPS = 20
STEP_SHARE = 1 / 8  # of eps: 1/255 for the ball of 8/255, as in the TAET and REAT papers' PGD-20
LOGIT_FACTOR = 10.0  # of the adaptive attack by which REAT shows that RoBal masks its gradients
SUM_TOLERANCE = 1e-5  # by which the official AutoAttack tells a probability distribution


def count(bench: Bench) -> int:
    """Return how many images are probed: the first batch."""
    return min(bench.batch_size, len(bench.labels))


def passes(bench: Bench) -> int:
    """Return the passes of an image that `probe` takes: two forwards, one gradient, and PGD twice."""
    return count(bench) * (2 + 2 + 2 * (2 * STEPS + 1))


def probe(
    bench: Bench, eps: float, state_dir: str | os.PathLike[str] | None, progress: Callable[[float], None]
) -> dict[str, int | float]:
    """Try the model on the first batch, in test order, and return what was found.

    Args:
        bench: the model and its images.
        eps: radius of the L-infinity ball.
        state_dir: folder that keeps the outcome, for an evaluation that is interrupted and started again.
        progress: called as progress(done), of `passes(bench)`.

    Returns:
        images, seed; repeat_difference: largest L2 distance between two answers to one image, each of unit length;
        distributions: images whose logits are at least 0 and sum to 1; clean_correct; zero_gradients: correctly
        classified images at which the gradient of the cross-entropy is exactly zero; pgd_correct: images that PGD-20
        (step eps / 8, uniform start) leaves correct; scaled_pgd_correct: the same with the logits times 10 in the
        objective; only_pgd_correct and only_scaled_pgd_correct: images that one leaves correct and the other breaks.
    """
    units = None
    if state_dir is not None:
        settings = [bench.identity(), "probe", eps, count(bench), bench.seed]
        units = Units(Path(state_dir), "probe", digest(settings))

    def measure(_: int) -> Arrays:
        return {name: np.asarray(value) for name, value in _measure(bench, eps, progress).items()}

    (facts,) = run_units(1, measure, state=units, key=lambda _: "facts", valid=lambda *_: True)
    progress(passes(bench))
    return {name: value.item() for name, value in facts.items()}


def _measure(bench: Bench, eps: float, progress: Callable[[float], None]) -> dict[str, int | float]:
    model, rows = bench.model, np.arange(count(bench))
    x, y = bench.batch(rows)
    with bench.still(), ticking(model, passes(bench), progress):
        with torch.no_grad():
            first, second = model(x), model(x)
        correct = first.max(1).indices == y
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(model(leaf), y).sum(), leaf)
        noise = Draws(bench.seed, "probe", rows).start(x, eps)

        def survives(factor: float) -> Tensor:
            x_adv = pgd(
                model,
                x,
                y,
                eps=eps,
                steps=STEPS,
                step_size=STEP_SHARE * eps,
                start_noise=noise,
                objective=scaled(cross_entropy, factor),
            )
            with torch.no_grad():
                return torch.as_tensor(model(x_adv).max(1).indices == y)

        plain, magnified = survives(1.0), survives(LOGIT_FACTOR)
    progress(passes(bench))
    repeated = torch.nn.functional.normalize(first) - torch.nn.functional.normalize(second)
    distribution = (first >= 0).all(1) & ((first.sum(1) - 1).abs() <= SUM_TOLERANCE)
    facts: dict[str, Any] = {
        "images": len(rows),
        "seed": bench.seed,
        "repeat_difference": repeated.norm(dim=1).max(),
        "distributions": distribution.sum(),
        "clean_correct": correct.sum(),
        "zero_gradients": (correct & (gradient == 0).flatten(1).all(1)).sum(),
        "pgd_correct": plain.sum(),
        "scaled_pgd_correct": magnified.sum(),
        "only_pgd_correct": (plain & ~magnified).sum(),
        "only_scaled_pgd_correct": (magnified & ~plain).sum(),
    }
    return {name: value.item() if isinstance(value, Tensor) else value for name, value in facts.items()}
