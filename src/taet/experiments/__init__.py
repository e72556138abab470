"""Comparisons: methods x data x imbalance ratios x seeds as run folders, of which only the missing
ones are run."""

from taet.experiments.compare import Comparison, compare
from taet.experiments.grid import Outcome

__all__ = ["Comparison", "Outcome", "compare"]
