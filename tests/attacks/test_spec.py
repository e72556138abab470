"""A specification has the options of the attack's function."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import pytest
import torch
from torch import Tensor

from taet.attacks.ball import Norm
from taet.attacks.noise import Draws
from taet.attacks.spec import FIXED, AttackSpec, Model, option_fields, own_fields
from taet.errors import UserError
from taet.settings.types import Count, Share


def move(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    length: Share = 0.5,
    steps: Annotated[Count, FIXED] = 3,
    way: Literal["up", "down"] | None = "up",
    checked: bool = False,
) -> Tensor:
    """Move every pixel in `steps` equal parts."""
    assert checked
    assert model(x).shape[0] == len(y)
    part = eps * length / steps if way == "up" else -eps * length / steps
    for _ in range(steps):
        x = (x + part).clamp(0, 1)
    return x


@dataclass(frozen=True, kw_only=True)
class Move(AttackSpec, of=move):
    """An attack of which the function alone lists the options, but one."""

    names: ClassVar[Mapping[str, Norm | None]] = {"move": "linf"}

    way: Literal["up", "down"] = "down"

    def run(self, model: Model, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        return move(model, x, y, eps=self.radius, **self.options, checked=True)


def test_its_fields_are_the_options_of_the_function_in_their_order() -> None:
    assert own_fields(Move) == ("length", "steps", "way")


def test_its_defaults_are_those_of_the_signature_unless_the_class_has_another() -> None:
    assert Move(name="move", norm="linf", eps=0.1).options == {
        "length": 0.5,
        "steps": 3,
        "way": "down",
    }


def test_its_bounds_are_those_of_the_signature() -> None:
    with pytest.raises(UserError, match=r"attack 'move' length: got 2; allowed: a number, 0 to 1"):
        Move(name="move", norm="linf", eps=0.1, length=2)  # type: ignore[call-arg]


def test_a_fixed_argument_is_stored_and_no_option() -> None:
    assert {*option_fields(Move)} == {"eps", "precision", "length", "way"}
    assert Move(name="move", norm="linf", eps=0.1).to_json()["steps"] == 3


def test_it_runs_the_function_with_its_options() -> None:
    x = torch.full((2, 1, 4, 4), 0.5)
    attack = Move(name="move", norm="linf", eps=0.2)
    x_adv = attack(lambda images: images.flatten(1)[:, :3], x, torch.tensor([0, 1]))
    torch.testing.assert_close(x_adv, x - 0.1)
