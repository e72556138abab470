"""Square: random search over squares of the image, which needs no gradient, through the package `pyautoattack`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from taet.attacks.ball import Norm, frozen
from taet.attacks.inputs import refusing
from taet.attacks.noise import Draws
from taet.attacks.spec import AttackSpec, Model
from taet.attacks.suite import as_float, official_square
from taet.errors import UserError
from taet.fields import Count, LongSeed, check_radius, check_value

NAMES = {
    "square": "random search without gradients, which reveals gradient masking (Andriushchenko et al. 2020); "
    "one pass per query, 1000 queries",
}


@refusing
def square(
    model: Model, x: Tensor, y: Tensor, *, eps: float, queries: int = 1000, seed: int = 0, checked: bool = False
) -> Tensor:
    """Return images in the L-infinity ball, misclassified due to random squares of +-eps, else the clean images.

    The search lowers the margin z_y - max_{k != y} z_k of images x (N, C, H, W), in one pass per query, and stops for
    an image that is misclassified. The images of a batch share the draws of `seed`. Other arguments and errors are
    those of `pgd`. Source: Andriushchenko, Croce, Flammarion, Hein, ECCV 2020, arXiv:1912.00049.
    """
    del checked  # `refusing` has read it
    check_radius("eps", eps, "linf")
    check_value("queries", queries, Count)
    check_value("seed", seed, LongSeed)
    if x.ndim != 4:
        raise UserError(f"images: got shape {tuple(x.shape)}; allowed: (N, C, H, W), in which squares can be drawn")
    with torch.no_grad(), frozen(model), torch.random.fork_rng(range(torch.cuda.device_count())):
        # The library writes into the logits.
        attack = official_square(lambda images: model(images).clone(), queries, "linf", eps, seed, x.device)
        return attack(as_float(x), y.clone()).detach().to(x.dtype)


@dataclass(frozen=True, kw_only=True)
class Square(AttackSpec):
    """Random search over squares of the image, without gradients: the last part of AutoAttack, alone."""

    names: ClassVar[Mapping[str, Norm | None]] = {"square": "linf"}
    order: ClassVar[int] = 6
    batch_independent: ClassVar[bool] = False
    gradient_free: ClassVar[bool] = True
    not_transferable: ClassVar[str] = "which leaves an image that it cannot break as it is"

    queries: Count = 1000
    """Passes of an image through the model."""

    def run(self, model: Model, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        return square(model, x, y, eps=self.radius, queries=self.queries, seed=self.seed or 0, checked=True)

    def passes(self, num_classes: int) -> int:
        return self.queries + 3
