"""What an evaluation keeps in a folder: finished batches, result cards, and a few images under attack."""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taet.attacks.units import Unit
from taet.errors import UserError
from taet.evaluation.card import Card
from taet.evaluation.column import WORST_CASE, check_classes
from taet.files import file_sha256, make_folder, read_bytes, write_atomically
from taet.statistics import Ints
from taet.training.folder import DELIVERED, RunFolder

TOLERANCE = 1e-3  # relative difference of one model's logits in two evaluations; rounding alone gives about 1e-6
MOST_EXAMPLES = 24  # images that are saved
MOST_BYTES = 2**28
"""Of the file of images: 24 of 600 x 600 pixels take 130 MB."""


class BatchStore:
    """A folder with one file per finished batch of an attack, from which a killed evaluation continues.

    `identity` is a hash of all that determines the results. Each file holds a SHA-256 of it and of its arrays: a file
    of another identity, or a damaged one, counts as missing.
    """

    def __init__(self, root: Path, attack: str, identity: str) -> None:
        self.folder = root / f"{re.sub('[^a-z0-9-]', '_', attack)}-{identity[:16]}"
        self.identity = identity

    def get(self, key: str) -> Unit | None:
        """Return the arrays of a batch, or None."""
        try:
            content = io.BytesIO((self.folder / f"{key}.npz").read_bytes())
            with np.load(content, allow_pickle=False) as file:
                arrays: dict[str, NDArray[Any]] = dict(file)
            return arrays if arrays.pop("sha256") == self._sha256(arrays) else None
        except Exception:  # a damaged file can fail at any point
            return None

    def put(self, key: str, arrays: Unit) -> None:
        """Save the arrays of a batch; after a kill the file is complete or missing."""
        buffer = io.BytesIO()
        content: dict[str, Any] = {"sha256": np.array(self._sha256(arrays)), **arrays}
        np.savez(buffer, **content)
        make_folder(self.folder)
        write_atomically(self.folder / f"{key}.npz", buffer.getvalue())

    def _sha256(self, arrays: Unit) -> str:
        """Return a hash of the identity and of the names, types, shapes and numbers of the arrays."""
        total = hashlib.sha256(self.identity.encode())
        for name in sorted(arrays):
            total.update(f"{name}{arrays[name].dtype.str}{arrays[name].shape}".encode())
            total.update(np.ascontiguousarray(arrays[name]).tobytes())
        return total.hexdigest()

    def remove(self) -> None:
        """Delete the files, and the parent folder once it is empty."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()


def of_folder(folder: RunFolder) -> Card | None:
    """Return the latest card of a folder about the weights that its run delivers, checked as in `read`; or None."""
    return read(folder, folder.card()) if folder.card().exists() else None


def read(folder: RunFolder, path: Path, weights: str = DELIVERED) -> Card:
    """Return a card, which in the folder of a run must be about that run, its weights and its test images."""
    card = Card.load(path)
    if folder.is_run and (card.sealed or "config" in card.run):
        folder.check_card(path, card.run.get("config", {}), card.model["weights_sha256"], weights)
        data, file = folder.record.data, folder.weights(weights)
        if tuple(data.class_names) != card.class_names or data.test.sha256 != card.data["test_sha256"]:
            raise UserError(f"{path} was made with other test images than the run; evaluate the run again")
        if file.exists() and card.model.get("file_sha256") not in (None, file_sha256(file)):
            raise UserError(f"{path} was made with another file of weights than {file.name}; evaluate the run again")
    return card


def find(path: Path, card: Card) -> Card | None:
    """Return the card at `path`, or an earlier one, that has the model, images, ball, batches and software of `card`.

    Models of equal weights are told apart by their outputs on the first images; a card without them agrees with any.
    """
    for place in (path, *_earlier(path)):
        if place.exists():
            known = Card.load(place)
            if _conditions(known) == _conditions(card) and _alike(known.model.get("answers"), card.model["answers"]):
                if not np.array_equal(known.labels, card.labels):
                    raise UserError(f"{place}: its labels are not those of its test images; was it changed?")
                return known
    return None


def put(path: Path, card: Card) -> None:
    """Save a card at `path`; an older one is kept beside it, under its time, unless the new one has all its columns.

    The older one is copied before it is replaced, so that no failure can lose a card.
    """
    if path.exists():
        before, content = Card.load(path), read_bytes(path)
        if not _holds(card, before) and all(read_bytes(place) != content for place in _earlier(path)):
            place = path.with_name(f"{path.stem}-{re.sub('[^0-9]', '', before.created) or '0'}.json")
            while place.exists():
                place = place.with_name(f"{place.stem}0.json")
            write_atomically(place, content)
    card.save(path)
    for place in _earlier(path):
        with contextlib.suppress(UserError, OSError):  # one that cannot be read or removed is in the way of nothing
            if _holds(card, Card.load(place)):
                place.unlink()


def _earlier(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.stem}-[0-9]*.json"), reverse=True)


def _conditions(card: Card) -> list[object]:
    """Return what two evaluations share whose columns may stand on one card."""
    software = [card.environment.get(name) for name in ("versions", "device")]
    return [card.model["weights_sha256"], card.threat, card.data["test_sha256"], card.batch_size, *software]


def _alike(stored: Sequence[Sequence[float | None]] | None, answers: Sequence[Sequence[float | None]]) -> bool:
    """Return whether the outputs that a card stores equal these, up to rounding; True if it stores none."""
    if stored is None:
        return True
    if [len(row) for row in stored] != [len(row) for row in answers]:
        return False
    one, other = (np.array(rows, dtype=np.float64) for rows in (stored, answers))
    limit = TOLERANCE * (float(np.nanmax(np.abs(other), initial=0)) or 1.0)
    return np.allclose(one, other, rtol=0, atol=limit, equal_nan=True)


def _holds(card: Card, other: Card) -> bool:
    """Whether `card` has every column of the other card, except the worst case, which follows from the columns."""
    mine = {column.identity: column.predictions for column in card.columns}
    columns = (column for column in other.columns if column.name not in WORST_CASE.values())
    return all(np.array_equal(mine.get(one.identity, ()), one.predictions) for one in columns)


@dataclass(frozen=True, eq=False)
class Examples:
    """Clean images, uint8, and adversarial ones, float in [0, 1], (n, H, W, C); labels and predictions, (n,)."""

    images: NDArray[np.uint8]
    adversarial: NDArray[np.float32]
    labels: Ints
    clean_predictions: Ints
    adversarial_predictions: Ints
    attack: str
    eps: float

    def save(self, path: Path) -> str:
        """Write the images and return the SHA-256 of their file."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **vars(self))
        make_folder(path.parent)
        write_atomically(path, buffer.getvalue())
        return hashlib.sha256(buffer.getvalue()).hexdigest()


def read_examples(path: Path, card: Card) -> Examples | None:
    """Return the images of a card; None if there is no file, or the card knows of none.

    A file that is not the one that the card was written with, or not of this form, is a `UserError`.
    """
    if not path.exists() or (card.sealed and card.examples_sha256 is None):
        return None
    content = read_bytes(path, most=MOST_BYTES)
    if card.examples_sha256 not in (None, hashlib.sha256(content).hexdigest()):
        raise UserError(f"{path} was changed: it is not the file that the result card names; evaluate again")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            stored: dict[str, Any] = {one.name: arrays[one.name] for one in fields(Examples)}
        count, *shape = stored["images"].shape
        if stored["adversarial"].shape != (count, *shape) or len(shape) != 3 or shape[2] not in (1, 3):
            raise ValueError(f"got images of shape {shape}")
        for name in ("labels", "clean_predictions", "adversarial_predictions"):
            check_classes(name, stored[name], count, card.num_classes)
        attack, eps = stored.pop("attack"), float(stored.pop("eps"))
        if attack.dtype.kind != "U" or attack.shape or not 0 < eps < np.inf:
            raise ValueError(f"got attack {attack} and eps {eps}")
    except Exception as error:  # a damaged zip or header fails in many types
        raise UserError(f"{path}: not readable as example images: {error}") from error
    return Examples(**stored, attack=str(attack), eps=eps)


def example_rows(card: Card, attack: str) -> Ints:
    """Choose up to `MOST_EXAMPLES` images, equally many of each class in their order, first those that fall."""
    clean = card.columns[0].correct
    interest = clean.astype(int) + (clean & ~card.column(attack).correct)
    rows: list[int] = []
    for label in range(card.num_classes):
        members = np.flatnonzero(card.labels == label)
        rows.extend(members[np.argsort(-interest[members], kind="stable")][: max(1, MOST_EXAMPLES // card.num_classes)])
    return np.asarray(rows[:MOST_EXAMPLES], dtype=np.int64)
