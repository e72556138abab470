"""The L-infinity ball, start noise inside it, and a model that holds still while it is attacked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from taet.attacks.noise import Source
from taet.errors import UserError

Start = Literal["gaussian", "uniform", "positive", "none"]
BNMode = Literal["eval", "train"]

BALL_TOLERANCE = 1e-6  # float32 rounds x + eps - x by less than 1.2e-7
GAUSSIAN_SCALE = 0.001  # of the start noise of TRADES (Zhang et al., ICML 2019, arXiv:1901.08573)


def check_floating(x: Tensor) -> None:
    """Refuse images that are not floating point."""
    if not x.is_floating_point():
        raise UserError(f"images: got {x.dtype}; allowed: floating point in [0, 1] (divide uint8 by 255)")


def per_sample(value: float | Tensor, x: Tensor) -> float | Tensor:
    """Return a number as it is, and one number per sample (N,) in a shape that multiplies `x` (N, ...)."""
    return value.view(-1, *[1] * (x.ndim - 1)) if isinstance(value, Tensor) and value.ndim == 1 else value


def project(x_adv: Tensor, x: Tensor, eps: float | Tensor) -> Tensor:
    """Clip to [x - eps, x + eps], then to [0, 1]; `eps` is a number or one per sample (N,)."""
    radius = per_sample(eps, x)
    return x_adv.clamp(x - radius, x + radius).clamp(0, 1)


def distance(x_adv: Tensor, x: Tensor) -> Tensor:
    """Return the L-infinity distance of each sample, (N,)."""
    return (x_adv - x).abs().flatten(1).amax(1)


def draw_noise(x: Tensor, eps: float | Tensor, start: Start, source: Source | None = None) -> Tensor:
    """Return start noise in the shape of `x`: 0.001 N(0, 1), U(-eps, eps), U(0, eps) or zeros.

    It is drawn from `source`, never from the global generator; without one, from a fresh generator seeded with 0.
    """
    if start == "none":
        return torch.zeros_like(x)
    if source is None:
        source = Source(torch.Generator(x.device).manual_seed(0))
    if start == "gaussian":
        return GAUSSIAN_SCALE * source.normal(x)
    return per_sample(eps, x) * source.uniform(x, 0.0 if start == "positive" else -1.0, 1.0)


def verify(attack: str, x_adv: Tensor, x: Tensor, eps: float) -> None:
    """Refuse what an attack returned if any of it is outside the ball around `x`, outside [0, 1], or not a number."""
    inside = (distance(x_adv, x) <= eps + BALL_TOLERANCE) & ((x_adv >= 0) & (x_adv <= 1)).flatten(1).all(1)
    if not bool(inside.all()):
        raise UserError(
            f"{attack}: {int((~inside).sum())} images left the ball of {eps:g} or the range 0 to 1; "
            "are the model's gradients finite?"
        )


@contextmanager
def frozen(model: Any, bn_mode: BNMode = "eval") -> Iterator[None]:
    """Keep `model` in eval mode with parameters that need no gradient, and give everything back afterwards.

    With `bn_mode="train"` batch normalisation alone is in training mode, so each forward uses the statistics of its
    batch and moves the running ones. What is not a Module, such as a function of x, is left alone.
    """
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    parameters = list(model.parameters()) if modules else []
    modes = [module.training for module in modules]
    needed = [parameter.requires_grad for parameter in parameters]
    try:
        for module in modules:
            module.training = bn_mode == "train" and isinstance(module, nn.modules.batchnorm._BatchNorm)
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        for parameter, need in zip(parameters, needed, strict=True):
            parameter.requires_grad_(need)
