"""The cells of a comparison: their runs, the commands that complete them, and the state of their folders."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from taet import methods, protocols
from taet.data import facts, is_own
from taet.errors import UserError, located, unknown
from taet.evaluation import card_store
from taet.evaluation.bundles import attacks_of
from taet.evaluation.card import ResultCard
from taet.evaluation.runner import among
from taet.experiments import own_images
from taet.experiments.specification import DottedSettings, Entry, Point, Specification, Variant, check_keys
from taet.formatting import size
from taet.models import check_consent, consent
from taet.settings import Run, option, override
from taet.training.decisive_settings import CURVE, training_settings
from taet.training.folder import RunFolder
from taet.training.resolve import check_model, learns_from_validation, resolve
from taet.training.schedule import curve_decides

State = Literal["done", "started", "missing", "failed", "not applicable"]


@dataclass(frozen=True)
class Cell:
    """One run of the comparison; `run` is None if the method refuses its settings, and `reason` says why."""

    name: str
    entry: Entry
    variant: Variant
    data: str
    imbalance: float | None
    seed: int
    folder: Path
    run: Run | None
    settings: DottedSettings
    """Settings of the run, its protocol and its seed, as options of `taet train METHOD` give them."""
    reason: str = ""
    attacked: bool = True
    """Whether it is attacked on all test images; False if pairs of cells are attacked until decided."""

    def changed(self, changes: DottedSettings) -> Cell:
        """Return the cell with these settings of its run changed."""
        run = None if self.run is None else override(self.run, changes)
        return dataclasses.replace(self, run=run, settings={**self.settings, **changes})

    @property
    def row(self) -> str:
        """Name of its row, which cells that differ only in the seed share."""
        return f"{self.entry.name} + {self.variant.name}" if self.variant.name else self.entry.name

    @property
    def state(self) -> State:
        return self.look().state

    def commands(self, threads: int) -> list[list[str]]:
        """Return the remaining commands, as arguments of `taet`; none for a cell that is done or not applicable."""
        return self.look(threads).commands

    def look(self, threads: int = 1) -> CellLook:
        """Read the folder of the cell, each file once."""
        held, run = RunFolder(self.folder), self.run
        if run is None:
            return CellLook("not applicable", [], held)
        folder, trust, asked = str(self.folder), consent(run.model.name), list(run.evaluation.attacks)
        unattacked = [] if self.attacked else ["--no-evaluate"]  # which is on by default for the user's own images
        evaluate, resume = ["evaluate", folder, *trust], ["train", "--resume", folder, *trust, *unattacked]
        if not held.is_run:
            settings = {**self.settings, "training.threads": self.settings.get("training.threads", threads)}
            train = ["train", run.method, *_options(settings), *unattacked, "--out", folder]
            return CellLook("missing", [train, evaluate] if self.attacked else [train], held)
        card = card_store.of_folder(held) if held.is_done else None
        if card is not None and _measured(run, card):
            return CellLook("done", [], held, card)
        if held.record.run.evaluation.attacks != run.evaluation.attacks:
            evaluate += ["--attacks", *asked]
        left = [*([] if held.is_done else [resume]), *([evaluate] if self.attacked else [])]
        return CellLook("started" if left else "done", left, held, card)

    def check_folder(self) -> None:
        """Raise a `UserError` if the run in the folder has other settings than the specification."""
        folder = RunFolder(self.folder)
        if self.run is None or not folder.is_run:
            return
        held, asked = training_settings(folder.record.run), training_settings(self.run)
        for name in sorted({*held, *asked}):
            there, here = held.get(name), asked.get(name)
            if there == here or (name, here) == ("training.precision", "auto"):
                continue
            if name not in CURVE or curve_decides(self.run, learns_from_validation(self.run)):
                raise UserError(
                    f"{self.folder} holds a run with other settings: {name.replace('settings.', 'method.')} is {there} "
                    f"there and {here} in the specification; choose another --out, or remove the folder"
                )


class CellLook(NamedTuple):
    """The contents of a cell's folder when it was read."""

    state: State
    """State of the cell; done means a finished run with a card that has every attack."""
    commands: list[list[str]]
    folder: RunFolder
    card: ResultCard | None = None

    @property
    def precision(self) -> str | None:
        """The precision that its run recorded."""
        return self.folder.record.run.training.precision if self.state in ("done", "started") else None

    @property
    def seconds(self) -> dict[str, float]:
        """Recorded seconds of training and of attacks."""
        columns = () if self.card is None else self.card.columns
        training, attacks = (sum(one.seconds for one in each) for each in (self.folder.metrics, columns))
        return {"training": round(training, 3), "evaluation": round(attacks, 3)}


def _measured(run: Run, card: ResultCard) -> bool:
    """Return whether a card has every attack, for the run's eps and batch size."""
    asked = run.evaluation
    same = card.threat["eps"] == run.attack_eps and card.batch_size == asked.batch_size
    attacks = (one for one in attacks_of(asked, run.attack_eps) if one.norm is not None)
    return same and all(among(card.columns, attack) is not None for attack in attacks)


def cells(specification: Specification, out: Path) -> list[Cell]:
    """Return every cell, all methods of the first seed first; their runs are folders of `out`/runs.

    Settings of an entry that its method rejects raise a `UserError`, as do shared settings or those of a variant that
    every method rejects. If only some methods reject shared settings, their cells are not applicable.
    """
    with located("" if specification.path is None else f"specification {specification.path}"):
        planner = Planner(out, str(specification.path or "specification"))
        starts = [planner.start(specification.protocol, entry) for entry in specification.methods]
        if all(isinstance(start, str) for start in starts):
            raise UserError(str(starts[0]))
        points = specification.points
        planned = [planner.cell(point) for point in points]
        first = points[: len(points) // len(specification.seeds)]
        _check_settings(planner, specification, [*zip(first, planned, strict=False)])
        folders: dict[Path, Cell] = {}
        for cell in planned:
            other = folders.setdefault(cell.folder, cell)
            if other is not cell:
                raise UserError(f"data: {other.data} and {cell.data} would both be in {cell.folder}")
            cell.check_folder()
        return _alike(planned)


class Planner:
    """Makes cells from points, in folders of `out`/runs; common parts are computed once, and no images are read."""

    def __init__(self, out: Path, asked_by: str) -> None:
        self.out, self.asked_by = out, asked_by
        self.facts_of = functools.cache(facts)
        self._planned = functools.cache(own_images.planned)
        self._starts: dict[str, Run | str] = {}
        self._unseeded: dict[str, Cell] = {}

    def start(self, protocol: str, entry: Entry) -> Run | str:
        """The run of the protocol, or why it has none for the method; a mistake in the entry is a UserError."""
        key = f"{protocol} {entry!r}"
        if key in self._starts:
            return self._starts[key]
        with located(f"methods: {entry.name}"):
            methods.find(entry.method)  # a broken file is a mistake under every protocol
            start: Run | str
            try:
                start = checked = protocols.start(protocol, entry.method)
            except UserError as error:
                start, checked = str(error), protocols.taet(entry.method)
            _run(checked, entry.method, entry.settings)
        self._starts[key] = start
        return start

    def cell(self, point: Point) -> Cell:
        """The cell of a point."""
        key = repr(dataclasses.replace(point, seed=0))
        if key not in self._unseeded:
            self._unseeded[key] = self._cell(point)
        cell, seed = self._unseeded[key], point.seed
        name = f"{cell.name}_seed{seed}"
        folder = cell.folder.with_name(name)
        return dataclasses.replace(cell, name=name, seed=seed, folder=folder).changed({"seed": seed})

    def _cell(self, point: Point) -> Cell:
        """The cell of a point without its seed."""
        data, ratio, variant, entry = point.data, point.imbalance, point.variant, point.entry
        place = data.replace(":", "-").replace("/", "-").strip("-.")
        parts = [entry.name, variant.name, place, "" if ratio is None else f"ir{ratio:g}"]
        name = "_".join(part for part in parts if part)
        settings = {**_of_data(data, ratio), **point.settings, **variant.settings, **entry.settings}
        settings = {**self._chosen(point, settings), **settings}
        made = self.made(point, settings)
        for key in variant.settings.keys() & entry.settings.keys():
            if variant.settings[key] != entry.settings[key]:
                made = f"its own settings say {key} {entry.settings[key]}"
        run, reason = (made, "") if isinstance(made, Run) else (None, made)
        said = {**settings, "protocol": point.protocol}
        return Cell(name, entry, variant, data, ratio, 0, self.out / "runs" / name, run, said, reason)

    def _chosen(self, point: Point, settings: DottedSettings) -> DottedSettings:
        """Return settings that `taet train` would choose for the user's own images; every command then states them."""
        start = self.start(point.protocol, point.entry)
        if isinstance(start, str) or not is_own(str(settings["data.name"])):
            return {}
        about = {key: value for key, value in settings.items() if key.startswith("data.")}
        run = override(start, {"method": Run.default("method"), "settings": None, **about})
        try:
            return {name: made.value for name, made in self._planned(run).choices.items()}
        except UserError:  # `made` raises it as well, with its cause
            return {}

    def made(self, point: Point, settings: DottedSettings) -> Run | str:
        """Return the resolved run of a method, or the reason why it is rejected."""
        entry, start = point.entry, self.start(point.protocol, point.entry)
        if isinstance(start, str):
            return start
        try:
            run = _run(start, entry.method, settings)
        except UserError as error:
            return str(error)
        check_consent(self.asked_by, run.model.name)
        try:
            found = self.facts_of(run.data)
        except UserError as error:  # this concerns every method, unless the entry has its own data settings
            own = [key for key in entry.settings if key.startswith("data.")]
            if not own:
                raise
            shared = {key: settings[key] for key in settings if key.startswith("data.") and key not in own}
            self.facts_of(override(start, shared).data)
            raise UserError(f"methods: {entry.name}: {error}") from None
        try:
            resolved = resolve(run, found)
            check_model(resolved, found)
            return resolved.run
        except UserError as error:
            return str(error)


def _check_settings(planner: Planner, grid: Specification, planned: Sequence[tuple[Point, Cell]]) -> None:
    """Raise a `UserError` for settings that no run can have; `planned` are the cells of one seed."""
    started = [pair for pair in planned if isinstance(planner.start(grid.protocol, pair[0].entry), Run)]
    for point, cell in started:
        if cell.run is None and cell.entry.settings and not cell.variant.name:
            _check_entry(planner, point)
    for variant in grid.variants:
        _check_variant(grid, variant, [cell for _, cell in started if cell.variant is variant])


def _check_entry(planner: Planner, point: Point) -> None:
    """Raise a `UserError` if a method rejects the entry's own settings even without the shared settings."""
    shared = {key: value for key, value in point.settings.items() if key.startswith("data.")}
    data = {**_of_data(point.data, point.imbalance), **shared}
    alone = planner.made(point, {**data, **point.entry.settings})
    if isinstance(alone, str) and alone != planner.made(point, data):
        raise UserError(f"methods: {point.entry.name}: {alone}")


def _check_variant(grid: Specification, variant: Variant, of: Sequence[Cell]) -> None:
    """Raise a `UserError` for shared or variant settings that every method rejects; `of` are the variant's cells."""
    if any(cell.run is not None for cell in of):
        return
    settings = {**grid.settings, **variant.settings}
    knobs = {f"method.{name}" for cell in of for name in methods.find(cell.entry.method).Config.model_fields}
    with located(f"variants: {variant.name}" if variant.name else "settings"):
        for key in [key for key in settings if key.startswith("method.")]:
            if not knobs:
                raise UserError(f"unknown setting '{key}'; none of the methods has settings of its own")
            if key not in knobs:
                raise unknown("setting", key, knobs)
            del settings[key]
        _run(protocols.taet(), Run.default("method"), settings)
        raise UserError(f"no method can take them: {of[0].entry.name}: {of[0].reason}")


def _alike(planned: list[Cell]) -> list[Cell]:
    """Give cells without a precision that of the cells already started, possibly on another machine."""
    folders = [RunFolder(cell.folder) for cell in planned if is_open(cell)]
    held = {folder.record.run.training.precision for folder in folders if folder.is_run}
    if len(held) != 1:
        return planned
    chosen = held.pop()
    return [in_precision(cell, chosen) for cell in planned]


def in_precision(cell: Cell, chosen: str) -> Cell:
    """Return the cell with this precision of training, unless it has one."""
    return cell.changed({"training.precision": chosen}) if is_open(cell) else cell


def is_open(cell: Cell) -> bool:
    """Return whether its precision is left to the machine."""
    return cell.run is not None and cell.run.training.precision == "auto"


def _of_data(data: str, ratio: float | None) -> DottedSettings:
    return {"data.name": data} | ({} if ratio is None else {"data.imbalance_ratio": ratio})


def _run(start: Run, method: str, settings: DottedSettings) -> Run:
    """The run of a method, with settings on top of its protocol; data are not read."""
    knobs: Any = methods.find(method).Config() if start.settings is None else start.settings
    own = {key.removeprefix("method."): value for key, value in settings.items() if key.startswith("method.")}
    known = list(type(knobs).model_fields)
    if own and not known:
        raise UserError(f"unknown setting 'method.{next(iter(own))}'; {method} has none of its own")
    check_keys(f"option of {method}", own, known)
    shared = {key: value for key, value in settings.items() if not key.startswith("method.")}
    run = override(start, {"settings": override(knobs, own), **shared})
    attacks_of(run.evaluation)
    return run


def _options(settings: DottedSettings) -> list[str]:
    """Return the command-line options of dotted settings."""
    words: list[str] = []
    for key, value in settings.items():
        name = option(key)
        if isinstance(value, bool):
            part, dot, last = name.rpartition(".")
            words.append(f"--{part}{dot}{'' if value else 'no-'}{last}")
        else:
            values = value if isinstance(value, tuple) else (value,)
            words += [f"--{name}", *(_word(name, item) for item in values)]
    return words


def _word(name: str, value: Any) -> str:
    """Return a value as the command line reads it; eps and step sizes as k/255 if k is whole."""
    in_pixels = name.rpartition(".")[2] in ("eps", "step-size") and isinstance(value, float)
    return size(value, None, within=0) if in_pixels else str(value)
