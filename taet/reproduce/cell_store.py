"""The store of cells: one run folder per set of relevant settings, shared by all tables, figures and claims."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import taet
from taet import methods
from taet.errors import UserError, located
from taet.evaluation import card_store, embedding
from taet.evaluation.card import ResultCard
from taet.evaluation.embedding import Embedding
from taet.evaluation.packing import Json
from taet.experiments.cells import Cell, Planner
from taet.experiments.specification import Point
from taet.files import digest, make_folder, parse_json, read_bytes, write_atomically
from taet.report.read import beside, rows_beside, write_rows
from taet.reproduce.manifest import Item, PaperRow, Scale
from taet.settings import Run, override
from taet.training.decisive_settings import training_settings
from taet.training.folder import RunFolder
from taet.training.record import Epoch, MetricsRow, run_from_json

COMMITTED = Path(taet.__file__).parents[1] / "results"
"""Cards of the repository; an installed package has none."""
EVERY = 5
"""Committed epochs are those with a point of the curve, and every one whose number is a multiple of this."""
RECORDED = {"curves": "monitor", "predictions": "predicted", "distances": "distance"}
"""The entry of an epoch that an item needs, by what it shows."""
T = TypeVar("T")
CellState = Literal["done", "started", "missing", "not applicable"]


def cell_hash(run: Run) -> str:
    """Return the SHA-256 of the settings that determine a run's results and differ from their defaults.

    Later versions may add settings: at their defaults these do not change the hash.
    """
    return digest(unusual(run) | {"method": run.method})


def unusual(run: Run) -> dict[str, object]:
    """Return the settings that determine a run's results and differ from the defaults of its method, by dotted name."""
    usual, own = _usual(run.method), training_settings(run)
    return {name: value for name, value in own.items() if name not in usual or usual[name] != value}


@functools.cache
def _usual(method: str) -> Mapping[str, object]:
    return training_settings(Run(method=method, settings=methods.find(method).Config()))


def any_seed_hash(run: Run) -> str:
    """Return the hash that a run shares with runs of other seeds."""
    return cell_hash(run.replace(seed=Run.default("seed")))


@dataclass(frozen=True)
class StoredCell:
    """A run that an item needs, and what is known about it."""

    cell: Cell
    key: str
    """Its hash; empty if the method cannot take the settings."""
    any_seed: str
    """The hash that it shares with runs of other seeds."""
    card: ResultCard | None
    rows: tuple[MetricsRow, ...]
    """Epochs, as in metrics.jsonl; committed ones are thinned."""
    is_whole: bool = True
    """Whether it has the epochs or the embedding that the item shows."""

    @property
    def epochs(self) -> tuple[Epoch, ...]:
        """Its rows as typed epochs."""
        return tuple(map(Epoch.from_json, self.rows))

    @property
    def attacks(self) -> tuple[str, ...]:
        """The attacks that the item needs."""
        return () if self.cell.run is None else self.cell.run.evaluation.attacks

    @property
    def state(self) -> CellState:
        """State of the run; done means that a card has every attack, and the run what the item shows."""
        if self.cell.run is None:
            return "not applicable"
        if attacks_on(self.card).issuperset(self.attacks) and self.is_whole:
            return "done"
        return "missing" if self.card is None and not RunFolder(self.cell.folder).is_run else "started"


def attacks_on(card: ResultCard | None) -> set[str]:
    """The attacks that a card has; none without a card."""
    return set() if card is None else {column.name for column in card.columns}


def by_seed(cells: Iterable[StoredCell]) -> dict[int, ResultCard]:
    """The cards of runs that differ in their seed."""
    return {one.cell.seed: one.card for one in cells if one.card is not None}


class Store:
    """Run folders below `out`, and committed cards below `results`; planning reads no images and no network."""

    def __init__(self, out: Path, results: Sequence[Path] | None = None) -> None:
        self.out = out
        self.results = [COMMITTED] if results is None else [*results]
        for folder in self.results if results is not None else ():
            if not folder.is_dir():
                raise UserError(f"results: no folder {folder}; allowed: folders with result cards")
        self.planner = Planner(out, "taet reproduce")
        self._stored: dict[str, StoredCell] = {}

    def cells(self, scale: Scale, row: PaperRow, metrics: Sequence[str]) -> list[StoredCell]:
        """Return the runs of a row with the attacks of these columns: all seeds of the scale, and others if done."""
        points = scale.points(row, metrics)
        own = [self._cell(point) for point in points]
        done = {*self._seeds.get(own[0].any_seed, [])} - {*scale.seeds_of(row)}
        others = [self._cell(dataclasses.replace(points[0], seed=seed)) for seed in sorted(done)]
        return own + [one for one in others if one.state == "done"]

    def of_item(self, scale: Scale, item: Item) -> Mapping[PaperRow, list[StoredCell]]:
        """The runs of every row of an item, with its epochs or embeddings if it shows them."""
        found = {row: self.cells(scale, row, [column.metric for column in item.columns_of(row)]) for row in item.rows}
        return {row: [self._for(item, one) for one in cells] for row, cells in found.items()}

    def _for(self, item: Item, one: StoredCell) -> StoredCell:
        """Return a run, marked as not whole if it lacks what an item shows."""
        if one.card is None:
            return one
        if item.shows == "embedding":
            whole = self.embedding(one, item.of) is not None
        else:
            field = RECORDED.get(item.shows, "epoch" if item.has_seconds else "")
            whole = not field or any(row.get(field) is not None for row in one.rows)
        return dataclasses.replace(one, is_whole=whole)

    def every_cell(self, scale: Scale, wanted: Iterable[Item]) -> list[StoredCell]:
        """Return the runs that items need, each as often as it is needed."""
        return [one for item in wanted for cells in self.of_item(scale, item).values() for one in cells]

    def merged(self, stored: Iterable[StoredCell]) -> dict[str, Cell]:
        """Return, by hash, the cells that can be run, each with all requested attacks."""
        merged: dict[str, StoredCell] = {}
        for one in stored:
            if one.key:
                before = merged.setdefault(one.key, one)
                merged[one.key] = _with_attacks(before, (*before.attacks, *one.attacks))
        return {key: one.cell for key, one in merged.items()}

    def _cell(self, point: Point) -> StoredCell:
        asked = repr(point)
        if asked not in self._stored:
            self._stored[asked] = self._found(self.planner.cell(point))
        return self._stored[asked]

    def _found(self, cell: Cell) -> StoredCell:
        run = cell.run
        if run is None:
            return StoredCell(cell, "", "", None, ())
        key, any_seed = cell_hash(run), any_seed_hash(run)
        ratio = "" if cell.imbalance is None else f"_ir{cell.imbalance:g}"
        name = f"{cell.entry.method}_{cell.data}{ratio}_seed{cell.seed}-{key[:8]}"
        cell = dataclasses.replace(cell, name=name, folder=self.out / "runs" / name)
        cell.check_folder()
        card, rows = self._committed(key, run)
        held = RunFolder(cell.folder)
        own = card_store.of_folder(held) if held.is_done else None
        if own is not None:  # on another machine, the same settings give other weights
            card, rows = own, held.rows
        return StoredCell(cell, key, any_seed, card, rows)

    def _committed(self, key: str, run: Run) -> tuple[ResultCard | None, tuple[MetricsRow, ...]]:
        """The committed card of a run that has the most of its attacks, with its rule of selection, and its epochs."""
        paths = self._index.get(key, [])
        cards = [load_card(path) for path in paths]
        for path, card in zip(paths, cards, strict=True):
            if weights_of(card) != weights_of(cards[0]):
                raise UserError(f"{paths[0]} and {path} are one run with other weights; remove one of them")
        if not cards:
            return None, ()
        best = max(cards, key=lambda card: len(attacks_on(card).intersection(run.evaluation.attacks)))
        best = best.changed(model={**best.model, "selection": run.training.selection})
        return best, next(filter(None, map(rows_beside, paths, cards)), ())

    @functools.cached_property
    def _runs(self) -> list[tuple[Path, Run]]:
        """The committed cards with the settings of the runs that deliver their weights, except older or unknown ones.

        Training does not depend on the rule that selects an epoch, so a card of the last epoch is also that of the run
        which delivers its last epoch.
        """
        found = []
        for path, values in self._cards:
            with contextlib.suppress(UserError):
                run = run_from_json(values["run"]["config"])
                rules = rules_of(values["model"], vars(run.training))
                found += [(path, override(run, {"training.selection": rule})) for rule in rules]
        return found

    @functools.cached_property
    def _cards(self) -> list[tuple[Path, Json]]:
        """The committed cards of runs of this package, as they are stored."""
        paths = sorted(path for folder in self.results for path in folder.glob("**/*.json"))
        found = []
        for path in paths:
            values = parse_json(read_bytes(path), str(path))
            with located(str(path)):
                found += [(path, values)] if _is_card(values) else []
        return found

    @property
    def configs(self) -> list[tuple[Path, Json]]:
        """The committed cards with the stored settings of their runs, also of methods that are not installed."""
        return [(path, values["run"]["config"]) for path, values in self._cards]

    @functools.cached_property
    def _index(self) -> Mapping[str, list[Path]]:
        """The committed cards by hash."""
        return _by_key((cell_hash(run), path) for path, run in self._runs)

    @functools.cached_property
    def _seeds(self) -> Mapping[str, list[int]]:
        """The seeds of committed cards and of finished runs, by the hash that they share."""
        own = [RunFolder(path) for path in (self.out / "runs").glob("*/")]
        runs = [run for _, run in self._runs]
        for folder in own:
            with contextlib.suppress(UserError):  # one that no row needs; others are verified where they are read
                runs += [folder.record.run] if folder.is_done else []
        return _by_key((any_seed_hash(run), run.seed) for run in runs)

    def embedding(self, one: StoredCell, of: str) -> Embedding | None:
        """Return the embedding of a run, from its folder or committed beside its card; None if there is none."""
        drawn = RunFolder(one.cell.folder).embedding(of)
        places = [drawn, *(beside(card, drawn.name) for card in self._index.get(one.key, []))]
        path = next((path for path in places if path.exists()), None)
        found = None if path is None else embedding.load(path)
        if found is not None and (one.card is None or found.weights_sha256 != weights_of(one.card)):
            raise UserError(f"{path} was made with other weights than the card of {one.cell.name}; remove it")
        return found

    def source(self, one: StoredCell) -> str:
        """Return where the card of a run is: below a folder of results, or its run folder."""
        for path in self._index.get(one.key, []):
            folder = next(folder for folder in self.results if path.is_relative_to(folder))
            if one.card is not None and weights_of(load_card(path)) == weights_of(one.card):
                return f"results/{path.relative_to(folder).as_posix()}"
        return f"runs/{one.cell.name}"

    def every_card(self) -> Iterator[ResultCard]:
        """Yield every committed card once."""
        yield from map(load_card, dict.fromkeys(path for path, _ in self._runs))

    def selected(self, one: StoredCell) -> ResultCard | None:
        """Return the committed card of the epoch that a curve selected in the training of a run of the last epoch."""
        if one.card is None or one.cell.run is None or one.cell.run.training.selection != "last":
            return None
        other = override(one.cell.run, {"training.selection": "best-validation"})
        cards = (load_card(path) for path in self._index.get(cell_hash(other), []))
        of_one_folder = ("hash", "command")  # another training with these settings may have had other rounding
        own = [one.card.run.get(name) for name in of_one_folder]
        return next((card for card in cards if [card.run.get(name) for name in of_one_folder] == own), None)

    def save(self, stored: Iterable[StoredCell], folder: Path) -> list[Path]:
        """Copy the card and the thinned epochs of finished runs to `folder`, which `results` may name; return cards."""
        written = []
        for one in {one.key: one for one in stored if one.state == "done"}.values():
            held = RunFolder(one.cell.folder)
            card, drawings = held.card(), held.embedding("*")
            if one.card is None or not card.exists():
                continue
            make_folder(folder)
            target = folder / f"{one.cell.name}.json"
            write_atomically(target, read_bytes(card))
            write_rows(target, thinned(one.rows), weights_of(one.card))
            for drawn in sorted(drawings.parent.glob(drawings.name)):
                write_atomically(beside(target, drawn.name), read_bytes(drawn))
            written.append(target)
        return written


def _is_card(values: object) -> bool:
    """Whether a file is the card of a run; its numbers are checked where it is loaded."""
    if not isinstance(values, dict) or "columns" not in values or not isinstance(values.get("model"), dict):
        return False
    run = values.get("run") or {}
    config = run.get("config") if isinstance(run, dict) else run
    if config is None:
        return False
    data = config.get("data") if isinstance(config, dict) else None
    if (
        not isinstance(data, dict)
        or not isinstance(data.get("name"), str)
        or not isinstance(config.get("protocol"), str)
    ):
        raise UserError("got a card whose run has no settings with a protocol and data; allowed: cards as evaluated")
    return True


def rules_of(model: Mapping[str, object], training: Mapping[str, object]) -> list[str]:
    """Return the rules of selection whose runs deliver the weights of a card, given its model and training settings.

    A best epoch that is the last one is both. An average has statistics of its own, so it is left out.
    """
    rule = str(model.get("selection") or training.get("selection"))
    if rule != "best-validation":
        return [rule]
    if training.get("selection") == "last":  # another rule measures another curve, with another best epoch
        return []
    is_last = model.get("epoch") == training.get("epochs") and training.get("swa", 1.0) == 1.0
    return [rule, "last"] if is_last else [rule]


def _by_key(pairs: Iterable[tuple[str, T]]) -> dict[str, list[T]]:
    """Return the values by key."""
    found: dict[str, list[T]] = {}
    for key, value in pairs:
        found.setdefault(key, []).append(value)
    return found


def load_card(path: Path) -> ResultCard:
    """Return a card; an unchanged file is read only once."""
    return _load_card(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=512)
def _load_card(path: Path, changed: int) -> ResultCard:  # noqa: ARG001 - tells files apart
    return ResultCard.load(path)


def thinned(rows: Sequence[MetricsRow]) -> list[MetricsRow]:
    """Return the rows with a point of the curve, the first, the last, and every fifth."""
    last = len(rows)
    return [row for row in rows if row.get("monitor") or row["epoch"] in (1, last) or not row["epoch"] % EVERY]


def weights_of(card: ResultCard) -> str:
    """The SHA-256 of the weights that a card is about."""
    return str(card.model["weights_sha256"])


def _with_attacks(one: StoredCell, attacks: Sequence[str]) -> StoredCell:
    changes = {"evaluation.attacks": tuple(dict.fromkeys(attacks))}
    return dataclasses.replace(one, cell=one.cell.changed(changes))
