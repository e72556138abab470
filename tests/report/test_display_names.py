"""The names of the rows of a report."""

from pathlib import Path

import pytest

import taet
from taet import report
from taet.card.card import ResultCard
from taet.report.display_names import with_display_names
from tests.report.made import MakeCard


@pytest.mark.parametrize("ending", ["html", "md", "tex"])
def test_every_form_prints_the_names_of_methods_as_papers_do(
    cards: dict[str, ResultCard], tmp_path: Path, ending: str
) -> None:
    text = report.write([*cards.values()], tmp_path / f"x.{ending}").read_text()
    assert "AT, AT-BSL and TAET" in text
    assert "Difference from TAET" in text
    assert "Difference from taet" not in text


def test_a_name_of_the_user_stays(make_card: MakeCard) -> None:
    named = make_card("at").changed(name="at (old)")
    assert with_display_names(taet.results(named)).rows == ("at (old)",)


def test_the_title_of_a_model_without_a_run_stays(make_card: MakeCard) -> None:
    model = make_card("at").changed(seed=None, title="at")
    assert with_display_names(taet.results(model)).rows == ("at",)


def test_a_row_is_not_called_as_another_one_is(make_card: MakeCard) -> None:
    found = taet.results(make_card("at"), make_card("taet").changed(name="AT"))
    assert {*with_display_names(found).rows} == {"at", "AT"}
