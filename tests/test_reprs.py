"""What results say of themselves: short, and in the units that people use."""

from __future__ import annotations

from pathlib import Path

import pytest

from taet.evaluation import ResultCard
from taet.experiments import Comparison
from taet.statistics import Difference

CARD = Path(__file__).parents[1] / "results" / "digits-lt-demo" / "at.json"


def test_a_summary_is_one_line_of_shares() -> None:
    summary = ResultCard.load(CARD).summary("pgd-20")
    assert repr(summary).startswith(f"Summary(balanced {100 * summary.balanced:.1f} % [")
    assert f"of {summary.total.sum()} images" in repr(summary)
    assert len(repr(summary)) < 250


@pytest.mark.parametrize(
    ("difference", "expected"),
    [
        (Difference(-0.07, -0.1, -0.04, 0.03906), "Difference(-7.0 points [-10.0, -4.0], p = 0.039 over test images)"),
        (
            Difference(0.01, -0.01, 0.03, 1.0, 3, 0.01),
            "Difference(+1.0 points [-1.0, +3.0], p = 1 over test images; interval over 3 pairs of runs as well)",
        ),
    ],
)
def test_a_difference_is_in_points(difference: Difference, expected: str) -> None:
    assert repr(difference) == expected


def test_a_comparison_counts_its_cells() -> None:
    assert repr(Comparison("all", Path("x"), ())) == "Comparison('all' in x: ; report: None)"
