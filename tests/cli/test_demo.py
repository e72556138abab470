"""The demo's settings are those that the search on validation images chose."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import taet
from taet.cli.demo import METHODS
from taet.experiments import grid

SEARCH = Path(__file__).parents[2] / "results" / "demo-search"
ENTRIES = {entry.name: entry for entry in grid.read(SEARCH / "compare.toml").methods}


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


def test_every_setting_is_tried_with_the_same_seeds() -> None:
    seeds = {
        entry: sorted(json.loads(card.read_text())["seed"] for card in SEARCH.glob(f"{entry}-s*"))
        for entry in ENTRIES
    }
    assert set(map(tuple, seeds.values())) == {(11, 12)}
