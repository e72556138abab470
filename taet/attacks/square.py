"""Square: random search over squares of the image, which needs no gradient, through the package `pyautoattack`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from taet.attacks.ball import Norm
from taet.attacks.noise import Draws
from taet.attacks.spec import AttackSpec, Model
from taet.attacks.suite import as_float, official_square
from taet.fields import Count

NAMES = {
    "square": "random search without gradients, which reveals gradient masking (Andriushchenko et al. 2020); "
    "one pass per query, 1000 queries",
}


@dataclass(frozen=True, kw_only=True)
class Square(AttackSpec):
    """Random search over squares of the image, without gradients: the last part of AutoAttack, alone.

    It lowers the margin z_y - max_{k != y} z_k by squares of +-eps, and stops for an image that is misclassified.
    Source: Andriushchenko, Croce, Flammarion, Hein, ECCV 2020, arXiv:1912.00049.
    """

    names: ClassVar[Mapping[str, Norm | None]] = {"square": "linf"}
    order: ClassVar[int] = 6
    batch_independent: ClassVar[bool] = False
    gradient_free: ClassVar[bool] = True
    not_transferable: ClassVar[str] = "which leaves an image that it cannot break as it is"

    queries: Count = 1000
    """Passes of an image through the model."""

    def run(self, model: Model, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        with torch.no_grad(), torch.random.fork_rng(range(torch.cuda.device_count())):
            # The library writes into the logits.
            search = lambda images: model(images).clone()  # noqa: E731
            attack = official_square(search, self.queries, "linf", self.radius, self.seed or 0, x.device)
            return attack(as_float(x), y.clone()).detach().to(x.dtype)

    def passes(self, num_classes: int) -> int:
        return self.queries + 3
