"""A custom attack that is a function without options, `my_attack(model, x, y, *, eps) -> x_adv`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from taet import registry
from taet.attacks.draws import Draws
from taet.attacks.spec import AttackSpec, Model
from taet.errors import UserError


@dataclass(frozen=True, kw_only=True)
class FunctionAttack(AttackSpec):
    """A function that `NAMES` of its file lists, in the L-infinity ball; it may use torch's global generator."""

    batch_independent: ClassVar[bool] = False

    @property
    def noise_key(self) -> str:
        return self.typed

    def run(self, model: Model, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        entry = registry.find("attacks", self.base)
        called = self.base.replace("-", "_")
        function: Callable[..., Tensor] | None = getattr(entry.load(), called, None)
        if not callable(function):
            raise UserError(f"{entry.path}: has no function {called}(model, x, y, *, eps)")
        examples = function(model, x, y, eps=self.eps)
        if not isinstance(examples, Tensor) or examples.shape != x.shape:
            raise self._refused(f"returned {type(examples).__name__}; allowed: images in the shape of x")
        return examples.detach().to(x.dtype)
