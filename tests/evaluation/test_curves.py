"""Curves: every point against what is known of a linear model, and an ordinary column of the card."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import taet
from taet.attacks.draws import Draws
from taet.errors import UserError
from taet.evaluation import Column, ResultCard
from taet.evaluation.column import CurveName
from taet.evaluation.curves import curve_attacks, curves
from taet.evaluation.runner import Runner
from taet.settings import Evaluation

Evaluated = Callable[..., ResultCard]
EPS, STEP = 0.05, 0.01


class Linear(nn.Module):
    """Two classes, told apart by the sign of a weighted sum of the pixels less its value on a grey image."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(16, generator=generator) / 8)

    def difference(self, x: Tensor) -> Tensor:
        return (x.flatten(1) - 0.5) @ self.weight

    def forward(self, x: Tensor) -> Tensor:
        difference = self.difference(x)
        return torch.stack([-difference, difference], 1) / 2


@pytest.fixture(scope="module")
def linear() -> tuple[Linear, Tensor, Tensor]:
    """The model, images that it gets right, and their labels."""
    model = Linear()
    x = torch.rand(200, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    return model, x, (model.difference(x) > 0).long()


@pytest.fixture(scope="module")
def card(linear: tuple[Linear, Tensor, Tensor]) -> ResultCard:
    model, x, y = linear
    return taet.evaluate(model, x, y, attacks="clean", curves=get_args(CurveName), eps=EPS, step_size=STEP)


def points(card: ResultCard, name: str) -> dict[float, np.ndarray]:
    (curve,) = (curve for curve in curves(card) if curve.name == name)
    assert [x for x, _ in curve.points] == sorted({x for x, _ in curve.points})
    return {x: column.correct for x, column in curve.points}


def after(linear: tuple[Linear, Tensor, Tensor], start: Tensor, length: float, eps: float) -> np.ndarray:
    """Which images are still correct when each pixel has gone so far against its weight, within the ball and [0, 1]."""
    model, x, y = linear
    against = -(2 * y - 1)[:, None] * model.weight.sign()
    moved = start + length * against.reshape(x.shape)
    x_adv = torch.minimum(torch.maximum(moved, x - eps), x + eps).clamp(0, 1)
    return ((model.difference(x_adv) > 0).long() == y).numpy()


def test_against_eps_it_falls_as_in_closed_form_and_reaches_zero(
    card: ResultCard, linear: tuple[Linear, Tensor, Tensor]
) -> None:
    curve = points(card, "eps")
    assert list(curve) == pytest.approx([0, EPS / 4, EPS / 2, EPS, 2 * EPS, 4 * EPS, 8 * EPS, 1])
    for eps, correct in curve.items():
        np.testing.assert_array_equal(correct, after(linear, linear[1], 1, eps))
    shares = [correct.mean() for correct in curve.values()]
    assert shares[0] == 1
    assert 0 < shares[3] < 1
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == 0


def test_against_steps_it_is_a_walk_from_the_start_to_the_border(
    card: ResultCard, linear: tuple[Linear, Tensor, Tensor]
) -> None:
    curve, x = points(card, "steps"), linear[1]
    assert list(curve) == [1, 2, 5, 10, 20, 50, 100]
    for steps, correct in curve.items():
        noise = Draws(0, f"pgd-{steps:.0f}", np.arange(len(x))).start(x, EPS)
        np.testing.assert_array_equal(correct, after(linear, (x + noise).clamp(0, 1), steps * STEP, EPS))
    assert curve[1].mean() > curve[5].mean() > curve[10].mean() == curve[100].mean()


def test_against_the_logit_scale_a_linear_model_is_flat(card: ResultCard) -> None:
    curve = points(card, "logit-scale")
    assert list(curve) == [0.01, 0.1, 1, 10, 100]
    assert all((correct == curve[1]).all() for correct in curve.values())


@pytest.mark.parametrize(
    ("settings", "radius"), [({}, 8 / 255), ({"step_size": 2 / 255}, 8 / 255), ({"eps": 0.3}, 0.1)]
)
def test_every_ball_is_crossed_in_as_many_steps(settings: dict[str, Any], radius: float) -> None:
    chosen = Evaluation(**settings)
    attacks = curve_attacks(["eps"], chosen, radius)
    (own,) = (attack for attack in attacks if attack.name == "pgd-20")
    assert own.eps == settings.get("eps", radius)
    assert own.parameters["step_size"] == chosen.step_size
    for attack in attacks:
        assert attack.eps is not None
        assert attack.parameters["step_size"] / attack.eps == pytest.approx(chosen.step_size / own.eps)
    assert max(attack.eps or 0 for attack in attacks) == 1


def test_balls_are_written_in_grey_levels_where_they_are_whole() -> None:
    names = [attack.name for attack in curve_attacks(["eps"], Evaluation(), 8 / 255)]
    sizes = ("2/255", "4/255", "", "16/255", "32/255", "64/255", "1")
    assert names == [f"pgd-20:eps={size}" if size else "pgd-20" for size in sizes]


def test_a_typing_mistake_is_told() -> None:
    with pytest.raises(UserError, match=r"unknown curve 'step'.*did you mean 'steps'"):
        curve_attacks(["step"], Evaluation(), EPS)


@pytest.mark.full
def test_points_are_columns_of_the_card_which_tables_leave_out(evaluated: Evaluated, tmp_path: Path) -> None:
    card = evaluated("pgd-20", curves=get_args(CurveName), out=tmp_path)
    assert ResultCard.load(tmp_path / "evaluation.json").to_json() == card.to_json()
    assert len({column.name for column in card.columns}) == len(card.columns) == 2 + 6 + 6 + 4
    assert {column.name for column in card.columns if not column.curve} == {"clean", "pgd-20"}
    assert "pgd-20 " in repr(card)
    assert "pgd-50" not in repr(card)
    plain = evaluated("pgd-50", "pgd-20:eps=1", "adaptive-pgd-20:factor=100")
    for column in plain.columns:
        np.testing.assert_array_equal(card.column(column.name).predictions, column.predictions)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the attacks that were run, in order."""
    names: list[str] = []
    run = Runner.run

    def noting(self: Runner, attack: Any, *rest: Any) -> Any:
        names.append(attack.name)
        return run(self, attack, *rest)

    monkeypatch.setattr(Runner, "run", noting)
    return names


def test_what_is_both_an_attack_and_a_point_is_measured_once(evaluated: Evaluated, ran: list[str]) -> None:
    card = evaluated("pgd-20", "pgd-5", curves=("logit-scale", "steps"))
    assert len(ran) == len(set(ran)) == len(card.columns)
    assert [column.name for column in card.columns if not column.curve] == ["clean", "pgd-20", "pgd-5"]
    assert len(points(card, "steps")) == 7
    assert len(points(card, "logit-scale")) == 5


@pytest.mark.full
@pytest.mark.parametrize("curve_first", [True, False])
def test_an_evaluation_that_goes_on_takes_what_is_there(
    evaluated: Evaluated, ran: list[str], tmp_path: Path, curve_first: bool
) -> None:
    calls: list[dict[str, Any]] = [{"curves": ("steps",)}, {"attacks": ("pgd-20",)}]
    for call in calls if curve_first else reversed(calls):
        card = evaluated(*call.get("attacks", ("clean",)), curves=call.get("curves", ()), out=tmp_path)
    assert sorted(ran) == sorted({*ran}) == sorted(column.name for column in card.columns)
    assert {column.name: column.curve for column in card.columns}["pgd-20"] == ""
    assert {column.curve for column in card.columns} == {"", "steps"}


def test_a_curve_needs_three_points_and_holds_one_at_a_place(card: ResultCard) -> None:
    few = card.changed(columns=tuple(card.column(name) for name in ("pgd-20", "adaptive-pgd-20", "pgd-1")))
    assert curves(few) == ()
    again = card.column("pgd-20").changed(name="pgd-20:eps=0.050")
    (curve,) = (curve for curve in curves(card.changed(columns=(*card.columns, again))) if curve.name == "eps")
    assert [column.name for x, column in curve.points if x == EPS] == ["pgd-20"]


def with_parameters(column: Column, **change: Any) -> Column:
    return column.changed(parameters={**column.parameters, **change})


@pytest.mark.parametrize(
    ("change", "left"),
    [
        ({"step_size": 0.02}, [0, EPS / 4, EPS / 2, 2 * EPS, 4 * EPS, 8 * EPS, 1]),
        ({"start": "none"}, [0, EPS / 4, EPS / 2, 2 * EPS, 4 * EPS, 8 * EPS, 1]),
        ({"restarts": 2}, [0, EPS / 4, EPS / 2, 2 * EPS, 4 * EPS, 8 * EPS, 1]),
        ({"seed": 1}, [0, EPS / 4, EPS / 2, EPS, 2 * EPS, 4 * EPS, 8 * EPS, 1]),  # another draw of the same
    ],
)
def test_a_point_of_other_settings_is_none_of_the_curve(
    card: ResultCard, change: dict[str, Any], left: list[float]
) -> None:
    columns = [with_parameters(one, **change) if one.name == "pgd-20" else one for one in card.columns]
    mixed = card.changed(columns=tuple(columns))
    assert list(points(mixed, "eps")) == pytest.approx(left)
    there = "seed" in change
    assert list(points(mixed, "steps")) == [1, 2, 5, 10, *([20] * there), 50, 100]
    assert list(points(mixed, "logit-scale")) == [0.01, 0.1, *([1] * there), 10, 100]


def test_another_ball_is_another_curve(card: ResultCard) -> None:
    columns = [one.changed(eps=2 * EPS) if one.name == "pgd-50" else one for one in card.columns]
    assert list(points(card.changed(columns=tuple(columns)), "steps")) == [1, 2, 5, 10, 20, 100]


def test_of_several_sets_the_curve_is_the_one_measured_for_it_else_the_largest(card: ResultCard) -> None:
    names = [f"pgd-{steps}" for steps in (1, 2, 5, 10, 20, 50, 100)]
    columns = [
        with_parameters(card.column(name), **({"step_size": 0.02} if name in names[3:] else {})) for name in names
    ]
    marked = card.changed(columns=tuple(columns))
    assert list(points(marked.changed(columns=tuple(one.changed(curve="") for one in columns)), "steps")) == [
        10, 20, 50, 100,
    ]  # fmt: skip
    asked = tuple(one.changed(curve="" if one.name in names[3:] else "steps") for one in columns)
    assert list(points(marked.changed(columns=asked), "steps")) == [1, 2, 5]
