"""Results: every number follows from the masks of the cards."""

import math

import numpy as np
import pandas as pd
import pytest

import taet
from taet.card.card import ResultCard
from taet.card.comparison import compare_runs
from taet.errors import UserError
from taet.formatting import percent
from taet.metrics import intervals
from taet.report import tables
from taet.report.scores import COLUMNS, GROUPS
from tests.report.made import ATTACKS, MakeCard, right


def test_every_number_of_the_table_follows_from_the_masks(make_card: MakeCard) -> None:
    cards = [make_card("at", 0), make_card("at", 1), make_card("taet", 0)]
    table = taet.results(cards).table()
    assert tuple(table.columns) == COLUMNS
    assert len(table) == 3 * len(ATTACKS) * (len(GROUPS) + 10)
    assert not table.duplicated(["row", "seed", "attack", "group"]).any()
    for line in table.itertuples():
        card = cards[int(line.card.split()[1]) - 1]
        mask, labels = card.column(line.attack).correct, card.labels
        recalls = np.array([mask[labels == c].mean() for c in range(10)])
        order = np.argsort([-count for count in card.data["train_class_counts"]], kind="stable")
        of = {"balanced": order, "head": order[:3], "body": order[3:6], "tail": order[6:]}
        if line.group in of:
            counts = [(mask[labels == c].sum(), (labels == c).sum()) for c in of[line.group]]
            assert (line.n, str(line.correct)) == (sum(n for _, n in counts), "<NA>")
            expected = (
                recalls[of[line.group]].mean(),
                *intervals.balanced_interval(*zip(*counts, strict=True)),
            )
        else:
            groups = [*card.class_names, "plain"]
            of_class = int(recalls.argmin()) if line.group == "worst" else groups.index(line.group)
            keep = (labels == of_class) | (line.group == "plain")
            assert (line.n, line.correct) == (keep.sum(), mask[keep].sum())
            expected = (
                mask[keep].mean(),
                *map(float, intervals.wilson_interval(mask[keep].sum(), keep.sum())),
            )
            if line.group == "worst":  # the lowest ends of ten intervals that all hold with 95 %
                ends = [
                    intervals.exact_interval(mask[labels == c].sum(), sum(labels == c), 0.995)
                    for c in range(10)
                ]
                expected = expected[0], *(float(min(end)) for end in zip(*ends, strict=True))
        assert (line.accuracy, line.low, line.high) == pytest.approx(expected, abs=1e-12)
        assert (line.method, line.seed, line.protocol) == (card.method, card.seed, "taet")
        assert (line.data, line.model, line.imbalance_ratio) == (
            "digits-lt",
            "small",
            pytest.approx(10),
        )


def test_a_score_is_the_mean_over_seeds_with_its_standard_error(make_card: MakeCard) -> None:
    cards = [make_card("taet", seed) for seed in range(3)]
    score = taet.results(cards).scores("balanced").set_index("attack").loc["pgd-20"]
    values = [card.summary("pgd-20").balanced for card in cards]
    assert score["accuracy"] == pytest.approx(np.mean(values))
    assert score["error"] == pytest.approx(np.std(values, ddof=1) / math.sqrt(3))
    assert score["seeds"] == 3


def test_the_interval_of_a_score_covers_seeds_and_images(make_card: MakeCard) -> None:
    cards = [make_card("taet", seed) for seed in range(3)]
    score = taet.results(cards).scores("balanced").set_index("attack").loc["pgd-20"]
    values = [card.summary("pgd-20").balanced for card in cards]
    of_images = np.mean([card.summary("pgd-20").balanced_interval for card in cards], 0)
    of_seeds = 4.302653 * np.std(values, ddof=1) / math.sqrt(3)  # Student's t, two degrees
    below, above = np.hypot(of_images - np.mean(values), of_seeds)
    assert score["accuracy"] - score["low"] == pytest.approx(below)
    assert score["high"] - score["accuracy"] == pytest.approx(above)


def test_a_score_of_one_seed_has_the_interval_of_its_card(make_card: MakeCard) -> None:
    score = taet.results(make_card("at")).scores("balanced").set_index("attack").loc["clean"]
    expected = make_card("at").summary("clean").balanced_interval
    assert (score["low"], score["high"]) == pytest.approx(expected)
    assert math.isnan(score["error"])


def clean_score(make_card: MakeCard, *correct: float) -> pd.Series:
    """The clean score of seeds that get these shares of the images right."""
    cards = [right(make_card("taet", seed), share, "clean") for seed, share in enumerate(correct)]
    return taet.results(cards).scores("balanced").set_index("attack").loc["clean"]


def test_seeds_that_agree_leave_the_error_of_the_test_images(make_card: MakeCard) -> None:
    score = clean_score(make_card, 1, 1)
    assert score["low"] < 1 == score["high"]


def test_an_interval_stays_within_the_range_of_a_share(make_card: MakeCard) -> None:
    score = clean_score(make_card, 0, 1)
    assert (score["low"], score["high"]) == (0, 1)


def test_predictions_have_a_column_for_each_row_seed_and_attack(make_card: MakeCard) -> None:
    cards = [make_card("at", seed) for seed in (0, 1)]
    found = taet.results(cards)
    assert found.predictions.shape == (368, 2 * len(ATTACKS))
    assert (found.predictions["at", 1, "pgd-20"] == cards[1].column("pgd-20").predictions).all()
    recalls = found.predictions.eq(found.labels, axis=0).groupby(found.labels).mean().mean()
    assert recalls["at", 0, "fgsm"] == pytest.approx(cards[0].summary("fgsm").balanced)


@pytest.fixture
def pairs(make_card: MakeCard) -> tuple[list[ResultCard], list[ResultCard]]:
    """Three seeds of two methods."""
    taet_, at = ([make_card(method, seed) for seed in range(3)] for method in ("taet", "at"))
    return taet_, at


def test_compare_is_the_paired_difference_of_the_cards(
    pairs: tuple[list[ResultCard], list[ResultCard]],
) -> None:
    line = taet.results(*pairs).compare("taet", "at").set_index("attack").loc["autoattack"]
    expected = compare_runs(*pairs, "autoattack")
    numbers = (expected.value, expected.low, expected.high, expected.p)
    assert tuple(line[["difference", "low", "high", "p"]]) == pytest.approx(numbers)
    assert (line["seeds"], line["significant"]) == (3, expected.significant)


def test_a_difference_the_other_way_round_is_its_negative(
    pairs: tuple[list[ResultCard], list[ResultCard]],
) -> None:
    expected = compare_runs(*pairs, "autoattack")
    line = taet.results(*pairs).compare("at", "taet", "autoattack").iloc[0]
    assert (line["difference"], line["low"]) == pytest.approx((-expected.value, -expected.high))


def test_a_difference_of_the_tail_is_that_of_its_recalls(
    pairs: tuple[list[ResultCard], list[ResultCard]],
) -> None:
    line = taet.results(*pairs).compare("taet", "at", "clean", group="tail").iloc[0]
    recalls = [
        np.mean([card.summary("clean").per_class[6:].mean() for card in side]) for side in pairs
    ]
    assert line["difference"] == pytest.approx(recalls[0] - recalls[1])


@pytest.mark.parametrize(
    ("names", "group", "message"),
    [
        (("ta", "at"), "tail", "unknown row 'ta'"),
        (("taet", "at", "pgd"), "tail", "unknown attack 'pgd'"),
        (("taet", "at"), "tial", "unknown group 'tial'"),
    ],
)
def test_an_unknown_name_is_refused(
    pairs: tuple[list[ResultCard], list[ResultCard]],
    names: tuple[str, ...],
    group: str,
    message: str,
) -> None:
    with pytest.raises(UserError, match=message):
        taet.results(*pairs).compare(*names, group=group)


def test_a_complete_suite_is_the_strongest_attack(make_card: MakeCard) -> None:
    assert taet.results(make_card("at")).strongest == "autoattack"


def short(card: ResultCard) -> ResultCard:
    """The card with clean images, FGSM and PGD-20 alone."""
    return card.changed(columns=card.columns[:3])


def test_of_attacks_that_leave_the_same_the_one_with_more_steps_is_the_strongest(
    make_card: MakeCard,
) -> None:
    card = short(right(make_card("at"), 0.3, "fgsm", "pgd-20"))
    assert taet.results(card).strongest == "pgd-20"


def test_without_a_suite_the_lowest_accuracy_is_that_of_the_strongest_attack(
    make_card: MakeCard,
) -> None:
    card = short(right(right(make_card("at"), 0.3, "pgd-20"), 0.2, "fgsm"))
    assert taet.results(card).strongest == "fgsm"


def test_an_attack_that_most_rows_have_is_the_strongest(make_card: MakeCard) -> None:
    others = [short(make_card(method)) for method in ("reat", "taet")]
    assert taet.results(make_card("at"), *others).strongest == "pgd-20"


def test_without_an_attack_in_the_ball_of_the_card_one_of_another_ball_is_the_strongest(
    make_card: MakeCard,
) -> None:
    elsewhere = make_card("at").changed(threat={"norm": "linf", "eps": 0.5})
    assert taet.results(elsewhere).strongest == "autoattack"


def test_without_a_common_seed_a_single_run_is_paired_with_each_of_the_others(
    make_card: MakeCard,
) -> None:
    one, others = make_card("at", 0), [make_card("taet", seed) for seed in (1, 2, 3)]
    found = taet.results(one, others).difference("at", "taet", "pgd-20")
    expected = compare_runs([one] * 3, others, "pgd-20")
    assert found is not None
    assert (found.value, found.low, found.runs) == (expected.value, expected.low, 3)


def test_two_runs_without_a_common_seed_are_not_paired_with_three(make_card: MakeCard) -> None:
    two = [make_card("at", seed) for seed in (0, 1)]
    three = [make_card("taet", seed) for seed in (2, 3, 4)]
    assert taet.results(two, three).compare("at", "taet").empty


def test_a_group_of_classes_without_images_is_no_comparison(make_card: MakeCard) -> None:
    bare = [
        one.changed(data=one.data | {"train_class_counts": None})
        for one in map(make_card, ("at", "taet"))
    ]
    with pytest.raises(
        UserError, match="group tail: it has no test images, or the training counts are not known"
    ):
        taet.results(bare).compare("at", "taet", "clean", group="tail")


def with_pgd(card: ResultCard, **parameters: object) -> ResultCard:
    """The card with other settings of its PGD-20."""
    columns = [
        column.changed(parameters={"steps": 20, **parameters})
        if column.name == "pgd-20"
        else column
        for column in card.columns
    ]
    return card.changed(columns=tuple(columns))


def test_attacks_of_one_name_show_the_settings_in_which_they_differ(make_card: MakeCard) -> None:
    sizes = (("at", 1 / 255), ("taet", 2 / 255))
    found = taet.results([with_pgd(make_card(name), step_size=size) for name, size in sizes])
    named = [f"pgd-20 (step_size {size}/255)" for size in (1, 2)]
    assert [name for name in found.columns if "pgd" in name] == named
    assert found.compare("at", "taet", named[0]).empty


def test_attacks_whose_plug_in_was_edited_are_told_apart(make_card: MakeCard) -> None:
    cards = [
        with_pgd(make_card(name), step_size=1 / 255, source_sha256=digit * 64)
        for name, digit in (("at", "a"), ("taet", "b"))
    ]
    named = {"pgd-20 (code aaaaaaaa)", "pgd-20 (code bbbbbbbb)"}
    assert named < {*taet.results(cards).columns}


def test_a_printed_table_shows_all_columns_also_in_a_narrow_terminal(
    make_card: MakeCard,
) -> None:
    found = taet.results(make_card("at"))
    for frame in (found.table(), found.scores(), found.table().head(3)):
        with pd.option_context("display.max_columns", 4, "display.width", 80):
            printed = repr(frame)
        words = {word for line in printed.splitlines() for word in line.split()}
        assert {*frame.columns} <= words
        assert max(map(len, printed.splitlines())) <= 80


def test_several_test_sets_are_separate_tables(make_card: MakeCard) -> None:
    card = make_card("at")
    found = taet.results(
        card, make_card("taet").changed(data={**card.data, "test_sha256": "cd" * 32})
    )
    assert [one.rows for one in found.by_test_set()] == [("at",), ("taet",)]
    hashes = found.table().groupby("row")["test_sha256"].unique().explode().to_dict()
    assert hashes == {"at": card.data["test_sha256"][:8], "taet": "cdcdcdcd"}
    with pytest.raises(
        UserError,
        match=r"got 2 test sets: digits-lt \(1 cards\), digits-lt \(1 cards\); allowed: one",
    ):
        found.compare("at", "taet")


@pytest.fixture
def replicates(make_card: MakeCard) -> list[ResultCard]:
    """Two methods with two seeds each; in the second seed the classes are rare the other way
    round."""
    cards = []
    for method in ("at", "taet"):
        for seed in (0, 1):
            card = make_card(method, seed)
            counts = card.data["train_class_counts"]
            ordered = counts[::-1] if seed else counts
            cards.append(card.changed(data=dict(card.data, train_class_counts=ordered)))
    return cards


def test_replicates_with_other_rare_classes_are_one_row_of_one_table(
    replicates: list[ResultCard],
) -> None:
    found = taet.results(replicates)
    assert found.rows == ("at", "taet")
    assert len(found.by_test_set()) == 1
    assert found.train_class_counts is None


def test_the_tail_of_replicates_is_the_mean_of_each_own_tail(replicates: list[ResultCard]) -> None:
    scores = taet.results(replicates).scores("tail").set_index(["row", "attack"])
    first, second = (card.summary("clean") for card in replicates[:2])
    tails = first.per_class[6:].mean(), second.per_class[:4].mean()
    assert scores.loc[("at", "clean"), "accuracy"] == pytest.approx(np.mean(tails))


def test_replicates_have_no_difference_of_tails_that_are_other_classes(
    replicates: list[ResultCard],
) -> None:
    found = taet.results(replicates)
    assert found.difference("at", "taet", "clean", "tail") is None
    assert found.difference("at", "taet", "clean").runs == 2


def test_the_classes_of_replicates_have_no_number_of_training_images(
    replicates: list[ResultCard],
) -> None:
    for table in tables.classes(taet.results(replicates)):
        assert "training images" not in {head.text for head in table.columns}


def test_a_notebook_shows_balanced_accuracy_of_rows_under_attacks(make_card: MakeCard) -> None:
    card = make_card("at")
    names = dict(card.data, class_names=["<b>", *card.data["class_names"][1:]])
    shown = taet.results(card.changed(data=names, method="<at>"), make_card("taet"))._repr_html_()
    assert "&lt;at&gt;" in shown
    assert percent(make_card("taet").summary("autoattack").balanced) in shown
    assert shown.index("clean") < shown.index("fgsm") < shown.index("autoattack")
