"""Result cards, example images and rows of a run that someone changed: one line, exit status 2, nothing changed."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from taet.files import file_sha256, seal

HUGE = 10**30
Edit = Callable[[dict[str, Any]], object]
CARDS: dict[str, Edit] = {
    "train_class_counts text": lambda card: card["data"].update(train_class_counts=["x"] * 10),
    "train_class_counts nan": lambda card: card["data"].update(train_class_counts=[math.nan] * 10),
    "train_class_counts huge": lambda card: card["data"].update(train_class_counts=[HUGE] * 10),
    "train_class_counts negative": lambda card: card["data"].update(train_class_counts=[-1] * 10),
    "class_names number": lambda card: card["data"].update(class_names=5),
    "class_names too few": lambda card: card["data"].update(class_names=["a", "b"]),
    "class_names surrogate": lambda card: card["data"]["class_names"].__setitem__(0, "\ud800"),
    "notes number": lambda card: card["data"].update(notes=5),
    "batch_size inf": lambda card: card.update(batch_size=math.inf),
    "batch_size text": lambda card: card.update(batch_size="x"),
    "flags without text": lambda card: card.update(flags=[{"flag": "small"}]),
    "flags number": lambda card: card.update(flags=[{"flag": 5, "text": "x"}]),
    "flags empty": lambda card: card.update(flags=[{}]),
    "labels count inf": lambda card: card["labels"].update(count=math.inf),
    "labels count": lambda card: card["labels"].update(count=3),
    "labels text": lambda card: card.update(labels="x"),
    "threat eps": lambda card: card["threat"].update(eps="x"),
    "threat norm": lambda card: card["threat"].update(norm="l7"),
    "threat empty": lambda card: card.update(threat={}),
    "seed text": lambda card: card.update(seed="x"),
    "model list": lambda card: card.update(model=[]),
    "weights_sha256": lambda card: card["model"].update(weights_sha256="x"),
    "run config": lambda card: card["run"].update(config={"training": 5}),
    "probe": lambda card: card["probe"].update(images="x"),
    "probe images": lambda card: card["probe"].update(images=0),
    "name number": lambda card: card["columns"][2].update(name=5),
    "name twice": lambda card: card["columns"][2].update(name="clean"),
    "eps nan": lambda card: card["columns"][2].update(eps=math.nan),
    "eps text": lambda card: card["columns"][2].update(eps="x"),
    "eps huge": lambda card: card["columns"][2].update(eps=HUGE),
    "eps digits": lambda card: card["columns"][2].update(eps=10**400),
    "steps text": lambda card: card["columns"][2]["parameters"].update(steps="x"),
    "steps huge": lambda card: card["columns"][2]["parameters"].update(steps=HUGE),
    "parameters text": lambda card: card["columns"][2].update(parameters="x"),
    "source": lambda card: card["columns"][2]["parameters"].update(source="x"),
    "forwards inf": lambda card: card["columns"][2].update(forwards=math.inf),
    "seconds negative": lambda card: card["columns"][2].update(seconds=-1),
    "bounded text": lambda card: card["columns"][2].update(bounded="x"),
    "predictions": lambda card: card["columns"][2]["predictions"].update(uint16="x"),
    "mask of nothing": lambda card: card["columns"][0]["correct"].update(bits="A" * 32),
    "distances": lambda card: card["columns"][2].update(distances={"shape": [-1], "float32": ""}),
    "curve": lambda card: card["columns"][2].update(curve="x"),
    "columns": lambda card: card.update(columns={}),
    "schema": lambda card: card.update(schema=99),
    "another seed": lambda card: card["run"]["config"].update(seed=7),
    "other images": lambda card: card["data"].update(test_sha256="0" * 64),
}
TEXTS = {
    "empty": b"",
    "cut": b'{"kind": "taet result card", ',
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "digits": b'{"kind": "taet result card", "schema": ' + b"1" * 5000 + b"}",
    "no text": b"\xff\xfe\x00",
    "a list": b"[1, 2]",
    "twice": b'{"kind": "taet result card", "kind": "taet result card"}',
}


@pytest.fixture
def run(finished: Any, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    return folder


@pytest.fixture
def refused(taet: Any, run: Path) -> Callable[..., str]:
    """Assert that a call fails with one line and exit status 2 and changes nothing; return the line."""

    def check(*words: str | Path) -> str:
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        outcome = taet(*words)
        assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1), outcome.err
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
        return str(outcome.err)

    return check


def write(path: Path, card: dict[str, Any], sealed: bool) -> None:
    card.pop("sha256", None)
    try:
        path.write_text(json.dumps(seal(card) if sealed else card))
    except ValueError:  # no checksum of what cannot be written as JSON
        path.write_text(json.dumps(card))


@pytest.mark.sample(4)
@pytest.mark.parametrize("name", CARDS)
def test_a_card_with_a_field_that_cannot_be(refused: Callable[..., str], run: Path, tmp_path: Path, name: str) -> None:
    path = run / "evaluation.json"
    stored = json.loads(path.read_text())
    CARDS[name](stored)
    write(path, stored, sealed=True)
    assert "evaluation.json" in refused("report", run, "--out", tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
    if name not in ("another seed", "other images"):  # an evaluation keeps a card of another run beside its own
        assert "evaluation.json" in refused("evaluate", run, "--attacks", "clean", "fgsm")


def test_a_card_that_was_edited_without_its_checksum(refused: Callable[..., str], run: Path, tmp_path: Path) -> None:
    path = run / "evaluation.json"
    stored = json.loads(path.read_text())
    stored["columns"][1]["seconds"] += 1
    path.write_text(json.dumps(stored))
    for words in (("report", run, "--out", tmp_path / "r.html"), ("evaluate", run, "--attacks", "fgsm")):
        assert "evaluation.json was changed or damaged: its SHA-256" in refused(*words)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_card_that_is_none(refused: Callable[..., str], run: Path, tmp_path: Path, text: bytes) -> None:
    (run / "evaluation.json").write_bytes(text)
    for words in (("report", run, "--out", tmp_path / "r.html"), ("evaluate", run, "--attacks", "fgsm")):
        assert "evaluation.json" in refused(*words)


@pytest.mark.parametrize("name", ["labels", "eps", "attack", "images"])
def test_example_images_that_were_changed(refused: Callable[..., str], run: Path, tmp_path: Path, name: str) -> None:
    path = run / "artifacts" / "examples.npz"
    with np.load(path) as stored:
        arrays = dict(stored)
    arrays[name] = np.stack([arrays[name], arrays[name]])
    np.savez(path, **arrays)
    assert "examples.npz was changed" in refused("report", run, "--out", tmp_path / "r.html")
    card = json.loads((run / "evaluation.json").read_text())
    card["examples_sha256"] = file_sha256(path)
    write(run / "evaluation.json", card, sealed=True)
    assert "examples.npz: " in refused("report", run, "--out", tmp_path / "r.html")


ROWS: dict[str, Callable[[dict[str, Any]], object]] = {
    "a number": lambda _: 5,
    "a text": lambda _: "x",
    "epoch inf": lambda row: {**row, "epoch": math.inf},
    "epoch twice": lambda row: {**row, "epoch": 2},
    "monitor short": lambda row: {**row, "monitor": {**row["monitor"], "clean": {"correct": [1], "total": [1]}}},
    "monitor huge": lambda row: {**row, "monitor": {**row["monitor"], "clean": {"correct": [HUGE], "total": [HUGE]}}},
    "predicted inf": lambda row: {**row, "predicted": [math.inf] * 10},
    "loss text": lambda row: {**row, "loss": {"total": "x"}},
    "seconds nan": lambda row: {**row, "seconds": math.nan},
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_metrics_that_were_changed(
    refused: Callable[..., str], run: Path, tmp_path: Path, without_checksums: Callable[[Path], Path], name: str
) -> None:
    without_checksums(run)
    path = run / "metrics.jsonl"
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(ROWS[name](json.loads(first))), *rest, ""]))
    assert "metrics.jsonl: line 1" in refused("report", run, "--out", tmp_path / "r.html")


RECORDS: dict[str, Edit] = {
    "deviations": lambda record: record.update(deviations=5),
    "device": lambda record: record.update(device=[]),
    "class_names": lambda record: record["data"].update(class_names=5),
    "num_classes": lambda record: record["data"].update(num_classes=-1),
    "stages": lambda record: record.update(stages=[5]),
    "versions": lambda record: record.update(versions=5),
    "settings": lambda record: record["run"].update(training=5),
    "seed": lambda record: record["run"].update(seed="x"),
    "parameters": lambda record: record.update(parameters="x"),
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_with_a_field_that_cannot_be(
    refused: Callable[..., str], run: Path, tmp_path: Path, without_checksums: Callable[[Path], Path], name: str
) -> None:
    path = without_checksums(run) / "run.json"
    record = json.loads(path.read_text())
    RECORDS[name](record)
    path.write_text(json.dumps(record))
    assert "run.json" in refused("report", run, "--out", tmp_path / "r.html")
