"""A name of an attack becomes all of its settings, or one line that says what is wrong with it."""

from __future__ import annotations

from typing import Any

import pytest

from taet import protocols
from taet.attacks import catalogue
from taet.errors import UserError
from taet.evaluation.bundles import expand, parse_attack, parse_attacks
from taet.settings import Evaluation

TAET, REAT = protocols.taet().evaluation, protocols.reat().evaluation
EPS = 8 / 255


def chain(steps: int, size: float, **more: Any) -> dict[str, Any]:
    return {"steps": steps, "step_size": size, "start": "uniform", "restarts": 1, "seed": 0, **more}


@pytest.mark.parametrize(
    ("name", "settings", "norm", "eps", "parameters"),
    [
        ("clean", TAET, None, None, {}),
        ("fgsm", TAET, "linf", EPS, {"steps": 1, "step_size": EPS, "start": "none"}),
        ("pgd-20", TAET, "linf", EPS, chain(20, 1 / 255)),
        ("pgd-20", REAT, "linf", EPS, chain(20, 2 / 255)),
        ("cw-linf-100", REAT, "linf", EPS, chain(100, 2 / 255, objective="cw")),
        ("adaptive-pgd-20", REAT, "linf", EPS, chain(20, 2 / 255, factor=10.0)),
        ("pgd-l2-100", REAT, "l2", 1.0, chain(100, 0.2)),
        ("adaptive-pgd-l2-20", REAT, "l2", 1.0, chain(20, 0.2, factor=10.0)),
        ("cw-l2", TAET, "l2", None, {"c": 10.0, "kappa": 0.0, "steps": 100, "lr": 0.01}),
        (
            "cw-l2",
            REAT,
            "l2",
            1.0,
            {
                "c": "search",
                "kappa": 0.0,
                "steps": 100,
                "lr": 0.01,
                "search_steps": 9,
                "initial_c": 1e-3,
                "box": "sine",
            },
        ),
        ("deepfool", TAET, "l2", None, {"steps": 50, "overshoot": 0.02, "candidates": 10}),
        ("autoattack", TAET, "linf", EPS, {"version": "standard", "seed": 0}),
        ("autoattack-l2-fast", TAET, "l2", 1.0, {"version": "fast", "seed": 0}),
        ("autoattack-10:eps=4/255", TAET, "linf", 4 / 255, {"version": "10", "seed": 0}),
        (
            "pgd-7:start=gaussian,restarts=3",
            TAET,
            "linf",
            EPS,
            chain(7, 1 / 255) | {"start": "gaussian", "restarts": 3},
        ),
        ("pgd-7:target=runner-up", TAET, "linf", EPS, chain(7, 1 / 255, target="runner-up")),
        ("adaptive-pgd-5:factor=100", TAET, "linf", EPS, chain(5, 1 / 255, factor=100.0)),
        ("cw-l2:c=search,eps=none", REAT, "l2", None, None),
        ("cw-l2:c=1,eps=2.5", REAT, "l2", 2.5, {"c": 1.0, "kappa": 0.0, "steps": 100, "lr": 0.01}),
    ],
)
def test_names(
    name: str, settings: Evaluation, norm: str | None, eps: float | None, parameters: dict[str, Any] | None
) -> None:
    attack = parse_attack(name, settings, EPS)
    assert (attack.name, attack.norm, attack.eps) == (name, norm, eps)
    assert attack.bounded == (eps is not None)
    assert parameters is None or attack.parameters == parameters
    assert catalogue.stored(name, norm, eps, attack.parameters) == attack


def test_the_step_follows_a_ball_of_another_size_unless_it_is_given() -> None:
    assert parse_attack("pgd-20:eps=16/255", TAET, EPS).parameters["step_size"] == pytest.approx(2 / 255)
    assert parse_attack("pgd-l2-20:eps=0.5", TAET, EPS).parameters["step_size"] == pytest.approx(0.1)
    assert parse_attack("pgd-20:eps=16/255,step=1/255", TAET, EPS).parameters["step_size"] == 1 / 255


def test_the_radius_is_that_of_the_name_then_of_the_settings_then_of_training() -> None:
    assert parse_attack("pgd-5:eps=0.1", Evaluation(eps=0.2), 0.3).eps == 0.1
    assert parse_attack("pgd-5", Evaluation(eps=0.2), 0.3).eps == 0.2
    assert parse_attack("pgd-5", Evaluation(), 0.3).eps == 0.3


@pytest.mark.parametrize(
    ("name", "passes"),
    [
        ("clean", 1),
        ("fgsm", 3),
        ("pgd-20", 41),
        ("pgd-20:restarts=5", 5 * 41 + 1),
        ("cw-l2", 201),
        ("cw-l2:c=search", 1801),
        ("deepfool", 50 * 5 + 1),
        ("autoattack-fast", 2 * 100 + 2 * 3 * 100),
    ],
)
def test_passes(name: str, passes: int) -> None:
    assert parse_attack(name).passes(num_classes=4) == passes


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pgd", "attack 'pgd': got no number of steps; allowed: pgd-N, e.g. pgd-20"),
        ("adaptive-pgd", "allowed: adaptive-pgd-N"),
        ("pdg-20", "did you mean 'pgd-20'"),
        ("pgd-0", "unknown attack"),
        ("auto-attack", "did you mean 'autoattack'"),
        ("cw-12", "did you mean 'cw-l2'"),
        ("pgd-20:restart=5", "did you mean 'restarts'"),
        ("pgd-20:restarts=0", "restarts got '0'; allowed: a whole number, 1 or more"),
        ("pgd-20:restarts=2.5", "restarts got '2.5'"),
        ("pgd-20:restarts", "allowed: option=value"),
        ("pgd-20:restarts=2,restarts=3", "each option once"),
        ("pgd-20:objective=hinge", "objective got 'hinge'; allowed: ce, cw, dlr, pm, kl"),
        ("pgd-20:eps=0", "eps got '0'; allowed: a number, above 0"),
        ("pgd-20:eps=-1/255", "eps got '-1/255'"),
        ("pgd-20:eps=8", "did you mean 8/255"),
        ("pgd-20:eps=none", "eps got 'none'; allowed: a number, since this attack needs a ball"),
        ("pgd-20:eps=8/0", "eps got '8/0'"),
        ("pgd-20:objective=kl,target=random", "objective kl, which sees no label"),
        ("pgd-20:start=none,restarts=2", "several restarts from one start"),
        ("adaptive-pgd-20:objective=dlr", "unknown option of 'adaptive-pgd-20' 'objective'"),
        ("taet", "attack 'taet': got a protocol of 6 attacks"),
        ("clean:eps=1", "unknown option of 'clean' 'eps'"),
        ("autoattack:restarts=2", "unknown option of 'autoattack' 'restarts'"),
    ],
)
def test_a_mistake_is_one_line(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        parse_attack(name)
    assert "\n" not in str(error.value)


def test_every_example_of_a_name_is_understood() -> None:
    assert [attack.name for attack in parse_attacks(catalogue.examples())] == catalogue.examples()


def test_a_protocol_stands_for_the_columns_of_its_paper_with_their_settings() -> None:
    settings = expand(("reat", "fgsm"), Evaluation(eps=0.1, seed=3))
    assert settings.attacks == (*protocols.COLUMNS["reat"], "fgsm")
    assert (settings.step_size, settings.cw_constant, settings.cw_bounded) == (2 / 255, None, True)
    assert (settings.eps, settings.seed) == (0.1, 3)
    assert expand(("pgd-20",), REAT) == Evaluation(**{**vars(REAT), "attacks": ("pgd-20",)})
    assert expand(("reat",), Evaluation(), 16 / 255).step_size == pytest.approx(4 / 255)
    with pytest.raises(UserError, match="one protocol at a time"):
        expand(("taet", "reat"), Evaluation())


@pytest.mark.parametrize("protocol", ["taet", "reat"])
def test_what_a_run_of_a_protocol_faces_are_columns_of_its_paper(protocol: str) -> None:
    assert set(protocols.PROTOCOLS[protocol]("at").evaluation.attacks) <= set(protocols.COLUMNS[protocol])


def test_a_setting_that_was_given_beside_a_bundle_is_kept() -> None:
    given = Evaluation(attacks=("reat",), cw_constant=5.0, step_size=3 / 255)
    kept = expand(given.attacks, given)
    assert (kept.cw_constant, kept.step_size) == (5.0, 3 / 255)
    alone = expand(("reat",), Evaluation())
    assert (alone.eps_l2, alone.cw_bounded) == (kept.eps_l2, kept.cw_bounded)
    assert expand(("reat",), Evaluation(), eps=4 / 255).step_size == alone.step_size / 2
