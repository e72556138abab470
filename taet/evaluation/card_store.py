"""The result cards of a folder: the latest under its own name, earlier ones with a time in their names."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from taet.errors import UserError
from taet.evaluation.card import ResultCard
from taet.evaluation.column import WORST_CASE
from taet.files import file_sha256, read_bytes, write_atomically
from taet.statistics import Ints
from taet.training.folder import DELIVERED, RunFolder

TOLERANCE = 1e-3  # relative difference of one model's logits in two evaluations; rounding alone gives about 1e-6


def of_folder(folder: RunFolder) -> ResultCard | None:
    """Return the latest card of a folder about the weights that its run delivers, checked as in `read`; or None."""
    path = folder.card()
    return read(folder, path) if path.exists() else None


def read(folder: RunFolder, path: Path, weights: str = DELIVERED) -> ResultCard:
    """Return a card of a folder.

    In the folder of a run it must be about that run, its weights and its test images, or a `UserError` is raised.
    """
    card = ResultCard.load(path)
    if folder.is_run and (card.sealed or "config" in card.run):
        folder.check_card(path, card.run.get("config", {}), card.model["weights_sha256"], weights)
        data, file = folder.record.data, folder.weights(weights)
        if data.class_names != card.class_names or data.test.sha256 != card.data["test_sha256"]:
            raise UserError(f"{path} was made with other test images than the run; evaluate the run again")
        if file.exists() and card.model.get("file_sha256") not in (None, file_sha256(file)):
            raise UserError(f"{path} was made with another file of weights than {file.name}; evaluate the run again")
    return card


def find(path: Path, facts: Mapping[str, Any], labels: Ints, answers: np.ndarray[Any, Any]) -> ResultCard | None:
    """Return the card at `path`, or one next to it, that is about this model, these images and this eps.

    Args:
        path: where the latest card is, or will be.
        facts: fields of the card, and their entries, that must agree.
        labels: labels of the images; different ones in a card that agrees raise a `UserError`.
        answers: outputs of the model on its first images (`Runner.fingerprint`); a card without them agrees with any.
    """
    for place in (path, *_beside(path)):
        if place.exists():
            card = ResultCard.load(place)
            if agrees(card, facts) and alike(card.model.get("answers"), answers):
                if not np.array_equal(card.labels, labels):
                    raise UserError(f"{place}: its labels are not those of its test images; was it changed?")
                return card
    return None


def put(path: Path, card: ResultCard) -> None:
    """Save a card at `path`; older cards are kept next to it unless it contains all their columns.

    An older card is copied before the new one replaces it, so that no failure can lose a card.
    """
    if path.exists():
        before, content = ResultCard.load(path), read_bytes(path)
        if not _holds(card, before) and all(read_bytes(place) != content for place in _beside(path)):
            write_atomically(_unused(path, before), content)
    card.save(path)
    for place in _beside(path):
        with contextlib.suppress(UserError, OSError):  # one that cannot be read or removed is in the way of nothing
            if _holds(card, ResultCard.load(place)):
                place.unlink()


def _beside(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.stem}-[0-9]*.json"), reverse=True)


def _unused(path: Path, card: ResultCard) -> Path:
    """Return an unused name with the time of a card."""
    stamp = re.sub("[^0-9]", "", card.created) or "0"
    place = path.with_name(f"{path.stem}-{stamp}.json")
    while place.exists():
        place = place.with_name(f"{place.stem}0.json")
    return place


def conditions(card: ResultCard) -> dict[str, Any]:
    """Return the test images, the batch size and the software of a card, which comparable results share."""
    software = {name: card.environment[name] for name in ("versions", "device")}
    images = {"test_sha256": card.data["test_sha256"]}
    return {"data": images, "batch_size": card.batch_size, "environment": software}


def agrees(card: object, facts: Mapping[str, Any]) -> bool:
    """Return whether fields of a card, or the named entries of these fields, have these values."""

    def of(found: Any, wanted: Any) -> Any:
        return {key: found.get(key) for key in wanted} if isinstance(wanted, dict) else found

    return all(of(getattr(card, name), wanted) == wanted for name, wanted in facts.items())


def alike(stored: Any, answers: np.ndarray[Any, Any]) -> bool:
    """Return whether the outputs that a card stores equal these, up to rounding; True if it stores none."""
    if stored is None:
        return True
    if [len(row) for row in stored] != [len(row) for row in answers]:
        return False
    limit = TOLERANCE * (float(np.nanmax(np.abs(answers), initial=0)) or 1.0)
    return np.allclose(np.array(stored, dtype=np.float64), answers, rtol=0, atol=limit, equal_nan=True)


def _holds(card: ResultCard, other: ResultCard) -> bool:
    """Whether `card` has every column of the other card, except the worst case, which follows from the columns."""
    return len(card.labels) == len(other.labels) and all(
        column.name in WORST_CASE.values()
        or any(
            mine.identity == column.identity and np.array_equal(mine.predictions, column.predictions)
            for mine in card.columns
        )
        for column in other.columns
    )
