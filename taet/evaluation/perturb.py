"""Adversarial examples of a batch, as an attack's settings say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taet import registry
from taet.attacks import cw_l2, deepfool, pgd
from taet.attacks.ball import Norm, Start, draw_noise
from taet.attacks.noise import Source
from taet.attacks.objectives import OBJECTIVES, Objective, natural_divergence, scaled
from taet.errors import UserError
from taet.evaluation.attack import Attack
from taet.randomness import derive_seed, generator

Model = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Draws:
    """Random draws of an attack, made for each image by itself, so that they do not depend on the batching."""

    seed: int
    purpose: str
    rows: NDArray[np.int64]
    """Place of each image in the test set, (N,)."""

    def start(self, x: Tensor, eps: float, start: Start = "uniform", norm: Norm = "linf", restart: int = 0) -> Tensor:
        """Start noise in the shape of x, as in `draw_noise`; every restart draws anew."""
        purpose = f"{self.purpose} {restart}" if restart else self.purpose
        blank = torch.empty(1, *x.shape[1:])
        sources = (Source(generator("cpu", self.seed, purpose, int(row))) for row in self.rows)
        return torch.cat([draw_noise(blank, eps, start, source, norm) for source in sources]).to(x.device)

    def other_class(self, y: Tensor, num_classes: int) -> Tensor:
        """A class other than y for each image, (N,), all equally likely."""
        purpose = f"{self.purpose} target"
        steps = [
            int(torch.randint(1, num_classes, (1,), generator=generator("cpu", self.seed, purpose, int(row))))
            for row in self.rows
        ]
        return (y + torch.tensor(steps, device=y.device)) % num_classes


def perturb(attack: Attack, model: Model, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
    """Return the images that `attack` makes of x (N, C, H, W) with labels y (N,); AutoAttack is not among them."""
    given = attack.parameters
    if attack.kind == "clean":
        return x
    target = given.get("target")
    aim = y if target is None else aims(target, model, x, y, draws)
    if attack.kind == "cw-l2":
        search = given["c"] == "search"
        return cw_l2(
            model,
            x,
            aim,
            c=None if search else given["c"],
            kappa=given["kappa"],
            steps=given["steps"],
            lr=given["lr"],
            eps=attack.eps,
            targeted=target is not None,
            **({"search_steps": given["search_steps"], "initial_c": given["initial_c"]} if search else {}),
        )
    if attack.kind == "deepfool":
        return deepfool(model, x, y, eps=attack.eps, **given)
    if attack.kind == "own":
        torch.manual_seed(derive_seed(draws.seed, attack.name, int(draws.rows[0])))  # the caller's state is kept
        return _own(attack, model, x, y)
    restarts = given.get("restarts", 1)
    eps, norm, start = attack.eps or 0.0, attack.norm or "linf", given["start"]
    noise = torch.stack([draws.start(x, eps, start, norm, restart) for restart in range(restarts)])
    return pgd(
        model,
        x,
        aim,
        eps=eps,
        steps=given["steps"],
        step_size=given["step_size"],
        norm=norm,
        start=start,
        objective=objective(attack, model, x),
        targeted=target is not None,
        restarts=restarts,
        start_noise=noise if restarts > 1 else noise[0],
    )


def objective(attack: Attack, model: Model, x: Tensor) -> Objective:
    """Return what the attack makes large: a loss of labels and logits, these times a factor where it has one."""
    name, factor = attack.parameters.get("objective", "ce"), attack.parameters.get("factor", 1.0)
    if name == "kl":
        return scaled(natural_divergence(lambda images: factor * model(images), x), factor)
    return OBJECTIVES[name] if factor == 1.0 else scaled(OBJECTIVES[name], factor)


def aims(target: str, model: Model, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
    """Return the class other than y that each image is pushed to, (N,): by the clean logits, or at random.

    The least likely class is the aim of Kurakin, Goodfellow, Bengio, ICLR 2017, arXiv:1611.01236; a random one that of
    the average case of Carlini, Wagner, S&P 2017, arXiv:1608.04644, whose best case is near the runner-up.
    """
    with torch.no_grad():
        logits = model(x)
    if target == "random":
        return draws.other_class(y, logits.shape[1])
    own = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, y[:, None], True)
    if target == "least-likely":
        return logits.masked_fill(own, float("inf")).argmin(1)
    return logits.masked_fill(own, float("-inf")).argmax(1)


def _own(attack: Attack, model: Model, x: Tensor, y: Tensor) -> Tensor:
    """Call an attack of the user's own: the function named like it in its file."""
    base = attack.name.partition(":")[0]
    entry = registry.find("attacks", base)
    function: Any = getattr(entry.load(), base.replace("-", "_"), None)
    if not callable(function):
        raise UserError(f"{entry.path}: has no function {base.replace('-', '_')}(model, x, y, *, eps)")
    examples = function(model, x, y, eps=attack.eps)
    if not isinstance(examples, Tensor) or examples.shape != x.shape:
        raise UserError(f"attack '{base}': returned {type(examples).__name__}; allowed: images in the shape of x")
    return examples.detach().to(x.dtype)
