"""The result card keeps masks, and believes no number that does not follow from them."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from taet import metrics
from taet.errors import UserError
from taet.evaluation import Column, ResultCard

LABELS = np.array([0, 0, 0, 1, 1, 2, 2, 0, 1, 0])
CLEAN = np.array([0, 0, 1, 1, 1, 2, 0, 0, 1, 0])
ATTACKED = np.array([1, 0, 1, 1, 2, 0, 0, 0, 0, 0])


def column(name: str, predictions: np.ndarray, **change: Any) -> Column:
    values = {
        "name": name,
        "norm": "linf",
        "eps": 8 / 255,
        "bounded": True,
        "parameters": {"steps": 20, "step_size": 1 / 255},
        "correct": predictions == LABELS,
        "predictions": predictions,
    }
    return Column(**{**values, **change})


def card(**change: Any) -> ResultCard:
    parts = {"apgd-ce": (ATTACKED == LABELS) | (LABELS == 2) & (CLEAN == 2), "square": ATTACKED == LABELS}
    values = {
        "method": "at",
        "title": "AT",
        "protocol": "taet",
        "threat": {"norm": "linf", "eps": 8 / 255},
        "seed": 0,
        "model": {"name": "small", "weights_sha256": "ab", "leak": False},
        "data": {"name": "toy", "class_names": ("a", "b", "c", "d"), "train_class_counts": [9, 3, 1, 1]},
        "batch_size": 4,
        "labels": LABELS,
        "columns": (
            column("clean", CLEAN, norm=None, eps=None, bounded=False),
            column("pgd-20", ATTACKED),
            column("autoattack", ATTACKED, parts=parts, seconds=1.5, forwards=100, backwards=90),
        ),
        "flags": ({"flag": "small", "text": "A small set."},),
        "probe": {"images": 4, "repeat_difference": 0.5},
    }
    return ResultCard(**{**values, **change})


def test_summary_is_computed_from_the_masks() -> None:
    summary = card().summary("pgd-20")
    correct, total = np.array([3, 1, 0, 0]), np.array([5, 3, 2, 0])
    assert summary.correct.tolist() == correct.tolist()
    assert summary.total.tolist() == total.tolist()
    assert summary.accuracy == 0.4
    assert summary.balanced == pytest.approx((3 / 5 + 1 / 3 + 0) / 3)
    assert summary.balanced_interval == metrics.balanced_interval(correct, total)
    assert summary.worst_class == (2, 0.0)
    assert np.isnan(summary.per_class[3])
    assert summary.groups["head"] == pytest.approx(3 / 5)
    assert summary.confusion.sum() == 10
    assert summary.confusion[0].tolist() == [3, 2, 0, 0]
    assert card(data={"class_names": ["a", "b", "c"]}).summary("clean").groups == {}


def test_round_trip_keeps_everything(tmp_path: Path) -> None:
    before = card()
    before.save(tmp_path / "card.json")
    after = ResultCard.load(tmp_path / "card.json")
    assert after.to_json() == before.to_json()
    assert repr(after) == repr(before)
    assert after.probe == before.probe
    for old, new in zip(before.columns, after.columns, strict=True):
        np.testing.assert_array_equal(new.correct, old.correct)
        np.testing.assert_array_equal(new.predictions, old.predictions)
        assert list(new.parts) == list(old.parts)
    assert [path.name for path in tmp_path.iterdir()] == ["card.json"]


def test_the_table_names_every_attack_and_flag() -> None:
    text = repr(card())
    for word in ("clean", "pgd-20", "autoattack", "40.0 [", "A small set."):
        assert word in text


def test_a_card_says_where_its_training_left_the_protocol_and_need_not_know(tmp_path: Path) -> None:
    known = card(run={"config": {}, "command": "", "deviations": ("its own eps",)})
    known.save(tmp_path / "card.json")
    assert ResultCard.load(tmp_path / "card.json").deviations == known.deviations == ("its own eps",)
    assert "leaves the protocol: its own eps\n! A small set." in repr(known)
    runs: tuple[dict[str, Any], ...] = ({}, {"config": {}}, {"deviations": []})
    for run in runs:
        assert card(run=run).deviations == ()
        assert "leaves the protocol" not in repr(card(run=run))


def test_an_unknown_column_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'pgd-20'"):
        card().column("pgd-2")


def flip_first_bit(stored: dict[str, Any]) -> None:
    stored["columns"][1]["correct"]["bits"] = "A" + stored["columns"][1]["correct"]["bits"][1:]


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (lambda s: s["columns"][1]["summary"].update(accuracy=0.5), "column 'pgd-20' summary accuracy: stored 0.5"),
        (lambda s: s["columns"][0]["summary"]["correct"].__setitem__(0, 5), r"column 'clean' summary correct\[0\]"),
        (lambda s: s["columns"][0]["summary"]["groups"].update(tail=1.0), "summary groups tail"),
        (lambda s: s["columns"][0]["summary"].pop("balanced"), "column 'clean' summary"),
        (lambda s: s["columns"][0]["summary"]["per_class"].__setitem__(3, 1.0), r"per_class\[3\]"),
        (flip_first_bit, "column 'pgd-20' correct: does not agree"),
        (lambda s: s["columns"][1]["correct"].update(count=3), "a field has the wrong form"),
        (lambda s: s["columns"][2]["parts"].update(square=s["columns"][0]["correct"]), "part 'square'"),
        (lambda s: s["columns"][1].update(name="clean"), "allowed: each attack once"),
        (lambda s: s["labels"].update(count=9), "a field has the wrong form"),
        (lambda s: s.pop("threat"), "'threat' is missing"),
        (lambda s: s.pop("probe"), "'probe' is missing"),
        (lambda s: s["data"].update(train_class_counts=[9, 3, 1]), "train_class_counts: got 3; allowed: 4"),
        (lambda s: s["data"].update(train_class_counts=[9, 3, 1, 1, 1]), "train_class_counts: got 5; allowed: 4"),
        (lambda s: s.update(columns=3), "a field has the wrong form"),
        (lambda s: s.update(schema=2), "schema: got 2; allowed: 1; update taet"),
        (lambda s: s.update(kind="else"), "not a result card"),
    ],
)
def test_tampering_is_named(tmp_path: Path, tamper: Any, message: str) -> None:
    stored = card().to_json()
    tamper(stored)
    path = tmp_path / "card.json"
    path.write_text(json.dumps(stored))
    with pytest.raises(UserError, match=message) as error:
        ResultCard.load(path)
    assert "card.json" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"kind": "taet result card", "sch', "truncated or not JSON"),
        (b"", "truncated or not JSON"),
        (b"[1, 2]", "not a result card"),
        (b"\xff\xfe\x00", "not a JSON file"),
    ],
)
def test_a_broken_or_foreign_file_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "card.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        ResultCard.load(path)
    with pytest.raises(UserError, match="cannot be read"):
        ResultCard.load(tmp_path / "missing.json")


def test_a_card_that_contradicts_itself_is_never_made() -> None:
    with pytest.raises(UserError, match="does not agree"):
        card(columns=(column("pgd-20", ATTACKED, correct=~(ATTACKED == LABELS)),))
    with pytest.raises(UserError, match="predictions: got 9 to 9; allowed: 0 to 3"):
        card(columns=(column("pgd-20", np.full(10, 9)),))
    with pytest.raises(UserError, match="labels"):
        card(labels=LABELS - 1)


def test_a_full_disk_keeps_the_old_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "card.json"
    card().save(path)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="no space left"):
        card(seed=1).save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["card.json"]
