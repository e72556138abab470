"""Adversarial training with balanced softmax (AT-BSL): the class prior enters the outer loss, the attack stays plain.

Source: Yue et al., Revisiting Adversarial Training under Long-Tailed Distributions, CVPR 2024, arXiv:2403.10073.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from taet.distributed import global_mean
from taet.errors import UserError
from taet.losses import balanced_softmax
from taet.methods.base import Adversarial, Loss, Method, Task


class AdversarialTrainingBalancedSoftmax(Method):
    """Loss: mean CE(f(x') + log n, y)."""

    title = "AT-BSL"
    reference = "Yue et al., CVPR 2024, arXiv:2403.10073"

    def __init__(self, config: Any, task: Task) -> None:
        super().__init__(config, task)
        if task.outer not in ("cross-entropy", "balanced-softmax"):
            raise UserError(
                f"at-bsl: got the outer loss {task.outer}; its loss is balanced softmax: use `at --outer {task.outer}`"
            )

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, adversarial: Adversarial) -> Loss:
        logits = model(adversarial.x)
        total = global_mean(balanced_softmax(logits, y, self.class_counts))
        return Loss(total, {}, logits)
