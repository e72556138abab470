"""Drawings of the items: every kind has its figure, from a store of smoke runs and from committed cards alone."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

import taet
from taet.errors import UserError
from taet.report.tables import ScoreCell
from taet.reproduce import Store, figures, items, render, scales
from taet.reproduce.cell_store import attacks_on
from taet.reproduce.claims import chosen
from taet.reproduce.manifest import Item, row_from
from taet.reproduce.render import Filled
from taet.reproduce.session import Session
from taet.reproduce.site import drawn

Fill = Callable[[Item], Store]
SMOKE = scales()["smoke"]
KINDS = {
    "taet/figure1": ["Clean", "Under pgd-2", "at-bsl", "taet"],
    "taet/figure2": ["Balanced accuracy, clean", "Balanced accuracy, pgd-1", "at-bsl", "taet"],
    "reat/figure3": ["at-bsl", "reat", "Each class"],
}
pytestmark = pytest.mark.usefixtures("outlined")


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", KINDS)
def test_each_kind_of_figure_is_drawn_from_runs(smoke: Fill, name: str) -> None:
    store, item = smoke(items()[name]), items()[name]
    found = figures.drawings(store, SMOKE, item)
    titles = [panel.title for panel in found.panels]
    assert [title for title in titles if title in KINDS[name]] == KINDS[name]
    ids = [part.split('"')[0] for panel in found.panels for part in panel.svg.split('id="')[1:]]
    assert len(ids) == len({*ids})
    page = "".join(drawn(found, SMOKE))
    assert page.count('<figure class="panel">') == len(titles)


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name in items() if name not in KINDS])
def test_every_item_has_a_figure(smoke: Fill, name: str) -> None:
    item = items()[name]
    assert figures.drawings(smoke(item), SMOKE, item).panels


@pytest.mark.full
def test_accuracy_is_drawn_against_the_steps_of_the_attack_that_was_run(
    smoke: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scale smoke takes 2 and 3 steps in the place of 20 and 100."""
    of_classes, of_rows = items()["reat/figure4"], items()["reat/figure8"]
    drawn: list[Mapping[str, Sequence[tuple[float, ScoreCell]]]] = []
    against = figures._against
    monkeypatch.setattr(figures, "_against", lambda lines, *words: drawn.append(lines) or against(lines, *words))
    panels = figures.drawings(smoke(of_classes), SMOKE, of_classes).panels
    assert [one.title for one in panels] == ["Steps of the attack", "Clean", "Under pgd-2", "robal", "reat"]
    assert "accuracy against steps of PGD" in panels[0].svg
    assert [[x for x, _ in line] for line in drawn.pop().values()] == 2 * [[2, 10, 30, 50]]
    assert figures.drawings(smoke(of_rows), SMOKE, of_rows).panels[0].title == "Steps of the attack"
    few = dataclasses.replace(of_rows, columns=of_rows.columns[:3])
    assert "Steps of the attack" not in [one.title for one in figures.drawings(smoke(few), SMOKE, few).panels]


def test_a_curve_over_steps_has_the_same_seeds_and_attacks_at_every_point(
    committed: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seed 0 of REAT may lack some; RoBal is attacked at scale 1 by what the paper calls PGD-20."""
    drawn: list[Mapping[str, Sequence[tuple[float, ScoreCell]]]] = []
    monkeypatch.setattr(figures, "_against", lambda lines, *_: drawn.append(lines))
    scale, item = scales()["mini"], items()["reat/figure4"]
    rows = [one for one in render.filled(committed, scale, item) if one.cards]
    figures._of_steps(item, rows, "x")
    (lines,) = drawn
    assert [[x for x, _ in line] for line in lines.values()] == 2 * [[10, 30, 50]]
    (reat,) = [line for label, line in lines.items() if label.startswith("reat (n ")]
    cards = [card for card in rows[1].cards.values() if {"pgd-10", "pgd-30", "pgd-50"} <= attacks_on(card)]
    assert reat[0][1].value == pytest.approx(sum(card.summary("pgd-10").balanced for card in cards) / len(cards))


@pytest.mark.full
def test_nothing_is_drawn_without_runs(tmp_path: Path) -> None:
    assert all(figures.drawings(Store(tmp_path, []), SMOKE, item).panels == () for item in items().values())


@pytest.mark.parametrize(
    ("name", "axis", "numbers"),
    [
        ("taet/figure7", "epochs", [0, 20, 40, 60, 80]),
        ("taet/figure9", "steps", [5, 10, 20, 30, 40]),
        ("taet/table9", "train steps", [5, 10, 20, 30, 40]),
        ("taet/table10", "train step size", [1 / 255, 2 / 255, 3 / 255]),
        ("taet/table5", "imbalance ratio", [10, 20, 50, 100] * 2),
        ("taet/table1", None, None),
        ("taet/table4", None, None),
        ("reat/table2", None, None),
    ],
)
def test_rows_that_differ_in_one_number_are_drawn_against_it(name: str, axis: str | None, numbers: object) -> None:
    item = items()[name]
    found = figures.setting_of(
        [Filled(SMOKE, row, label, ()) for row, label in zip(item.rows, item.labels, strict=True)]
    )
    if axis is None:
        assert found is None
    else:
        assert found is not None
        assert found[0] == axis
        assert sorted(found[1]) == pytest.approx(sorted(numbers))  # type: ignore[call-overload]


@pytest.mark.full
def test_numbers_are_drawn_with_their_intervals(smoke: Fill) -> None:
    (item,) = chosen(["taet/table1"], ["at-bsl", "taet"])
    titles = [panel.title for panel in figures.drawings(smoke(item), SMOKE, item).panels]
    assert titles == ["Each row", "Clean accuracy and pgd-20"]


@pytest.mark.full
def test_an_embedding_of_any_seed_is_shown(committed: Store) -> None:
    """REAT has embeddings of seeds 1 and 2 only."""
    panels = figures.drawings(committed, scales()["mini"], items()["reat/figure10"]).panels
    titles = [panel.title for panel in panels if "t-SNE" in panel.title]
    seeds = (("at-bsl", 0), ("robal", 0), ("reat", 1))
    assert titles == [f"{name}, seed {seed}, t-SNE of features, pgd-20" for name, seed in seeds]


def test_an_embedding_is_kept_shown_and_saved_with_its_run(smoke: Fill, tmp_path: Path) -> None:
    item = items()["reat/figure7"]
    item = dataclasses.replace(item, rows=(row_from({"method": "at-bsl"}, "REAT"),))
    store = smoke(item)
    session = Session(store, SMOKE, [item], lambda _: None)
    session.embed(item)
    (one,) = session.cells
    kept = store.embedding(one, "features")
    assert kept is not None
    assert kept.attack == "pgd-2"
    assert figures.drawings(store, SMOKE, item).panels[0].title == "at-bsl, seed 0, t-SNE of features, pgd-2"
    session.save(tmp_path / "results")
    other = Store(tmp_path / "none", [tmp_path / "results"])
    assert other.embedding(other.cells(SMOKE, item.rows[0], ["clean"])[0], "features") == kept
    assert taet.report.write([*(tmp_path / "results").glob("*_seed0-????????.json")], tmp_path / "page.html").exists()

    (path,) = (tmp_path / "results").glob("*.embedding-features.json")
    path.write_text(json.dumps(kept.to_json() | {"weights_sha256": "0" * 64}))
    with pytest.raises(UserError, match="was made with other weights than the card"):
        other.embedding(other.cells(SMOKE, item.rows[0], ["clean"])[0], "features")
