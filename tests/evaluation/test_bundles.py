"""A name of an attack becomes all of its settings, or one line that says what is wrong with it."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import taet
from taet import protocols
from taet.attacks import catalogue
from taet.attacks.noise import Draws
from taet.evaluation import ResultCard
from taet.evaluation.bundles import CURVES, attacks_of, curves, expand, of_run, parse_attack, settle
from taet.settings import Evaluation, override
from tests.calls import one_line

TAET, REAT = protocols.taet().evaluation, protocols.reat().evaluation
EPS = 8 / 255


def chain(steps: int, size: float, **more: Any) -> dict[str, Any]:
    return {"steps": steps, "step_size": size, "start": "uniform", "restarts": 1, "seed": 0, **more}


SEARCH = {"c": "search", "kappa": 0.0, "steps": 100, "lr": 0.01, "search_steps": 9, "initial_c": 1e-3, "box": "sine"}


@pytest.mark.parametrize(
    ("name", "settings", "norm", "eps", "parameters"),
    [
        ("clean", TAET, None, None, {}),
        ("fgsm", TAET, "linf", EPS, {"steps": 1, "step_size": EPS, "start": "none"}),
        ("pgd-20", REAT, "linf", EPS, chain(20, 2 / 255)),
        ("cw-linf-100", REAT, "linf", EPS, chain(100, 2 / 255, objective="cw")),
        ("adaptive-pgd-l2-20:start=gaussian", REAT, "l2", 1.0, {**chain(20, 0.2, factor=10.0), "start": "gaussian"}),
        ("cw-l2", TAET, "l2", None, {"c": 10.0, "kappa": 0.0, "steps": 100, "lr": 0.01}),
        ("cw-l2", REAT, "l2", 1.0, SEARCH),
        ("deepfool", TAET, "l2", None, {"steps": 50, "overshoot": 0.02, "candidates": 10}),
        ("autoattack-l2-fast", TAET, "l2", 1.0, {"version": "fast", "seed": 0}),
        ("autoattack-10:eps=4/255", TAET, "linf", 4 / 255, {"version": "10", "seed": 0}),
        ("cw-l2:c=1,eps=2.5", REAT, "l2", 2.5, {"c": 1.0, "kappa": 0.0, "steps": 100, "lr": 0.01}),
    ],
)
def test_names(
    name: str, settings: Evaluation, norm: str | None, eps: float | None, parameters: dict[str, Any]
) -> None:
    attack = parse_attack(name, settings.replace(eps=EPS))
    assert (attack.name, attack.norm, attack.eps) == (name, norm, eps)
    assert attack.parameters == parameters
    assert catalogue.stored(name, norm, eps, attack.parameters) == attack


def test_radius_and_step_are_those_of_the_name_then_of_the_settings_then_of_training() -> None:
    assert parse_attack("pgd-5:eps=0.1", Evaluation(eps=0.2)).eps == 0.1
    assert parse_attack("pgd-5", Evaluation(eps=0.2)).eps == 0.2
    assert parse_attack("pgd-5", Evaluation()).eps == 8 / 255
    assert parse_attack("pgd-20:eps=16/255", TAET.replace(eps=EPS)).parameters["step_size"] == pytest.approx(2 / 255)
    assert parse_attack("pgd-l2-20:eps=0.5", TAET.replace(eps=EPS)).parameters["step_size"] == pytest.approx(0.1)
    assert parse_attack("pgd-20:eps=16/255,step=1/255", TAET.replace(eps=EPS)).parameters["step_size"] == 1 / 255


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pgd", "attack 'pgd': got no number of steps; allowed: pgd-N, e.g. pgd-20"),
        ("pdg-20", "did you mean 'pgd-20'"),
        ("pgd-20:restart=5", "did you mean 'restarts'"),
        ("pgd-20:restarts=0", "restarts got '0'; allowed: a whole number, 1 or more"),
        ("pgd-20:restarts", "allowed: option=value"),
        ("pgd-20:eps=8", "did you mean 8/255"),
        ("pgd-20:start=none,restarts=2", "several restarts from one start"),
        ("taet", "attack 'taet': got a name of several attacks"),
    ],
)
def test_a_mistake_is_one_line(name: str, message: str) -> None:
    with one_line(message):
        parse_attack(name)


def test_a_protocol_stands_for_the_columns_of_its_paper_with_their_settings() -> None:
    settings = expand(Evaluation(attacks=("reat", "fgsm"), eps=EPS, seed=3))
    assert settings.attacks == (*protocols.COLUMNS["reat"], "fgsm")
    assert (settings.step_size, settings.cw_constant, settings.cw_bounded) == (2 / 255, None, True)
    assert (settings.eps, settings.seed) == (EPS, 3)
    assert expand(one := REAT.replace(attacks=("pgd-20",))) == one
    assert expand(Evaluation(attacks=("reat",), eps=16 / 255)).step_size == pytest.approx(4 / 255)
    kept = expand(Evaluation(attacks=("reat",), cw_constant=5.0, step_size=3 / 255))
    assert (kept.cw_constant, kept.step_size, kept.cw_bounded) == (5.0, 3 / 255, True)
    with one_line("one protocol at a time"):
        expand(Evaluation(attacks=("taet", "reat")))
    for protocol, columns in protocols.COLUMNS.items():
        assert {*protocols.start(protocol).evaluation.attacks} <= {*columns}


def test_a_step_that_is_not_given_follows_the_radius() -> None:
    def step(own: Evaluation, trained: float = EPS, protocol: str = "taet", **changes: Any) -> float:
        return settle(own, changes, trained, protocols.start(protocol)).step_size

    assert step(TAET) == step(TAET, eps=EPS) == 1 / 255
    assert step(TAET, eps=4 / 255) == step(TAET, 0.1, eps=4 / 255) == pytest.approx(0.5 / 255)
    assert step(REAT, protocol="reat", eps=16 / 255) == pytest.approx(4 / 255)
    assert step(TAET, 0.1) == pytest.approx(0.1 / 8)  # a run that was trained with another radius
    assert of_run(override(protocols.taet(), {"threat.eps": 0.1})).step_size == step(TAET, 0.1)
    own = Evaluation(step_size=0.02)  # chosen for a radius of 0.16, which is not that of the protocol
    assert step(own, 0.16, eps=0.08) == pytest.approx(0.01)
    assert step(own, 0.16) == step(own, 0.16, eps=0.16) == 0.02
    assert step(TAET, eps=16 / 255, step_size=3 / 255) == 3 / 255
    assert step(TAET, eps=16 / 255, attacks="reat") == pytest.approx(4 / 255)
    assert step(Evaluation(step_size=0.5 / 255), eps=16 / 255, attacks="taet") == pytest.approx(1 / 255)
    for attacks in ("pgd-l2-20", "reat"):
        changes = {"eps_l2": 0.5, "attacks": attacks}
        assert settle(TAET, changes, EPS, protocols.taet()).step_size_l2 == pytest.approx(0.1)
        assert settle(Evaluation(step_size_l2=0.3), changes, EPS, protocols.taet()).step_size_l2 == pytest.approx(0.15)
    assert step(Evaluation(step_size=2 / 255), attacks="taet") == 2 / 255  # that of another protocol
    assert of_run(override(protocols.taet(), {"evaluation.eps_l2": 0.5})).step_size_l2 == pytest.approx(0.1)


@pytest.mark.parametrize(
    "changes",
    [
        {"attacks": "pgd-20", "eps": 0.1, "step_size": 1 / 255},
        {"attacks": "pgd-l2-4", "step_size_l2": 0.2},
        {"attacks": "adaptive-pgd-7:step=1/255"},
    ],
)
def test_a_chosen_step_whose_sum_cannot_reach_the_radius_is_refused(changes: dict[str, Any]) -> None:
    with one_line("allowed: steps that add up to its radius"):
        settle(TAET, changes, EPS, protocols.taet())
    old = Evaluation(attacks=("pgd-7",), step_size=1 / 255)  # as a run stores it, it is only flagged
    assert settle(old, {}, EPS, protocols.taet()).attacks == ("pgd-7",)


# -- curves ------------------------------------------------------------------------------------------------------------

RADIUS, STEP = 0.05, 0.01


class Linear(nn.Module):
    """Two classes, told apart by the sign of a weighted sum of the pixels less its value on a grey image."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, generator=torch.Generator().manual_seed(0)) / 8)

    def difference(self, x: Tensor) -> Tensor:
        return (x.flatten(1) - 0.5) @ self.weight

    def forward(self, x: Tensor) -> Tensor:
        difference = self.difference(x)
        return torch.stack([-difference, difference], 1) / 2


@pytest.fixture(scope="module")
def linear() -> tuple[Linear, Tensor, Tensor]:
    """The model, images that it gets right, and their labels."""
    model, x = Linear(), torch.rand(200, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    return model, x, (model.difference(x) > 0).long()


@pytest.fixture(scope="module")
def card(linear: tuple[Linear, Tensor, Tensor]) -> ResultCard:
    return taet.evaluate(*linear, attacks=[*CURVES], eps=RADIUS, step_size=STEP)


def after(linear: tuple[Linear, Tensor, Tensor], start: Tensor, length: float, eps: float) -> np.ndarray:
    """Which images are still correct when each pixel has gone so far against its weight, within the ball and [0, 1]."""
    model, x, y = linear
    against = -(2 * y - 1)[:, None] * model.weight.sign()
    moved = start + length * against.reshape(x.shape)
    x_adv = torch.minimum(torch.maximum(moved, x - eps), x + eps).clamp(0, 1)
    return ((model.difference(x_adv) > 0).long() == y).numpy()


def test_the_points_of_a_linear_model_are_those_of_the_closed_form(
    card: ResultCard, linear: tuple[Linear, Tensor, Tensor]
) -> None:
    assert len({column.name for column in card.columns}) == len(card.columns) == 1 + 7 + 6 + 4
    assert {column.name for column in card.columns if not column.curve} == {"clean"}
    found, x = curves(card), linear[1]
    balls = [0, RADIUS / 4, RADIUS / 2, RADIUS, 2 * RADIUS, 4 * RADIUS, 8 * RADIUS, 1]
    assert list(found["eps"]) == pytest.approx(balls)
    for eps, column in found["eps"].items():
        np.testing.assert_array_equal(column.correct, after(linear, x, 1, eps))
        assert eps in (0, RADIUS) or column.parameters["step_size"] == pytest.approx(eps / RADIUS * STEP)
    assert list(found["steps"]) == [1, 2, 5, 10, 20, 50, 100]
    for steps, column in found["steps"].items():
        noise = Draws(0, f"pgd-{steps:.0f}", np.arange(len(x))).start(x, RADIUS)
        start = (x + noise).clamp(0, 1)
        np.testing.assert_array_equal(column.correct, after(linear, start, steps * STEP, RADIUS))
    assert list(found["logit-scale"]) == [0.01, 0.1, 1, 10, 100]
    assert all((one.correct == found["logit-scale"][1].correct).all() for one in found["logit-scale"].values())


def test_a_curve_has_named_balls_and_three_points_and_one_at_a_place(card: ResultCard) -> None:
    names = [attack.name for attack in attacks_of(Evaluation(attacks=("curve-eps",), eps=EPS))]
    sizes = ("2/255", "4/255", "", "16/255", "32/255", "64/255", "1")  # in grey levels where they are whole
    assert names == [f"pgd-20:eps={size}" if size else "pgd-20" for size in sizes]
    few = card.changed(columns=tuple(card.column(name) for name in ("pgd-20", "adaptive-pgd-20", "pgd-1")))
    assert curves(few) == {"steps": {}, "eps": {}, "logit-scale": {}}
    again = card.column("pgd-20").changed(name="pgd-20:eps=0.050")
    assert curves(card.changed(columns=(*card.columns, again)))["eps"][RADIUS].name == "pgd-20"


@pytest.mark.parametrize("change", [{"step_size": 0.02}, {"start": "none"}, {"restarts": 2}, {"seed": 1}])
def test_a_point_of_other_settings_is_none_of_the_curve(card: ResultCard, change: dict[str, Any]) -> None:
    own = card.column("pgd-20")
    other = own.changed(parameters={**own.parameters, **change})
    found = curves(card.changed(columns=tuple(other if one is own else one for one in card.columns)))
    same = "seed" in change  # another draw of the same
    assert (RADIUS in found["eps"], 20 in found["steps"], 1 in found["logit-scale"]) == (same, same, same)
