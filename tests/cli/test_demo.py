"""The demo's settings are those that the search on validation images chose."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import taet
from taet.cli.demo import METHODS, PASSES
from taet.experiments import grid

SEARCH = Path(__file__).parents[2] / "results" / "demo-search"
SPECIFICATION = grid.read(SEARCH / "compare.toml")
ENTRIES = {entry.name: entry for entry in SPECIFICATION.methods}


def accuracy_under_quick(entry: str) -> float:
    """The balanced accuracy of a setting, the mean over its seeds."""
    cards = sorted(SEARCH.glob(f"{entry}-seed*.json"))
    accuracies = [
        taet.results(card).scores("balanced").set_index("attack").accuracy["quick"]
        for card in cards
    ]
    return float(pd.Series(accuracies).mean())


@pytest.mark.parametrize("entry", METHODS, ids=lambda entry: entry["method"])
def test_a_method_has_the_best_of_its_four_settings(entry: dict[str, Any]) -> None:
    candidates = [one for one in ENTRIES.values() if one.method == entry["method"]]
    assert len(candidates) == 4
    best = max(candidates, key=lambda one: round(accuracy_under_quick(one.name), 6))
    assert dict(best.settings) == entry["settings"]


def test_the_demo_and_the_search_have_the_same_passes() -> None:
    assert SPECIFICATION.passes == PASSES


@pytest.mark.full
def test_the_search_was_run_with_these_passes() -> None:
    cells = {cell.name: cell for cell in grid.cells_of(SPECIFICATION, SEARCH)}
    for name in ("at-1", "at-bsl-4", "taet-2"):
        run = cells[f"{name}_digits-lt_ir10_seed11"].run
        card = json.loads((SEARCH / f"{name}-seed11.json").read_text())
        assert run is not None
        assert card["run"]["config"]["training"]["epochs"] == run.training.epochs


def test_every_setting_is_tried_with_the_same_seeds() -> None:
    seeds = {
        entry: sorted(json.loads(card.read_text())["seed"] for card in SEARCH.glob(f"{entry}-s*"))
        for entry in ENTRIES
    }
    assert set(map(tuple, seeds.values())) == {(11, 12)}
