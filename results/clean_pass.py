"""AT-BSL with a clean pass in train mode in every step, as in TAET's public notebooks.

The pass moves the statistics of batch normalisation, and nothing else. The notebooks make it before
the attack, this file after it. It is a method for `results/setting_differences.py`, not a published
one.
"""

import torch
from torch import Tensor, nn

from taet.methods.base import Adversarial, Loss, Method, Task
from taet.settings import Outer

NAMES = {"at-bsl-clean-pass": "AT-BSL with a clean pass in train mode in every step"}


class CleanPass(Method):
    """Loss: mean CE(f(x') + log n, y), after a pass of the clean batch that has no gradient."""

    title = "AT-BSL with a clean pass"
    reference = "TAET's public notebooks, commit a374adf"

    @staticmethod
    def outer_loss(config: Method.Config, task: Task) -> Outer:
        return task.outer.replace(name="balanced-softmax")

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, adversarial: Adversarial) -> Loss:
        with torch.no_grad():
            model(x)
        return self.label_loss(model, adversarial.x, y)
