"""Attacking a model, and the result card that keeps what came out."""

from taet.evaluation.bundles import parse_attack
from taet.evaluation.card import ResultCard
from taet.evaluation.check import Check, check
from taet.evaluation.column import Column
from taet.evaluation.evaluate import evaluate
from taet.evaluation.summary import Summary

__all__ = ["Check", "Column", "ResultCard", "Summary", "check", "evaluate", "parse_attack"]
