"""The forms of a report, and which file it may replace."""

import re
from pathlib import Path

import pandas as pd
import pytest

import taet
from taet import report
from taet.card.card import ResultCard
from taet.errors import UserError
from taet.formatting import percent, percent_interval
from taet.report.markup import latex, markdown
from taet.report.read_cards import write_title
from taet.report.results import Results
from taet.report.tables import Table, TableCell
from tests.report.made import MakeCard

HARD = Table(
    "A_title", {TableCell("50 %"): {"a|b_c": TableCell("1 & 2", "#3", bold=True)}}, ["a|b_c"]
)
"""A table of signs that Markdown or LaTeX reads as their own."""


@pytest.fixture
def found(cards: dict[str, ResultCard]) -> Results:
    return taet.results(cards.values())


@pytest.mark.parametrize("ending", ["html", "md", "csv", "tex"])
def test_the_same_cards_give_the_same_bytes(
    make_card: MakeCard, tmp_path: Path, ending: str
) -> None:
    files = [report.write(make_card("at"), tmp_path / f"{name}.{ending}") for name in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_csv_is_the_table_of_the_results(found: Results, tmp_path: Path) -> None:
    read = pd.read_csv(found.report(tmp_path / "x.csv"))
    expected = found.table()
    assert read["group"].tolist() == expected["group"].tolist()
    assert read["accuracy"].to_numpy() == pytest.approx(expected["accuracy"].to_numpy(), abs=1e-6)


@pytest.mark.parametrize(("ending", "dash"), [("md", "–"), ("tex", "--")])
def test_the_tables_hold_the_numbers_of_the_cards(
    found: Results, cards: dict[str, ResultCard], tmp_path: Path, ending: str, dash: str
) -> None:
    summary = cards["at"].summary("autoattack")
    interval = percent_interval(*summary.balanced_interval).replace("–", dash)
    text = found.report(tmp_path / f"x.{ending}").read_text()
    assert f" {percent(summary.balanced)} ({interval}) " in text.replace("**", "")


def test_markdown_begins_with_the_attacks_in_their_order(found: Results, tmp_path: Path) -> None:
    text = found.report(tmp_path / "x.md").read_text()
    assert re.search(r"^\| method \| clean \| fgsm \| pgd-20 \|", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("ending", "start"),
    [("md", "**small-test-set** (AT, AT-BSL and TAET): "), ("tex", "% small-test-set (AT, AT-BSL")],
)
def test_warnings_stand_before_the_tables(
    found: Results, tmp_path: Path, ending: str, start: str
) -> None:
    assert f"\n{start}" in found.report(tmp_path / f"x.{ending}").read_text()


@pytest.mark.parametrize("ending", ["md", "tex", "html"])
def test_the_source_of_extra_images_is_named(
    cards: dict[str, ResultCard], tmp_path: Path, ending: str
) -> None:
    extra = {"extra": {"source": "EDM, of all images", "compared": True}}
    card = cards["at"].changed(data=cards["at"].data | extra)
    assert "EDM, of all images" in report.write(card, tmp_path / f"x.{ending}").read_text()


def test_every_table_in_latex_has_a_label_of_its_own(found: Results, tmp_path: Path) -> None:
    text = found.report(tmp_path / "x.tex").read_text()
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 4
    assert len({*re.findall(r"\\label{(.*)}", text)}) == 4


def test_signs_of_markdown_stay_text() -> None:
    assert markdown(HARD).splitlines()[-1] == r"| a\|b\_c | **1 & 2 (#3)** |"


def test_signs_of_latex_stay_text() -> None:
    text = latex(HARD, "my_data", 1)
    assert r"a|b\_c & \textbf{1 \& 2 (\#3)} \\" in text
    assert r"\caption{A\_title: my\_data}" + "\n" + r"\label{tab:a-title-1}" in text


def test_another_ending_is_refused_with_those_that_are_allowed(
    found: Results, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"allowed: a file that ends in \.html, \.md, \.csv, \.tex"):
        report.write(found, tmp_path / "x.pdf")


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.csv", "id,label\n"), ("a.html", "<!DOCTYPE html>\n<p>mine</p>\n")],
)
def test_a_file_that_is_no_report_is_replaced_only_by_force(
    found: Results, tmp_path: Path, name: str, content: str
) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(
        UserError, match=r"a\..* exists and is no report; allowed: another file, or --force"
    ):
        found.report(path)
    assert path.read_text() == content
    found.report(path, force=True)
    assert path.read_text() != content


def test_a_report_is_replaced_by_the_next(found: Results, tmp_path: Path) -> None:
    path = found.report(tmp_path / "a.html", title="first")
    assert "<h1>second</h1>" in found.report(path, title="second").read_text()


@pytest.mark.parametrize("form", ["html", "md", "tex"])
@pytest.mark.parametrize("folder", [".", "runs"])
def test_the_report_of_a_comparison_has_its_title(
    form: str, folder: str, make_card: MakeCard, tmp_path: Path
) -> None:
    place = tmp_path / "study"
    (place / "runs").mkdir(parents=True)
    make_card("at").save(place / "runs" / "at.json")
    write_title(place, "What augmentation costs")
    path = report.write(place / folder, tmp_path / f"x.{form}")
    assert "What augmentation costs" in path.read_text()
    other = report.write(place, tmp_path / f"y.{form}", "Another title")
    assert "What augmentation costs" not in other.read_text()
