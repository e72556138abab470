"""Facts of a method: what is known about it with its settings, before anything is built."""

from pathlib import Path
from typing import Any

import pytest

from taet import methods, protocols, registry
from taet.errors import UserError
from taet.settings import Run, override
from taet.training.checks import CURVE, idle_settings, learns
from tests.methods.conftest import HOLDERS, METHODS, built


@pytest.fixture
def _no_build(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("a method is built")

    monkeypatch.setattr(methods, "build", fail)
    monkeypatch.setattr(methods.Method, "__init__", fail)


def run_of(method: str, **settings: Any) -> Run:
    config = methods.find(method).Config(**settings)
    return override(protocols.taet(method), {"settings": config})


@pytest.mark.usefixtures("_no_build")
@pytest.mark.parametrize("name", METHODS)
def test_the_idle_settings_of_a_run_are_known_without_building_its_method(name: str) -> None:
    assert idle_settings(run_of(name))
    learns(run_of(name))


@pytest.mark.parametrize("name", METHODS)
def test_a_built_method_has_the_facts_of_its_settings(name: str) -> None:
    method = built(name)
    for fact, value in vars(methods.facts(name, None)).items():
        assert getattr(method, fact) == value, fact


@pytest.mark.parametrize("name", sorted({*METHODS} - {*HOLDERS}))
def test_the_attributes_of_a_class_are_its_facts_under_default_settings(name: str) -> None:
    """`taet list methods` reads the deviations from the class, without importing it."""
    facts = methods.facts(name, None)
    assert (
        facts.deviations
        == methods.find(name).deviations
        == registry.find("methods", name).deviations
    )


@pytest.mark.parametrize(
    ("name", "settings", "fact", "value"),
    [
        ("reat", {"bsl": False}, "own_outer", None),
        ("reat", {"tail": False}, "uses_features", False),
        ("he", {"variant": "trades"}, "label_attack", False),
        ("faal", {"form": "trades"}, "label_attack", False),
        ("cfa", {"gate": "relative"}, "needs_feedback", True),
        ("cfa", {"gate": "relative"}, "average_decay", 0.88),
        ("taet", {"alpha": 0, "beta": 0, "gamma": 0}, "title", "AT after clean epochs"),
        ("class-budget", {"rule": "cfa"}, "title", "class budgets (cfa) + AT"),
        ("n-fgsm", {"noise": 0}, "deviations", ("one step of eps from the image",)),
        ("frl", {"rate": 0, "margin": False}, "deviations", ()),
        ("robust-lt", {"base": "wat"}, "needs_feedback", True),
        (
            "robust-lt",
            {"base": "wat", "a": 0, "b": 0},
            "deviations",
            methods.find("wat").deviations,
        ),
    ],
)
def test_settings_change_a_fact(
    name: str, settings: dict[str, Any], fact: str, value: object
) -> None:
    assert getattr(methods.facts(name, settings), fact) == value
    assert getattr(methods.facts(name, methods.find(name).Config(**settings)), fact) == value


def test_las_at_names_its_own_ranges() -> None:
    (drawn,) = methods.facts("las-at", {"eps": (2, 9)}).deviations
    assert "eps (2/8 to 9/8 of the threat's)" in drawn


@pytest.mark.usefixtures("_no_build")
@pytest.mark.parametrize(
    ("name", "outer", "idle"),
    [
        ("at", "cross-entropy", False),
        ("at-bsl", "cross-entropy", True),
        ("at-bsl", "balanced-softmax", False),
        ("reat", "cross-entropy", True),
        ("reat", "focal", False),
    ],
)
def test_the_cross_entropy_of_a_run_is_idle_where_the_method_has_its_own_loss(
    name: str, outer: str, idle: bool
) -> None:
    run = override(run_of(name), {"outer.name": outer})
    assert ("outer.name" in idle_settings(run)) == idle


@pytest.mark.usefixtures("_no_build")
def test_a_curve_is_idle_unless_the_method_learns_from_it() -> None:
    assert idle_settings(run_of("cfa")) >= CURVE
    assert not idle_settings(run_of("cfa", gate="relative")) & CURVE


def test_a_plug_in_with_the_hook_that_has_left_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "old.py").write_text(
        "from taet.methods import Method\n"
        "class Old(Method):\n"
        "    title, reference = 'Old', 'nobody, 2020'\n"
        "    @staticmethod\n"
        "    def outer_loss(config, task):\n"
        "        return task.outer\n"
    )
    monkeypatch.setenv("TAET_PLUGINS", str(tmp_path))
    with pytest.raises(UserError, match=r"got outer_loss, which has left; allowed: own_outer ="):
        methods.find("old")
