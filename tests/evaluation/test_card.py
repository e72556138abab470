"""The result card keeps masks, and believes no number that does not follow from them."""

from __future__ import annotations

import errno
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from taet import statistics
from taet.errors import UserError
from taet.evaluation import Column, ResultCard
from taet.evaluation.schema import stored_columns

RESULTS = Path(__file__).parents[2] / "results"
COMMITTED = sorted(path for path in RESULTS.glob("*/**/*.json") if ".embedding-" not in path.name)
LABELS = np.array([0, 0, 0, 1, 1, 2, 2, 0, 1, 0])
CLEAN = np.array([0, 0, 1, 1, 1, 2, 0, 0, 1, 0])
ATTACKED = np.array([1, 0, 1, 1, 2, 0, 0, 0, 0, 0])
BROKEN = np.array([1, 1, 1, 0, 2, 0, 0, 1, 0, 0])
TOY = {"name": "toy", "class_names": ("a", "b", "c", "d"), "test_sha256": "cd" * 32}
DISTANCES = np.array([0.5, 0.25, 0, 1, 1.5, 2, 0, 0.75, 0.5, np.nan], dtype=np.float32)


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
        "model": {"name": "small", "weights_sha256": "ab" * 32, "leak": False},
        "data": {**TOY, "train_class_counts": [9, 3, 1, 1]},
        "batch_size": 4,
        "labels": LABELS,
        "columns": (
            column("clean", CLEAN, norm=None, eps=None, bounded=False),
            column("pgd-20", ATTACKED),
            column("autoattack", ATTACKED, parts=parts, seconds=1.5, forwards=100, backwards=90),
        ),
        "flags": ({"flag": "small", "text": "A small set."},),
        "probe": {"images": 4, "seed": 0, "clean_correct": 3, "distributions": 0, "zero_gradients": 0},
    }
    return ResultCard(**{**values, **change})


def full_card(**change: Any) -> ResultCard:
    """A card with every kind of column: an AUC, distances, and one for a curve alone."""
    scores = np.eye(4)[CLEAN] + np.eye(4)[LABELS]
    unbounded = {"norm": "l2", "eps": None, "bounded": False}
    columns = (
        column("clean", CLEAN, norm=None, eps=None, bounded=False, roc_auc=statistics.pairwise_auc(scores, LABELS)),
        column("pgd-20", ATTACKED),
        column("cw-l2", BROKEN, **unbounded, distances=DISTANCES),
        column("pgd-20:eps=0.1", BROKEN, eps=0.1, curve="eps"),
    )
    return card(**{"columns": columns, **change})


def test_summary_is_computed_from_the_masks() -> None:
    summary = card().summary("pgd-20")
    correct, total = np.array([3, 1, 0, 0]), np.array([5, 3, 2, 0])
    assert summary.correct.tolist() == correct.tolist()
    assert summary.total.tolist() == total.tolist()
    assert summary.accuracy == 0.4
    assert summary.balanced == pytest.approx((3 / 5 + 1 / 3 + 0) / 3)
    assert summary.balanced_interval == statistics.balanced_interval(correct, total)
    assert summary.worst_class == (2, 0.0)
    assert np.isnan(summary.per_class[3])
    assert summary.groups["head"] == pytest.approx(3 / 5)
    assert summary.flip_rate == 0.4
    np.testing.assert_allclose(summary.class_flip_rate, [1 / 5, 2 / 3, 1 / 2, np.nan])
    np.testing.assert_allclose(summary.natural_error, [1 / 5, 0, 1 / 2, np.nan])
    np.testing.assert_allclose(summary.boundary_error, [1 / 5, 2 / 3, 1 / 2, np.nan])
    assert summary.weak_classes == (2,)  # balanced: 14/45, and the second class has 15/45
    assert summary.few_images == (0, 1, 2, 3)
    assert math.isnan(summary.median_distance)
    assert math.isnan(summary.roc_auc)
    assert card(data={**TOY, "class_names": ["a", "b", "c"]}).summary("clean").groups == {}


def test_without_a_clean_column_nothing_is_known_of_what_an_attack_changed() -> None:
    summary = card(columns=(column("pgd-20", ATTACKED),)).summary("pgd-20")
    assert math.isnan(summary.flip_rate)
    for values in (summary.class_flip_rate, summary.natural_error, summary.boundary_error):
        assert np.isnan(values).all()
        assert values.shape == (4,)


def test_distances_and_areas_are_summed_up() -> None:
    summary = full_card().summary("cw-l2")
    assert summary.median_distance == 0.875  # of .25 .5 .5 .75 1 1.5 2 and one that did not fall; two were wrong before
    area = full_card().summary("clean").roc_auc
    scores = np.eye(4)[CLEAN] + np.eye(4)[LABELS]
    assert area == statistics.roc_auc(statistics.pairwise_auc(scores, LABELS))
    assert 0.5 < area < 1


@pytest.mark.parametrize("make", [card, full_card])
def test_round_trip_keeps_everything(tmp_path: Path, make: Any) -> None:
    before = make()
    before.save(tmp_path / "card.json")
    after = ResultCard.load(tmp_path / "card.json")
    assert after.to_json() == before.to_json()
    assert repr(after) == repr(before)
    assert after.probe == before.probe
    for old, new in zip(before.columns, after.columns, strict=True):
        np.testing.assert_array_equal(new.correct, old.correct)
        np.testing.assert_array_equal(new.predictions, old.predictions)
        assert list(new.parts) == list(old.parts)
        assert new.curve == old.curve
        for name in ("distances", "roc_auc"):
            assert (getattr(new, name) is None) == (getattr(old, name) is None)
            if getattr(old, name) is not None:
                np.testing.assert_array_equal(getattr(new, name), getattr(old, name), strict=True)
    assert [path.name for path in tmp_path.iterdir()] == ["card.json"]


def test_the_table_names_every_attack_and_flag() -> None:
    text = repr(card())
    for word in ("clean", "pgd-20", "autoattack", "40.0 [", "A small set."):
        assert word in text


def test_the_table_says_how_far_an_attack_without_a_ball_went_and_leaves_out_curves() -> None:
    lines = repr(full_card()).splitlines()
    assert [line.split()[0] for line in lines[1:5]] == ["attack", "clean", "pgd-20", "cw-l2"]
    assert lines[4].endswith("no bound; median l2 distance 0.875")
    assert not any("eps=0.1" in line or line.endswith(" ") for line in lines)
    lost = column("cw-l2", BROKEN, norm="l2", eps=None, bounded=False)
    assert repr(card(columns=(lost,))).splitlines()[2].endswith("no bound")


def test_the_worst_case_is_the_conjunction_of_the_attacks_in_one_ball() -> None:
    second, third = np.array([0, 0, 0, 0, 1, 2, 0, 0, 1, 2]), np.array([0, 1, 0, 1, 1, 2, 2, 0, 1, 0])
    whole = card(
        columns=(
            column("clean", CLEAN, norm=None, eps=None, bounded=False),
            column("pgd-20", second, seconds=1.0, forwards=10, backwards=5),
            column("pgd-100", third, seconds=2.0, forwards=20, backwards=10, parameters={"steps": 100, "seed": 3}),
            column("pgd-20:eps=0.1", BROKEN, eps=0.1),
            column("pgd-20:step=0.1", BROKEN, curve="steps"),
            column("pgd-20@other", BROKEN, parameters={"source": {"name": "other", "weights_sha256": "e" * 64}}),
            column("deepfool", BROKEN, norm="l2", eps=None, bounded=False),
            column("pgd-l2-20", BROKEN, norm="l2", eps=1.0),
            column("pgd-l2-100", ATTACKED, norm="l2", eps=1.0),
        )
    )
    worst = whole.worst_case()
    assert worst.correct.tolist() == ((CLEAN == LABELS) & (second == LABELS) & (third == LABELS)).tolist()
    #                                   first to break: clean at 2 and 6, second at 3 and 9, third at 1
    assert worst.predictions.tolist() == [0, 1, 1, 0, 1, 2, 0, 0, 1, 2]
    assert list(worst.parts) == ["pgd-20", "pgd-100"]
    assert worst.parts["pgd-20"].tolist() == ((CLEAN == LABELS) & (second == LABELS)).tolist()
    assert (worst.name, worst.norm, worst.eps, worst.bounded) == ("worst-case", "linf", 8 / 255, True)
    assert (worst.seconds, worst.forwards, worst.backwards) == (3.0, 30, 15)
    first = worst.identity.members[0]
    assert (first.name, *first.ball, first.settings) == ("pgd-100", "linf", 8 / 255, (("steps", 100),))
    assert whole.summary("worst-case").accuracy == 0.5
    weaker = (CLEAN == LABELS) & (BROKEN == LABELS)
    assert whole.column("worst-case-l2").correct.tolist() == (weaker & (ATTACKED == LABELS)).tolist()
    assert whole.worst_case("linf", eps=0.1).correct.tolist() == weaker.tolist()
    kept = card(columns=(*whole.columns, worst))  # it is a column like any other, and adds nothing to itself
    assert kept.column("worst-case") is worst
    assert kept.worst_case().correct.tolist() == worst.correct.tolist()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ((), "worst case: got none; allowed: bounded l2 attacks, all of one radius"),
        ((column("a", ATTACKED, norm="l2", eps=1.0), column("b", BROKEN, norm="l2", eps=0.5)), "got .* radius 0.5, 1;"),
        ((column("deepfool", BROKEN, norm="l2", eps=None, bounded=False),), "worst case: got none"),
    ],
)
def test_a_worst_case_needs_attacks_of_one_radius(columns: tuple[Column, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        card(columns=columns).column("worst-case-l2")
    with pytest.raises(UserError, match=r"bounded linf attacks of radius 0\.031"):
        card(columns=columns).worst_case()


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
        (lambda s: s["columns"].append(s["columns"][1]), "allowed: each attack once"),
        (lambda s: s["labels"].update(count=9), "a field has the wrong form"),
        (lambda s: s.pop("threat"), "'threat' is missing"),
        (lambda s: s.pop("probe"), "'probe' is missing"),
        (lambda s: s["data"].update(train_class_counts=[9, 3, 1]), "train_class_counts: got 3; allowed: 4"),
        (lambda s: s["data"].update(train_class_counts=[9, 3, 1, 1, 1]), "train_class_counts: got 5; allowed: 4"),
        (lambda s: s.update(columns=3), "columns: got a number; allowed: a list"),
        (lambda s: s.update(schema=4), "schema: got 4; allowed: 1 to 3; update taet"),
        (lambda s: s.update(schema=0), "schema: got 0; allowed: 1 to 3"),
        (lambda s: s.update(schema="2"), "schema: got '2'; allowed: 1 to 3"),
        (lambda s: s.update(schema=True), "schema: got True; allowed: 1 to 3"),
        (lambda s: s.pop("schema"), "schema: got null; allowed: 1 to 3"),
        (lambda s: s["columns"][1]["summary"].update(flip_rate=0.5), "summary flip_rate: stored 0.5"),
        (lambda s: s["columns"][1]["summary"].pop("flip_rate"), "column 'pgd-20' summary"),
        (lambda s: s["columns"][1]["summary"]["natural_error"].__setitem__(0, 0.0), r"natural_error\[0\]"),
        (lambda s: s["columns"][1]["summary"]["weak_classes"].append(0), "summary weak_classes"),
        (lambda s: s["columns"][1]["summary"].update(roc_auc=0.5), "summary roc_auc: stored 0.5.*None"),
        (lambda s: s["columns"][1].pop("distances"), "'distances' is missing"),
        (lambda s: s["columns"][1].update(curve="stps"), r"unknown columns\[1\] curve 'stps'.*did you mean 'steps'"),
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


def replace_float(stored: dict[str, Any], value: float) -> None:
    """Put a value in the place of the first number of the distances."""
    values = DISTANCES.copy()
    values[0] = value
    stored["columns"][2]["distances"] = card(
        columns=(column("a", BROKEN, distances=values),)
    ).to_json()["columns"][0]["distances"]  # fmt: skip


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (lambda s: replace_float(s, 0.875), "column 'cw-l2' summary median_distance: stored 0.875.*0.9375"),
        (lambda s: s["columns"][2]["summary"].update(median_distance=0.1), "median_distance: stored 0.1"),
        (lambda s: s["columns"][0]["summary"].update(roc_auc=1.0), "column 'clean' summary roc_auc: stored 1.0"),
        (lambda s: s["columns"][2]["distances"].update(shape=[9]), "a field has the wrong form"),
        (lambda s: s["columns"][0]["roc_auc"].update(shape=[2, 8]), r"roc_auc: got float32 \(2, 8\)"),
    ],
)
def test_tampering_with_distances_and_areas_is_named(tamper: Any, message: str) -> None:
    stored = json.loads(json.dumps(full_card().to_json()))
    tamper(stored)
    with pytest.raises(UserError, match=message):
        ResultCard.from_json(stored)


@pytest.mark.sample(8)
@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_committed_card_loads(path: Path) -> None:
    stored = json.loads(path.read_text())
    loaded = ResultCard.load(path)
    again = loaded.to_json()
    assert [column["correct"] for column in again["columns"]] == [column["correct"] for column in stored["columns"]]
    seal = {name: stored[name] for name in ("sha256",) if name in stored}  # checked by load; older cards have none
    if stored["schema"] > 1:
        for column, kept in zip(again["columns"], stored["columns"], strict=True):
            for name in ("balanced_interval", "group_intervals"):
                found, held = column["summary"].pop(name), kept["summary"].pop(name)
                if stored["schema"] > 2:  # before, they were others
                    found, held = ({"": one} if isinstance(one, list) else one for one in (found, held))
                    assert found.keys() == held.keys()
                    assert all(found[key] == pytest.approx(held[key], abs=1e-9) for key in held)
        again["schema"] = stored["schema"]
    assert stored["schema"] == 1 or again | seal == stored
    assert loaded.sealed == bool(seal)


def as_schema_1(stored: dict[str, Any]) -> dict[str, Any]:
    """What the first schema would have stored."""
    first = {
        "correct", "total", "accuracy", "accuracy_interval", "balanced", "balanced_interval", "per_class",
        "per_class_interval", "groups", "group_intervals", "worst_class",
    }  # fmt: skip
    columns = []
    for each in stored["columns"]:
        summary = {name: value for name, value in each["summary"].items() if name in first}
        kept = {name: value for name, value in each.items() if name not in ("distances", "roc_auc", "curve")}
        columns.append({**kept, "summary": summary})
    return {**stored, "schema": 1, "columns": columns}


def test_a_card_of_schema_2_has_other_intervals_of_the_balanced_accuracy() -> None:
    stored = json.loads(json.dumps(card().to_json()))
    stored["columns"][1]["summary"]["balanced_interval"] = [0.2, 0.9]
    stored["columns"][1]["summary"]["group_intervals"]["tail"] = [0.1, 0.9]
    assert ResultCard.from_json({**stored, "schema": 2}).to_json() == card().to_json()
    with pytest.raises(UserError, match=r"summary balanced_interval\[0\]: stored 0.2"):
        ResultCard.from_json(stored)
    stored["columns"][1]["summary"]["accuracy_interval"] = [0.2, 0.9]
    with pytest.raises(UserError, match=r"summary accuracy_interval\[0\]: stored 0.2"):
        ResultCard.from_json({**stored, "schema": 2})


def test_a_card_of_the_first_schema_is_migrated() -> None:
    stored = as_schema_1(card().to_json())
    before = json.dumps(stored)
    assert ResultCard.from_json(stored).to_json() == card().to_json()
    migrated = stored_columns(stored["columns"], 1)
    assert json.dumps(stored) == before
    for each in migrated:
        assert (each["distances"], each["roc_auc"], each["curve"]) == (None, None, "")
    assert stored_columns(migrated, 2) == migrated


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (lambda s: s["columns"][1]["summary"].update(balanced=0.9), "summary balanced: stored 0.9"),
        (lambda s: s["columns"][1]["summary"].pop("balanced"), "column 'pgd-20' summary"),
        (lambda s: s["columns"][1]["summary"].update(flip_rate=0.4), "column 'pgd-20' summary"),
        (lambda s: s.pop("columns"), "'columns' is missing"),
        (lambda s: s.update(columns=[1]), r"columns\[0\]: got a number; allowed: an object"),
    ],
)
def test_the_numbers_of_the_first_schema_are_not_believed_either(tamper: Any, message: str) -> None:
    stored = as_schema_1(json.loads(json.dumps(card().to_json())))
    tamper(stored)
    with pytest.raises(UserError, match=message):
        ResultCard.from_json(stored)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"kind": "taet result card", "sch', "truncated or not JSON"),
        (b"", "truncated or not JSON"),
        (b"[1, 2]", "not a result card"),
        (b"\xff\xfe\x00", "not JSON"),
    ],
)
def test_a_broken_or_foreign_file_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "card.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        ResultCard.load(path)
    with pytest.raises(UserError, match="cannot read"):
        ResultCard.load(tmp_path / "missing.json")


def test_a_card_that_contradicts_itself_is_never_made() -> None:
    with pytest.raises(UserError, match="does not agree"):
        card(columns=(column("pgd-20", ATTACKED, correct=~(ATTACKED == LABELS)),))
    with pytest.raises(UserError, match="predictions: got 9 to 9; allowed: 0 to 3"):
        card(columns=(column("pgd-20", np.full(10, 9)),))
    with pytest.raises(UserError, match="labels"):
        card(labels=LABELS - 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distances": DISTANCES.astype(float)}, r"distances: got float64 \(10,\); allowed: float32 \(10,\)"),
        ({"distances": DISTANCES[:9]}, r"distances: got float32 \(9,\)"),
        ({"distances": -DISTANCES}, "distances: a number is"),
        ({"distances": np.zeros(10, dtype=np.float32)}, "distances: a number is missing, out of range, or where there"),
        ({"distances": np.where(np.isnan(DISTANCES), DISTANCES, np.float32(np.inf))}, "distances: a number is"),
        ({"roc_auc": np.ones((3, 3), dtype=np.float32)}, r"roc_auc: got float32 \(3, 3\); allowed: float32 \(4, 4\)"),
        ({"roc_auc": np.ones((4, 4), dtype=np.float32)}, "roc_auc: a number is"),
        ({"roc_auc": 2 * statistics.pairwise_auc(np.eye(4)[LABELS], LABELS)}, "roc_auc: a number is"),
        ({"curve": "epss"}, "unknown curve 'epss'; allowed: eps, logit-scale, steps; did you mean 'eps'"),
    ],
)
def test_a_column_that_contradicts_itself_is_never_kept(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        card(columns=(column("cw-l2", BROKEN, **change),))


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
