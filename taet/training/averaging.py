"""Averages of the weights over the steps (EMA) or the epochs (SWA) of a run; the run then delivers the average."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

EMA_WARMUP = 0.025  # share of the steps before averaging begins (Gowal et al., 2020, arXiv:2010.03593, public code)


def ema_decay(step: int, warmup: int, tau: float) -> float:
    """Decay after `step` steps: 0 within the first `warmup`, then min(tau, (1 + k) / (10 + k)), k = step - warmup.

    Source: Gowal et al., Uncovering the limits of adversarial training, 2020, arXiv:2010.03593, and its public code.
    """
    since = step - warmup
    return 0.0 if since < 0 else min(tau, (1 + since) / (10 + since))


class WeightAverage:
    """A running average of a model's parameters and statistics: average <- d average + (1 - d) model.

    torch's AveragedModel would hold a second module, takes no decay per step, and averages whole numbers too.
    """

    def __init__(self, model: nn.Module) -> None:
        self.tensors = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.models = 0
        """The number of models in the average."""

    @torch.no_grad()
    def add(self, model: nn.Module, decay: float) -> None:
        """Move towards `model`, in place; whole numbers, such as counts of batches, are taken as they are."""
        state = model.state_dict()
        real = [name for name, value in state.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.tensors[name] for name in real], [state[name] for name in real], 1 - decay)
        for name in state.keys() - real:
            self.tensors[name].copy_(state[name])
        self.models += 1

    def add_admitted(self, model: nn.Module, decay: float) -> None:
        """Add a model that a method admits to the average, which starts with the first such model."""
        self.add(model, decay if self.models else 0.0)

    def add_equally(self, model: nn.Module) -> None:
        """Add a model with the same weight as each earlier one: average <- average + (model - average) / (k + 1)."""
        self.add(model, self.models / (self.models + 1))

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a checkpoint stores."""
        return {"models": self.models, "tensors": self.tensors}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore in place the state that `state_dict` returned."""
        self.models = state_dict["models"]
        for name, value in state_dict["tensors"].items():
            self.tensors[name].copy_(value)
