"""Comparisons: methods x data x imbalance ratios x seeds as run folders, of which only the missing ones are run."""

from taet.experiments.comparison import CellOutcome, Comparison, compare, merge
from taet.experiments.specification import Specification, parse, read

__all__ = ["CellOutcome", "Comparison", "Specification", "compare", "merge", "parse", "read"]
