"""The result card keeps masks, and believes no number that does not follow from them."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from taet.card.comparison import compare_runs
from taet.data.notes import DataNote, Repeated, repeated_in_training
from taet.evaluation import Column, ResultCard
from taet.metrics import intervals, paired
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
    fields: dict[str, Any] = {
        "name": name,
        "correct": predictions == LABELS,
        "predictions": predictions,
        "norm": "linf",
        "eps": 8 / 255,
        "bounded": True,
        "parameters": {"steps": 20, "step_size": 1 / 255},
    }
    return Column(**{**fields, **change})


def card(**change: Any) -> ResultCard:
    """A card with every kind of column: parts, distances, and one for a curve alone."""
    parts = {
        "apgd-ce": (ATTACKED == LABELS) | (LABELS == 2) & (CLEAN == 2),
        "square": ATTACKED == LABELS,
    }
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
            column("clean", CLEAN, **IMAGES),
            column("pgd-20", ATTACKED),
            column("autoattack", ATTACKED, parts=parts, seconds=1.5, forwards=100, backwards=90),
            column("cw-l2", BROKEN, **NO_BALL, distances=DISTANCES),
            column("pgd-20:eps=0.1", BROKEN, eps=0.1, curve="eps"),
        ),
        "flags": ({"flag": "small", "text": "A small set."},),
        "probe": {
            "images": 4,
            "seed": 0,
            "clean_correct": 3,
            "distributions": 0,
            "zero_gradients": 0,
        },
    }
    return ResultCard(**{**values, **change})


# -- the summary of a column


def test_a_summary_counts_the_mask_by_class() -> None:
    summary = card().summary("pgd-20")
    assert summary.correct.tolist() == [3, 1, 0, 0]
    assert summary.total.tolist() == [5, 3, 2, 0]
    assert summary.accuracy == 0.4


def test_a_class_without_images_has_no_accuracy_and_enters_no_mean() -> None:
    summary = card().summary("pgd-20")
    np.testing.assert_allclose(summary.per_class, [3 / 5, 1 / 3, 0, np.nan])
    assert summary.balanced == pytest.approx((3 / 5 + 1 / 3 + 0) / 3)
    assert summary.worst_class == (2, 0.0)


def test_the_interval_of_a_summary_is_that_of_its_counts() -> None:
    counts = np.array([3, 1, 0, 0]), np.array([5, 3, 2, 0])
    assert card().summary("pgd-20").balanced_interval == intervals.balanced_interval(*counts)


def test_groups_of_classes_follow_the_training_counts() -> None:
    assert card().summary("pgd-20").groups["head"] == pytest.approx(3 / 5)
    about = {**card().data, "train_class_counts": None}
    assert card(data=about).summary("pgd-20").groups == {}


def test_errors_of_a_class_are_natural_or_of_the_attack() -> None:
    summary = card().summary("pgd-20")
    np.testing.assert_allclose(summary.natural_error, [1 / 5, 0, 1 / 2, np.nan])
    np.testing.assert_allclose(summary.boundary_error, [1 / 5, 2 / 3, 1 / 2, np.nan])


def test_the_flip_rate_of_a_class_needs_a_clean_column() -> None:
    flip_rate = card().summary("pgd-20").class_flip_rate
    np.testing.assert_allclose(flip_rate, [1 / 5, 2 / 3, 1 / 2, np.nan])
    alone = card(columns=(column("pgd-20", ATTACKED),))
    assert np.isnan(alone.summary("pgd-20").class_flip_rate).all()


def test_classes_of_few_test_images_are_known() -> None:
    assert card().summary("pgd-20").few_images == (0, 1, 2, 3)


def test_the_median_distance_is_over_images_that_fell() -> None:
    # two were wrong before, and one did not fall
    assert card().summary("cw-l2").median_distance == 0.875
    assert math.isnan(card().summary("pgd-20").median_distance)


def test_a_summary_is_printed_with_its_interval() -> None:
    printed = repr(card().summary("pgd-20"))
    pattern = r"Summary\(balanced accuracy 31.1 % \(.*–.*\), accuracy 40.0 %\)"
    assert re.fullmatch(pattern, printed)


def test_a_card_is_printed_with_its_ball_and_columns_of_other_balls_with_theirs() -> None:
    other = column("pgd-l2-20", ATTACKED, norm="l2", eps=0.25)
    printed = repr(card(columns=(column("clean", ATTACKED), other)))
    assert "linf ball of 8/255" in printed
    assert re.search("pgd-l2-20 .* l2 ball of 0.25", printed)


def test_a_card_is_printed_with_the_points_of_its_curves_after_the_other_attacks() -> None:
    lines = repr(card()).splitlines()[2:]
    first_words = [line.split()[0] for line in lines]
    assert first_words == ["clean", "pgd-20", "autoattack", "cw-l2", "pgd-20:eps=0.1", "!"]
    assert lines[4].endswith("curve over eps")


# -- the file


def test_a_round_trip_keeps_everything(tmp_path: Path) -> None:
    about_run = {"config": {"method": "at"}, "command": "", "deviations": ("its own eps",)}
    before = card(run=about_run)
    before.save(tmp_path / "card.json")
    after = ResultCard.load(tmp_path / "card.json")
    assert after.to_json() == before.to_json()
    assert repr(after) == repr(before)


@pytest.mark.parametrize("name", ["correct", "predictions", "distances"])
def test_a_round_trip_keeps_arrays_and_their_types(tmp_path: Path, name: str) -> None:
    before = card()
    before.save(tmp_path / "card.json")
    after = ResultCard.load(tmp_path / "card.json")
    for old, new in zip(before.columns, after.columns, strict=True):
        wanted, found = getattr(old, name), getattr(new, name)
        np.testing.assert_array_equal(found, wanted, strict=wanted is not None)


def test_a_round_trip_keeps_the_parts_of_a_suite(tmp_path: Path) -> None:
    before = card()
    before.save(tmp_path / "card.json")
    after = ResultCard.load(tmp_path / "card.json")
    for name, mask in before.column("autoattack").parts.items():
        np.testing.assert_array_equal(after.column("autoattack").parts[name], mask)


def test_a_change_of_the_file_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    card().save(path)
    assert ResultCard.load(path).sealed
    path.write_text(json.dumps({**json.loads(path.read_text()), "seed": 7}))
    with one_line(r"card\.json was changed or damaged: its SHA-256"):
        ResultCard.load(path)


def test_a_card_of_an_older_version_has_no_seal(tmp_path: Path) -> None:
    stored = card().to_json()
    stored.pop("sha256", None)
    (tmp_path / "card.json").write_text(json.dumps(stored))
    assert not ResultCard.load(tmp_path / "card.json").sealed


# -- the worst case

SECOND = np.array([0, 0, 0, 0, 1, 2, 0, 0, 1, 2])
THIRD = np.array([0, 1, 0, 1, 1, 2, 2, 0, 1, 0])
OTHER_RUN = {"source": {"name": "other", "weights_sha256": "e" * 64}}


@pytest.fixture
def several_balls() -> ResultCard:
    """Two attacks in the ball of the card, two in an l2 ball, and columns that count in neither."""
    stronger = {"steps": 100, "seed": 3}
    return card(
        columns=(
            column("clean", CLEAN, **IMAGES),
            column("pgd-20", SECOND, seconds=1.0, forwards=10, backwards=5),
            column("pgd-100", THIRD, seconds=2.0, forwards=20, backwards=10, parameters=stronger),
            column("pgd-20:eps=0.1", BROKEN, eps=0.1),
            column("pgd-20:step=0.1", BROKEN, curve="steps"),
            column("pgd-20@other", BROKEN, parameters=OTHER_RUN),
            column("deepfool", BROKEN, **NO_BALL),
            column("pgd-l2-20", BROKEN, norm="l2", eps=1.0),
            column("pgd-l2-100", ATTACKED, norm="l2", eps=1.0),
        )
    )


def test_the_worst_case_is_the_conjunction_of_the_attacks_in_one_ball(
    several_balls: ResultCard,
) -> None:
    expected = (CLEAN == LABELS) & (SECOND == LABELS) & (THIRD == LABELS)
    np.testing.assert_array_equal(several_balls.worst_case().correct, expected)


def test_the_worst_case_predicts_what_broke_an_image_first(several_balls: ResultCard) -> None:
    # clean at 2 and 6, second at 3 and 9, third at 1
    predictions = several_balls.worst_case().predictions
    assert predictions.tolist() == [0, 1, 1, 0, 1, 2, 0, 0, 1, 2]


def test_the_parts_of_the_worst_case_are_what_each_attack_left(several_balls: ResultCard) -> None:
    left_by_second = (CLEAN == LABELS) & (SECOND == LABELS)
    np.testing.assert_array_equal(several_balls.worst_case().parts["pgd-20"], left_by_second)


def test_the_worst_case_has_the_ball_and_the_cost_of_its_attacks(
    several_balls: ResultCard,
) -> None:
    worst = several_balls.worst_case()
    assert worst.name == "worst-case"
    assert (worst.norm, worst.eps, worst.bounded) == ("linf", 8 / 255, True)
    assert (worst.seconds, worst.forwards, worst.backwards) == (3.0, 30, 15)


def test_the_worst_case_names_the_settings_of_its_attacks_without_their_seeds(
    several_balls: ResultCard,
) -> None:
    attacks = dict(several_balls.worst_case().identity.settings)["attacks"]
    expected = {"name": "pgd-100", "norm": "linf", "eps": 8 / 255, "steps": 100}
    assert dict(attacks[0]) == expected


def test_another_ball_has_a_worst_case_of_its_own(several_balls: ResultCard) -> None:
    expected = (CLEAN == LABELS) & (BROKEN == LABELS) & (ATTACKED == LABELS)
    np.testing.assert_array_equal(several_balls.column("worst-case-l2").correct, expected)


def test_a_worst_case_that_is_kept_adds_nothing_to_itself(several_balls: ResultCard) -> None:
    worst = several_balls.worst_case()
    kept = several_balls.changed(columns=(*several_balls.columns, worst))
    assert kept.column("worst-case") is worst
    np.testing.assert_array_equal(kept.worst_case().correct, worst.correct)


def test_a_ball_without_attacks_has_no_worst_case() -> None:
    with one_line("worst case: got none; allowed: bounded l2 attacks, all of one radius"):
        card().column("worst-case-l2")


def test_a_column_that_is_not_there_is_one_line_with_the_nearest() -> None:
    with one_line("did you mean 'pgd-20'"):
        card().column("pgd-2")


# -- cards that are refused


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
    (
        replaced("columns", 1, "summary", "accuracy", by=0.5),
        "column 'pgd-20' summary accuracy: stored 0.5",
    ),
    (replaced("columns", 0, "summary", "groups", "tail", by=1.0), "summary groups tail"),
    (replaced("columns", 3, "distances", "float32", by="AACAPw=="), r"columns\[3\] distances: got"),
    # An array that contradicts another, or its own size.
    (
        replaced("columns", 1, "correct", "bits", by="AAA="),
        "column 'pgd-20' correct: does not agree",
    ),
    (
        replaced("columns", 1, "correct", "count", by=3),
        "column 'pgd-20': has not one entry for each of 10 images",
    ),
    # A field that is missing, or that is not of its type or within its bounds.
    (replaced("threat", by=None), "the field 'threat' is missing"),
    (
        replaced("columns", 1, "predictions", by=None),
        "columns.*: the field 'predictions' is missing",
    ),
    (replaced("data", "train_class_counts", by=[9, 3, 1]), "train_class_counts: got 3; allowed: 4"),
    # A field of a wrong type.
    (replaced("model", "answers", by=[[0.5, ""]]), r"model answers\[0\]\[1\]: got ''"),
    (replaced("model", by={}), "model name: the field 'name' is missing"),
    (replaced("model", "weights_sha256", by=[1]), "model weights_sha256: got"),
    (replaced("data", "name", by=5), "data name: got 5; allowed: a text"),
    (replaced("data", "notes", by=5), "data notes: got 5"),
    (replaced("data", "notes", by=[5]), r"data notes\[0\]: got 5"),
    (replaced("data", "class_names", by=[1.5, *"bcd"]), r"data class_names\[0\]: got 1.5"),
    (replaced("data", "test_sha256", by=5), "data test_sha256: got 5"),
    (replaced("data", "imbalance_ratio", by="x"), "data imbalance_ratio: got 'x'"),
    (replaced("data", "train_class_counts", by=[10**30, 1, 1, 1]), r"train_class_counts\[0\]"),
    (replaced("data", "train_class_counts", by=[-1, 1, 1, 1]), r"train_class_counts\[0\]: got -1"),
    (replaced("run", by={"config": 5}), "run config: got 5"),
    (replaced("run", by={"config": {"method": 5}}), "run config method: got 5"),
    (replaced("run", by={"config": {"method": "at", "model": 5}}), "run config model: got 5"),
    (replaced("run", by={"deviations": 5}), "run deviations: got 5"),
    (replaced("environment", by={"versions": 5}), "environment versions: got 5"),
    (replaced("probe", "clean_correct", by=10**30), "probe clean_correct: got"),
    (replaced("probe", "images", by=-1e308), "probe images: got"),
    # A field that contradicts another.
    (replaced("probe", "clean_correct", by=5), "probe clean_correct: got 5; allowed: at most 4"),
    (replaced("columns", by=[]), "columns: got none; allowed: at least one"),
    (replaced("data", "class_names", by=["a", "b"]), "train_class_counts: got 4"),
    (replaced("probe", by={"images": "many"}), "card.json: probe"),
    (
        replaced("columns", 1, "parameters", "steps", by=10),
        "attack 'pgd-20': got steps 10; allowed: 20, as its name",
    ),
    # Another kind of file, or another version.
    (replaced("schema", by=5), "schema: got 5; allowed: 1 to 4; update taet"),
    (replaced("kind", by="else"), "not a result card"),
    (lambda stored: stored["columns"].append(stored["columns"][1]), "allowed: each attack once"),
]


@pytest.mark.parametrize(("tamper", "message"), WRONG, ids=[message[:50] for _, message in WRONG])
def test_a_wrong_card_is_refused_in_one_line(
    tmp_path: Path, tamper: Callable[[Stored], None], message: str
) -> None:
    stored = card().to_json()
    tamper(stored)
    path = tmp_path / "card.json"
    path.write_text(json.dumps(stored))
    with one_line(message) as error:
        ResultCard.load(path)
    assert "card.json" in str(error.value)
    assert len(str(error.value)) < 600


NOTE = DataNote("in other words", "identical-images", repeated_in_training=Repeated(2, 4))


def test_a_card_keeps_what_code_asks_of_a_note(tmp_path: Path) -> None:
    described = card().data
    card(data={**described, "notes": ["of no kind", NOTE]}).save(tmp_path / "card.json")
    notes = ResultCard.load(tmp_path / "card.json").data["notes"]
    assert notes == ["of no kind", "in other words"]
    assert repeated_in_training(notes) == (2, 4)


def test_a_card_of_an_older_schema_stores_notes_as_sentences() -> None:
    older = ResultCard.load(OLDER)
    older.data["notes"] = [NOTE]
    assert older.to_json()["data"]["notes"] == ["in other words"]


OLDER = RESULTS / "digits-lt-factors-search" / "taet-1-0.03.json"  # of schema 3
RETIRED = ("flip_rate", "weak_classes", "roc_auc")


def test_a_card_stores_no_number_that_nothing_shows() -> None:
    for stored in card().to_json()["columns"]:
        assert not {*RETIRED} & {*stored["summary"], *stored}


@pytest.mark.parametrize(("number", "wrong"), [("flip_rate", 0.5), ("weak_classes", [0])])
def test_numbers_that_left_are_verified_in_older_cards(
    number: str, wrong: object, tmp_path: Path
) -> None:
    stored = json.loads(OLDER.read_text())
    assert stored["schema"] == 3
    del stored["sha256"]
    stored["columns"][1]["summary"][number] = wrong
    path = tmp_path / "card.json"
    path.write_text(json.dumps(stored))
    with one_line(f"summary {number}: stored"):
        ResultCard.load(path)


def test_the_area_under_the_roc_curve_of_an_older_card_follows_from_its_matrix(
    tmp_path: Path,
) -> None:
    path = tmp_path / "card.json"
    stored = json.loads(OLDER.read_text())
    del stored["sha256"]
    stored["columns"][0]["summary"]["roc_auc"] += 0.01
    path.write_text(json.dumps(stored))
    with one_line("summary roc_auc: stored"):
        ResultCard.load(path)


@pytest.mark.full
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
    assert schemas == {1, 2, 3, 4}


def test_what_a_later_version_adds_or_takes_away_is_kept_as_stored() -> None:
    stored = json.loads(STORED.read_text())
    stored["run"]["config"]["training"] |= {"of_another_version": 5, "epochs": 0}
    stored["model"]["later"] = [1]
    again = ResultCard.from_json({**stored, "later": 1}).to_json()
    assert (again["run"], again["model"]) == (stored["run"], stored["model"])


def of_seed(
    seed: int, steps: int = 20, eps: float = 8 / 255, sha256: str = "cd" * 32
) -> ResultCard:
    predictions = np.where(np.random.default_rng(seed).random(10) < 0.6, LABELS, (LABELS + 1) % 3)
    attack = column("pgd-20", predictions, eps=eps, parameters={"steps": steps, "seed": seed})
    data = {**card().data, "test_sha256": sha256}
    return card(seed=seed, threat={"norm": "linf", "eps": eps}, data=data, columns=(attack,))


def test_two_cards_are_compared_by_their_masks() -> None:
    first, second = of_seed(0), of_seed(1)
    masks = (first.column("pgd-20").correct, second.column("pgd-20").correct)
    expected = paired.difference(*masks, LABELS, 4)
    assert repr(compare_runs([first], [second], "pgd-20")) == repr(expected)


def test_the_difference_of_several_pairs_of_cards_is_the_mean_of_their_differences() -> None:
    first, second = [of_seed(0), of_seed(2)], [of_seed(1), of_seed(3)]
    several = compare_runs(first, second, "pgd-20")
    values = [
        compare_runs([one], [other], "pgd-20").value
        for one, other in zip(first, second, strict=True)
    ]
    assert several.runs == 2
    assert several.value == pytest.approx(sum(values) / 2)


@pytest.mark.parametrize(
    ("second", "column", "message"),
    [
        ([of_seed(1, sha256="ab" * 32)], "pgd-20", "got test images 'cdcd.* and 'abab"),
        ([of_seed(1, steps=10)], "pgd-20", "'pgd-20' was measured with steps 20 and 10"),
        ([of_seed(1, steps=10)], "worst-case", "'worst-case' was measured with attacks"),
        ([of_seed(1), of_seed(2)], "pgd-20", "got 1 and 2 cards"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    second: list[ResultCard], column: str, message: str
) -> None:
    with one_line(message):
        compare_runs([of_seed(0)], second, column)
