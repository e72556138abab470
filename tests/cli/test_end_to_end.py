"""Train, evaluate and report on digits through the commands, and what they leave behind."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from taet.cli import demo
from taet.evaluation import ResultCard
from taet.metrics import accuracies
from tests.cli.conftest import EPOCHS

RUN_FILES = {"run.json", "metrics.jsonl", "checkpoint.pt", "model.safetensors", "done"}


def test_train_and_evaluate_leave_a_run_folder_with_its_card(finished: Any) -> None:
    assert (finished.train.code, finished.evaluate.code) == (0, 0)
    names = {path.name for path in finished.folder.iterdir()}
    assert names >= {*RUN_FILES, "evaluation.json"}
    assert "evaluation-state" not in names


def rows(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_every_epoch_has_a_row(finished: Any) -> None:
    assert [row["epoch"] for row in rows(finished.folder)] == list(range(1, EPOCHS + 1))


@pytest.mark.parametrize("name", ["clean", "pgd-2"])
def test_train_prints_the_balanced_accuracies_of_the_last_epoch(finished: Any, name: str) -> None:
    counts = rows(finished.folder)[-1]["monitor"][name]
    balanced = 100 * accuracies.balanced_accuracy(**counts)
    assert re.search(rf"{name} +balanced accuracy {balanced:.2f} %", finished.train.out)


def test_train_shows_its_progress_beside_its_output(finished: Any) -> None:
    assert "100 %" in finished.train.err


def test_each_command_names_the_next(finished: Any) -> None:
    assert f"next: taet evaluate {finished.folder}" in finished.train.out
    assert f"next: taet report {finished.folder}" in finished.evaluate.out.splitlines()[-1]


@pytest.fixture
def card(finished: Any) -> ResultCard:
    return ResultCard.load(finished.folder / "evaluation.json")


def test_the_card_has_the_attacks_and_the_radius_that_were_asked_for(card: ResultCard) -> None:
    assert [column.name for column in card.columns] == ["clean", "fgsm", "pgd-3", "autoattack-10"]
    assert card.threat == {"norm": "linf", "eps": 0.02}


def test_stronger_attacks_leave_fewer_images_of_a_trained_network(card: ResultCard) -> None:
    scores = [card.summary(name).accuracy for name in ("clean", "pgd-3", "autoattack-10")]
    assert scores[0] > 0.5
    assert scores == sorted(scores, reverse=True)


def test_every_number_that_evaluate_prints_is_in_the_card(finished: Any, card: ResultCard) -> None:
    lines = finished.evaluate.out.splitlines()
    assert f"{len(card.labels)} test images" in lines[0]
    for column in card.columns:
        (line,) = [line for line in lines if line.startswith(f"{column.name} ")]
        summary = card.summary(column.name)
        plain = (summary.accuracy, *summary.accuracy_interval)
        balanced = (summary.balanced, *summary.balanced_interval)
        _, worst = summary.worst_class
        expected = [f"{100 * share:.1f}" for share in (*plain, *balanced, worst)]
        assert re.findall(r"\d+\.\d", line) == expected


# -- the protocol of REAT


@pytest.fixture(scope="module")
def of_reat(taet: Any, small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs with the protocol of REAT."""
    folder = tmp_path_factory.mktemp("reat") / "run"
    words = ["--protocol", "reat", "--epochs", "2", "--data.imbalance-ratio", "10", "--out"]
    assert taet("train", "at-bsl", *small, *words, folder).code == 0
    return folder


@pytest.mark.full
def test_the_reat_protocol_selects_on_validation_images_and_tests_on_balanced_ones(
    of_reat: Path,
) -> None:
    info = json.loads((of_reat / "run.json").read_text())
    assert info["run"]["protocol"] == "reat"
    assert info["selection"] == {"rule": "best-validation", "split": "validation"}
    assert info["data"]["splits"]["test"]["class_counts"] == [6] * 10


def test_other_weights_of_a_run_have_a_card_of_their_own(taet: Any, of_reat: Path) -> None:
    words = ["--attacks", "fgsm", "--weights", "model-last"]
    assert taet("evaluate", of_reat, *words).code == 0
    card = ResultCard.load(of_reat / "evaluation-last.json")
    assert (card.protocol, card.model["epoch"]) == ("reat", 2)


@pytest.mark.full
def test_the_demonstration_and_that_a_second_one_reuses_it(
    taet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {
        "training.monitor_steps": 1,
        "threat.steps": 1,
        "data.max_count": 20,
    }
    small |= {"evaluation.attacks": ("clean", "fgsm", "pgd-3"), "data.test_max_count": 4}
    monkeypatch.setattr(demo, "CHANGES", demo.CHANGES | small)
    monkeypatch.setattr(demo, "PASSES", 4)
    outcome, report = taet("demo", "--out", tmp_path / "demo"), tmp_path / "demo" / "report.html"
    assert outcome.code == 0, outcome.err
    assert outcome.out.endswith(f"3 cells: 3 done\nopen {report}\n")
    cards = sorted((tmp_path / "demo").glob("runs/*/evaluation.json"))
    before = [card.read_bytes() for card in cards]
    assert len(before) == 3
    report.unlink()
    assert taet("demo", "--out", tmp_path / "demo").code == 0
    assert report.exists()
    assert [card.read_bytes() for card in cards] == before
