"""A custom attack that is a function without options, `my_attack(model, x, y, *, eps) -> x_adv`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from taet import registry
from taet.attacks.draws import Draws
from taet.attacks.spec import AttackSpec, Model


@dataclass(frozen=True, kw_only=True)
class FunctionAttack(AttackSpec):
    """A function that `NAMES` of its file lists, in the L-infinity ball; it may use torch's global generator."""

    batch_independent: ClassVar[bool] = False

    @property
    def noise_key(self) -> str:
        return self.typed

    def run(self, model: Model, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        called = self.base.replace("-", "_")
        examples = registry.find("attacks", self.base).call(called, Tensor, model, x, y, eps=self.eps)
        if examples.shape != x.shape:
            raise self._refused(f"returned shape {tuple(examples.shape)}; allowed: images in the shape of x")
        return examples.detach().to(x.dtype)
