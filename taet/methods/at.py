"""Adversarial training (PGD-AT): cross-entropy on PGD examples.

min_theta E max_{||delta||_inf <= eps} CE(f(x + delta), y).
Source: Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, ICLR 2018, arXiv:1706.06083.
"""

from __future__ import annotations

from torch import Tensor, nn

from taet.distributed import global_mean
from taet.methods.base import Adversarial, Loss, Method


class AdversarialTraining(Method):
    """Loss: mean CE(f(x'), y), through the run's outer loss."""

    title = "AT"
    reference = "Madry et al., ICLR 2018, arXiv:1706.06083"

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, adversarial: Adversarial) -> Loss:
        logits = model(adversarial.x)
        total = global_mean(self.outer(logits, y))
        return Loss(total, {}, logits)
