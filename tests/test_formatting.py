"""How numbers and lists are written."""

from __future__ import annotations

import math

import pytest

from taet import formatting


@pytest.mark.parametrize(
    ("eps", "text"),
    [(8 / 255, "8/255"), (0.0314, "0.0314"), (0.5, "0.5"), (128 / 255, "128/255"), (0.0, "0"), (1.0, "255/255")],
)
def test_a_size_is_a_fraction_of_255_where_it_is_one(eps: float, text: str) -> None:
    assert formatting.size(eps) == text


def test_a_size_that_must_be_read_back_is_exact() -> None:
    assert formatting.size(2 / 255, digits=None, within=0) == "2/255"
    nearly = 2 / 255 + 1e-12
    assert float(formatting.size(nearly, digits=None, within=0)) == nearly


def test_one_is_no_plural() -> None:
    assert [formatting.plural(number, "cell") for number in (0, 1, 2)] == ["0 cells", "1 cell", "2 cells"]


def test_shares_are_per_cent_and_what_is_not_known_is_a_dash() -> None:
    assert formatting.percent(0.6125) == "61.3"
    assert formatting.percent(math.nan) == "–"
    assert formatting.percent_interval(0.58, 0.641) == "58.0–64.1"
    assert formatting.percent_interval(math.nan, math.nan) == "–"


def test_differences_carry_their_sign_but_for_nothing() -> None:
    assert [formatting.points(x) for x in (0.015, -0.003, 0.0, -0.0001)] == ["+1.5", "−0.3", "0.0", "0.0"]


def test_counts_and_bytes() -> None:
    assert formatting.count(1234567) == "1\u00a0234\u00a0567"
    sizes = [formatting.data_size(x) for x in (12, 340e3, 5e6, 2.1e9, 3e12)]
    assert sizes == ["12 bytes", "340.0 kB", "5.0 MB", "2.1 GB", "3.0 TB"]


def test_durations() -> None:
    assert [formatting.clock(x) for x in (0.4, 187, 3787)] == ["0:00", "3:07", "1:03:07"]
    said = [formatting.duration(x) for x in (1, 42, 310, 9000)]
    assert said == ["about 10 seconds", "about 40 seconds", "about 5 minutes", "about 2.5 hours"]


def test_lists_and_long_values() -> None:
    assert [formatting.listed("abc"[:n]) for n in (0, 1, 2, 3)] == ["", "a", "a and b", "a, b and c"]
    assert formatting.listed("abcde", most=3) == "a, b, c and 2 more"
    assert formatting.short("x" * 100) == "'" + "x" * 56 + "..."


def test_values_of_a_json_file_in_words() -> None:
    value = {"a": [1, 0.25], "b": {"c": None, "d": True}}
    assert formatting.words(value) == "a 1, 0.25, b c none, d yes"
