"""A store of smoke runs that all tests of rendering share; a run is trained once, when the first item needs it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import taet
from taet.reproduce import Store, items, scales
from taet.reproduce.manifest import Item
from taet.reproduce.session import Session


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Item], Store]:
    """Fill an item at scale smoke in this process, and return the store."""
    out, scale = tmp_path_factory.mktemp("smoke"), scales()["smoke"]

    def fill(item: Item) -> Store:
        store = Store(out, [])
        cells = [cell for found in store.of_item(scale, item).values() for cell in found]
        for cell in store.merged(cells).values():
            if cell.state == "missing":
                taet.train(cell.run, out=cell.folder)
            if cell.state != "done":
                assert cell.run is not None
                taet.evaluate(cell.folder, attacks=cell.run.evaluation.attacks)
        store = Store(out, [])
        if item.shows == "embedding":
            Session(store, scale, [item], print).embed(item)
        return Store(out, [])

    return fill


@pytest.fixture(scope="session")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The cards of the repository, and no run."""
    assert len(items()) == 44
    return Store(tmp_path_factory.mktemp("none") / "runs")


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of the repository."""
    return Path(__file__).parents[2]
