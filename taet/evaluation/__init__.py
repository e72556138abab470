"""Attacking a model, and the result card that keeps what came out."""

from taet.evaluation.attack import parse_attack
from taet.evaluation.check import Check, check
from taet.evaluation.evaluate import evaluate
from taet.evaluation.result import Column, ResultCard, Summary

__all__ = ["Check", "Column", "ResultCard", "Summary", "check", "evaluate", "parse_attack"]
