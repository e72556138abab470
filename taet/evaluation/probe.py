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
from taet.attacks.ball import frozen
from taet.attacks.precision import exact_float32
from taet.attacks.progress import ticking
from taet.evaluation.columns import Bench
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
    bench: Bench, state_dir: str | os.PathLike[str] | None, progress: Callable[[float], None]
) -> dict[str, int | float]:
    """Try the model on the first batch, in test order, and return what was found.

    Args:
        bench: the model, its images and the ball.
        state_dir: folder that keeps the outcome, for an evaluation that is interrupted and started again.
        progress: called as progress(done), of `passes(bench)`.

    Returns:
        images, seed; repeat_difference: largest L2 distance between two answers to one image, each of unit length;
        distributions: images whose logits are at least 0 and sum to 1; clean_correct; zero_gradients: correctly
        classified images at which the gradient of the cross-entropy is exactly zero; pgd_correct: images that PGD-20
        (step eps / 8, uniform start) leaves correct; scaled_pgd_correct: the same with the logits times 10 in the
        objective; only_pgd_correct and only_scaled_pgd_correct: images that one leaves correct and the other breaks.
    """
    if state_dir is None:
        return _measure(bench, progress)
    settings = [bench.identity(), "probe", bench.eps, count(bench), bench.seed]
    units = Units(Path(state_dir), "probe", digest(settings))
    unit = units.get("facts")
    if unit is not None:
        progress(passes(bench))
    else:
        unit = {name: np.asarray(value) for name, value in _measure(bench, progress).items()}
        units.put("facts", unit)
    return {name: value.item() for name, value in unit.items()}


def _measure(bench: Bench, progress: Callable[[float], None]) -> dict[str, int | float]:
    model, rows = bench.model, np.arange(count(bench))
    x, y = bench.batch(rows)
    every_gpu = range(torch.cuda.device_count())  # a model that draws numbers must not move the caller's random state
    with (
        torch.random.fork_rng(every_gpu),
        frozen(model),
        exact_float32(bench.device.type),
        ticking(model, passes(bench), progress),
    ):
        with torch.no_grad():
            first, second = model(x), model(x)
        correct = first.max(1).indices == y
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(model(leaf), y).sum(), leaf)
        noise = bench.start_noise("probe", x, rows)

        def survives(factor: float) -> Tensor:
            x_adv = pgd(
                model,
                x,
                y,
                eps=bench.eps,
                steps=STEPS,
                step_size=STEP_SHARE * bench.eps,
                start_noise=noise,
                objective=lambda logits, labels: cross_entropy(factor * logits, labels),
            )
            with torch.no_grad():
                return torch.as_tensor(model(x_adv).max(1).indices == y)

        plain, scaled = survives(1.0), survives(LOGIT_FACTOR)
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
        "scaled_pgd_correct": scaled.sum(),
        "only_pgd_correct": (plain & ~scaled).sum(),
        "only_scaled_pgd_correct": (scaled & ~plain).sum(),
    }
    return {name: value.item() if isinstance(value, Tensor) else value for name, value in facts.items()}
