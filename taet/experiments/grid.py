"""The grid of a comparison: methods x data x imbalance ratios x seeds x variants, as a TOML file, and its cells."""

import contextlib
import functools
import itertools
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, model_validator

from taet import methods, protocols, registry
from taet.data import facts, full_name, is_own
from taet.errors import UserError, located, nearest
from taet.evaluation.bundles import attacks_of, of_run
from taet.evaluation.card import card_of
from taet.evaluation.runner import matching
from taet.experiments import own_images
from taet.fields import LongSeed, Ratio, Rule, Settings
from taet.files import read_toml
from taet.models import check_consent, consent
from taet.settings import SHORT, Run, flat, from_json, option_words, override
from taet.training.folder import RunFolder
from taet.training.record import training_settings
from taet.training.resolve import check_model, idle_settings, refuse_idle_loss, resolve
from taet.training.runs import check_code

DEFAULTS = Run().model_dump()
PARTS = tuple(name for name, values in DEFAULTS.items() if isinstance(values, dict))
BARE = {short: name for name, short in SHORT.items()} | {name: f"training.{name}" for name in DEFAULTS["training"]}
FULL = [f"{part}.{field}" for part in PARTS for field in DEFAULTS[part]]
KEYS = {"data.name": "data", "data.imbalance_ratio": "imbalance", "seed": "seeds", "protocol": "protocol"}
"""Settings that are keys of the grid."""

Dotted = dict[str, Any]
"""Settings of a run by dotted name, and `method.KNOB` for those of its method; lists are tuples."""


def _dotted(values: Mapping[str, object], info: ValidationInfo) -> Dotted:
    """Return settings by dotted name, from dotted or command-line names; those of an entry's method need no prefix."""
    entry, method = info.data.get("name"), info.data.get("method")
    where = f"methods: {entry}" if method else f"variants: {entry}" if entry else "settings"
    # A method is imported only for its settings.
    own = methods.find(method).Config.model_fields if values and method else {}
    settings: Dotted = {}
    with located(where):
        for key, value in flat(values):
            name = key.replace("-", "_")
            name = f"method.{name}" if name.partition(".")[0] in own else BARE.get(name, name)
            part, dot, _ = name.partition(".")
            if name in KEYS:
                raise UserError(f"got {key}; allowed: as {KEYS[name]} of the specification")
            if part not in (*PARTS, "method") or not dot:
                near = nearest(name, [*own, *BARE, *FULL])
                parts = ", ".join([*own, *(f"{part}.*" for part in (*PARTS, "method"))])
                hint = f"; did you mean '{near}'?" if near else ""
                raise UserError(f"unknown setting '{name}'; allowed: {parts}, or an option of taet train{hint}")
            if name in settings:
                raise UserError(f"got {key} twice; allowed: each once")
            settings[name] = value
    return settings


def _once(values: tuple[object, ...], info: ValidationInfo) -> tuple[object, ...]:
    for value, count in Counter(getattr(value, "name", value) for value in values).items():
        if count > 1:
            raise UserError(f"{info.field_name}: got {value} {count} times; allowed: each once")
    return values


RowName = Annotated[str, Rule(re.compile("[A-Za-z0-9.+-]+").fullmatch, "letters, digits and the signs . + -")]
"""Names become folders; the parts of a folder's name are joined by _."""
SOME, ONCE, NAMED = Field(min_length=1), AfterValidator(_once), AfterValidator(_dotted)
ALL = BeforeValidator(lambda value: (*registry.entries("methods"),) if value == "all" else value)


class Variant(Settings):
    """Settings with which the whole grid is repeated; the one without a name is the unchanged grid."""

    label: ClassVar[str] = "variants"
    name: RowName
    settings: Annotated[Dotted, SOME, NAMED]


class Entry(Settings):
    """A method of the comparison and the name of its run folders; in a file a table, or the method's name alone."""

    label: ClassVar[str] = "methods"
    name: RowName
    method: Annotated[str, AfterValidator(lambda name: registry.find("methods", name).name)]
    settings: Annotated[Dotted, NAMED] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _is_named(cls, value: object) -> object:
        named = {"name": value} if isinstance(value, str) else value
        return {"method": named.get("name"), **named} if isinstance(named, Mapping) else value


class Grid(Settings):
    """Methods x data x imbalance ratios x seeds x variants, with shared settings."""

    title: str = "comparison"
    methods: Annotated[tuple[Entry, ...], ALL, SOME, ONCE]
    data: Annotated[tuple[str, ...], SOME, ONCE]
    imbalance: Annotated[tuple[Ratio | None, ...], SOME, ONCE] = (None,)
    """Imbalance ratios; None takes the data as they are."""
    seeds: Annotated[tuple[LongSeed, ...], SOME, ONCE] = (0,)
    protocol: str = "taet"
    settings: Annotated[Dotted, NAMED] = Field(default_factory=dict)
    variants: Annotated[tuple[Variant, ...], ONCE] = ()


def read(path: str | os.PathLike[str]) -> Grid:
    """Return the grid of a TOML file; a mistake is a `UserError` that names the key."""
    table = read_toml(Path(path))
    with located(f"specification {path}"):
        return parse({"title": Path(path).stem, **table})


def parse(values: Mapping[str, object]) -> Grid:
    """Return the grid of a mapping with the keys of the TOML file."""
    return from_json(Grid, values)


@dataclass(frozen=True)
class Cell:
    """One run of a comparison."""

    name: str
    row: str
    """Its row in tables."""
    method: str
    data: str
    imbalance: float | None
    seed: int
    folder: Path
    settings: Mapping[str, object]
    """Settings by dotted name, protocol and seed, as options of `taet train METHOD` give them."""
    run: Run | None = None
    """None: the method refuses the settings."""
    reason: str = ""
    """Why the method refuses them."""

    def with_seed(self, seed: int) -> Self:
        """Return the cell with this seed, in the folder of that name."""
        name, settings = f"{self.name}_seed{seed}", {**self.settings, "seed": seed}
        run = None if self.run is None else self.run.replace(seed=seed)
        return replace(self, name=name, seed=seed, folder=self.folder.with_name(name), run=run, settings=settings)

    def look(self, threads: int = 1) -> "Outcome":
        """Return the state of the folder and the remaining commands; `threads` is for runs that do not set them."""
        held, run, folder = RunFolder(self.folder), self.run, str(self.folder)
        if run is None:
            return Outcome(self, "not applicable", reason=self.reason)
        trust = consent(run.model.name)
        evaluate, resume = ["evaluate", folder, *trust], ["train", "--resume", folder, *trust]
        if not held.is_run:
            settings = {**self.settings, "training.threads": self.settings.get("training.threads", threads)}
            words = [word for setting in settings.items() for word in option_words(*setting)]
            return Outcome(self, "missing", (["train", run.method, *words, "--out", folder], evaluate))
        try:
            card = card_of(held) if held.is_done else None
        except UserError as error:  # a file is damaged
            return Outcome(self, "failed", reason=str(error))
        evaluation = of_run(run)
        wanted = [attack for attack in attacks_of(evaluation) if attack.norm is not None]
        same = card is not None and (card.threat["eps"], card.batch_size) == (run.attack_eps, run.evaluation.batch_size)
        if card is not None and same and all(matching(card.columns, attack) is not None for attack in wanted):
            return Outcome(self, "done")
        recorded = held.record.run
        ours, its = evaluation.model_dump(), of_run(recorded).model_dump()
        changes = {name: value for name, value in ours.items() if value != its[name]}
        with contextlib.suppress(UserError):  # the command will report it
            if of_run(recorded, changes).model_dump() != ours:
                changes = ours  # a changed radius would also change steps that the command does not name
        evaluate += [word for setting in changes.items() for word in option_words(*setting)]
        return Outcome(self, "started", (evaluate,) if held.is_done else (resume, evaluate))

    def check_folder(self) -> None:
        """Raise a `UserError` if the run in the folder was trained with other settings."""
        folder = RunFolder(self.folder)
        if self.run is None or not folder.is_run:
            return
        check_code(folder, *folder.record.code)
        held, asked = training_settings(folder.record.run), training_settings(self.run)
        for name in sorted({*held, *asked} - idle_settings(self.run)):
            in_run, in_grid = held.get(name), asked.get(name)
            if in_run != in_grid and (name, in_grid) != ("training.precision", "auto"):
                apart = f"{name.replace('settings.', 'method.')} is {in_run} there and {in_grid} in the specification"
                ways = "choose another --out, or remove the folder"
                raise UserError(f"{self.folder} holds a run with other settings: {apart}; {ways}")


class Outcome(NamedTuple):
    """A cell, and what its folder held when it was read."""

    cell: Cell
    state: Literal["done", "started", "missing", "submitted", "failed", "not applicable"]
    """Done means a finished run with a card of every attack."""
    commands: tuple[list[str], ...] = ()
    """The remaining commands, as arguments of `taet`."""
    reason: str = ""
    """Why the cell is not applicable, or failed."""


def cells_of(grid: Grid, out: Path, asked_by: str = "", accelerated: bool | None = None) -> list[Cell]:
    """Return every cell, all methods of the first seed first; their runs are folders of `out`/runs.

    The cell of a method that refuses its settings is not applicable. If every method refuses them, or a method refuses
    the settings of its own entry, a `UserError` is raised. No images are read. `asked_by`: the file of the grid.
    `accelerated`: whether the machine that trains has a GPU; None: as this one.
    """
    with located(asked_by and f"specification {asked_by}"):
        planner, first = _Planner(grid, out / "runs", asked_by or "specification", accelerated), list[Cell]()
        variants = [Variant.model_construct(name="", settings={}), *grid.variants]
        for data, ratio, variant in itertools.product(grid.data, grid.imbalance, variants):
            cells = [planner.cell(data, ratio, variant, entry) for entry in grid.methods]
            if all(cell.run is None for cell in cells):
                cell = next((cell for cell in cells if "did you mean" in cell.reason), cells[0])
                where = f"variants: {variant.name}" if variant.name else "settings"
                raise UserError(f"{where}: no method can take them: {cell.name}: {cell.reason}")
            first += cells
        for folder, count in Counter(cell.folder for cell in first).items():
            if count > 1:
                raise UserError(f"data: got {count} names for the folder {folder}; allowed: each once")
        cells = [cell.with_seed(seed) for seed in grid.seeds for cell in first]
        for cell in cells:
            cell.check_folder()
        return cells


class _Planner:
    """Makes the cells of a grid, without their seeds; facts and choices that several cells share are computed once."""

    def __init__(self, grid: Grid, runs: Path, asked_by: str, accelerated: bool | None) -> None:
        self.grid, self.runs, self.asked_by = grid, runs, asked_by
        self.facts_of = functools.cache(facts)
        self.chosen_for = functools.cache(functools.partial(own_images.planned, accelerated=accelerated))

    def cell(self, data: str, ratio: float | None, variant: Variant, entry: Entry) -> Cell:
        """Return a cell; its method may refuse the settings."""
        place = data.replace(":", "-").replace("/", "-").strip("-.")
        name = "_".join(filter(None, (entry.name, variant.name, place, "" if ratio is None else f"ir{ratio:g}")))
        row = f"{entry.name} + {variant.name}" if variant.name else entry.name
        start = {"data.name": full_name(data)} | ({} if ratio is None else {"data.imbalance_ratio": ratio})
        settings = {**start, **self.grid.settings, **variant.settings, **entry.settings}
        stated = {**settings, "protocol": self.grid.protocol}
        cell = Cell(name, row, entry.method, data, ratio, 0, self.runs / name, stated)
        for key in variant.settings.keys() & entry.settings.keys():
            if variant.settings[key] != entry.settings[key]:
                return replace(cell, reason=f"its own settings say {key} {entry.settings[key]}")
        deciding = ("threat.eps", "training.device", "training.batch_size", "model.name", "model.weights")
        relevant = {key: value for key, value in settings.items() if key.startswith("data.") or key in deciding}
        try:
            chosen = self.chosen(entry, relevant, settings) if is_own(data) else {}
            return replace(cell, run=self.run(entry, chosen | settings), settings=chosen | stated)
        except UserError as error:
            if entry.settings and not variant.name:
                with located(f"methods: {entry.name}"):  # its own mistake is not left out silently
                    self.run(entry, {**relevant, **entry.settings})
            return replace(cell, reason=str(error))

    def chosen(self, entry: Entry, about: Dotted, settings: Dotted) -> Dotted:
        """Return settings that `taet train` would choose for the user's own images; every command then states them."""
        run = override(protocols.start(self.grid.protocol, entry.method), {"settings": None, **about})
        cycle = own_images.cycle_for(settings.get("method.base", entry.method), settings)
        choices = self.chosen_for(run, cycle=cycle, batches="training.batch_size" not in settings)[1]
        return {name.replace("settings.", "method."): made.value for name, made in choices.items()}

    def run(self, entry: Entry, settings: Dotted) -> Run:
        """Return the run of a method with these settings on top of its protocol; raise a `UserError` if it has none."""
        start = protocols.start(self.grid.protocol, entry.method)
        run = override(start.replace(settings=start.settings or methods.find(entry.method).Config()), settings)
        of_run(run)
        check_consent(self.asked_by, run.model.name)
        found = self.facts_of(run.data)
        resolved = resolve(run, found)
        refuse_idle_loss(resolved.run, settings)
        check_model(resolved, found)
        return resolved.run
