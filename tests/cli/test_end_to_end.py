"""Train, evaluate and report on digits through the commands, and what they leave behind."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from taet import statistics
from taet.cli import demo
from taet.evaluation import ResultCard


def test_train_leaves_a_run_folder(finished: Any) -> None:
    assert finished.train.code == 0
    names = {path.name for path in finished.folder.iterdir()}
    assert {"run.json", "metrics.jsonl", "checkpoint.pt", "model.safetensors", "done", "evaluation.json"} <= names
    assert "evaluation-state" not in names
    rows = [json.loads(line) for line in (finished.folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, 11))
    for name in ("clean", "pgd-2"):
        balanced = statistics.balanced_accuracy(**rows[-1]["monitor"][name])
        assert re.search(rf"{name} +balanced accuracy {100 * balanced:.2f} %", finished.train.out)
    assert f"next: taet evaluate {finished.folder}" in finished.train.out
    assert "100 %" in finished.train.err


def test_every_number_that_evaluate_prints_is_in_the_card(finished: Any) -> None:
    assert finished.evaluate.code == 0
    card = ResultCard.load(finished.folder / "evaluation.json")
    assert [column.name for column in card.columns] == ["clean", "fgsm", "pgd-3", "autoattack-10"]
    assert card.threat == {"norm": "linf", "eps": 0.02}
    scores = [card.summary(name).accuracy for name in ("clean", "pgd-3", "autoattack-10")]
    assert scores[0] > 0.5
    assert scores == sorted(scores, reverse=True)
    lines = finished.evaluate.out.splitlines()
    for column in card.columns:
        (line,) = [line for line in lines if line.startswith(f"{column.name} ")]
        summary = card.summary(column.name)
        _, worst = summary.worst_class
        shares = (summary.accuracy, *summary.accuracy_interval, summary.balanced, *summary.balanced_interval, worst)
        assert re.findall(r"\d+\.\d", line) == [f"{100 * share:.1f}" for share in shares]
    assert f"{len(card.labels)} test images" in lines[0]
    assert f"next: taet report {finished.folder}" in lines[-1]


def test_the_reat_protocol(taet: Any, small: list[str], tmp_path: Path) -> None:
    words = [*small, "--protocol", "reat", "--epochs", "2", "--data.imbalance-ratio", "10", "--out", tmp_path / "run"]
    assert taet("train", "at-bsl", *words).code == 0
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert info["run"]["protocol"] == "reat"
    assert info["selection"] == {"rule": "best-validation", "split": "validation"}
    assert info["data"]["splits"]["test"]["class_counts"] == [6] * 10  # balanced
    assert taet("evaluate", tmp_path / "run", "--attacks", "fgsm", "--weights", "model-last").code == 0
    card = ResultCard.load(tmp_path / "run" / "evaluation-last.json")
    assert (card.protocol, card.model["epoch"]) == ("reat", 2)


@pytest.mark.full
def test_the_demonstration_and_that_a_second_one_reuses_it(
    taet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"training.epochs": 2, "training.monitor_steps": 1, "threat.steps": 1, "data.max_count": 20}
    small |= {"evaluation.attacks": ("clean", "fgsm", "pgd-3"), "data.test_max_count": 4}
    monkeypatch.setattr(demo, "CHANGES", demo.CHANGES | small)
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
