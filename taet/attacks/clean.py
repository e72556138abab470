"""The clean images, the reference for every other result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from taet.attacks.ball import Norm
from taet.attacks.draws import Draws
from taet.attacks.spec import AttackSpec, Model

NAMES = {"clean": "no attack: the images as they are; 1 pass"}


@dataclass(frozen=True, kw_only=True)
class Clean(AttackSpec):
    """No attack: the images as they are. Every evaluation begins with this column."""

    names: ClassVar[Mapping[str, Norm | None]] = {"clean": None}
    order: ClassVar[int] = 0
    random: ClassVar[bool] = False
    not_transferable: ClassVar[str] = "which makes no examples"

    name: str = "clean"

    def run(self, model: Model, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        return x

    def passes(self, num_classes: int) -> int:
        return 1
