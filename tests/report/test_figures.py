"""The figures of the report show the numbers of the cards."""

from pathlib import Path

import pandas as pd
import pytest

import taet
from taet.card.card import ResultCard
from taet.evaluation.attack_sets import curves
from taet.report import figures
from taet.report.drawing import WIDTH, forest_plot
from taet.report.tables import order
from tests.report.made import MakeCard, shares


def test_the_first_figure_shows_balanced_accuracy_under_each_attack(
    cards: dict[str, ResultCard],
) -> None:
    found = taet.results(cards.values())
    attacks, _ = figures.overview(found)
    expected = ["clean", "fgsm", "pgd-20", "autoattack-10", "autoattack"]
    assert [marks.name for marks in attacks.marks] == expected
    for attack, shown in shares(attacks, 0).items():
        numbers = [100 * cards[row].summary(attack).balanced for row in order(found)]
        assert shown == pytest.approx(numbers, abs=0.1)


def test_the_second_figure_shows_head_body_and_tail_under_the_strongest_attack(
    cards: dict[str, ResultCard],
) -> None:
    found = taet.results(cards.values())
    _, groups = figures.overview(found)
    for group, shown in shares(groups, 0).items():
        summaries = [cards[row].summary("autoattack") for row in order(found)]
        assert shown == pytest.approx([100 * each.groups[group] for each in summaries], abs=0.1)


def test_both_figures_have_the_same_axis(cards: dict[str, ResultCard]) -> None:
    axes = [
        [(label.x, label.text) for label in panel.labels if label.text.endswith(" %")]
        for panel in figures.overview(taet.results(cards.values()))
    ]
    assert axes[0] == axes[1]
    heights = [panel.height for panel in figures.overview(taet.results(cards.values()))]
    assert heights[0] == heights[1]


@pytest.mark.full
def test_a_curve_shows_the_numbers_of_its_columns(run: Path) -> None:
    results = taet.results(run)
    (curve,) = figures.strength(results)
    card = results.cards[0]
    numbers = [100 * card.summary_of(column).balanced for column in curves(card)["steps"].values()]
    assert shares(curve, 1)["at"] == pytest.approx(numbers, abs=0.2)


def test_a_mean_over_seeds_is_drawn_only_where_all_seeds_have_a_point() -> None:
    lines = [("at", 0, 1, 0.5), ("at", 0, 2, 0.6), ("at", 1, 2, 0.8)]
    points = pd.DataFrame(lines, columns=["row", "seed", "x", "y"])
    assert figures.of_all_seeds(points)["x"].tolist() == [2, 2]


def test_seeds_that_were_attacked_otherwise_are_left_out_of_a_curve(make_card: MakeCard) -> None:
    curved = []
    for seed, step in enumerate((1, 1, 4)):  # the last with another step size
        card = make_card("at", seed)
        pgd, own = card.column("pgd-20"), {"step_size": step / 255, "seed": seed}
        points = [
            pgd.changed(name=f"pgd-{steps}", parameters={**own, "steps": steps}, curve="steps")
            for steps in (5, 10, 50)
        ]
        curved.append(card.changed(columns=(*card.columns, *points)))
    without_the_last = [*figures.strength(taet.results(curved[:2]))]
    assert [*figures.strength(taet.results(curved))] == without_the_last


def test_the_text_of_the_last_tick_stays_inside_the_drawing() -> None:
    line = {"row": "at", "accuracy": 0.9, "low": 0.8, "high": 1.0, "group": "head"}
    scores = pd.DataFrame([line])
    panel = forest_plot("Groups", scores, ["at"], "group", {"head": "#000"}, end=1.0, row_height=36)
    (last,) = [label for label in panel.labels if label.text == "100 %"]
    letter_width = 7.2  # of text of 12.5 pixels, in a wide font
    assert last.x + letter_width * len(last.text) / 2 <= WIDTH
