"""Where cards come from: run folders, folders of cards, card files, patterns of these, and cards in memory."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from taet.errors import UserError, located
from taet.evaluation import store
from taet.evaluation.card import ResultCard
from taet.evaluation.store import Examples, read_examples
from taet.files import digest, parse_json, read_bytes
from taet.models.hub import local
from taet.training.folder import METRICS, RunFolder
from taet.training.record import Epoch

Sources = str | os.PathLike[str] | ResultCard | Iterable["Sources"]
KIND = b'"taet result card"'
SKIPPED = frozenset({"artifacts", "tensorboard"})


@dataclass(frozen=True, eq=False)
class StoredCard:
    """A card with what stands beside it."""

    name: str
    """Its file, or the position of a card in memory."""
    card: ResultCard
    epochs: tuple[Epoch, ...] = ()
    examples: Examples | None = None


def read(sources: Sources) -> tuple[list[StoredCard], list[str]]:
    """Return the cards of all sources, files sorted by name before those in memory, and the run folders without a card.

    Raises:
        UserError: a source without a card, a damaged card, a card of other weights than its folder's.
    """
    flat = list(_flat(sources))
    held = [StoredCard(f"card {number}", one) for number, one in enumerate(flat, 1) if isinstance(one, ResultCard)]
    paths = sorted({place.as_posix(): place for one in flat if isinstance(one, str) for place in _places(one)}.values())
    waiting = [path.as_posix() for path in paths if path.is_dir() and not RunFolder(path).card().exists()]
    found = [_of_folder(path) if path.is_dir() else _of_file(path) for path in paths if path.as_posix() not in waiting]
    if not found and not held:
        where = f" in {waiting[0]}" if waiting else ""
        after = f"; evaluate it first: taet evaluate {waiting[0]}" if waiting else ""
        raise UserError(f"no result card{where}; allowed: evaluated runs, result cards, or folders of these{after}")
    return [*found, *held], waiting


def _flat(sources: Sources) -> Iterator[str | ResultCard]:
    if isinstance(sources, ResultCard):
        yield sources
    elif isinstance(sources, str | os.PathLike):
        yield os.fspath(sources)
    else:
        for one in sources:
            yield from _flat(one)


def _places(name: str) -> list[Path]:
    """Return the run folders and card files that a name or pattern means."""
    path = local(name)
    if path.is_dir() or not path.exists():
        names = [path] if path.is_dir() else [Path(one) for one in sorted(glob.glob(name, recursive=True))]
        if found := [place for one in names for place in _inside(one)]:
            return found
        raise UserError(f"{name}: no result card; allowed: a run folder, a card, a folder or a pattern of these")
    return [path]


def _inside(path: Path) -> list[Path]:
    """Return a run folder or card itself, or those in a folder; no links are followed."""
    if not path.is_dir():
        return [path] if path.suffix == ".json" and is_card(path) else []
    if RunFolder(path).is_run or RunFolder(path).card().is_file():
        return [path]
    inner = (one for one in sorted(path.iterdir()) if not one.is_symlink() and one.name not in SKIPPED)
    return [place for one in inner for place in _inside(one)]


def is_card(path: Path) -> bool:
    """Return whether a file calls itself a result card at its beginning."""
    if not path.is_file():
        return False
    with located("results"), path.open("rb") as file:
        return KIND in file.read(200)


def _of_folder(path: Path) -> StoredCard:
    folder = RunFolder(path)
    card = store.of_folder(folder)
    assert card is not None
    epochs = folder.metrics if folder.is_run else ()
    return StoredCard(folder.path.as_posix(), card, epochs, read_examples(folder.examples(folder.card()), card))


def _of_file(path: Path) -> StoredCard:
    card = ResultCard.load(path)
    return StoredCard(path.as_posix(), card, epochs_beside(path, card))


def epochs_beside(path: Path, card: ResultCard) -> tuple[Epoch, ...]:
    """Return the epochs stored beside a card as NAME.metrics.jsonl, checked; none if there is no such file.

    Raises:
        UserError: the epochs are damaged, were changed, or are those of other weights.
    """
    path = path.with_suffix(f".{METRICS}")
    if not path.exists():
        return ()
    lines = enumerate(read_bytes(path).splitlines(), 1)
    head, *rows = [parse_json(line, f"{path}: line {number} is damaged") for number, line in lines] or [None]
    with located(str(path)):
        if not isinstance(head, dict) or head.get("rows_sha256") != digest(rows):
            raise UserError("was changed or damaged: its SHA-256 differs from the one in its first line")
        if head.get("weights_sha256") != card.model.get("weights_sha256"):
            raise UserError("the epochs are those of other weights than the card's; remove it")
        return tuple(map(Epoch.from_json, rows))
