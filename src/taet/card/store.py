"""Cards in the folder of a run: they are read, checked against the run, continued and saved."""

import itertools
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from taet.card.card import Card
from taet.card.comparison import same_answers
from taet.card.images import CardImages
from taet.errors import UserError
from taet.files import file_sha256, read_bytes, write_atomically
from taet.run.folder import DELIVERED, RunFolder
from taet.run.identity import training_settings

_logger = logging.getLogger(__name__)


def card_of(folder: RunFolder) -> Card | None:
    """Return the latest card about the weights that a run delivers, or None.

    The card is checked as `read_card` does.
    """
    path = folder.card()
    return read_card(folder, path) if path.exists() else None


def read_card(folder: RunFolder, path: Path, weights: str = DELIVERED) -> Card:
    """Return the card of a file; in the folder of a run it must be about that run.

    Raises:
        UserError: the card is damaged or has no checksum, or is about another run, other weights or
            other test images.
    """
    try:
        card = Card.load(path)
    except UserError as error:
        raise UserError(f"{error}; remove {path} to measure it again") from None
    if folder.is_run:
        if not card.sealed:
            raise UserError(f"{path} has no SHA-256 of its own; evaluate the run again")
        mismatch = _mismatch(card, folder, weights)
        if mismatch is not None:
            raise UserError(f"{path} {mismatch}; evaluate the run again")
    return card


def _mismatch(card: Card, folder: RunFolder, weights: str) -> str | None:
    """Return how a card contradicts the run of a folder, as the end of a sentence; None if not."""
    held = training_settings(folder.record.settings)
    named = training_settings(card.run.get("config", {}))
    if not named or not _agree(held, named):
        return f"belongs to another run than {folder.path}/run.json"
    file = folder.weights(weights)
    if file.exists():
        weights_sha256 = folder.check_weights(weights).weights_sha256
        if weights_sha256 != card.model["weights_sha256"]:
            return f"has other weights than {file.name}"
    data = folder.record.data
    same_classes = tuple(data.class_names) == card.class_names
    if not same_classes or data.test.sha256 != card.data["test_sha256"]:
        return "was made with other test images than the run"
    if file.exists() and card.model.get("file_sha256") not in (None, file_sha256(file)):
        return f"was made with another file of weights than {file.name}"
    return None


def _agree(held: Mapping[str, object], named: Mapping[str, object]) -> bool:
    """Return whether the settings that both have are equal."""
    return all(held[key] == named[key] for key in held.keys() & named.keys())


def with_previous_columns(path: Path, card: Card) -> Card:
    """Return the card with the columns and the probe of an earlier card.

    The earlier card is the one at `path`, or one that `save_card` copied: the first of the same
    model, images, ball, batches, machine and software. Models of equal weights are told apart by
    their outputs on the first images. Without a name of its own the card keeps that of the card at
    `path`. Other weights or other test images are a `UserError`.
    """
    if not path.exists():
        return card
    latest = Card.load(path)
    _check_subject(path, latest, card)
    if card.name is None:
        card = card.changed(name=latest.name)
    for earlier in _earlier_cards(path, latest):
        if _measured_alike(earlier, card):
            return card.changed(columns=earlier.columns, probe=earlier.probe, images=earlier.images)
    return card


def _check_subject(path: Path, known: Card, card: Card) -> None:
    """Raise a `UserError` if two cards are about other weights or other test images."""
    hashes = {
        "another model": (known.model["weights_sha256"], card.model["weights_sha256"]),
        "other test images": (known.data["test_sha256"], card.data["test_sha256"]),
    }
    for what, (old, new) in hashes.items():
        if old != new:
            got = f"{what} (SHA-256 {old[:12]}, here {new[:12]})"
            raise UserError(f"evaluate: {path} is about {got}; allowed: another folder as --out")


def _earlier_cards(path: Path, latest: Card) -> Iterator[Card]:
    """Yield the latest card, then its copies, newest first; a copy is read only when asked for."""
    yield latest
    for copy in sorted(path.parent.glob(f"{path.stem}-[0-9]*.json"), reverse=True):
        yield Card.load(copy)


def _measured_alike(known: Card, card: Card) -> bool:
    """Return whether the columns of two cards may stand on one card."""
    return _conditions(known) == _conditions(card) and same_answers(known, card)


def _conditions(card: Card) -> tuple[object, ...]:
    """Return the model, images, ball, batches, software and machine of a measurement."""
    return (
        card.model["weights_sha256"],
        card.model.get("code", ""),
        card.data["test_sha256"],
        card.threat,
        card.batch_size,
        card.environment.get("versions"),
        card.environment.get("device"),
    )


def save_card(path: Path, card: Card) -> None:
    """Save a card at `path`; a card there with other columns is copied first, named by its time.

    The file of images of the card before is removed unless a card of the folder has it.
    """
    images = None
    if path.exists():
        old = Card.load(path)
        images = old.images
        if not _has_columns_of(card, old):
            content = read_bytes(path)
            copy = _free_name(path, old.created, content)
            write_atomically(copy, content)
            _logger.warning(
                "taet: the card before is kept as %s, which reports do not read; an eps of one "
                "attack, as in pgd-20:eps=2/255, is added to a card",
                copy,
            )
    card.save(path)
    if images is not None and not _is_used(images, path.parent):
        images.file(path.parent).unlink(missing_ok=True)


def _is_used(images: CardImages, folder: Path) -> bool:
    """Return whether a card of a folder has these images."""
    checksum = images.sha256.encode()
    return any(checksum in read_bytes(file) for file in folder.glob("*.json"))


def _has_columns_of(card: Card, old: Card) -> bool:
    """Return whether every column of the old card is on the new one, with equal predictions."""
    predictions = {column.identity: column.predictions for column in card.columns}
    return all(
        np.array_equal(predictions.get(column.identity, ()), column.predictions)
        for column in old.columns
    )


def _free_name(path: Path, created: str, content: bytes) -> Path:
    """Return the first name of a copy that no file has, or one of the same content."""
    first = int(re.sub("[^0-9]", "", created) or 0)
    for number in itertools.count(first):
        name = path.with_name(f"{path.stem}-{number}.json")
        if not name.exists() or read_bytes(name) == content:
            break
    return name
