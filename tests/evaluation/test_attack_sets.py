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
from taet.evaluation.attack_sets import (
    CURVES,
    attacks_of,
    curves,
    expand_protocol_names,
    of_run,
    parse_attack,
    resolve_evaluation,
)
from taet.settings import Evaluation, override
from tests.calls import one_line

TAET, REAT = protocols.taet().evaluation, protocols.reat().evaluation
EPS = 8 / 255


def chain(steps: int, size: float, **more: Any) -> dict[str, Any]:
    return {"steps": steps, "step_size": size, "start": "uniform", "restarts": 1, "seed": 0, **more}


SEARCH = {
    "c": "search",
    "kappa": 0.0,
    "steps": 100,
    "lr": 0.01,
    "search_steps": 9,
    "initial_c": 1e-3,
    "box": "sine",
}


@pytest.mark.parametrize(
    ("name", "settings", "norm", "eps", "parameters"),
    [
        ("clean", TAET, None, None, {}),
        ("fgsm", TAET, "linf", EPS, {"steps": 1, "step_size": EPS, "start": "none"}),
        ("pgd-20", REAT, "linf", EPS, chain(20, 2 / 255)),
        ("cw-linf-100", REAT, "linf", EPS, chain(100, 2 / 255, objective="cw")),
        (
            "adaptive-pgd-l2-20:start=gaussian",
            REAT,
            "l2",
            1.0,
            {**chain(20, 0.2, factor=10.0), "start": "gaussian"},
        ),
        ("cw-l2", TAET, "l2", None, {"c": 10.0, "kappa": 0.0, "steps": 100, "lr": 0.01}),
        ("cw-l2", REAT, "l2", 1.0, SEARCH),
        ("deepfool", TAET, "l2", None, {"steps": 50, "overshoot": 0.02, "candidates": 10}),
        ("autoattack-l2-fast", TAET, "l2", 1.0, {"version": "fast", "seed": 0}),
        ("autoattack-10:eps=4/255", TAET, "linf", 4 / 255, {"version": "10", "seed": 0}),
        ("cw-l2:c=1,eps=2.5", REAT, "l2", 2.5, {"c": 1.0, "kappa": 0.0, "steps": 100, "lr": 0.01}),
    ],
)
def test_a_name_becomes_all_settings_of_the_attack(
    name: str, settings: Evaluation, norm: str | None, eps: float | None, parameters: dict[str, Any]
) -> None:
    attack = parse_attack(name, settings.replace(eps=EPS))
    assert (attack.name, attack.norm, attack.eps) == (name, norm, eps)
    assert attack.parameters == parameters
    assert catalogue.stored(name, norm, eps, attack.parameters) == attack


@pytest.mark.parametrize(
    ("name", "settings", "eps"),
    [
        ("pgd-5:eps=0.1", Evaluation(eps=0.2), 0.1),
        ("pgd-5", Evaluation(eps=0.2), 0.2),
        ("pgd-5", Evaluation(), 8 / 255),
    ],
)
def test_the_radius_is_that_of_the_name_then_of_the_settings_then_of_training(
    name: str, settings: Evaluation, eps: float
) -> None:
    assert parse_attack(name, settings).eps == eps


@pytest.mark.parametrize(
    ("name", "step_size"),
    [
        ("pgd-20:eps=16/255", 2 / 255),
        ("pgd-l2-20:eps=0.5", 0.1),
        ("pgd-20:eps=16/255,step=1/255", 1 / 255),
    ],
)
def test_a_step_is_that_of_the_name_or_grows_with_its_radius(name: str, step_size: float) -> None:
    attack = parse_attack(name, TAET.replace(eps=EPS))
    assert attack.parameters["step_size"] == pytest.approx(step_size)


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


# -- protocols


def test_the_name_of_a_protocol_stands_for_the_columns_of_its_paper() -> None:
    settings = expand_protocol_names(Evaluation(attacks=("reat", "fgsm")))
    assert settings.attacks == (*protocols.COLUMNS["reat"], "fgsm")


def test_columns_of_a_paper_have_its_settings() -> None:
    settings = expand_protocol_names(Evaluation(attacks=("reat",), eps=EPS, seed=3))
    assert (settings.step_size, settings.cw_constant, settings.cw_bounded) == (2 / 255, None, True)


def test_settings_that_were_chosen_stay_beside_columns_of_a_paper() -> None:
    chosen = {"cw_constant": 5.0, "step_size": 3 / 255, "eps": EPS, "seed": 3}
    settings = expand_protocol_names(Evaluation(attacks=("reat",), **chosen))
    assert {name: getattr(settings, name) for name in chosen} == chosen


def test_the_step_of_a_paper_grows_with_the_radius() -> None:
    settings = expand_protocol_names(Evaluation(attacks=("reat",), eps=16 / 255))
    assert settings.step_size == pytest.approx(4 / 255)


def test_names_of_attacks_alone_change_no_setting() -> None:
    settings = REAT.replace(attacks=("pgd-20",))
    assert expand_protocol_names(settings) == settings


def test_two_protocols_at_a_time_are_refused() -> None:
    with one_line("one protocol at a time"):
        expand_protocol_names(Evaluation(attacks=("taet", "reat")))


@pytest.mark.parametrize("protocol", protocols.COLUMNS)
def test_the_attacks_of_a_protocol_are_columns_of_its_paper(protocol: str) -> None:
    attacks = protocols.start(protocol).evaluation.attacks
    assert {*attacks} <= {*protocols.COLUMNS[protocol]}


# -- the step of an evaluation


def step(own: Evaluation, trained: float = EPS, protocol: str = "taet", **changes: Any) -> float:
    """Return the step of a run's own settings with changes, after training with a radius."""
    return resolve_evaluation(own, changes, trained, protocols.start(protocol)).step_size


def test_the_radius_of_training_keeps_the_step_of_the_protocol() -> None:
    assert step(TAET) == 1 / 255
    assert step(TAET, eps=EPS) == 1 / 255


@pytest.mark.parametrize(
    ("protocol", "eps", "expected"), [("taet", 4 / 255, 0.5 / 255), ("reat", 16 / 255, 4 / 255)]
)
def test_a_step_that_is_not_given_follows_the_radius(
    protocol: str, eps: float, expected: float
) -> None:
    own = protocols.start(protocol).evaluation
    assert step(own, protocol=protocol, eps=eps) == pytest.approx(expected)


def test_a_step_that_is_not_given_follows_the_radius_of_training() -> None:
    assert step(TAET, 0.1) == pytest.approx(0.1 / 8)
    assert of_run(override(protocols.taet(), {"threat.eps": 0.1})).step_size == step(TAET, 0.1)


def test_the_radius_of_an_evaluation_counts_before_that_of_training() -> None:
    assert step(TAET, 0.1, eps=4 / 255) == step(TAET, eps=4 / 255)


def test_a_step_of_the_run_was_chosen_for_the_radius_of_its_training() -> None:
    own = Evaluation(step_size=0.02)
    assert step(own, 0.16) == 0.02
    assert step(own, 0.16, eps=0.16) == 0.02
    assert step(own, 0.16, eps=0.08) == pytest.approx(0.01)


def test_a_step_that_is_given_stays_at_any_radius() -> None:
    assert step(TAET, eps=16 / 255, step_size=3 / 255) == 3 / 255


def test_the_step_of_a_named_protocol_follows_the_radius() -> None:
    assert step(TAET, eps=16 / 255, attacks="reat") == pytest.approx(4 / 255)


def test_a_step_of_the_run_follows_the_radius_with_columns_of_a_protocol() -> None:
    own = Evaluation(step_size=0.5 / 255)
    assert step(own, eps=16 / 255, attacks="taet") == pytest.approx(1 / 255)


def test_a_step_of_another_protocol_stays_with_columns_of_this_one() -> None:
    assert step(Evaluation(step_size=2 / 255), attacks="taet") == 2 / 255


@pytest.mark.parametrize("attacks", ["pgd-l2-20", "reat"])
@pytest.mark.parametrize(
    ("own", "expected"), [(TAET, 0.1), (Evaluation(step_size_l2=0.3), 0.15)], ids=["own", "given"]
)
def test_the_step_in_l2_follows_the_radius_in_l2(
    attacks: str, own: Evaluation, expected: float
) -> None:
    settled = resolve_evaluation(own, {"eps_l2": 0.5, "attacks": attacks}, EPS, protocols.taet())
    assert settled.step_size_l2 == pytest.approx(expected)


def test_the_step_in_l2_of_a_run_follows_its_radius_in_l2() -> None:
    run = override(protocols.taet(), {"evaluation.eps_l2": 0.5})
    assert of_run(run).step_size_l2 == pytest.approx(0.1)


@pytest.mark.parametrize(
    "changes",
    [
        {"attacks": "pgd-20", "eps": 0.1, "step_size": 1 / 255},
        {"attacks": "pgd-l2-4", "step_size_l2": 0.2},
        {"attacks": "adaptive-pgd-7:step=1/255"},
    ],
)
def test_a_chosen_step_whose_sum_cannot_reach_the_radius_is_refused(
    changes: dict[str, Any],
) -> None:
    with one_line("allowed: steps that add up to its radius"):
        resolve_evaluation(TAET, changes, EPS, protocols.taet())


def test_a_step_that_a_run_stored_is_not_refused_where_it_is_too_short() -> None:
    """It is flagged: see pgd-too-short."""
    old = Evaluation(attacks=("pgd-7",), step_size=1 / 255)
    assert resolve_evaluation(old, {}, EPS, protocols.taet()).attacks == ("pgd-7",)


# -- curves

RADIUS, STEP = 0.05, 0.01


class Linear(nn.Module):
    """Two classes, told apart by the sign of a weighted sum of the pixels less its value on a grey
    image."""

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


def after(
    linear: tuple[Linear, Tensor, Tensor], start: Tensor, length: float, eps: float
) -> np.ndarray:
    """Which images are still correct when each pixel has gone so far against its weight, within the
    ball and [0, 1]."""
    model, x, y = linear
    against = -(2 * y - 1)[:, None] * model.weight.sign()
    moved = start + length * against.reshape(x.shape)
    x_adv = torch.minimum(torch.maximum(moved, x - eps), x + eps).clamp(0, 1)
    return ((model.difference(x_adv) > 0).long() == y).numpy()


def test_every_column_but_the_clean_one_is_a_point_of_a_curve(card: ResultCard) -> None:
    names = {column.name for column in card.columns}
    assert len(names) == len(card.columns) == 1 + 7 + 6 + 4
    assert {column.name for column in card.columns if not column.curve} == {"clean"}


def test_points_at_radii_are_those_of_the_closed_form(
    card: ResultCard, linear: tuple[Linear, Tensor, Tensor]
) -> None:
    points, x = curves(card)["eps"], linear[1]
    factors = [0, 1 / 4, 1 / 2, 1, 2, 4, 8, 1 / RADIUS]
    assert list(points) == pytest.approx([factor * RADIUS for factor in factors])
    for eps, column in points.items():
        np.testing.assert_array_equal(column.correct, after(linear, x, 1, eps))


def test_the_step_at_a_radius_is_in_proportion_to_it(card: ResultCard) -> None:
    points = curves(card)["eps"]
    steps = {eps: column.parameters["step_size"] for eps, column in points.items() if eps > 0}
    assert steps == pytest.approx({eps: eps / RADIUS * STEP for eps in steps})


def test_points_at_numbers_of_steps_are_those_of_the_closed_form(
    card: ResultCard, linear: tuple[Linear, Tensor, Tensor]
) -> None:
    points, x = curves(card)["steps"], linear[1]
    assert list(points) == [1, 2, 5, 10, 20, 50, 100]
    for steps, column in points.items():
        noise = Draws(0, f"pgd-{steps:.0f}", np.arange(len(x))).start(x, RADIUS)
        start = (x + noise).clamp(0, 1)
        np.testing.assert_array_equal(column.correct, after(linear, start, steps * STEP, RADIUS))


def test_a_factor_of_the_logits_changes_no_attack_on_a_linear_model(card: ResultCard) -> None:
    points = curves(card)["logit-scale"]
    assert list(points) == [0.01, 0.1, 1, 10, 100]
    for column in points.values():
        np.testing.assert_array_equal(column.correct, points[1].correct)


def test_radii_of_a_curve_are_named_in_grey_levels_where_they_are_whole() -> None:
    names = [attack.name for attack in attacks_of(Evaluation(attacks=("curve-eps",), eps=EPS))]
    sizes = ("2/255", "4/255", "", "16/255", "32/255", "64/255", "1")
    assert names == [f"pgd-20:eps={size}" if size else "pgd-20" for size in sizes]


def test_a_quarter_of_the_radius_is_named_in_grey_levels() -> None:
    attacks = attacks_of(Evaluation(attacks=("curve-eps",), eps=10 / 255))
    assert (attacks[0].name, attacks[0].eps) == ("pgd-20:eps=2.5/255", 2.5 / 255)


def test_an_older_card_names_a_radius_by_its_digits(card: ResultCard) -> None:
    columns = list(card.columns)
    for place, column in enumerate(columns):
        if column.eps == RADIUS / 4:
            columns[place] = column.changed(name="pgd-20:eps=0.01250")
    assert [*curves(card.changed(columns=tuple(columns)))["eps"]] == [*curves(card)["eps"]]


def test_a_step_that_is_longer_than_the_range_of_pixels_is_that_range(
    linear: tuple[Linear, Tensor, Tensor],
) -> None:
    how: dict[str, Any] = {"eps": RADIUS, "step_size": 2 * RADIUS, "probe": False}
    card = taet.evaluate(*linear, attacks=["clean", "curve-eps"], **how)
    points = curves(card)["eps"]
    assert points[1].parameters["step_size"] == 1
    assert points[8 * RADIUS].parameters["step_size"] == pytest.approx(16 * RADIUS)
    assert len(points) == 8, "a step that was cut off does not end the curve"


def test_fewer_than_three_points_are_no_curve(card: ResultCard) -> None:
    columns = tuple(card.column(name) for name in ("pgd-20", "adaptive-pgd-20", "pgd-1"))
    assert curves(card.changed(columns=columns)) == {"steps": {}, "eps": {}, "logit-scale": {}}


def test_a_curve_has_one_point_at_a_radius(card: ResultCard) -> None:
    again = card.column("pgd-20").changed(name="pgd-20:eps=0.050")
    assert curves(card.changed(columns=(*card.columns, again)))["eps"][RADIUS].name == "pgd-20"


def curves_with(card: ResultCard, change: dict[str, Any]) -> dict[str, dict[float, Any]]:
    """Return the curves of the card with another setting of pgd-20, a point of all three."""
    own = card.column("pgd-20")
    other = own.changed(parameters={**own.parameters, **change})
    columns = tuple(other if column is own else column for column in card.columns)
    return curves(card.changed(columns=columns))


@pytest.mark.parametrize("change", [{"step_size": 0.02}, {"start": "none"}, {"restarts": 2}])
def test_a_point_of_other_settings_is_none_of_the_curve(
    card: ResultCard, change: dict[str, Any]
) -> None:
    found = curves_with(card, change)
    assert RADIUS not in found["eps"]
    assert 20 not in found["steps"]
    assert 1 not in found["logit-scale"]


def test_a_point_of_another_seed_is_another_draw_of_the_curve(card: ResultCard) -> None:
    found = curves_with(card, {"seed": 1})
    assert RADIUS in found["eps"]
    assert 20 in found["steps"]
    assert 1 in found["logit-scale"]
