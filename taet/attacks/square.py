"""Square: random search over squares of the image, which needs no gradient, through the package `pyautoattack`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from taet.attacks.ball import Norm, check_size, frozen
from taet.attacks.draws import Draws
from taet.attacks.inputs import refusing
from taet.attacks.spec import AttackSpec, Model
from taet.attacks.suite_run import as_float
from taet.errors import UserError
from taet.fields import Count, LongSeed, check_value

NAMES = {
    "square": "random search without gradients, which reveals gradient masking (Andriushchenko et al. 2020); "
    "one pass per query, 1000 queries",
}


@refusing
def square(
    model: Model, x: Tensor, y: Tensor, *, eps: float, queries: int = 1000, seed: int = 0, checked: bool = False
) -> Tensor:
    """Return images in the L-infinity ball, misclassified due to random squares of +-eps, else the clean images.

    The search lowers the margin z_y - max_{k != y} z_k and stops for an image that is misclassified. AutoAttack runs
    the same search with 5,000 queries on the images that its other parts left.

    Args:
        model: from images to logits (N, classes).
        x: images (N, C, H, W), floating point in [0, 1].
        y: labels (N,), int64.
        eps: radius of the ball in units of the image range.
        queries: passes of an image through the model.
        seed: seed of the random squares, which the images of a batch share.
        checked: skip the checks of the model, images and labels, as in `pgd`.

    Raises:
        UserError: invalid inputs, as in `pgd`; an eps outside 0 to 1; images that are not (N, C, H, W);
            queries or a seed out of range.

    Source: Andriushchenko, Croce, Flammarion, Hein, ECCV 2020, arXiv:1912.00049.
    """
    from pyautoattack.square import SquareAttack

    del checked  # `refusing` has read it
    check_size("eps", eps, x, "linf")
    check_value("queries", queries, Count)
    check_value("seed", seed, LongSeed)
    if x.ndim != 4:
        raise UserError(f"images: got shape {tuple(x.shape)}; allowed: (N, C, H, W), in which squares can be drawn")
    every_gpu = range(torch.cuda.device_count())
    with torch.no_grad(), frozen(model), torch.random.fork_rng(every_gpu):
        attack: Any = SquareAttack(  # type: ignore[no-untyped-call]
            lambda images: model(images).clone(),  # the library writes into them
            p_init=0.8,
            n_queries=queries,
            eps=eps,
            norm="Linf",
            n_restarts=1,
            seed=seed,
            resc_schedule=False,
            device=x.device,
        )
        x_adv: Tensor = attack.perturb(as_float(x), y.clone())
    return x_adv.detach().to(x.dtype)


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
