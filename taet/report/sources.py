"""Where cards come from: run folders, folders of cards, card files, patterns of these, and cards in memory."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from taet.errors import UserError, located
from taet.evaluation import store
from taet.evaluation.card import ResultCard
from taet.evaluation.column import Column
from taet.models.hub import local
from taet.training.folder import RunFolder
from taet.training.record import Epoch

Sources = str | os.PathLike[str] | ResultCard | Iterable[str | os.PathLike[str] | ResultCard]
ALLOWED = "a run folder, a card, a folder or a pattern of these"
KIND = b'"taet result card"'
SKIPPED = frozenset({"artifacts", "tensorboard"})


@dataclass(frozen=True, eq=False)
class StoredCard:
    """A card with its file or position in memory, what stands beside it, and its place in a table."""

    name: str
    card: ResultCard
    epochs: tuple[Epoch, ...] = ()
    row: str = ""
    setting: tuple[str, ...] = ()
    """What the cards of one board share, besides their images: `taet.report.rows.SETTING`."""
    columns: Mapping[str, Column] = field(default_factory=dict)
    """By the names of their attacks in the table, in its order."""


def read(*sources: Sources) -> tuple[list[StoredCard], list[str]]:
    """Return the cards of all sources, files sorted by name before those in memory, and the run folders without a card.

    Raises:
        UserError: a source without a card, a damaged card, a card of other weights than its folder's.
    """
    flat = [
        one
        for source in sources
        for one in ([source] if isinstance(source, str | os.PathLike | ResultCard) else source)
    ]
    held = [StoredCard(f"card {number}", one) for number, one in enumerate(flat, 1) if isinstance(one, ResultCard)]
    named = [os.fspath(one) for one in flat if not isinstance(one, ResultCard)]
    paths = sorted({place for name in named for place in _places(name)}, key=Path.as_posix)
    waiting = [path for path in paths if path.is_dir() and not RunFolder(path).card().exists()]
    found = [_stored(path) for path in paths if path not in waiting]
    if not found and not held:
        after = (
            f" in {waiting[0]}; evaluate it first: taet evaluate {waiting[0]}" if waiting else f"; allowed: {ALLOWED}"
        )
        raise UserError(f"no result card{after}")
    return [*found, *held], [path.as_posix() for path in waiting]


def _places(name: str) -> list[Path]:
    """Return the run folders and card files that a name or pattern means."""
    if not name.strip():
        raise UserError(f"results: got an empty path; allowed: {ALLOWED}")
    path = local(name)
    if path.is_file():
        return [path]
    names = [path] if path.is_dir() else map(Path, sorted(glob.glob(name, recursive=True)))
    if found := [place for one in names for place in _inside(one)]:
        return found
    raise UserError(f"{name}: no result card; allowed: {ALLOWED}")


def _inside(path: Path) -> list[Path]:
    """Return a run folder or card itself, or those in a folder; JSON that is no card is passed over, links as well."""
    if not path.is_dir():
        return [path] if path.suffix == ".json" and _is_card(path) else []
    if RunFolder(path).is_run or _is_card(RunFolder(path).card()):
        return [path]
    inner = (one for one in sorted(path.iterdir()) if not one.is_symlink() and one.name not in SKIPPED)
    return [place for one in inner for place in _inside(one)]


def _is_card(path: Path) -> bool:
    if not path.is_file():
        return False
    with located("results"), path.open("rb") as file:
        return KIND in file.read(200)


def _stored(path: Path) -> StoredCard:
    folder, name = RunFolder(path), path.as_posix()
    if not path.is_dir():
        return StoredCard(name, ResultCard.load(path))
    card, epochs = store.read(folder, folder.card()), folder.metrics if folder.is_run else ()
    return StoredCard(name, card, epochs)
