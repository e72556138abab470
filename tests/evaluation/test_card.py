"""The result card keeps masks, and believes no number that does not follow from them."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from taet import statistics
from taet.evaluation import Column, ResultCard
from taet.evaluation.card import compare_runs
from tests.calls import one_line

RESULTS = Path(__file__).parents[2] / "results"
STORED = RESULTS / "digits-lt-precision" / "at-bsl-bf16-seed0.json"
LABELS = np.array([0, 0, 0, 1, 1, 2, 2, 0, 1, 0])
CLEAN = np.array([0, 0, 1, 1, 1, 2, 0, 0, 1, 0])
ATTACKED = np.array([1, 0, 1, 1, 2, 0, 0, 0, 0, 0])
BROKEN = np.array([1, 1, 1, 0, 2, 0, 0, 1, 0, 0])
DISTANCES = np.array([0.5, 0.25, 0, 1, 1.5, 2, 0, 0.75, 0.5, np.nan], dtype=np.float32)
NO_BALL: dict[str, Any] = {"norm": "l2", "eps": None, "bounded": False}
IMAGES = {"norm": None, "eps": None, "bounded": False}
Stored = dict[str, Any]


def column(name: str, predictions: np.ndarray, **change: Any) -> Column:
    ball = {"norm": "linf", "eps": 8 / 255, "bounded": True, "parameters": {"steps": 20, "step_size": 1 / 255}}
    return Column(**{"name": name, "correct": predictions == LABELS, "predictions": predictions, **ball, **change})


def card(**change: Any) -> ResultCard:
    """A card with every kind of column: an AUC, parts, distances, and one for a curve alone."""
    parts = {"apgd-ce": (ATTACKED == LABELS) | (LABELS == 2) & (CLEAN == 2), "square": ATTACKED == LABELS}
    area = statistics.pairwise_auc(np.eye(4)[CLEAN] + np.eye(4)[LABELS], LABELS)
    data = {"name": "toy", "class_names": ("a", "b", "c", "d"), "test_sha256": "cd" * 32}
    values = {
        "method": "at",
        "title": "AT",
        "protocol": "taet",
        "threat": {"norm": "linf", "eps": 8 / 255},
        "seed": 0,
        "model": {"name": "small", "weights_sha256": "ab" * 32, "leak": False},
        "data": {**data, "train_class_counts": [9, 3, 1, 1]},
        "batch_size": 4,
        "labels": LABELS,
        "columns": (
            column("clean", CLEAN, **IMAGES, roc_auc=area),
            column("pgd-20", ATTACKED),
            column("autoattack", ATTACKED, parts=parts, seconds=1.5, forwards=100, backwards=90),
            column("cw-l2", BROKEN, **NO_BALL, distances=DISTANCES),
            column("pgd-20:eps=0.1", BROKEN, eps=0.1, curve="eps"),
        ),
        "flags": ({"flag": "small", "text": "A small set."},),
        "probe": {"images": 4, "seed": 0, "clean_correct": 3, "distributions": 0, "zero_gradients": 0},
    }
    return ResultCard(**{**values, **change})


def test_a_summary_is_computed_from_the_masks() -> None:
    summary, (correct, total) = card().summary("pgd-20"), (np.array([3, 1, 0, 0]), np.array([5, 3, 2, 0]))
    assert (summary.correct.tolist(), summary.total.tolist()) == (correct.tolist(), total.tolist())
    assert (summary.accuracy, summary.flip_rate, summary.worst_class) == (0.4, 0.4, (2, 0.0))
    assert summary.balanced == pytest.approx((3 / 5 + 1 / 3 + 0) / 3)
    assert summary.balanced_interval == statistics.balanced_interval(correct, total)
    assert np.isnan(summary.per_class[3])
    assert summary.groups["head"] == pytest.approx(3 / 5)
    np.testing.assert_allclose(summary.class_flip_rate, [1 / 5, 2 / 3, 1 / 2, np.nan])
    np.testing.assert_allclose(summary.natural_error, [1 / 5, 0, 1 / 2, np.nan])
    np.testing.assert_allclose(summary.boundary_error, [1 / 5, 2 / 3, 1 / 2, np.nan])
    assert (summary.weak_classes, summary.few_images) == ((2,), (0, 1, 2, 3))
    assert math.isnan(summary.median_distance)
    assert card().summary("cw-l2").median_distance == 0.875  # two were wrong before, and one did not fall
    assert 0.5 < card().summary("clean").roc_auc < 1
    assert re.fullmatch(r"Summary\(balanced accuracy 31.1 % \(.*–.*\), accuracy 40.0 %\)", repr(summary))
    assert "linf ball of 8/255" in repr(card(threat={"norm": "linf", "eps": 8 / 255}))
    other = card(columns=(column("clean", ATTACKED), column("pgd-l2-20", ATTACKED, norm="l2", eps=0.25)))
    assert re.search("pgd-l2-20 .* l2 ball of 0.25", repr(other))
    alone = card(columns=(column("pgd-20", ATTACKED),), data={**card().data, "train_class_counts": None})
    assert math.isnan(alone.summary("pgd-20").flip_rate)
    assert alone.summary("pgd-20").groups == {}


def test_a_round_trip_keeps_everything_and_a_change_is_seen(tmp_path: Path) -> None:
    before, path = card(run={"config": {}, "command": "", "deviations": ("its own eps",)}), tmp_path / "card.json"
    before.save(path)
    after = ResultCard.load(path)
    assert (after.to_json(), repr(after), after.sealed) == (before.to_json(), repr(before), True)
    for old, new in zip(before.columns, after.columns, strict=True):
        for name in ("correct", "predictions", "distances", "roc_auc"):
            np.testing.assert_array_equal(getattr(new, name), getattr(old, name), strict=getattr(old, name) is not None)
        assert str(new.parts) == str(old.parts)
    assert [line.split()[0] for line in str(after).splitlines()[2:]] == [
        *("clean", "pgd-20", "autoattack", "cw-l2", "leaves", "!")  # without the point of a curve
    ]
    stored = json.loads(path.read_text())
    path.write_text(json.dumps({**stored, "seed": 7}))
    with one_line(r"card\.json was changed or damaged: its SHA-256"):
        ResultCard.load(path)
    del stored["sha256"]
    path.write_text(json.dumps(stored))  # as an older version wrote it
    assert not ResultCard.load(path).sealed


def test_the_worst_case_is_the_conjunction_of_the_attacks_in_one_ball() -> None:
    second, third = np.array([0, 0, 0, 0, 1, 2, 0, 0, 1, 2]), np.array([0, 1, 0, 1, 1, 2, 2, 0, 1, 0])
    whole = card(
        columns=(
            column("clean", CLEAN, **IMAGES),
            column("pgd-20", second, seconds=1.0, forwards=10, backwards=5),
            column("pgd-100", third, seconds=2.0, forwards=20, backwards=10, parameters={"steps": 100, "seed": 3}),
            column("pgd-20:eps=0.1", BROKEN, eps=0.1),
            column("pgd-20:step=0.1", BROKEN, curve="steps"),
            column("pgd-20@other", BROKEN, parameters={"source": {"name": "other", "weights_sha256": "e" * 64}}),
            column("deepfool", BROKEN, **NO_BALL),
            column("pgd-l2-20", BROKEN, norm="l2", eps=1.0),
            column("pgd-l2-100", ATTACKED, norm="l2", eps=1.0),
        )
    )
    worst = whole.worst_case()
    assert worst.correct.tolist() == ((CLEAN == LABELS) & (second == LABELS) & (third == LABELS)).tolist()
    #                                   first to break: clean at 2 and 6, second at 3 and 9, third at 1
    assert worst.predictions.tolist() == [0, 1, 1, 0, 1, 2, 0, 0, 1, 2]
    assert worst.parts["pgd-20"].tolist() == ((CLEAN == LABELS) & (second == LABELS)).tolist()
    assert (worst.name, worst.norm, worst.eps, worst.bounded) == ("worst-case", "linf", 8 / 255, True)
    assert (worst.seconds, worst.forwards, worst.backwards) == (3.0, 30, 15)
    first = dict(dict(worst.identity.settings)["attacks"][0])
    assert first == {"name": "pgd-100", "norm": "linf", "eps": 8 / 255, "steps": 100}
    weaker = (CLEAN == LABELS) & (BROKEN == LABELS)
    assert whole.column("worst-case-l2").correct.tolist() == (weaker & (ATTACKED == LABELS)).tolist()
    kept = whole.changed(columns=(*whole.columns, worst))  # it is a column like any other, and adds nothing to itself
    assert kept.column("worst-case") is worst
    assert kept.worst_case().correct.tolist() == worst.correct.tolist()
    with one_line("worst case: got none; allowed: bounded l2 attacks, all of one radius"):
        card().column("worst-case-l2")
    with one_line("did you mean 'pgd-20'"):
        card().column("pgd-2")


def replaced(*place: str | int, by: Any) -> Callable[[Stored], None]:
    """Return a function that puts a value in a place of a stored card; None removes the field."""

    def change(stored: Stored) -> None:
        inner: Any = stored
        for one in place[:-1]:
            inner = inner[one]
        if by is None:
            del inner[place[-1]]
        else:
            inner[place[-1]] = by

    return change


WRONG: list[tuple[Callable[[Stored], None], str]] = [
    # A number that does not follow from the masks.
    (replaced("columns", 1, "summary", "accuracy", by=0.5), "column 'pgd-20' summary accuracy: stored 0.5"),
    (replaced("columns", 0, "summary", "groups", "tail", by=1.0), "summary groups tail"),
    (replaced("columns", 3, "distances", "float32", by="AACAPw=="), r"columns\[3\] distances: got"),
    # An array that contradicts another, or its own size.
    (replaced("columns", 1, "correct", "bits", by="AAA="), "column 'pgd-20' correct: does not agree"),
    (replaced("columns", 1, "correct", "count", by=3), "column 'pgd-20': has not one entry for each of 10 images"),
    # A field that is missing, or that is not of its type or within its bounds.
    (replaced("threat", by=None), "the field 'threat' is missing"),
    (replaced("columns", 1, "predictions", by=None), "columns.*: the field 'predictions' is missing"),
    (replaced("data", "train_class_counts", by=[9, 3, 1]), "train_class_counts: got 3; allowed: 4"),
    (replaced("model", "answers", by=[[0.5, ""]]), "could not convert string to float"),
    (replaced("probe", by={"images": "many"}), "card.json: probe"),
    (replaced("columns", 1, "parameters", "steps", by=10), "attack 'pgd-20': got steps 10; allowed: 20, as its name"),
    # Another kind of file, or another version.
    (replaced("schema", by=4), "schema: got 4; allowed: 1 to 3; update taet"),
    (replaced("kind", by="else"), "not a result card"),
    (lambda stored: stored["columns"].append(stored["columns"][1]), "allowed: each attack once"),
]


@pytest.mark.parametrize(("tamper", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_a_wrong_card_is_refused_in_one_line(tmp_path: Path, tamper: Callable[[Stored], None], message: str) -> None:
    stored = card().to_json()
    tamper(stored)
    path = tmp_path / "card.json"
    path.write_text(json.dumps(stored))
    with one_line(message) as error:
        ResultCard.load(path)
    assert "card.json" in str(error.value)
    assert len(str(error.value)) < 600


def test_committed_cards_load_and_are_written_again_with_the_same_bytes(tmp_path: Path) -> None:
    """One in eleven; the oracle reads them all."""
    schemas, texts = set(), {path: path.read_bytes() for path in sorted(RESULTS.rglob("*.json"))}
    cards = [path for path, text in texts.items() if b'"kind": "taet result card"' in text[:100]]
    for path in cards[::11]:
        content = texts[path]
        stored, loaded = json.loads(content), ResultCard.load(path)
        schemas.add(stored["schema"])
        loaded.save(tmp_path / "card.json")
        again = (tmp_path / "card.json").read_bytes()
        if stored["schema"] == 3:
            assert again == content, path
        written = json.loads(again)
        for name in ("threat", "model", "data", "run", "environment", "flags", "probe", "labels"):
            assert written[name] == stored[name], path
        for one, other in zip(written["columns"], stored["columns"], strict=True):
            assert {**one, "summary": {}} | {**other, "summary": {}} == {**one, "summary": {}}, path
    assert schemas == {1, 2, 3}


def test_what_a_later_version_adds_or_takes_away_is_kept_as_stored() -> None:
    stored = json.loads(STORED.read_text())
    stored["run"]["config"]["training"] |= {"of_another_version": 5, "epochs": 0}
    stored["model"]["later"] = [1]
    again = ResultCard.from_json({**stored, "later": 1}).to_json()
    assert (again["run"], again["model"]) == (stored["run"], stored["model"])


def of_seed(seed: int, steps: int = 20, eps: float = 8 / 255, sha256: str = "cd" * 32) -> ResultCard:
    predictions = np.where(np.random.default_rng(seed).random(10) < 0.6, LABELS, (LABELS + 1) % 3)
    attack = column("pgd-20", predictions, eps=eps, parameters={"steps": steps, "seed": seed})
    data = {**card().data, "test_sha256": sha256}
    return card(seed=seed, threat={"norm": "linf", "eps": eps}, data=data, columns=(attack,))


def test_cards_are_compared_by_their_masks() -> None:
    first, second = of_seed(0), of_seed(1)
    masks = (first.column("pgd-20").correct, second.column("pgd-20").correct)
    assert repr(compare_runs([first], [second], "pgd-20")) == repr(statistics.difference(*masks, LABELS, 4))
    several = compare_runs([first, of_seed(2)], [second, of_seed(3)], "pgd-20")
    values = compare_runs([first], [second], "pgd-20").value, compare_runs([of_seed(2)], [of_seed(3)], "pgd-20").value
    assert (several.runs, several.value) == (2, pytest.approx(sum(values) / 2))


@pytest.mark.parametrize(
    ("second", "column", "message"),
    [
        ([of_seed(1, sha256="ab" * 32)], "pgd-20", "got test images 'cdcd.* and 'abab"),
        ([of_seed(1, steps=10)], "pgd-20", "'pgd-20' was measured with steps 20 and 10"),
        ([of_seed(1, steps=10)], "worst-case", "'worst-case' was measured with attacks"),
        ([of_seed(1), of_seed(2)], "pgd-20", "got 1 and 2 cards"),
    ],
)
def test_what_cannot_be_compared_is_one_line(second: list[ResultCard], column: str, message: str) -> None:
    with one_line(message):
        compare_runs([of_seed(0)], second, column)
