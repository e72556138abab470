"""Attacking a model, and the result card that keeps what came out."""

from taet.evaluation.columns import attack_split, parse_attack
from taet.evaluation.evaluate import evaluate
from taet.evaluation.result import Column, ResultCard, Summary

__all__ = ["Column", "ResultCard", "Summary", "attack_split", "evaluate", "parse_attack"]
