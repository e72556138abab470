"""The two protocols, number by number, as they are published."""

import re
from typing import Any

import pytest

from taet import methods, protocols, registry
from taet.cli import list as listing
from taet.errors import UserError
from taet.settings import Run, override
from taet.training.checks import resolve
from tests.calls import configure


def test_taet_is_the_default_and_reat_the_other_one() -> None:
    taet, reat = protocols.start("taet", "harl"), protocols.start("reat", "at")
    assert taet.replace(method="at") == Run()
    assert (taet.method, taet.protocol, reat.protocol) == ("harl", "taet", "reat")
    assert [(run.training.epochs, run.training.selection) for run in (taet, reat)] == [
        (100, "last"),
        (80, "best-validation"),
    ]
    for run, falls, start in ((taet, [75, 90], "gaussian"), (reat, [60, 75], "uniform")):
        training, threat = run.training, run.threat
        assert (training.batch_size, training.lr, training.momentum, training.weight_decay) == (
            128,
            0.1,
            0.9,
            5e-4,
        )
        assert [share * training.epochs for share in training.milestones] == falls
        assert (threat.eps, threat.step_size, threat.steps) == (8 / 255, 2 / 255, 10)
        assert (threat.start, threat.bn_mode) == (start, "eval")
    assert [(run.data.test, run.data.validation) for run in (taet, reat)] == [
        ("long-tailed", 0),
        ("balanced", 0.1),
    ]
    assert [run.evaluation.step_size for run in (taet, reat)] == [1 / 255, 2 / 255]
    assert {"pgd-20", "pgd-100", "autoattack"} <= set(reat.evaluation.attacks)


def published(
    training: tuple[int, int, float, tuple[int, ...], float],
    threat: tuple[float, float, int, str],
    normalize: str = "none",
    bn_mode: str = "eval",
    **more: Any,
) -> dict[str, Any]:
    """Settings of a run: epochs, batch, rate, epochs (from 0) where it falls, decay; eps, step
    size, steps, start."""
    epochs, batch_size, lr, falls, decay = training
    names = ("threat.eps", "threat.step_size", "threat.steps", "threat.start")
    return {
        "training.epochs": epochs,
        "training.batch_size": batch_size,
        "training.lr": lr,
        "training.momentum": 0.9,
        "training.milestones": tuple(epoch / epochs for epoch in falls),
        "training.weight_decay": decay,
        **dict(zip(names, threat, strict=True)),
        "threat.bn_mode": bn_mode,
        "model.normalize": normalize,
        **{name.replace("__", "."): value for name, value in more.items()},
    }


# As published; what a method leaves to the protocol `taet` is in words in its docstring.
HARL = published((100, 128, 0.1, (75, 90), 5e-4), (0.031, 0.003, 10, "gaussian"))
TAET_ATTACK = (8 / 255, 2 / 255, 10, "gaussian")  # of those that have an attack of their own
OFFICIAL: dict[str, dict[str, Any]] = {
    "adt": published((76, 64, 0.1, (74,), 2e-4), TAET_ATTACK),
    "at": published(
        (200, 128, 0.1, (100, 150), 5e-4), (8 / 255, 2 / 255, 10, "uniform"), "data", "train"
    ),
    "at-bsl": published(
        (100, 128, 0.1, (74, 89, 99), 5e-4),
        (8 / 255, 2 / 255, 10, "gaussian"),
        training__augment="autoaugment",
    ),
    "gairat": published((120, 128, 0.1, (59, 89), 2e-4), (0.031, 0.007, 10, "uniform")),
    "harl": HARL,
    "he": published(
        (77, 128, 0.1, (74,), 5e-4), (0.031, 0.007, 10, "gaussian"), "data", method__scale=10.0
    ),
    "las-at": published((110, 128, 0.1, (99, 104), 5e-4), TAET_ATTACK, method__width=64),
    "mart": published((120, 128, 0.01, (74, 89, 99), 3.5e-3), (0.031, 0.007, 10, "gaussian")),
    "reat": published((80, 128, 0.1, (60, 75), 5e-4), (8 / 255, 2 / 255, 10, "uniform")),
    "robal": published((80, 64, 0.1, (59, 74), 2e-4), (0.031, 0.0078, 5, "positive")),
    "taet": HARL,
    "trades": published((76, 128, 0.1, (74,), 2e-4), (0.031, 0.007, 10, "gaussian")),
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_is_each_method_as_it_was_published_and_nothing_else(name: str) -> None:
    settings = {
        re.sub("^method[.]", "settings.", key): value for key, value in OFFICIAL[name].items()
    }
    start = {"protocol": "official", "settings": methods.find(name).Config()}
    assert protocols.official(name) == override(protocols.taet(name), start | settings)


def test_a_method_without_published_settings_has_no_profile() -> None:
    for name in (name for name, entry in registry.entries("methods").items() if entry.path is None):
        if name not in OFFICIAL:
            with pytest.raises(UserError, match=f"^protocol official: got {name}, which has no "):
                protocols.start("official", name)


def test_options_of_a_call_come_after_the_recipe() -> None:
    words = ["--recipe", "strong", "--ema", "0", "--outer.label-smoothing", "0.1", "--epochs", "3"]
    for order in (words, words[2:] + words[:2]):
        run, _ = configure("at-bsl", order)
        assert (run.training.ema, run.outer.label_smoothing, run.training.epochs) == (0, 0.1, 3)
        assert run.training.decay == "one-cycle"


def test_every_recipe_is_printed_as_options_of_train(capsys: pytest.CaptureFixture[str]) -> None:
    listing.run(["recipes"])
    for recipe in re.split(r"\n(?=\S)", capsys.readouterr().out):
        name, *lines = recipe.strip().splitlines()
        run, expected = (
            configure("at", " ".join(lines).split())[0],
            protocols.start("taet", "at", name.split()[0]),
        )
        assert (run.training, run.outer) == (expected.training, expected.outer)


@pytest.mark.parametrize(
    ("method", "changes", "why"),
    [
        ("harl", {}, "its loss compares classes"),
        ("he", {}, "its margin is defined for one label"),
        ("robal", {}, "its margins are defined for one label"),
        ("las-at", {}, "--method.label-mass 1"),
        ("taet", {"settings.clean_share": 0.0}, "none of the epochs is clean"),
    ],
)
def test_smoothing_is_refused_where_it_has_no_meaning(
    method: str, changes: dict[str, Any], why: str
) -> None:
    run, _ = configure(method, ["--outer.label-smoothing", "0.1"])
    with pytest.raises(
        UserError, match=rf"^{method}: got label smoothing 0\.1; .*{re.escape(why)}"
    ):
        resolve(override(run, changes), None)
