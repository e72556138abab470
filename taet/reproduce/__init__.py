"""Both papers as data: which runs fill which table, figure and claim, and what they give beside the paper."""

from taet.reproduce.manifest import Item, Scale, items, scales
from taet.reproduce.store import Store

__all__ = ["Item", "Scale", "Store", "items", "scales"]
