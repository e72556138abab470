"""The page says what the cards say, and what is missing."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

import figure
import measured
import page
import plan
import questions
import run
from taet import methods, protocols
from taet.card.card import ResultCard
from taet.card.column import Column
from taet.errors import UserError
from taet.settings import override

SVG = "{http://www.w3.org/2000/svg}"
LABELS = np.repeat(np.arange(10), 20)
ROWS = {"at-bsl": 0.40, "at": 0.15, "trades": 0.40, "mart": 0.35}


def as_planned(one: plan.BenchmarkRun) -> dict[str, Any]:
    """The part of a card that says how its model was trained, as the plan has it."""
    start = protocols.start("taet", one.row.method)
    start = start.replace(settings=start.settings or methods.find(one.row.method).Config())
    return {"config": override(start, one.settings()).model_dump(mode="json")}


def card(
    accuracy: float,
    one: plan.BenchmarkRun,
    test_images: str = "ab" * 32,
    attacks: tuple[str, ...] = plan.COLUMNS,
) -> ResultCard:
    """A card whose every class has this accuracy under quick, up to a little luck."""
    draws = np.random.default_rng([one.replicate, int(1000 * accuracy)])
    columns = []
    shares = {"clean": 1.5, "pgd-20": 1.1, "quick": 1.0, "autoattack": 0.9}
    for attack in attacks:
        share = shares[attack]
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


def found(replicates: range = range(1, 4)) -> measured.Measured:
    data_set = plan.protocol().sets["cifar10-lt-ir10"]
    return measured.measured(data_set, dict.fromkeys(ROWS, 0), "small", replicates)


def scored(scores: dict[str, list[float]], set_name: str = "cifar10-lt-ir10") -> measured.Measured:
    """A set with these balanced accuracies by row and replicate, and no images."""
    one = measured.Measured(plan.protocol().sets[set_name])
    for row, values in scores.items():
        by_replicate = dict(enumerate(values, 1))
        one.correct[row] = dict.fromkeys(by_replicate, np.ones(3, bool))
        one.scores.setdefault(("quick", "balanced"), {})[row] = by_replicate
    one.labels = np.array([0, 1, 2])
    return one


@pytest.mark.usefixtures("cards")
def test_numbers_are_the_means_of_the_cards() -> None:
    assert found().mean("at", "quick", "balanced") == pytest.approx(0.15, abs=0.02)
    assert sorted(found().correct["at"]) == [1, 2, 3]


@pytest.mark.usefixtures("cards")
def test_a_difference_has_the_interval_of_the_formula() -> None:
    compared = measured.comparisons(found())
    assert set(compared) == set(ROWS) - {"at-bsl"}
    assert compared["at"].difference == pytest.approx(-0.25, abs=0.02)
    assert compared["at"].significant
    assert not compared["trades"].significant


@pytest.mark.usefixtures("cards")
def test_the_rows_stand_in_the_order_of_their_accuracy() -> None:
    lines = [line for line in page.set_table(found())[2:] if line.startswith("|")]
    assert lines[-1].startswith("| AT |")


@pytest.mark.usefixtures("cards")
def test_what_is_missing_is_the_first_line() -> None:
    text = page.page(page.evidence()).splitlines()
    assert text[3].startswith("**This benchmark is not finished.**")
    assert "12 of 285 runs of replicates 1 to 3" in text[3]


@pytest.mark.usefixtures("cards")
def test_the_first_line_says_what_was_spent_and_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = tmp_path / "core-seconds.csv"
    images = {"ir10": 20431, "ir50": 13996, "cifar100": 19573, "gtsrb": 31349, "ham10000": 5613}
    run_of = {name: 90 * count for name, count in images.items()} | {"gtsrb": 45 * images["gtsrb"]}
    trained = run_of["ir50"] // 100  # core-seconds: 0.01 for each pass of an image
    lines = [f"small/tuning/at-setting1,train,{trained}", "small/tuning/at-setting1,evaluate,900"]
    ledger.write_text("\n".join(["run,step,core_seconds", *lines]) + "\n")
    monkeypatch.setattr(run, "LEDGER", ledger)
    # 76 tuning runs, 30 variance components, 19 rows in three replicates but for the 12 runs that
    # are there, and 29 times half an hour of AutoAttack
    passes = (76 + 30) * run_of["ir50"] + 57 * sum(run_of.values()) - 12 * run_of["ir10"]
    left = 0.01 * passes + (76 + 30 + 285 - 12) * 900 + 29 * 1800
    first = page.what_is_missing(page.chosen_settings("small"))
    spent = (trained + 900) / 3600
    assert first.endswith(
        f"They took {spent:.1f} hours of one processor core; what is missing takes about "
        f"{left / 3600:.0f} more."
    )


@pytest.mark.usefixtures("cards")
def test_a_question_without_its_runs_is_not_answered() -> None:
    assert page.answers(page.evidence())[3] == "**Not answered yet:** its runs are missing."


@pytest.mark.usefixtures("cards")
def test_rows_beside_at_bsl_are_named_when_they_have_replicates() -> None:
    assert questions.class_priors([found()]) == [
        "CIFAR-10-LT, ratio 10: significantly above AT-BSL: none; below: AT."
    ]


def test_a_term_is_the_difference_of_the_rows_with_and_without_it() -> None:
    one = scored({"clean-stage-bcl": [0.30] * 3, "harl-bcl": [0.275] * 3})
    assert questions.terms_of(one) == [
        "CIFAR-10-LT, ratio 10 (points, exploratory): clean stage +2.5."
    ]


@pytest.mark.usefixtures("cards")
def test_a_collapsed_row_gets_no_interval() -> None:
    one = next(plan.main_runs("small", {"mart": 0}, ["mart"], ["cifar10-lt-ir10"], [2]))
    card(0.07, one).save(run.card_path(one))
    run.load.cache_clear()
    assert "mart" not in measured.comparisons(found())


def test_the_committed_page_is_that_of_the_committed_cards() -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.page(page.evidence())


@pytest.mark.usefixtures("cards")
def test_a_row_that_diverged_in_a_replicate_says_so_and_has_no_interval() -> None:
    for one in plan.main_runs("small", {"at": 0}, ["at"], ["cifar10-lt-ir10"], [2]):
        run.card_path(one).unlink()
        run.divergence_path(one).write_text("{}")
    of_set = found()
    assert "at" not in measured.comparisons(of_set)
    (line,) = [text for text in page.set_table(of_set) if text.startswith("| AT |")]
    assert line.startswith("| AT | 2, 1 diverged |")
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
    one = scored({"at": [0.3, 0.1], "at-bsl": [0.25]})
    assert one.score("at") == 0.3


def test_one_replicate_says_nothing_about_a_term() -> None:
    assert questions.terms_of(scored({"clean-stage-bcl": [0.30], "harl-bcl": [0.275]})) == []


def test_a_term_is_compared_between_tuning_runs_of_one_learning_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scores = {("reat", 0): 0.30, ("at-bsl", 0): 0.28, ("reat", 2): 0.31}
    monkeypatch.setattr(
        questions, "tuning_score", lambda one: scores.get((one.row.name, one.choice))
    )
    assert questions.tuned_terms()[2:] == ["| TAIL: REAT, minus AT-BSL | +2.0 | – |"]


def test_the_noise_of_a_run_is_what_rows_and_replicates_leave() -> None:
    # residuals of rows and replicates: +-0.005 in every cell, with one degree of freedom
    noise, _ = measured.noise_of(scored({"at-bsl": [0.30, 0.31], "at": [0.20, 0.23]}))
    assert noise.degrees == 1
    assert noise.deviation == pytest.approx(0.01)
    assert noise.by_row == pytest.approx((0.01, 0.01))


@pytest.mark.usefixtures("cards")
def test_the_noise_stands_under_the_table_of_a_set() -> None:
    noise, _ = measured.noise_of(found())
    assert page.set_table(found())[-1] == (
        f"The noise of a single run is s = {100 * noise.deviation:.2f} points, with 6 degrees of "
        "freedom."
    )


def test_the_two_cuts_of_cifar10_count_half_each_in_a_mean_rank() -> None:
    first = scored({"at": [0.3], "at-bsl": [0.2]}, "cifar10-lt-ir10")
    second = scored({"at": [0.3], "at-bsl": [0.2]}, "cifar10-lt-ir50")
    third = scored({"at": [0.2], "at-bsl": [0.3]}, "gtsrb")
    found_ranks = measured.ranks([first, second, third])
    assert found_ranks["at"] == measured.Rank(mean=1.5, highest=1.0, lowest=2.0)


def test_rows_are_not_ranked_while_a_set_lacks_one() -> None:
    first = scored({"at": [0.3], "at-bsl": [0.2]}, "cifar10-lt-ir10")
    assert measured.ranks([first, scored({"at": [0.2]}, "gtsrb")]) == {}


def test_a_row_that_diverged_has_the_last_rank() -> None:
    one = scored({"at": [0.3], "at-bsl": [0.2]})
    one.diverged["at"] = [2]
    assert measured.ranks([one])["at"].lowest == 2.0


@pytest.mark.usefixtures("cards")
def test_autoattack_is_compared_once_every_row_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found().attack == "quick"
    few = {name: plan.protocol().rows[name] for name in ROWS}
    monkeypatch.setattr(
        measured, "protocol", lambda: plan.Protocol({}, {}, (), {}, plan.protocol().sets, few)
    )
    planned = [
        *plan.main_runs("small", dict.fromkeys(ROWS, 0), ROWS, ["cifar10-lt-ir10"], [1, 2, 3])
    ]
    assert measured.compared_attack(planned) == "quick"
    for one in planned:
        card(ROWS[one.row.name], one, attacks=plan.AUTOATTACK).save(run.card_path(one))
    assert measured.compared_attack(planned) == "autoattack"


def test_published_differences_are_those_of_the_papers_tables() -> None:
    taet, reat = questions.published_differences()[2:]
    assert "| +5.5 |" in taet  # 25.30 and 19.79
    assert "| +0.9 |" in reat  # 32.08 and 31.15


def test_luck_names_the_largest_and_the_smallest_deviation() -> None:
    found_components = [
        questions.Component("at", "subset", [0.20, 0.21, 0.22]),
        questions.Component("at", "class-order", [0.20, 0.24, 0.28]),
    ]
    (text,) = questions.luck(found_components)
    assert text.startswith(
        "The largest standard deviation is 4.0 points (class-order of at), the smallest 1.0 "
        "(subset of at)"
    )


def test_the_order_at_1100_passes_is_compared_row_by_row() -> None:
    small = scored({"at": [0.1], "at-bsl": [0.2], "reat": [0.3], "clean-stage-bcl": [0.4]})
    small.scores["clean", "balanced"] = {}
    anchors = {"at": 0.5, "at-bsl": 0.6, "reat": 0.7, "clean-stage-bcl": 0.8}
    text = questions.orders([small], {"cifar10-lt-ir10": anchors}, {})
    assert text == [
        "CIFAR-10-LT, ratio 10, against 1,100 passes: Spearman's rank correlation 1.00 over 4 rows."
    ]


@pytest.mark.usefixtures("cards")
def test_the_picture_has_a_mark_for_mean_and_tail_of_every_row(tmp_path: Path) -> None:
    path = tmp_path / "picture.svg"
    figure.draw([found(), scored({}, "gtsrb")], path)
    drawing = ElementTree.parse(path)
    for set_name, rows in (("cifar10-lt-ir10", len(ROWS)), ("gtsrb", 0)):
        for group in ("balanced", "tail"):
            marks = drawing.findall(f".//*[@id='{set_name}-{group}']//{SVG}use")
            assert len(marks) == rows


@pytest.mark.full
@pytest.mark.usefixtures("cards")
def test_the_picture_of_the_same_cards_is_the_same_file(tmp_path: Path) -> None:
    paths = tmp_path / "first.svg", tmp_path / "second.svg"
    for path in paths:
        figure.draw([found(), found()], path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
