"""Comparisons: methods x data x imbalance ratios x seeds as run folders, filled as far as they are missing."""

from taet.experiments.comparison import Comparison, Outcome, compare, merge
from taet.experiments.specification import Specification, parse, read

__all__ = ["Comparison", "Outcome", "Specification", "compare", "merge", "parse", "read"]
