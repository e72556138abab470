"""Random noise in the ball: the weakest attack, which needs neither gradients nor logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from taet.attacks.ball import Norm, choose, project
from taet.attacks.noise import Draws
from taet.attacks.objectives import fooled
from taet.attacks.spec import AttackSpec, Model
from taet.fields import Count

NAMES = {
    "random-noise": "random images in the L-infinity ball: sound attacks break more (Carlini et al. 2019); one pass "
    "per try, 100 tries",
}


@dataclass(frozen=True, kw_only=True)
class RandomNoise(AttackSpec):
    """Noise from U(-eps, eps), drawn per image and try; the first that is misclassified counts.

    Source: Carlini et al., "On evaluating adversarial robustness", 2019, arXiv:1902.06705, section 5.2.
    """

    names: ClassVar[Mapping[str, Norm | None]] = {"random-noise": "linf"}
    order: ClassVar[int] = 0
    gradient_free: ClassVar[bool] = True

    tries: Count = 100
    """Number of draws."""

    def run(self, model: Model, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        x_adv, found = x, torch.zeros(len(x), dtype=torch.bool, device=x.device)
        with torch.no_grad():
            for number in range(self.tries):
                tried = project(x + draws.start(x, self.radius, restart=number), x, self.radius)
                x_adv = choose(found, x_adv, tried)
                found = found | fooled(model(tried), y)
        return x_adv

    def passes(self, num_classes: int) -> int:
        return self.tries + 1
