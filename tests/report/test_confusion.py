"""What a row takes for what: confusion matrices, precision, recall and F1 of each class."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

import taet
from taet.card.card import ResultCard
from taet.formatting import percent
from taet.report import figures, tables
from taet.report.confusion import confusion_counts, confusion_shares, mistakes_of
from taet.report.tables import TableCell
from tests.report.conftest import NAMES
from tests.report.made import ATTACKS, MakeCard, right


def test_counts_of_true_and_predicted_classes_are_those_of_scikit_learn(
    make_card: MakeCard,
) -> None:
    cards = [make_card("at", seed) for seed in range(2)]
    expected = sum(
        confusion_matrix(card.labels, card.column("pgd-20").predictions, labels=range(10))
        for card in cards
    )
    assert (confusion_counts(taet.results(cards), "at", "pgd-20") == expected).all()


def test_precision_recall_and_f1_of_the_table_are_those_of_scikit_learn(
    make_card: MakeCard,
) -> None:
    card = make_card("at")
    table = taet.results(card).table()
    of_attack = table[table["attack"] == "autoattack"].set_index("group")
    expected = precision_recall_fscore_support(card.labels, card.column("autoattack").predictions)
    for label, name in enumerate(NAMES):
        found = of_attack.loc[name, ["precision", "accuracy", "f1"]].tolist()
        assert found == pytest.approx([numbers[label] for numbers in expected[:3]])
    assert of_attack.loc["balanced", "f1"] == pytest.approx(expected[2].mean())


def test_a_class_that_nothing_is_taken_for_has_no_precision_and_an_f1_of_0(
    make_card: MakeCard,
) -> None:
    card = make_card("at")
    predictions = np.where(card.labels == 9, 0, card.labels)
    blind = card.columns[0].changed(predictions=predictions, correct=card.labels != 9)
    table = taet.results(card.changed(columns=(blind,))).table().set_index("group")
    assert np.isnan(table.loc["nine", "precision"])
    assert table.loc["nine", "f1"] == 0
    assert table.loc["zero", "precision"] < 1


def test_the_table_of_classes_has_precision_and_f1_of_the_best_row(
    cards: dict[str, ResultCard],
) -> None:
    results = taet.results(cards.values())
    clean, attacked = tables.classes(results)
    table = results.table()
    for shown, attack in ((clean, "clean"), (attacked, "autoattack")):
        numbers = table[(table["row"] == "taet") & (table["attack"] == attack)].set_index("group")
        for head, name in (("precision", "precision"), ("F1", "f1")):
            cells = shown.columns[TableCell(head, "taet")]
            assert {group: cells[group].text for group in NAMES} == {
                group: percent(numbers.loc[group, name]) for group in NAMES
            }


def test_the_matrix_is_drawn_clean_and_attacked_with_common_classes_first(
    cards: dict[str, ResultCard],
) -> None:
    clean, attacked = figures.confusion(taet.results(cards.values()))
    assert (clean.title, attacked.title) == ("taet, clean images", "taet, under autoattack")
    for panel, attack in ((clean, "clean"), (attacked, "autoattack")):
        column = cards["taet"].column(attack)
        matrix = confusion_matrix(cards["taet"].labels, column.predictions, normalize="true")
        assert [tile.opacity for tile in panel.tiles] == pytest.approx(matrix.ravel(), abs=1e-3)


def test_of_many_classes_the_most_frequent_mistakes_stand_alone(make_card: MakeCard) -> None:
    names = tuple(f"class {number}" for number in range(21))
    results = taet.results(make_card("at", names=names))
    assert list(figures.confusion(results)) == []
    assert [table.title for table in tables.mistakes(results)] == [
        "at, clean images",
        "at, under autoattack",
    ]


def test_the_most_frequent_mistake_comes_first_with_its_share_of_the_class(
    make_card: MakeCard,
) -> None:
    card = make_card("at")
    predictions = np.where(card.labels == 9, 3, card.labels)
    column = card.columns[0].changed(predictions=predictions, correct=card.labels != 9)
    (table,) = tables.mistakes(taet.results(card.changed(columns=(column,))))
    assert table.rows == ["nine as three"]
    assert [cell.text for cell in table.cells("nine as three")] == ["100.0"]


def test_every_class_is_drawn_clean_beside_attacked_with_the_rarest_first(
    cards: dict[str, ResultCard],
) -> None:
    (panel,) = figures.classes(taet.results(cards.values()))
    counts = cards["taet"].data["train_class_counts"]
    names = [label.text for label in panel.labels if "(" in label.text]
    expected = [f"{NAMES[label]} ({counts[label]:,})" for label in range(10)]
    assert names == sorted(expected, key=lambda text: int(text.split("(")[1][:-1]))
    assert [marks.name for marks in panel.marks] == ["clean", "autoattack"]


def test_the_shares_of_mistakes_are_those_of_the_matrix_over_all_seeds(
    make_card: MakeCard,
) -> None:
    results = taet.results([make_card("at", seed) for seed in range(2)])
    shares = confusion_shares(results, "at", "pgd-20")
    mistakes = mistakes_of(results, "at", "pgd-20")
    found = {(mistake.true, mistake.taken): mistake.share for mistake in mistakes}
    np.fill_diagonal(shares, 0)
    assert found == {
        (true, taken): pytest.approx(shares[true, taken])
        for true, taken in np.argwhere(shares > 0).tolist()
    }
    assert [*found.values()] == sorted(found.values(), reverse=True)


def test_a_best_row_without_clean_images_has_only_the_matrix_under_attack(
    make_card: MakeCard,
) -> None:
    best = right(make_card("taet"), 1, *ATTACKS)
    results = taet.results(make_card("at"), best.changed(columns=best.columns[1:]))
    assert [panel.title for panel in figures.confusion(results)] == ["taet, under autoattack"]
    assert list(tables.mistakes(results)) == []
    assert [table.title for table in tables.classes(results)] == [
        "Clean images",
        "Under autoattack",
    ]
