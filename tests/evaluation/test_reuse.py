"""A second evaluation of a run adds to its card and measures nothing twice."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch import nn

from taet import protocols, train
from taet.data import load
from taet.data.dataset import images_sha256
from taet.errors import UserError
from taet.evaluation import ResultCard, evaluate, runner
from taet.settings import override

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
    return train(override(protocols.taet("at"), CHANGES), out=tmp_path / "run").folder


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def names(card: ResultCard) -> list[str]:
    return [column.name for column in card.columns]


def test_attacks_are_added_and_none_is_run_twice(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = evaluate(run, attacks=["fgsm", "pgd-2"])
    monkeypatch.setattr(sys.modules["taet.evaluation.evaluate"], "_probe", None)  # not measured again either
    ran: list[str] = []
    real = runner.Runner.attack
    monkeypatch.setattr(
        runner.Runner, "attack", lambda self, one, **rest: (ran.append(one.name), real(self, one, **rest))[1]
    )
    second = evaluate(run, attacks=["pgd-2", "pgd-3"])
    assert ran == ["pgd-3"]
    assert names(second) == ["clean", "pgd-2", "pgd-3", "fgsm"]
    assert second.probe == first.probe != {}
    assert (second.column("fgsm").predictions == first.column("fgsm").predictions).all()
    assert names(ResultCard.load(run / "evaluation.json")) == names(second)


@pytest.mark.full
def test_other_settings_of_an_attack_are_measured_anew(run: Path) -> None:
    evaluate(run, attacks=["pgd-2"])
    again = evaluate(run, attacks=["pgd-2"], step_size=0.02)
    assert again.column("pgd-2").parameters["step_size"] == 0.02


@pytest.mark.full
def test_a_card_about_another_ball_is_kept_beside_the_new_one(run: Path) -> None:
    first = evaluate(run, attacks=["fgsm"])
    evaluate(run, attacks=["pgd-2"], eps=0.5)
    assert names(ResultCard.load(run / "evaluation.json")) == ["clean", "pgd-2"]
    (kept,) = run.glob("evaluation-*.json")
    assert names(ResultCard.load(kept)) == ["clean", "fgsm"]
    assert ResultCard.load(kept).created == first.created


def test_each_of_the_weights_of_a_run_has_its_own_state(run: Path) -> None:
    (run / "model-best.safetensors").write_bytes((run / "model.safetensors").read_bytes())
    waiting = run / "evaluation-state" / "unit"
    waiting.mkdir(parents=True)  # of an evaluation of model that is still at work
    best = evaluate(run, attacks="fgsm", weights="model-best")
    assert best.model["selection"] == "best-validation"
    assert waiting.exists()
    assert not (run / "evaluation-best-state").exists()
    delivered, last = evaluate(run, attacks="fgsm"), evaluate(run, attacks="fgsm", weights="model-last")
    assert (delivered.model["selection"], last.model["selection"]) == ("last", "last")
    assert [path.name for path in (run / "evaluation-state").iterdir()] == ["unit"]  # not of this evaluation either


def test_weights_without_our_metadata_are_one_line(run: Path) -> None:
    path = run / "model.safetensors"
    for metadata in (None, {"taet": "{}"}, {"taet": "[1"}):
        save_file(load_file(path), path, metadata=metadata)
        with pytest.raises(UserError, match="was not written by taet train"):
            evaluate(run, attacks="clean")


def test_a_run_from_memory_is_evaluated_with_what_it_was_trained_from(tmp_path: Path) -> None:
    data = load("digits-lt", max_count=12, test_max_count=6)
    folder = tmp_path / "run"
    train(override(protocols.taet("at"), CHANGES), out=folder, model=network(), dataset=data)
    with pytest.raises(UserError, match="from memory"):
        evaluate(folder, attacks="clean")
    card = evaluate(folder, attacks=["fgsm", "pgd-2"], model=network(), dataset=data)
    stored = ResultCard.load(folder / "evaluation.json")
    assert stored.to_json() == card.to_json()
    assert (card.model["name"], card.data["name"]) == ("Sequential", data.name)
    assert card.data["test_sha256"] == data.test.sha256 == images_sha256(data.test.images, data.test.labels)
    assert (folder / "artifacts" / "examples.npz").exists()
