"""Where cards come from: run folders, folders of cards, card files, patterns of these, and cards in memory."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from taet.errors import UserError, located
from taet.evaluation import card_store
from taet.evaluation.card import ResultCard
from taet.evaluation.examples import Examples, read_examples
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
    """Return the cards of all sources, sorted by name, and the run folders without a card.

    Raises:
        UserError: a source without a card, a damaged card, a card of other weights than its folder's.
    """
    found: dict[str, StoredCard] = {}
    waiting: list[str] = []
    for number, one in enumerate(_flat(sources), 1):
        if isinstance(one, ResultCard):
            name = f"card {number}"
            found[name] = StoredCard(name, one)
            continue
        for path in _places(one):
            folder = RunFolder(path)
            if path.is_dir() and not folder.card().exists():
                waiting.append(path.as_posix())
            elif path.as_posix() not in found:
                found[path.as_posix()] = _of_folder(folder) if path.is_dir() else _of_file(path)
    if not found and waiting:
        raise UserError(f"no result card in {waiting[0]}; allowed: evaluated runs (taet evaluate {waiting[0]})")
    if not found:
        raise UserError("results: got no result card; allowed: run folders, result cards, or folders of these")
    return [found[name] for name in sorted(found)], sorted(set(waiting))


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
    if path.exists():
        return _inside(path) or _none(name)
    if not glob.has_magic(name):
        raise UserError(f"{name}: no such file or folder; allowed: a run folder, a result card, or a pattern of these")
    return [place for found in sorted(glob.glob(name, recursive=True)) for place in _inside(Path(found))] or _none(name)


def _none(name: str) -> list[Path]:
    raise UserError(f"{name}: no result card; allowed: what taet train or taet evaluate wrote, or a folder of these")


def _inside(path: Path) -> list[Path]:
    """Return the path itself, or the runs and cards in a folder that is neither."""
    if not path.is_dir():
        return [path] if path.suffix != ".json" or is_card(path) or not path.is_file() else []
    folder = RunFolder(path)
    if folder.is_run or folder.card().is_file():
        return [path]
    inner = sorted(one for one in path.iterdir() if one.is_dir() and one.name not in SKIPPED)
    files = sorted(one for one in path.glob("*.json") if is_card(one))
    return [*files, *(place for one in inner for place in _inside(one))]


def is_card(path: Path) -> bool:
    """Return whether a file calls itself a result card at its beginning."""
    with located("results"), path.open("rb") as file:
        return KIND in file.read(200)


def _of_folder(folder: RunFolder) -> StoredCard:
    card = card_store.of_folder(folder)
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
