"""Fill items: find the missing runs, order them, and report how much of both papers is done."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from taet.data.sources import source
from taet.errors import UserError
from taet.evaluation.embedding import embed
from taet.experiments.cells import Cell
from taet.experiments.comparison import OPEN, Comparison, deadline_of, fill
from taet.experiments.parts import deal, gather
from taet.files import make_folder, write_atomically
from taet.formatting import duration
from taet.reproduce.cell_store import Store, StoredCell
from taet.reproduce.costs import seconds_left
from taet.reproduce.manifest import Item, Scale, items, scales
from taet.reproduce.text_table import TextTable
from taet.reproduce.verdicts import worths
from taet.training.folder import RunFolder

EMBEDDED = 50
"""Test images of each class in a figure of features."""
UNPRICED_SECONDS = 3600.0
"""Assumed seconds of a run of unknown cost when runs are ordered."""


class Session:
    """Some items at one scale."""

    def __init__(self, store: Store, scale: Scale, wanted: Sequence[Item], say: Callable[[str], None]) -> None:
        self.store, self.scale, self.items, self.say = store, scale, wanted, say

    @property
    def cells(self) -> list[StoredCell]:
        """The runs that the items need, each as often as it is needed."""
        return self.store.every_cell(self.scale, self.items)

    def fill(
        self, time_budget: float | None = None, jobs: int | Literal["auto"] = 1, part: tuple[int, int] | None = None
    ) -> Comparison:
        """Run the missing runs, as `taet compare` does, and read the store again."""
        missing = {one.cell.name for one in self.cells if one.state in OPEN}
        mine = self.planned() if part is None else deal(self.planned(), *part)
        queue = self.with_data([cell for cell in self.by_worth(mine) if cell.name in missing])
        result, interrupted = fill("taet reproduce", self.store.out, queue, deadline_of(time_budget), jobs, self.say)
        self.store = Store(self.store.out, self.store.results)
        if interrupted:
            raise KeyboardInterrupt
        for item in self.items:
            if item.shows == "embedding" and part is None:
                self.embed(item)
        return result

    def embed(self, item: Item) -> None:
        """Store the embeddings of test images by the finished runs of an item, for its figure."""
        for row, cells in self.store.of_item(self.scale, item).items():
            attack = self.scale.attack(row, item.columns[-1].metric)
            for one in cells:
                folder = RunFolder(one.cell.folder)
                if attack is not None and folder.is_done and self.store.embedding(one, item.of) is None:
                    self.say(f"{one.cell.name}: t-SNE of {item.of}")
                    made = embed(folder.path, attack, of=item.of, images=EMBEDDED)
                    path = folder.embedding(item.of)
                    make_folder(path.parent)
                    write_atomically(path, (json.dumps(made.to_json()) + "\n").encode())

    def planned(self) -> list[Cell]:
        """Every run, done or not, each once, in the order of the items."""
        return [*self.store.merged(self.cells).values()]

    def by_worth(self, cells: Sequence[Cell]) -> list[Cell]:
        """Return the runs, ordered by the number of claims that they settle per hour, highest first."""
        price = dict[str, float]()
        for one in self.cells:  # an item may show more of the same run than another
            left = seconds_left(self.store, one)
            price[one.cell.name] = max(price.get(one.cell.name, 0.0), UNPRICED_SECONDS if left is None else left)
        worth = worths(self.store, self.scale, price)
        return sorted(cells, key=lambda cell: -worth.get(cell.name, 0.0))

    def with_data(self, cells: Sequence[Cell]) -> list[Cell]:
        """Return the runs whose images are available and report the others; raise a `UserError` if none is."""
        missing: dict[str, str] = {}
        for data in {cell.run.data for cell in cells if cell.run is not None}:
            try:
                source(data)
            except UserError as error:
                missing[data.name] = str(error)
        left = [cell for cell in cells if cell.run is not None and cell.run.data.name not in missing]
        for why in missing.values():
            if not left:
                raise UserError(why)
            self.say(f"not run: {why}")
        return left

    def gather(self, folders: Sequence[Path]) -> None:
        """Copy the finished runs of other stores."""
        gather(self.planned(), folders, self.say)
        self.store = Store(self.store.out, self.store.results)

    def save(self, folder: Path) -> list[Path]:
        """Copy cards and thinned epochs of the finished runs to a folder of results."""
        return self.store.save(self.cells, folder)

    def left(self) -> TextTable:
        """Return how many runs are done, and the cost of the others."""
        return TextTable(f"Runs at scale {self.scale.name}: {state_of(self.store, self.cells)}")


def state_of(store: Store, cells: Sequence[StoredCell]) -> str:
    """Return in words how many runs are in each state, and the cost of the rest."""
    unique = {one.cell.name: one for one in cells}
    unique |= {one.cell.name: one for one in cells if one.state != "done"}  # done is a run that is so for every item
    counts = Counter(one.state for one in unique.values())
    prices = [seconds_left(store, one) for one in unique.values()]
    price = sum(filter(None, prices))
    said = [f"{count} {state}" for state, count in counts.items()]
    said += [f"the rest {duration(price)} of one core"] if price else []
    said += [f"{prices.count(None)} without a price"] if None in prices else []
    return ", ".join(said)


def _counts(store: Store, scale: Scale, item: Item) -> str:
    """Return how many of the runs that an item needs are done; other seeds do not count."""
    found = store.of_item(scale, item).items()
    needed = [one for row, cells in found for one in cells if one.cell.seed in scale.seeds_of(row)]
    return f"{sum(one.state == 'done' for one in needed)}/{len(needed)}"


def overview(store: Store) -> TextTable:
    """Return every item with its progress at each scale, and the cost of the rest of both papers."""
    every, heads = scales().values(), ("", *scales())
    rows = [
        (f"{item.name} · {item.title}", *(_counts(store, scale, item) for scale in every)) for item in items().values()
    ]
    found = [(scale, store.every_cell(scale, items().values())) for scale in every]
    said = tuple(f"{scale.name} ({scale.says}): {state_of(store, cells)}." for scale, cells in found)
    return TextTable("Runs that are filled, of those that an item needs", heads, (*rows,), said)
