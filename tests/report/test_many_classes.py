"""A report of many classes: the page shows as many as can be read, and the table has all."""

from pathlib import Path

import pandas as pd
import pytest

import taet
from taet import report
from taet.card.card import ResultCard
from taet.report.results import Results
from taet.report.tables import MOST_CLASSES, RANGES
from tests.report.made import MakeCard, Page

MANY = 2 * MOST_CLASSES


def card_of(make_card: MakeCard, num_classes: int) -> ResultCard:
    return make_card("at", names=tuple(f"species {label:04}" for label in range(num_classes)))


@pytest.fixture(scope="module")
def many(make_card: MakeCard) -> ResultCard:
    return card_of(make_card, MANY)


@pytest.fixture(scope="module")
def page_of_many(many: ResultCard, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(report.write([many], tmp_path_factory.mktemp("many") / "report.html"))


def test_a_page_shows_the_most_frequent_and_the_rarest_of_many_classes(
    many: ResultCard, page_of_many: Page
) -> None:
    rows = [cells[0][-1] for cells in page_of_many.tables["Clean images"][1:]]
    half = MOST_CLASSES // 2
    shown = [*many.class_names[:half], *many.class_names[-half:]]
    assert rows[-MOST_CLASSES:] == shown
    assert f"Of the {MANY} classes these are the {half} with most" in page_of_many.text


def test_a_page_counts_many_classes_by_their_accuracy(page_of_many: Page) -> None:
    heads, *lines = page_of_many.tables["Number of classes, clean images"]
    assert [line[0][-1] for line in lines] == [*RANGES.values()]
    assert heads[1] == ["AT"]
    assert sum(int(line[1][-1]) for line in lines) == MANY


def test_the_table_in_csv_has_every_class(many: ResultCard, tmp_path: Path) -> None:
    table = pd.read_csv(report.write([many], tmp_path / "report.csv"))
    assert {*many.class_names} < {*table["group"]}


def test_the_work_of_a_page_does_not_grow_with_the_classes_that_it_leaves_out(
    make_card: MakeCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores, asked = Results.scores, list[int]()

    def counted(results: Results, *groups: str) -> pd.DataFrame:
        asked.append(results.cards[0].num_classes)
        return scores(results, *groups)

    monkeypatch.setattr(Results, "scores", counted)
    for num_classes in (10, MOST_CLASSES + 10):
        taet.results(card_of(make_card, num_classes)).report(tmp_path / f"{num_classes}.html")
    assert asked.count(10) == asked.count(MOST_CLASSES + 10) > 0
