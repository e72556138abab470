"""Reading result cards: from run folders, card files, folders of these, patterns or memory."""

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from taet.card.card import Card
from taet.card.images import ImagePixels
from taet.card.store import card_of
from taet.errors import UserError, prefix_errors
from taet.files import read_json, write_json
from taet.models.weight_files.location import download_or_path
from taet.run.folder import RunFolder
from taet.run.record import Epoch

CardSource = str | os.PathLike[str] | Card
Sources = CardSource | Iterable[CardSource]
ALLOWED = "a run folder, a card, a folder or a pattern of these"
COMPARISON = "comparison.json"  # in the folder of a comparison
MARK = b'"taet result card"'  # among the first bytes of every card
MARK_WITHIN = 200


@dataclass(frozen=True, eq=False)
class StoredCard:
    """A card, the file or position in memory that it is from, and the epochs of its run."""

    name: str
    card: Card
    epochs: tuple[Epoch, ...]
    folder: Path | None  # that the card is in, with its images; None for one in memory

    def pixels(self) -> ImagePixels | None:
        """Return the images of the card as `CardImages.read` does; None without their file."""
        if self.card.images is None or self.folder is None:
            return None
        return self.card.images.read(self.folder)


class CardsRead(NamedTuple):
    """The cards of some sources, and the run folders among them that have no card yet."""

    cards: list[StoredCard]
    waiting: list[str]
    title: str | None = None  # of the comparison, if they are the cards of one


def read_cards(sources: Iterable[Sources]) -> CardsRead:
    """Read the cards of all sources: those of files first, sorted by name, then those in memory.

    Raises:
        UserError: a source without a card, a damaged card, a card of other weights than its
            folder's.
    """
    given = list(_flat(sources))
    names = [os.fspath(source) for source in given if not isinstance(source, Card)]
    cards, waiting, _ = _read_places(_unique_places(names))
    for number, source in enumerate(given, 1):
        if isinstance(source, Card):
            cards.append(StoredCard(f"card {number}", source, (), None))
    if not cards and waiting:
        raise UserError(f"no result card in {waiting[0]}; {_what_is_missing(Path(waiting[0]))}")
    if not cards:
        raise UserError(f"no result card; allowed: {ALLOWED}")
    title = _title_of(Path(names[0])) if len(given) == len(names) == 1 else None
    return CardsRead(cards, waiting, title)


def _what_is_missing(folder: Path) -> str:
    """Return the command that a run needs next for a card."""
    if not RunFolder(folder).is_done:
        return f"its training is not finished; continue it: taet train --resume {folder}"
    return f"evaluate it first: taet evaluate {folder}"


def write_title(folder: Path, title: str) -> None:
    """Write the title of a comparison into its folder."""
    write_json(folder / COMPARISON, {"title": title})


def _title_of(path: Path) -> str | None:
    """Return the title of the comparison in a folder, or of which it holds the runs."""
    for folder in (path, path.parent):
        file = folder / COMPARISON
        if file.is_file():
            title = read_json(file).get("title")
            return title if isinstance(title, str) else None
    return None


def _flat(sources: Iterable[Sources]) -> Iterator[CardSource]:
    for source in sources:
        if isinstance(source, str | os.PathLike | Card):
            yield source
        elif isinstance(source, Iterable):
            yield from _flat(source)
        else:
            raise UserError(f"results: got a {type(source).__name__}; allowed: {ALLOWED}")


def _read_places(places: Sequence[Path]) -> CardsRead:
    cards: list[StoredCard] = []
    waiting: list[str] = []
    for path in places:
        name = path.as_posix()
        if not path.is_dir():
            cards.append(StoredCard(name, Card.load(path), (), path.parent))
            continue
        folder = RunFolder(path)
        card = card_of(folder)
        if card is None:
            waiting.append(name)
        else:
            epochs = tuple(folder.metrics) if folder.is_run else ()
            cards.append(StoredCard(name, card, epochs, path))
    return CardsRead(cards, waiting)


def _unique_places(names: Iterable[str]) -> list[Path]:
    """Return the run folders and card files that names stand for, each once and not as a link."""
    by_target: dict[Path, Path] = {}
    for name in names:
        for path in _places(name):
            known = by_target.get(path.resolve())
            if known is None or known.is_symlink() or not path.is_symlink():
                by_target[path.resolve()] = path
    return sorted(by_target.values(), key=Path.as_posix)


def _places(name: str) -> list[Path]:
    """Return the run folders and card files that a path or pattern stands for."""
    if not name.strip():
        raise UserError(f"results: got an empty path; allowed: {ALLOWED}")
    path = download_or_path(name)
    if path.is_file():
        return [path]
    if path.is_dir():
        paths = [path]
    else:
        paths = [Path(match) for match in sorted(glob.glob(name, recursive=True))]
    places: list[Path] = []
    for inner in paths:
        places += _places_in(inner)
    if not places:
        raise UserError(f"{name}: no result card; allowed: {ALLOWED}")
    return places


def _places_in(path: Path) -> list[Path]:
    """Return `path` if it is a card or a run folder, else those inside it.

    Other JSON is passed over, and so is a link unless it leads to a run.
    """
    if not path.is_dir():
        return [path] if _is_card(path) else []
    folder = RunFolder(path)
    if folder.is_run or _is_card(folder.card()):
        return [path]
    places: list[Path] = []
    for inner in sorted(path.iterdir()):
        if not inner.is_symlink() or RunFolder(inner).is_run:
            places += _places_in(inner)
    return places


def _is_card(path: Path) -> bool:
    if path.suffix != ".json" or not path.is_file():
        return False
    with prefix_errors("results"), path.open("rb") as file:
        return MARK in file.read(MARK_WITHIN)
