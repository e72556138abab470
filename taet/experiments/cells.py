"""The cells of a comparison: their runs, the commands that complete them, and the state of their folders."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from taet import config, methods, protocols
from taet.config import Data, Run
from taet.data import DataFacts, facts
from taet.errors import UserError, unknown
from taet.evaluation import ResultCard
from taet.evaluation.bundles import attacks_of, check_attacks
from taet.evaluation.runner import among
from taet.experiments.specification import SHORT, Entry, Settings, Specification, Variant
from taet.formatting import size
from taet.training.decisive import decisive
from taet.training.folder import RunFolder, read_json
from taet.training.resolve import check_model, resolve

FactsOf = Callable[[Data], DataFacts | None]
State = Literal["done", "started", "missing", "not applicable"]


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
    flags: tuple[str, ...]
    """Options of `taet train METHOD`."""
    reason: str = ""

    @property
    def row(self) -> str:
        """Name of its row, which cells that differ only in the seed share."""
        return f"{self.entry.name} + {self.variant.name}" if self.variant.name else self.entry.name

    @property
    def state(self) -> State:
        """State of its folder; done means a finished run with a card that has every attack."""
        if self.run is None:
            return "not applicable"
        if not RunFolder(self.folder).is_run:
            return "missing"
        return "done" if not self.commands(threads=1) else "started"

    def commands(self, threads: int) -> list[list[str]]:
        """The commands that are left, as arguments of `taet`; none for a cell that is done or not applicable."""
        if self.run is None or self._measured():
            return []
        folder = str(self.folder)
        held = RunFolder(self.folder)
        if not held.is_run:
            given = () if "--threads" in self.flags else ("--threads", str(threads))
            return [["train", self.run.method, *self.flags, *given, "--out", folder], ["evaluate", folder]]
        asked = list(self.run.evaluation.attacks)
        added = [] if asked == held.record.settings["evaluation"]["attacks"] else ["--attacks", *asked]
        evaluate = ["evaluate", folder, *added]
        return [evaluate] if held.is_done else [["train", "--resume", folder], evaluate]

    def _measured(self) -> bool:
        """Is there a card with every attack, for the run's eps and batch size?"""
        held = RunFolder(self.folder)
        if self.run is None or not (held.card().exists() and held.is_done):
            return False
        card, asked = ResultCard.load(held.card()), self.run.evaluation
        eps = self.run.threat.eps if asked.eps is None else asked.eps
        same = card.threat["eps"] == eps and card.batch_size == asked.batch_size
        attacks = [one for one in attacks_of(asked, eps) if one.norm is not None]
        return same and all(among(card.columns, attack) is not None for attack in attacks)

    def check_folder(self) -> None:
        """Refuse a folder whose run has other settings than the specification."""
        if self.run is None or not RunFolder(self.folder).is_run:
            return
        held = decisive(RunFolder(self.folder).record.run)
        asked = decisive(self.run)
        for name in sorted({*held, *asked}):
            if held.get(name) != asked.get(name):
                here, there = asked.get(name), held.get(name)
                raise UserError(
                    f"{self.folder} holds a run with other settings: {name.replace('settings.', 'method.')} is {there} "
                    f"there and {here} in the specification; choose another --out, or remove the folder"
                )

    def seconds(self) -> dict[str, float]:
        """Recorded seconds of training and of attacks."""
        held = RunFolder(self.folder)
        columns = read_json(held.card())["columns"] if held.card().exists() else []
        return {
            "training": round(sum(row["seconds"] for row in held.rows), 3),
            "evaluation": round(sum(column["seconds"] for column in columns), 3),
        }


# --- from the specification to cells ---------------------------------------------------------------------------------


def cells(specification: Specification, out: Path) -> list[Cell]:
    """Return every cell, all methods of the first seed first; their runs are folders of `out`/runs.

    Settings of an entry that its method refuses are a `UserError`, as are shared settings or those of a variant that
    every method refuses. Where only some methods refuse shared settings, their cells are not applicable.
    """
    try:
        return _planned(specification, out)
    except UserError as error:
        where = "" if specification.path is None else f"specification {specification.path}: "
        raise UserError(f"{where}{error}") from None


def _planned(specification: Specification, out: Path) -> list[Cell]:
    starts = {entry.name: _start(specification.protocol, entry) for entry in specification.methods}
    if all(isinstance(start, str) for start in starts.values()):
        raise UserError(str(next(iter(starts.values()))))
    facts_of = functools.cache(facts)
    first = [_cell(specification, out, facts_of, starts, *point) for point in _grid(specification)]
    for cell in first:
        start = starts[cell.entry.name]
        if cell.run is None and cell.entry.settings and not cell.variant.name and isinstance(start, Run):
            _check_entry(specification, facts_of, start, cell)
    _check_shared(specification, [cell for cell in first if isinstance(starts[cell.entry.name], Run)])
    planned = [_with_seed(cell, seed) for seed in specification.seeds for cell in first]
    folders: dict[Path, Cell] = {}
    for cell in planned:
        other = folders.setdefault(cell.folder, cell)
        if other is not cell:
            raise UserError(f"data: {other.data} and {cell.data} would both be in {cell.folder}")
        cell.check_folder()
    return planned


def _start(protocol: str, entry: Entry) -> Run | str:
    """The run of the protocol, or why it has none for the method; a mistake in the entry is a UserError."""
    start: Run | str
    try:
        methods.find(entry.method)  # a broken file is a mistake under every protocol
        try:
            start = protocols.start(protocol, entry.method)
        except UserError as error:
            start = str(error)
        _run(protocols.taet(entry.method) if isinstance(start, str) else start, entry, entry.settings)
    except UserError as error:
        raise UserError(f"methods: {entry.name}: {error}") from None
    return start


def _grid(specification: Specification) -> Iterator[tuple[str, float | None, Variant, Entry]]:
    for data in specification.data:
        for ratio in specification.imbalance:
            for variant in specification.variants:
                for entry in specification.methods:
                    yield data, ratio, variant, entry


def _of_data(data: str, ratio: float | None) -> Settings:
    return {"data.name": data} | ({} if ratio is None else {"data.imbalance_ratio": ratio})


def _cell(
    specification: Specification,
    out: Path,
    facts_of: FactsOf,
    starts: Mapping[str, Run | str],
    data: str,
    ratio: float | None,
    variant: Variant,
    entry: Entry,
) -> Cell:
    """The cell of a point of the grid, without its seed."""
    place = data.replace(":", "-").replace("/", "-").strip("-.")
    parts = [entry.name, variant.name, place, "" if ratio is None else f"ir{ratio:g}"]
    name = "_".join(part for part in parts if part)
    settings = {**_of_data(data, ratio), **specification.settings, **variant.settings, **entry.settings}
    made = starts[entry.name]
    if isinstance(made, Run):
        made = _made(made, entry, settings, facts_of)
    for key in variant.settings.keys() & entry.settings.keys():
        if variant.settings[key] != entry.settings[key]:
            made = f"its own settings say {key} {entry.settings[key]}"
    run, reason = (made, "") if isinstance(made, Run) else (None, made)
    flags = _flags({**settings, "protocol": specification.protocol})
    return Cell(name, entry, variant, data, ratio, 0, out / "runs" / name, run, flags, reason)


def _with_seed(cell: Cell, seed: int) -> Cell:
    name = f"{cell.name}_seed{seed}"
    run = None if cell.run is None else config.override(cell.run, {"seed": seed})
    flags, folder = (*cell.flags, "--seed", str(seed)), cell.folder.with_name(name)
    return dataclasses.replace(cell, name=name, seed=seed, run=run, flags=flags, folder=folder)


def _run(start: Run, entry: Entry, settings: Settings) -> Run:
    """The run of a method, with settings on top of its protocol; data are not read."""
    knobs: Any = methods.find(entry.method).Config() if start.settings is None else start.settings
    own = {key.removeprefix("method."): value for key, value in settings.items() if key.startswith("method.")}
    known = [field.name for field in dataclasses.fields(knobs)]
    for name in own:
        if not known:
            raise UserError(f"unknown setting 'method.{name}'; {entry.method} has none of its own")
        if name not in known:
            raise unknown(f"knob of {entry.method}", name, known)
    shared = {key: value for key, value in settings.items() if not key.startswith("method.")}
    run = config.override(start, {"settings": config.override(knobs, own), **shared})
    check_attacks(run.evaluation)
    return run


def _made(start: Run, entry: Entry, settings: Settings, facts_of: FactsOf) -> Run | str:
    """The resolved run of a method, or why it is refused."""
    try:
        run = _run(start, entry, settings)
    except UserError as error:
        return str(error)
    try:
        found = facts_of(run.data)
    except UserError as error:  # this concerns every method, unless the entry has its own data settings
        shared = {key: settings[key] for key in settings.keys() - entry.settings.keys() if key.startswith("data.")}
        if any(key.startswith("data.") for key in entry.settings):
            facts_of(config.override(start, shared).data)
            raise UserError(f"methods: {entry.name}: {error}") from None
        raise
    try:
        resolved = resolve(run, found)
        check_model(resolved, found)
        return resolved.run
    except UserError as error:
        return str(error)


def _check_entry(specification: Specification, facts_of: FactsOf, start: Run, cell: Cell) -> None:
    """Refuse an entry whose own settings its method refuses even without the shared settings."""
    shared = {key: value for key, value in specification.settings.items() if key.startswith("data.")}
    data = {**_of_data(cell.data, cell.imbalance), **shared}
    alone = _made(start, cell.entry, {**data, **cell.entry.settings}, facts_of)
    if isinstance(alone, str) and alone != _made(start, cell.entry, data, facts_of):
        raise UserError(f"methods: {cell.entry.name}: {alone}")


def _check_shared(specification: Specification, planned: Sequence[Cell]) -> None:
    """Refuse settings, shared or of a variant, that every method refuses."""
    for variant in specification.variants:
        of = [cell for cell in planned if cell.variant is variant]
        if any(cell.run is not None for cell in of):
            continue
        where = f"variants: {variant.name}" if variant.name else "settings"
        settings = {**specification.settings, **variant.settings}
        knobs = {f.name for cell in of for f in dataclasses.fields(methods.find(cell.entry.method).Config)}
        own = [key for key in settings if key.startswith("method.")]
        try:
            for key in own:
                if key.removeprefix("method.") not in knobs:
                    raise _no_knob(key, knobs)
            _run(
                protocols.taet(),
                Entry(Run.method, Run.method),
                {key: settings[key] for key in settings if key not in own},
            )
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        raise UserError(f"{where}: no method can take them: {of[0].entry.name}: {of[0].reason}")


def _no_knob(key: str, knobs: Collection[str]) -> UserError:
    if knobs:
        return unknown("setting", key, [f"method.{knob}" for knob in knobs])
    return UserError(f"unknown setting '{key}'; none of the methods has settings of its own")


def _flags(settings: Settings) -> tuple[str, ...]:
    """Return the command-line options of dotted settings."""
    words: list[str] = []
    for key, value in settings.items():
        name = SHORT.get(key, key.removeprefix("training.")).replace("_", "-")
        if isinstance(value, bool):
            part, dot, last = name.rpartition(".")
            words.append(f"--{part}{dot}{'' if value else 'no-'}{last}")
        else:
            values = value if isinstance(value, tuple) else (value,)
            words += [f"--{name}", *(_word(name, item) for item in values)]
    return tuple(words)


def _word(name: str, value: Any) -> str:
    """Return a value as the command line reads it; eps and step sizes as k/255 if k is whole."""
    of_the_ball = name.rpartition(".")[2] in ("eps", "step-size") and isinstance(value, float)
    return size(value, digits=None, within=0) if of_the_ball else str(value)
