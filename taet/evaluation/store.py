"""Result cards in the folders of evaluations."""

import itertools
import re
from pathlib import Path

import numpy as np

from taet.errors import UserError
from taet.evaluation.card import Card
from taet.files import file_sha256, read_bytes, write_atomically
from taet.training.folder import DELIVERED, RUN, RunFolder
from taet.training.record import training_settings

TOLERANCE = 1e-3  # relative difference of one model's logits in two evaluations; rounding alone gives about 1e-6


def of_folder(folder: RunFolder) -> Card | None:
    """Return the latest card of a folder about the weights that its run delivers, checked as in `read`; or None."""
    return read(folder, folder.card()) if folder.card().exists() else None


def read(folder: RunFolder, path: Path, weights: str = DELIVERED) -> Card:
    """Return a card, which in the folder of a run must be about that run, its weights and its test images."""
    card = Card.load(path)
    if folder.is_run:
        if not card.sealed:
            raise UserError(f"{path} has no SHA-256 of its own; evaluate the run again")
        data, file = folder.record.data, folder.weights(weights)
        held, named = training_settings(folder.record.settings), training_settings(card.run.get("config", {}))
        if not named or any(held[key] != named[key] for key in held.keys() & named.keys()):
            raise UserError(f"{path} belongs to another run than {folder.path / RUN}; evaluate the run again")
        if file.exists() and folder.check_weights(weights).weights_sha256 != card.model["weights_sha256"]:
            raise UserError(f"{path} has other weights than {file.name}; evaluate the run again")
        if tuple(data.class_names) != card.class_names or data.test.sha256 != card.data["test_sha256"]:
            raise UserError(f"{path} was made with other test images than the run; evaluate the run again")
        if file.exists() and card.model.get("file_sha256") not in (None, file_sha256(file)):
            raise UserError(f"{path} was made with another file of weights than {file.name}; evaluate the run again")
    return card


def continued(path: Path, card: Card) -> Card:
    """Return the card with the columns and probe of the one at `path`, or of one set aside beside it.

    That is the first of the same model, images, ball, batches, machine and software. Models of equal weights are told
    apart by their outputs on the first images. A card at `path` about other weights or other test images is a
    `UserError`.
    """
    if not path.exists():
        return card
    known = Card.load(path)
    hashes = ((of.model["weights_sha256"], of.data["test_sha256"]) for of in (known, card))
    for what, old, new in zip(("another model", "other test images"), *hashes, strict=True):
        if old != new:
            got = f"{what} (SHA-256 {old[:12]}, here {new[:12]})"
            raise UserError(f"evaluate: {path} is about {got}; allowed: another folder")
    aside = sorted(path.parent.glob(f"{path.stem}-[0-9]*.json"), reverse=True)
    cards = itertools.chain([known], map(Card.load, aside))  # one set aside is read only if it may be needed
    same = next((one for one in cards if _same(one, card)), None)
    return card if same is None else card.changed(columns=same.columns, probe=same.probe)


def _same(known: Card, card: Card) -> bool:
    one, other = (
        [of.model["weights_sha256"], of.data["test_sha256"], of.threat, of.batch_size]
        + [of.environment.get(name) for name in ("versions", "device")]
        for of in (known, card)
    )
    return one == other and same_answers(known, card)


def same_answers(one: Card, other: Card) -> bool:
    """Whether the outputs on the first images agree: networks of equal weights may differ in what is around them."""
    there, here = (np.array(of.model.get("answers", ()), np.float64) for of in (one, other))  # older cards: none
    limit = TOLERANCE * (float(np.nanmax(np.abs(here), initial=0)) or 1.0)
    return there.shape == here.shape and np.allclose(there, here, 0, limit, equal_nan=True)


def put(path: Path, card: Card) -> None:
    """Save a card at `path`; one with columns that the new card lacks is first copied beside it, under its time."""
    if path.exists():
        mine = {column.identity: column.predictions for column in card.columns}
        before = Card.load(path)
        if not all(np.array_equal(mine.get(one.identity, ()), one.predictions) for one in before.columns):
            place = path.with_name(f"{path.stem}-{re.sub('[^0-9]', '', before.created) or 0}.json")
            write_atomically(place, read_bytes(path))
    card.save(path)
