"""The page says what the cards say, and what is missing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import page
import plan
import run
from taet import methods, protocols
from taet.card.card import ResultCard
from taet.card.column import Column
from taet.errors import UserError
from taet.settings import override

LABELS = np.repeat(np.arange(10), 20)
ROWS = {"at-bsl": 0.40, "at": 0.15, "trades": 0.40, "mart": 0.35}


def as_planned(one: plan.BenchmarkRun) -> dict[str, Any]:
    """The part of a card that says how its model was trained, as the plan has it."""
    start = protocols.start("taet", one.row.method)
    start = start.replace(settings=start.settings or methods.find(one.row.method).Config())
    return {"config": override(start, one.settings()).model_dump(mode="json")}


def card(accuracy: float, one: plan.BenchmarkRun, test_images: str = "ab" * 32) -> ResultCard:
    """A card whose every class has this accuracy under quick, up to a little luck."""
    draws = np.random.default_rng([one.replicate, int(1000 * accuracy)])
    columns = []
    for attack, share in (("clean", 1.5), ("pgd-20", 1.1), ("quick", 1.0)):
        right = np.tile(np.arange(20) < round(20 * accuracy * share), 10)
        right ^= draws.random(len(right)) < 0.01
        ball = {"norm": None, "eps": None, "bounded": False}
        if attack != "clean":
            ball = {"norm": "linf", "eps": 8 / 255, "bounded": True}
        wrong = (LABELS + 1) % 10
        answers = np.where(right, LABELS, wrong)
        columns.append(
            Column(name=attack, correct=right, predictions=answers, parameters={}, **ball)
        )
    return ResultCard(
        method=one.row.method,
        title="AT",
        protocol="taet",
        seed=one.replicate,
        batch_size=250,
        labels=LABELS,
        columns=tuple(columns),
        threat={"norm": "linf", "eps": 8 / 255},
        model={"name": "resnet8", "weights_sha256": "0" * 64, "selection": "last", "epoch": 30},
        data={
            "name": "cifar10-lt",
            "class_names": [str(label) for label in range(10)],
            "test_sha256": test_images,
            "train_class_counts": [*range(100, 0, -10)],
            "imbalance_ratio": 10.0,
        },
        created="2026-01-01T00:00:00+00:00",
        command="taet evaluate x",
        run=as_planned(one),
    )


@pytest.fixture
def cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three replicates of four rows on one set, as the benchmark's command leaves them."""
    monkeypatch.setattr(run, "RESULTS", tmp_path)
    monkeypatch.setattr(page, "chosen_settings", lambda _: dict.fromkeys(plan.protocol().rows, 0))
    for one in plan.main_runs(
        "small", dict.fromkeys(ROWS, 0), ROWS, ["cifar10-lt-ir10"], [1, 2, 3]
    ):
        path = run.card_path(one)
        path.parent.mkdir(parents=True, exist_ok=True)
        card(ROWS[one.row.name], one).save(path)
    return tmp_path


def found(replicates: range = range(1, 4)) -> page.Measured:
    return page.measured(plan.protocol().sets["cifar10-lt-ir10"], replicates)


@pytest.mark.usefixtures("cards")
def test_numbers_are_the_means_of_the_cards() -> None:
    assert found().mean("at", "quick", "balanced") == pytest.approx(0.15, abs=0.02)
    assert sorted(found().correct["at"]) == [1, 2, 3]


@pytest.mark.usefixtures("cards")
def test_a_difference_has_the_interval_of_the_formula() -> None:
    compared = page.comparisons(found(), range(1, 4))
    assert set(compared) == set(ROWS) - {"at-bsl"}
    assert compared["at"].difference == pytest.approx(-0.25, abs=0.02)
    assert compared["at"].significant
    assert not compared["trades"].significant


@pytest.mark.usefixtures("cards")
def test_the_rows_stand_in_the_order_of_their_accuracy() -> None:
    lines = page.set_table(found(), range(1, 4))[2:]
    assert [line.split(" | ")[0].strip("| ") for line in lines][-1] == "at"


@pytest.mark.usefixtures("cards")
def test_what_is_missing_is_the_first_line() -> None:
    text = page.page().splitlines()
    assert text[3].startswith("**This benchmark is not finished.**")
    assert "12 of 285 runs of replicates 1 to 3" in text[3]


@pytest.mark.usefixtures("cards")
def test_a_question_without_its_runs_is_not_answered() -> None:
    assert page.answer(4, [found()], range(1, 4)) == "**Not answered yet:** its runs are missing."


@pytest.mark.usefixtures("cards")
def test_rows_beside_at_bsl_are_named_when_they_have_replicates() -> None:
    text = page.answer(1, [found()], range(1, 4))
    assert text == "CIFAR-10-LT, ratio 10: significantly above AT-BSL: none; below: at."


def test_a_term_is_the_difference_of_the_rows_with_and_without_it() -> None:
    one = found(range(0))
    for row, score in (("clean-stage-bcl", 0.30), ("harl-bcl", 0.275)):
        one.correct[row] = dict.fromkeys((1, 2, 3), np.ones(3, bool))
        one.scores.setdefault(page.SCORE, {})[row] = dict.fromkeys((1, 2, 3), score)
    assert page.terms(one) == ["CIFAR-10-LT, ratio 10 (points, exploratory): clean stage +2.5."]


@pytest.mark.usefixtures("cards")
def test_a_collapsed_row_gets_no_interval() -> None:
    one = next(plan.main_runs("small", {"mart": 0}, ["mart"], ["cifar10-lt-ir10"], [2]))
    card(0.07, one).save(run.card_path(one))
    run.load.cache_clear()
    assert "mart" not in page.comparisons(found(), range(1, 4))


def test_the_committed_page_is_that_of_the_committed_cards() -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.page()


@pytest.mark.usefixtures("cards")
def test_a_row_that_diverged_in_a_replicate_says_so_and_has_no_interval() -> None:
    for one in plan.main_runs("small", {"at": 0}, ["at"], ["cifar10-lt-ir10"], [2]):
        run.card_path(one).unlink()
        run.divergence_path(one).write_text("{}")
    of_set = found()
    assert "at" not in page.comparisons(of_set, range(1, 4))
    (line,) = [text for text in page.set_table(of_set, range(1, 4)) if text.startswith("| at |")]
    assert line.startswith("| at | 2, 1 diverged |")
    assert line.endswith("| – |")


@pytest.mark.usefixtures("cards")
def test_a_card_of_other_settings_than_the_plan_has_is_refused() -> None:
    one = next(plan.main_runs("small", {"at": 0}, ["at"], ["cifar10-lt-ir10"], [2]))
    other = next(plan.main_runs("small", {"at": 3}, ["at"], ["cifar10-lt-ir10"], [2]))
    card(0.2, other).save(run.card_path(one))
    run.load.cache_clear()
    with pytest.raises(UserError, match=r"at-replicate2.*: training\.lr: got 0\.2; planned: 0\.1"):
        found()


@pytest.mark.usefixtures("cards")
def test_a_card_on_other_test_images_is_refused() -> None:
    one = next(plan.main_runs("small", {"at": 0}, ["at"], ["cifar10-lt-ir10"], [2]))
    card(0.2, one, test_images="cd" * 32).save(run.card_path(one))
    run.load.cache_clear()
    with pytest.raises(UserError, match="other test images"):
        found()


def test_means_are_over_the_replicates_that_all_rows_have() -> None:
    one = found(range(0))
    one.scores[page.SCORE] = {"at": {1: 0.3, 2: 0.1}, "at-bsl": {1: 0.25}}
    one.correct = {"at": dict.fromkeys((1, 2), np.ones(3, bool)), "at-bsl": {1: np.ones(3, bool)}}
    assert one.mean("at", *page.SCORE) == 0.3


def test_one_replicate_says_nothing_about_a_term() -> None:
    one = found(range(0))
    for row, score in (("clean-stage-bcl", 0.30), ("harl-bcl", 0.275)):
        one.correct[row] = {1: np.ones(3, bool)}
        one.scores.setdefault(page.SCORE, {})[row] = {1: score}
    assert page.terms(one) == []


def test_a_term_is_compared_between_tuning_runs_of_one_learning_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scores = {("reat", 0): 0.30, ("at-bsl", 0): 0.28, ("reat", 2): 0.31}
    monkeypatch.setattr(page, "tuning_score", lambda one: scores.get((one.row.name, one.choice)))
    assert page.tuned_terms()[2:] == ["| TAIL: REAT, minus AT-BSL | +2.0 | – |"]
