"""Both papers as data: which runs fill which table, figure and claim, and their results next to the published ones."""

from taet.reproduce.cell_store import Store
from taet.reproduce.manifest import Item, Scale, items, scales

__all__ = ["Item", "Scale", "Store", "items", "scales"]
