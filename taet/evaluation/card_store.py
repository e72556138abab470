"""The result cards of a folder: the latest under its own name, others next to it with the time in their names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from taet.evaluation.card import ResultCard
from taet.evaluation.column import WORST_CASE

TOLERANCE = 1e-3  # relative difference of one model's logits in two evaluations; rounding alone gives about 1e-6


def find(path: Path, facts: Mapping[str, Any], answers: np.ndarray[Any, Any]) -> ResultCard | None:
    """Return the card at `path`, or one next to it, that is about this model, these images and this eps.

    Args:
        path: where the latest card is, or will be.
        facts: fields of the card, and their entries, that must agree.
        answers: of the model on its first images (`Runner.fingerprint`); a card that has none agrees with any.
    """
    for place in (path, *_beside(path)):
        if place.exists():
            card = ResultCard.load(place)
            if _agrees(card, facts) and _alike(card.model.get("answers"), answers):
                return card
    return None


def put(path: Path, card: ResultCard) -> None:
    """Save a card at `path`; older cards are kept next to it unless it contains all their columns."""
    if path.exists():
        before = ResultCard.load(path)
        if not _holds(card, before):
            path.replace(_place(path, before))
    card.save(path)
    for place in _beside(path):
        if _holds(card, ResultCard.load(place)):
            place.unlink()


def _beside(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.stem}-[0-9]*.json"), reverse=True)


def _place(path: Path, card: ResultCard) -> Path:
    """A name that is not in use."""
    stamp = re.sub("[^0-9]", "", card.created) or "0"
    place = path.with_name(f"{path.stem}-{stamp}.json")
    while place.exists():
        place = place.with_name(f"{place.stem}0.json")
    return place


def _agrees(card: ResultCard, facts: Mapping[str, Any]) -> bool:
    def of(found: Any, wanted: Any) -> Any:
        return {key: found.get(key) for key in wanted} if isinstance(wanted, dict) else found

    return all(of(getattr(card, name), wanted) == wanted for name, wanted in facts.items())


def _alike(stored: Any, answers: np.ndarray[Any, Any]) -> bool:
    if stored is None:
        return True
    before = np.array(stored, dtype=np.float64)
    limit = TOLERANCE * (float(np.nanmax(np.abs(answers), initial=0)) or 1.0)
    return before.shape == answers.shape and np.allclose(before, answers, rtol=0, atol=limit, equal_nan=True)


def _holds(card: ResultCard, other: ResultCard) -> bool:
    """Whether `card` has every column of the other, except the worst case, which follows from the columns."""
    return len(card.labels) == len(other.labels) and all(
        column.name in WORST_CASE.values()
        or any(
            mine.identity == column.identity and np.array_equal(mine.predictions, column.predictions)
            for mine in card.columns
        )
        for column in other.columns
    )
