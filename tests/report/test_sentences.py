"""The sentences of the report: what a reader must know first, and which row is best."""

import numpy as np
import pytest

import taet
from taet.card.card import ResultCard
from taet.report.sentences import in_plain_words, lead, warnings
from tests.report.made import ATTACKS, PROBE, MakeCard, right


def test_where_all_rows_are_at_chance_none_is_called_the_best(make_card: MakeCard) -> None:
    cards = [
        right(make_card(method), share, *ATTACKS)
        for method, share in (("at", 0.05), ("taet", 0.06))
    ]
    sentence = lead(taet.results(cards))
    assert sentence.startswith("On clean images, no row is shown to be better than chance: ")
    assert "highest" not in sentence


def test_a_row_at_chance_is_named_before_the_best(make_card: MakeCard) -> None:
    sentence = lead(taet.results(right(make_card("at"), 0.05, *ATTACKS), make_card("taet")))
    assert sentence.startswith("On clean images, at is not shown to be better than chance: ")
    assert "taet has the highest" in sentence


def test_classes_without_test_images_are_named_before_the_best(make_card: MakeCard) -> None:
    cards = []
    for method in ("at", "taet"):
        card = make_card(method)
        data = dict(card.data, class_names=[*card.class_names, "ten", "eleven"])
        data["train_class_counts"] = [*data["train_class_counts"], 5, 4]
        cards.append(card.changed(data=data))
    assert lead(taet.results(cards)).startswith(
        "ten and eleven have no test images: all numbers are about the other 10 of 12 classes. "
    )


def test_an_accuracy_under_attack_that_may_be_chance_says_so(make_card: MakeCard) -> None:
    cards = [right(make_card(method), 0.1, *ATTACKS[1:]) for method in ("at", "taet")]
    assert lead(taet.results(cards)).startswith(
        "Under autoattack-10, even the best row is not shown to be above chance (10.0 %): "
    )
    assert lead(taet.results(cards[0])).startswith(
        "Under autoattack-10, at is not shown to be above chance (10.0 %): at keeps a balanced"
    )


def test_rows_without_the_strongest_attack_are_named(make_card: MakeCard) -> None:
    card = make_card("taet")
    clean_alone = card.changed(columns=card.columns[:1])
    sentence = lead(taet.results(make_card("at"), clean_alone))
    assert sentence.startswith("Under autoattack, at keeps a balanced accuracy of ")
    assert sentence.endswith(" taet was not attacked with autoattack.")


def test_what_the_attack_does_is_said_in_numbers_of_images(make_card: MakeCard) -> None:
    card = right(right(make_card("at"), 0.9, "clean"), 0.25, "autoattack")
    assert in_plain_words(taet.results(card)) == (
        "Of every 100 test images, the model “at” classifies 90 correctly; after a change of each "
        "pixel by at most 8 of 255 grey levels, chosen to mislead it, 25."
    )


def test_of_several_runs_the_sentence_is_about_their_mean(make_card: MakeCard) -> None:
    cards = [
        right(right(make_card("at", seed=seed), 0.9, "clean"), share, "autoattack")
        for seed, share in enumerate((0.2, 0.3))
    ]
    sentence = in_plain_words(taet.results(cards))
    assert "the model “at”, the mean of 2 runs, classifies 90 correctly" in sentence
    assert sentence.endswith(", 25.")


def test_a_model_below_the_answer_of_always_one_class_is_told_so(make_card: MakeCard) -> None:
    card = make_card("at")
    labels = np.where(np.arange(len(card.labels)) % 4 < 3, 0, card.labels)
    others = labels != 0
    correct = others | (np.arange(len(labels)) < 0.4 * len(labels))
    of_classes = card.changed(labels=labels, columns=())
    columns = [
        column.changed(correct=correct, predictions=np.where(correct, labels, (labels + 1) % 10))
        for column in card.columns
    ]
    sentence = in_plain_words(taet.results(of_classes.changed(columns=tuple(columns))))
    share = round(100 * (labels == 0).mean())
    assert sentence.endswith(
        f"To answer always “{card.class_names[0]}” would be right for {share}."
    )


@pytest.mark.parametrize("columns", [1, 0])
def test_without_clean_images_or_an_attack_there_is_no_such_sentence(
    cards: dict[str, ResultCard], columns: int
) -> None:
    card = cards["at"]
    kept = card.columns[:1] if columns else card.columns[1:]
    assert in_plain_words(taet.results(card.changed(columns=kept))) == ""


@pytest.fixture
def ahead(make_card: MakeCard) -> list[ResultCard]:
    """Two seeds of a method that is far ahead, and of another."""
    shares = (("at", 0.9), ("taet", 0.3))
    return [
        right(make_card(method, seed), share, *ATTACKS)
        for method, share in shares
        for seed in (0, 1)
    ]


def test_a_lead_of_several_seeds_is_significant(ahead: list[ResultCard]) -> None:
    assert lead(taet.results(ahead)).endswith("its lead over taet is significant.")


def test_a_lead_of_one_seed_is_that_of_a_model_not_of_a_method(ahead: list[ResultCard]) -> None:
    assert lead(taet.results(ahead[0], ahead[2])).endswith(
        "; its lead over taet is significant; with one seed this says which model is better, not "
        "which method."
    )


def test_a_lead_of_one_common_seed_is_that_of_a_model_too(
    ahead: list[ResultCard], make_card: MakeCard
) -> None:
    other = right(make_card("taet", 2), 0.3, *ATTACKS)
    assert "with one seed" in lead(taet.results(ahead[:3], other))


RANDOM = {"repeat_difference": 0.1}
SMALL_LOGITS = {
    "images": 250,
    "clean_correct": 240,
    "pgd_correct": 200,
    "scaled_pgd_correct": 100,
    "only_pgd_correct": 110,
    "only_scaled_pgd_correct": 10,
}
PGD_IS_STRONGEST, CLEAN_ALONE = 3, 1  # of the columns of a card


@pytest.mark.parametrize(
    ("facts", "columns", "reason"),
    [
        (RANDOM, 5, "gradients may mislead attacks: randomised"),
        (RANDOM, CLEAN_ALONE, ""),
        (SMALL_LOGITS, PGD_IS_STRONGEST, "gradients may mislead attacks: logit-scale"),
        (SMALL_LOGITS, 5, ""),
    ],
)
def test_a_number_that_misled_attacks_leave_too_high_is_doubted(
    ahead: list[ResultCard], facts: dict[str, float], columns: int, reason: str
) -> None:
    card = ahead[0].changed(probe=PROBE | facts, columns=ahead[0].columns[:columns])
    end = f"), which may be too high ({reason})." if reason else ")."
    assert lead(taet.results(card)).endswith(end)


def test_a_number_of_an_epoch_that_the_test_images_chose_is_doubted(
    ahead: list[ResultCard],
) -> None:
    leaked = ahead[0].changed(model={**ahead[0].model, "leak": True})
    end = "), which may be too high (its epoch was chosen on the test images)."
    assert lead(taet.results(leaked)).endswith(end)


def test_rows_that_are_better_in_the_common_seeds_are_named(make_card: MakeCard) -> None:
    cards = [
        right(make_card("at", seed), share, *ATTACKS) for seed, share in enumerate((0.2, 1, 1))
    ]
    other = right(make_card("at-bsl"), 0.6, *ATTACKS)
    end = "; of the runs with seeds of both, those of at-bsl are better."
    assert lead(taet.results([*cards, other])).endswith(end)


def test_the_warning_on_chance_comes_first(make_card: MakeCard) -> None:
    cards = [make_card("taet"), right(make_card("at"), 0.05, *ATTACKS)]
    flags = [warning.flag for warning in warnings(taet.results(cards))]
    assert flags[0] == "at-chance"
    assert len(flags) > 1
