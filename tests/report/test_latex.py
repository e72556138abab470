"""Tables in LaTeX: display names, means with deviations over seeds, and chosen columns."""

import statistics
from pathlib import Path

import pytest

from taet import report
from taet.card.card import ResultCard
from taet.errors import UserError
from taet.formatting import percent, percent_interval
from tests.report.made import MakeCard


def lines(cards: list[ResultCard], folder: Path, *columns: str) -> list[str]:
    path = report.write(cards, folder / "x.tex", columns=columns)
    return path.read_text().splitlines()


def test_a_mean_over_seeds_has_their_standard_deviation(
    make_card: MakeCard, tmp_path: Path
) -> None:
    cards = [make_card("taet", seed) for seed in range(3)]
    values = [card.summary("autoattack").balanced for card in cards]
    mean, deviation = percent(statistics.mean(values)), percent(statistics.stdev(values))
    text = lines(cards, tmp_path, "autoattack")
    assert rf"TAET & {mean} $\pm$ {deviation} \\" in text
    (caption,) = [line for line in text if line.startswith(r"\caption")]
    assert r"Mean $\pm$ standard deviation over the seeds" in caption


def test_a_single_seed_has_its_interval(make_card: MakeCard, tmp_path: Path) -> None:
    summary = make_card("taet").summary("autoattack")
    interval = percent_interval(*summary.balanced_interval).replace("–", "--")
    text = lines([make_card("taet")], tmp_path, "autoattack")
    assert rf"TAET & {percent(summary.balanced)} ({interval}) \\" in text


def test_rows_have_the_names_that_papers_print(make_card: MakeCard, tmp_path: Path) -> None:
    text = "\n".join(lines([make_card("at-bsl"), make_card("taet")], tmp_path))
    assert "\nAT-BSL & " in text
    assert r"\caption{Difference from TAET: digits-lt" in text


def test_columns_are_those_that_are_asked_for_in_their_order(
    make_card: MakeCard, tmp_path: Path
) -> None:
    text = lines([make_card("at")], tmp_path, "tail", "clean")
    assert [line for line in text if line.startswith("method")] == [
        r"method & tail (autoattack) & clean \\"
    ]


def test_an_unknown_column_is_named_with_those_that_are_known(
    make_card: MakeCard, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"unknown column 'clena'; allowed: .*did you mean 'clean'"):
        lines([make_card("at")], tmp_path, "clena")


def test_a_form_whose_columns_are_fixed_refuses_them(make_card: MakeCard, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"report: got columns for .*x\.html; allowed: \.md or"):
        report.write([make_card("at")], tmp_path / "x.html", columns=["clean"])
