"""Averages of the weights over the steps (EMA) or the epochs (SWA) of a run; the run then delivers the average."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from taet.settings import Training

Tensors: TypeAlias = tuple[Tensor, ...] | list[Tensor]
EMA_WARMUP = 0.025  # share of the steps before averaging begins (Gowal et al., 2020, arXiv:2010.03593, public code)


def ema_decay(step: int, warmup: int, tau: float) -> float:
    """Decay after `step` steps: 0 within the first `warmup`, then min(tau, (1 + k) / (10 + k)), k = step - warmup.

    Source: Gowal et al., Uncovering the limits of adversarial training, 2020, arXiv:2010.03593, and its public code.
    """
    since = step - warmup
    return 0.0 if since < 0 else min(tau, (1 + since) / (10 + since))


def weight_average(
    model: nn.Module, training: Training, steps: int, own_decay: float, epochs: bool
) -> AveragedModel | None:
    """Return the average that a run of `steps` steps delivers, None if it delivers its last weights.

    average <- d average + (1 - d) model, for parameters and statistics; whole numbers are taken as they are. With `ema`
    d is `ema_decay`, and the initial weights are the first model; with `epochs` d = k / (k + 1) after k models, their
    mean; a method's `own_decay` is constant.
    """
    if training.ema:
        warmup = round(EMA_WARMUP * steps)
        return averaged(model, lambda number: ema_decay(number - 1, warmup, training.ema), models=1)
    if own_decay:
        return averaged(model, lambda _: own_decay)
    return averaged(model, lambda number: number / (number + 1)) if epochs else None


def averaged(model: nn.Module, decay: Callable[[int], float], models: int = 0) -> AveragedModel:
    """Return a copy of `model` that moves to others with decay(number of models so far); the first one replaces it."""

    def move(average: Tensors, current: Tensors, _: object) -> None:
        if average[0].is_floating_point():
            torch._foreach_lerp_(average, current, 1 - decay(int(result.n_averaged)))
        else:
            torch._foreach_copy_(average, current)

    result = AveragedModel(model, multi_avg_fn=move, use_buffers=True)
    result.n_averaged.fill_(models)
    return result
