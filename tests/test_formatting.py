"""How numbers, lists and results are written: short, and in the units that people use."""

import math

import pytest

from taet import formatting


@pytest.mark.parametrize(
    ("eps", "text"),
    [
        (8 / 255, "8/255"),
        (0.0314, "0.0314"),
        (0.5, "0.5"),
        (128 / 255, "128/255"),
        (0.0, "0"),
        (1.0, "255/255"),
        (2.5 / 255, "2.5/255"),
        (0.25 / 255, "0.25/255"),
        (0.1, "0.1"),  # 25.5/255
        (0.0125, "0.0125"),
    ],
)
def test_a_size_is_a_fraction_of_255_where_it_is_one(eps: float, text: str) -> None:
    assert formatting.format_radius(eps) == text


def test_numbers_and_lists() -> None:
    assert [formatting.plural(number, "cell") for number in (0, 1, 2)] == [
        "0 cells",
        "1 cell",
        "2 cells",
    ]
    assert [formatting.percent(x) for x in (0.6125, math.nan)] == ["61.3", "–"]
    assert [
        formatting.percent_interval(*ends) for ends in ((0.58, 0.641), (math.nan, math.nan))
    ] == ["58.0–64.1", "–"]
    assert [formatting.points(x) for x in (0.015, -0.003, 0.0, -0.0001)] == [
        "+1.5",
        "−0.3",
        "0.0",
        "0.0",
    ]

    assert [formatting.clock(x) for x in (0.4, 187, 3787)] == ["0:00:00", "0:03:07", "1:03:07"]
    said = [formatting.duration(x) for x in (1, 42, 310, 9000, 4253000)]
    assert said == [
        "about 10 seconds",
        "about 40 seconds",
        "about 5 minutes",
        "about 2.5 hours",
        "about 49.2 days",
    ]
    assert [formatting.join_words("abc"[:n]) for n in (0, 1, 2, 3)] == [
        "",
        "a",
        "a and b",
        "a, b and c",
    ]
    assert formatting.join_words("abcde", most=3) == "a, b, c and 2 more"
    assert (
        formatting.format_value({"a": [1, 0.25], "b": {"c": None, "d": True}})
        == "a 1, 0.25, b c none, d yes"
    )
