"""Evaluations: attacking a model, and the result card with the outcome."""

from taet.evaluation.audit import Audit, audit
from taet.evaluation.bundles import parse_attack
from taet.evaluation.card import ResultCard
from taet.evaluation.check import Check, check
from taet.evaluation.column import Column
from taet.evaluation.decide import decide
from taet.evaluation.decision_card import DecisionCard
from taet.evaluation.evaluate import evaluate
from taet.evaluation.sequential import StopRule
from taet.evaluation.subject import GivenImages
from taet.evaluation.summary import Summary

__all__ = [
    "Audit",
    "Check",
    "Column",
    "DecisionCard",
    "GivenImages",
    "ResultCard",
    "StopRule",
    "Summary",
    "audit",
    "check",
    "decide",
    "evaluate",
    "parse_attack",
]
