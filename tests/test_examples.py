"""The examples run, and come to what they promise."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from taet import registry

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_every_example_has_a_test() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {"add_a_method.py", "own_model.py"}


def test_own_model(capsys: pytest.CaptureFixture[str]) -> None:
    card = runpy.run_path(str(EXAMPLES / "own_model.py"))["main"]()
    printed = capsys.readouterr().out
    assert [column.name for column in card.columns] == ["clean", "fgsm", "pgd-20"]
    assert all(column.name in printed for column in card.columns)
    assert len(card.labels) == 797
    clean, attacked = card.summary("clean"), card.summary("pgd-20")
    assert clean.balanced > 0.5
    assert 0.1 < attacked.balanced < clean.balanced  # 0.1 is chance
    counts = card.data["train_class_counts"]
    assert (counts[0], counts[-1]) == (60, 6)
    assert counts == sorted(counts, reverse=True)


def test_add_a_method(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_added", [])
    cards = runpy.run_path(str(EXAMPLES / "add_a_method.py"))["main"]()
    assert "Prediction-balanced AT" in capsys.readouterr().out
    own, plain = cards["prediction-balanced"].summary("clean"), cards["at"].summary("clean")
    assert own.groups["tail"] > plain.groups["tail"], "what it is for"
    assert own.balanced > 0.5
