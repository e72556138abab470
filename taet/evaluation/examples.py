"""A few images of each class under attack, saved for the report."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from taet.attacks.spec import AttackSpec
from taet.errors import UserError
from taet.evaluation.card import ResultCard
from taet.evaluation.column import Column, check_classes
from taet.evaluation.image_arrays import as_unit
from taet.evaluation.runner import Runner
from taet.files import make_folder, read_bytes, write_atomically
from taet.statistics import Ints

MOST_EXAMPLES = 24  # images that are saved
MOST_BYTES = 2**28
"""Of the file, and of its arrays: 24 images of 600 x 600 pixels take 130 MB."""


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
    sha256: str
    """Of the file."""


def read_examples(path: Path, card: ResultCard) -> Examples | None:
    """Return the example images of a card; None if there is no file, or the card knows of none.

    Raises:
        UserError: what is there is no such file, its arrays do not fit each other or the classes of the card, or it is
            another file than the one that the card was written with.
    """
    if not path.exists() or (card.sealed and card.examples_sha256 is None):
        return None
    for place in filter(Path.exists, (path, earlier(path))):
        content = read_bytes(place, most=MOST_BYTES)
        sha256 = hashlib.sha256(content).hexdigest()
        if card.examples_sha256 in (None, sha256):
            break
    else:
        raise UserError(f"{path} was changed: it is not the file that the result card names; evaluate again")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(member.file_size for member in archive.infolist()) > MOST_BYTES:
                raise ValueError(f"its arrays take more than {MOST_BYTES:,} bytes")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            stored = {one.name: arrays[one.name] for one in dataclasses.fields(Examples) if one.name != "sha256"}
    except Exception as error:  # a damaged zip or header fails in many types
        raise UserError(f"{path}: not readable as example images: {error}") from error
    count, shape = len(stored["labels"]) if stored["labels"].ndim else 0, stored["images"].shape
    for name in ("labels", "clean_predictions", "adversarial_predictions"):
        check_classes(f"{path}: {name}", stored[name], count, card.num_classes)
    for name, kind in (("images", np.uint8), ("adversarial", np.float32)):
        array = stored[name]
        if array.dtype != kind or array.shape != shape or shape[:1] != (count,) or shape[3:] not in ((1,), (3,)):
            allowed = f"{np.dtype(kind)} ({count}, height, width, 1 or 3), the same for both"
            raise UserError(f"{path}: {name}: got {array.dtype} {array.shape}; allowed: {allowed}")
    attack, eps, pixels = stored.pop("attack"), stored.pop("eps"), stored["adversarial"]
    if attack.shape or eps.shape or attack.dtype.kind != "U" or eps.dtype.kind != "f" or not 0 < eps < np.inf:
        raise UserError(f"{path}: attack and eps: got {attack.dtype} and {eps.dtype}; allowed: a text and a number")
    if not ((pixels >= 0) & (pixels <= 1)).all():
        raise UserError(f"{path}: adversarial: got values outside 0 to 1; allowed: 0 to 1")
    return Examples(**stored, attack=str(attack), eps=float(eps), sha256=sha256)


def earlier(path: Path) -> Path:
    """Where the images of the card before are until its successor is on the disk."""
    return path.with_name(f"{path.stem}-before{path.suffix}")


def save_examples(
    path: Path, before: ResultCard | None, card: ResultCard, runner: Runner, attacks: Sequence[AttackSpec]
) -> str | None:
    """Save a few images of each class under the PGD with most steps, preferring those that it breaks.

    Those of a stronger attack, which the card `before` was written with and this one still holds, are kept. Returns the
    SHA-256 of the file that belongs to the card; None if there is none.
    """
    held = None
    with contextlib.suppress(UserError):  # damaged ones are written anew
        held = None if before is None else read_examples(path, before)
    columns = {column.name: column for column in card.columns}
    steps = columns[held.attack].attack.ascent_steps if held is not None and held.attack in columns else 0
    chains = [attack for attack in attacks if attack.name in columns and attack.norm == "linf"]
    attack = max(chains, key=lambda chain: chain.ascent_steps, default=None)
    clean, drawable = card.clean, as_unit(runner.images[:1]).shape[1] in (1, 3)
    if attack is None or clean is None or attack.ascent_steps < max(steps, 1) or not drawable:
        return held.sha256 if held is not None and steps else None
    rows = _example_rows(card.labels, clean, columns[attack.name], card.num_classes)
    with runner.still():
        _, x_adv = runner.perturb(attack, rows)
        predictions = runner.answers(attack, x_adv, rows).argmax(1)
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        images=np.rint(255 * as_unit(runner.images[rows]).permute(0, 2, 3, 1).numpy()).astype(np.uint8),
        adversarial=x_adv.permute(0, 2, 3, 1).cpu().numpy(),
        labels=card.labels[rows],
        clean_predictions=clean.predictions[rows],
        adversarial_predictions=predictions.cpu().numpy(),
        attack=np.array(attack.name),
        eps=np.array(attack.eps),
    )
    content = buffer.getvalue()
    make_folder(path.parent)
    if path.exists():
        write_atomically(earlier(path), read_bytes(path, most=MOST_BYTES))
    write_atomically(path, content)
    return hashlib.sha256(content).hexdigest()


def _example_rows(labels: Ints, clean: Column, attacked: Column, num_classes: int) -> Ints:
    """Choose up to `MOST_EXAMPLES` images, equally many of each class, in the order of the classes."""
    interest = clean.correct.astype(int) + (clean.correct & ~attacked.correct)
    rows: list[int] = []
    for label in range(num_classes):
        members = np.flatnonzero(labels == label)
        best = members[np.argsort(-interest[members], kind="stable")]
        rows.extend(best[: max(1, MOST_EXAMPLES // num_classes)])
    return np.asarray(rows[:MOST_EXAMPLES], dtype=np.int64)
