"""`taet transfer`: the matrix as text and as JSON, and one line for what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from taet import protocols, train
from taet.evaluation import ResultCard
from taet.settings import override

CHANGES = {
    "model.name": "resnet8",
    "data.max_count": 12,
    "data.test_max_count": 3,
    "training.epochs": 1,
    "training.monitor_every": 0,
    "training.threads": 1,
    "threat.steps": 1,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    place = tmp_path_factory.mktemp("runs")
    settings = [override(protocols.taet("at"), CHANGES | {"seed": seed}) for seed in range(2)]
    return [train(run, out=place / f"seed {run.seed}").folder for run in settings]


@pytest.mark.full
def test_the_matrix_is_printed_and_the_cards_are_written(taet: Any, runs: list[Path]) -> None:
    outcome = taet("transfer", *runs, "--attack", "fgsm", "--eps", "4/255")
    assert outcome.code == 0
    head, names, first, second, following = outcome.out.splitlines()
    assert "fgsm" in head
    assert names.split() == ["clean", "seed", "0", "seed", "1"]
    assert (first[:6], len(first.split())) == ("seed 0", 5)
    assert second.startswith("seed 1")
    assert following == f"next: taet report '{runs[0]}' '{runs[1]}'"
    assert outcome.err.splitlines()[0].startswith("transfer: 0 %")
    assert "transfer: 100 %, done in" in outcome.err.splitlines()[-1]
    card = ResultCard.load(runs[0] / "evaluation.json")
    assert [column.name for column in card.columns] == ["clean", "fgsm", "fgsm@seed 1"]
    assert {column.eps for column in card.columns[1:]} == {4 / 255}
    assert card.command == f"taet transfer '{runs[0]}' '{runs[1]}' --attack fgsm --eps 4/255"

    again = taet("transfer", *runs, "--attack", "fgsm", "--eps", "4/255", "--json")
    stored = json.loads(again.out)
    assert (again.code, stored["attack"], stored["names"]) == (0, "fgsm", ["seed 0", "seed 1"])
    assert f"{100 * stored['balanced'][0][1]:.1f}" == first.split()[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "got 1 run; allowed: two or more"),
        (("--attack", "autoattack"), "got 1 run"),
        (("--epz", "0.1"), "unknown option --epz"),
    ],
)
def test_mistakes_are_one_line(taet: Any, runs: list[Path], options: tuple[str, ...], message: str) -> None:
    outcome = taet("transfer", runs[0], *options)
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err
    assert len(outcome.err.splitlines()) == 1
