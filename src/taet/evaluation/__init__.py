"""Evaluations: attacking a model, and the card with the outcome."""

from taet.card.card import Card, ResultCard
from taet.card.column import Column
from taet.card.summary import Summary
from taet.evaluation.attack_sets import parse_attack
from taet.evaluation.check import Check, check
from taet.evaluation.evaluate import evaluate

__all__ = ["Card", "Check", "Column", "ResultCard", "Summary", "check", "evaluate", "parse_attack"]
