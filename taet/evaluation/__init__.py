"""Evaluations: attacking a model, and the card with the outcome."""

from taet.evaluation.bundles import parse_attack
from taet.evaluation.card import Card, ResultCard
from taet.evaluation.check import Check, check
from taet.evaluation.column import Column, Summary
from taet.evaluation.evaluate import evaluate

__all__ = ["Card", "Check", "Column", "ResultCard", "Summary", "check", "evaluate", "parse_attack"]
