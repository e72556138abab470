"""PGD on the margin of the logits in place of cross-entropy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from torch import Tensor

from taet.attacks.ball import Norm
from taet.attacks.objectives import Objective, margin
from taet.attacks.pgd import ProjectedAscent, pgd
from taet.attacks.spec import FIXED, Model

NAMES = {"cw-linf": "cw-linf-N: pgd-N on the margin, independent of the logit scale (REAT's CW); 2N passes per restart"}


def cw_linf(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, **settings: Any) -> Tensor:
    """Run `pgd` on the margin max_{k != y} z_k - z_y in the L-infinity ball; settings and guarantees as there.

    Source: the margin is that of Carlini, Wagner, "Towards evaluating the robustness of neural networks", S&P 2017,
    arXiv:1608.04644; as an objective of PGD it is from Madry et al., ICLR 2018, arXiv:1706.06083.
    """
    return pgd(model, x, y, objective=margin, **settings)


@dataclass(frozen=True, kw_only=True)
class CwLinf(ProjectedAscent):
    """PGD on the margin max z_k - z_y instead of cross-entropy; REAT's CW."""

    names: ClassVar[Mapping[str, Norm | None]] = {"cw-linf-N": "linf"}
    order: ClassVar[int] = 3

    objective: Annotated[Literal["cw"], FIXED] = "cw"
    """Maximised function."""

    @property
    def on_margin(self) -> bool:
        return True

    def objective_of(self, model: Model, x: Tensor) -> Objective:
        return margin
