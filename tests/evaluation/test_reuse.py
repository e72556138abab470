"""A second evaluation of a run adds to its card and measures nothing twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from taet import config, protocols, train
from taet.evaluation import ResultCard, columns, evaluate

CHANGES = {
    "model.name": "resnet8",
    "data.max_count": 12,
    "data.test_max_count": 6,
    "training.epochs": 1,
    "training.monitor_every": 0,
    "threat.steps": 1,
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return train(config.override(protocols.taet("at"), CHANGES), out=tmp_path / "run").folder


def names(card: ResultCard) -> list[str]:
    return [column.name for column in card.columns]


def test_attacks_are_added_and_none_is_run_twice(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = evaluate(run, attacks=["fgsm", "pgd-2"])
    ran: list[str] = []
    real = columns.Bench.run_batches
    monkeypatch.setattr(
        columns.Bench,
        "run_batches",
        lambda self, attack, *rest: (ran.append(attack.name), real(self, attack, *rest))[1],
    )
    second = evaluate(run, attacks=["pgd-2", "pgd-3"])
    assert ran == ["pgd-3"]
    assert names(second) == ["clean", "pgd-2", "pgd-3", "fgsm"]
    assert (second.column("fgsm").predictions == first.column("fgsm").predictions).all()
    assert names(ResultCard.load(run / "evaluation.json")) == names(second)


def test_other_settings_of_an_attack_are_measured_anew(run: Path) -> None:
    evaluate(run, attacks=["pgd-2"])
    again = evaluate(run, attacks=["pgd-2"], step_size=0.01)
    assert again.column("pgd-2").parameters["step_size"] == 0.01


def test_a_card_about_another_ball_is_kept_beside_the_new_one(run: Path) -> None:
    first = evaluate(run, attacks=["fgsm"])
    evaluate(run, attacks=["pgd-2"], eps=0.5)
    assert names(ResultCard.load(run / "evaluation.json")) == ["clean", "pgd-2"]
    (kept,) = run.glob("evaluation-*.json")
    assert names(ResultCard.load(kept)) == ["clean", "fgsm"]
    assert ResultCard.load(kept).created == first.created
