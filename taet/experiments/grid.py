"""The grid of a comparison: methods x data x imbalance ratios x seeds x variants, as a TOML file, and its cells."""

from __future__ import annotations

import difflib
import functools
import itertools
import os
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from taet import methods, protocols, registry
from taet.data import facts, is_own
from taet.errors import UserError, cut, located, unknown
from taet.evaluation.bundles import attacks_of
from taet.experiments import own_images
from taet.experiments.cell import Cell, alike
from taet.fields import LongSeed, Ratio, Rule, Settings, plain
from taet.files import read_bytes
from taet.formatting import read_number
from taet.models import check_consent
from taet.settings import SHORT, Run, from_json, override, to_json
from taet.training.resolve import check_model, resolve

MOST_BYTES, MOST_CELLS = 2**20, 100_000  # of a file, and of a grid
DEFAULTS = to_json(Run())
PARTS = tuple(name for name, values in DEFAULTS.items() if isinstance(values, dict))
BARE = {short: name for name, short in SHORT.items()} | {name: f"training.{name}" for name in DEFAULTS["training"]}
KEYS = {"data.name": "data", "data.imbalance_ratio": "imbalance", "seed": "seeds", "protocol": "protocol"}
"""Settings that are keys of the grid."""

Dotted = dict[str, Any]
"""Settings of a run by dotted name, and `method.KNOB` for those of its method; lists are tuples."""


def dotted(where: str, values: Mapping[str, Any], own: Iterable[str] = ()) -> Dotted:
    """Return settings by dotted name, from dotted or command-line names; the knobs `own` need no `method.`."""
    settings: Dotted = {}
    with located(where):
        for key, value in flat(values):
            name = key.replace("-", "_")
            name = f"method.{name}" if name in own else BARE.get(name, name)
            if name in KEYS:
                raise UserError(f"got {key}; allowed: as {KEYS[name]} of the specification")
            if name.partition(".")[0] not in (*PARTS, "method") or "." not in name:
                raise _no_setting(name, own)
            if name in settings:
                raise UserError(f"got {key} twice; allowed: each once")
            if isinstance(value, str) and "/" in value and name.endswith((".eps", ".step_size")):
                value = read_number(value)
            settings[name] = value
    return settings


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return (dotted key, value) of a table: `"a.b" = 1` and `a.b = 1` are the same."""
    pairs = []
    for key, value in values.items():
        pairs += flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(prefix + key, value)]
    return pairs


def _no_setting(name: str, own: Iterable[str]) -> UserError:
    full = [f"{part}.{field}" for part in PARTS for field in DEFAULTS[part]]
    same = [one for one in full if one.partition(".")[2] == name]
    near = same or difflib.get_close_matches(name, [*own, *BARE, *full], n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    parts = ", ".join([*own, *(f"{part}.*" for part in (*PARTS, "method"))])
    return UserError(f"unknown setting '{name}'; allowed: {parts}, or an option of taet train by its name{hint}")


def _once(values: tuple[Any, ...], info: ValidationInfo) -> tuple[Any, ...]:
    for value, count in Counter(getattr(value, "name", value) for value in values).items():
        if count > 1:
            raise UserError(f"{info.field_name}: got {value} {count} times; allowed: each once")
    return values


RowName = Annotated[str, Rule(re.compile("[A-Za-z0-9.+-]+").fullmatch, "letters, digits and the signs . + -")]
"""Names become folders; the parts of a folder's name are joined by _."""
SOME, ONCE = Field(min_length=1), AfterValidator(_once)
ALL = BeforeValidator(lambda value: (*registry.entries("methods"),) if value == "all" else value)


class Variant(Settings):
    """Settings with which the whole grid is repeated; the one without a name is the unchanged grid."""

    label: ClassVar[str] = "variants"
    name: RowName
    settings: Annotated[Dotted, SOME]

    @field_validator("settings")
    @classmethod
    def _has_settings(cls, settings: Dotted, info: ValidationInfo) -> Dotted:
        return dotted(f"variants: {info.data.get('name')}", settings)


class Entry(Settings):
    """A method of the comparison and the name of its row; in a file a table, or the method's name alone."""

    label: ClassVar[str] = "methods"
    name: RowName
    method: str
    settings: Dotted = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _is_named(cls, value: object) -> object:
        if isinstance(value, str):
            return {"name": value, "method": value}
        return {"method": value.get("name"), **value} if isinstance(value, Mapping) else value

    @field_validator("method")
    @classmethod
    def _exists(cls, method: str) -> str:
        registry.find("methods", method)
        return method

    @field_validator("settings")
    @classmethod
    def _has_settings(cls, settings: Dotted, info: ValidationInfo) -> Dotted:
        own: Iterable[str] = ()
        if settings and "method" in info.data:  # a method is imported only for its settings
            own = methods.find(info.data["method"]).Config.model_fields
        return dotted(f"methods: {info.data.get('name')}", settings, own)


class Point(NamedTuple):
    """A run of a grid without its seed."""

    data: str
    imbalance: float | None
    variant: Variant
    entry: Entry


class Grid(Settings):
    """Methods x data x imbalance ratios x seeds x variants, with shared settings."""

    title: str = "comparison"
    methods: Annotated[tuple[Entry, ...], ALL, SOME, ONCE]
    data: Annotated[tuple[str, ...], SOME, ONCE]
    imbalance: Annotated[tuple[Ratio | None, ...], SOME, ONCE] = (None,)
    """Imbalance ratios; None takes the data as they are."""
    seeds: Annotated[tuple[LongSeed, ...], SOME, ONCE] = (0,)
    protocol: str = "taet"
    settings: Dotted = Field(default_factory=dict)
    variants: Annotated[tuple[Variant, ...], ONCE] = ()

    @field_validator("protocol")
    @classmethod
    def _exists(cls, protocol: str) -> str:
        if protocol not in protocols.PROTOCOLS:
            raise unknown("protocol", protocol, protocols.PROTOCOLS)
        return protocol

    @field_validator("settings")
    @classmethod
    def _has_settings(cls, settings: Dotted) -> Dotted:
        return dotted("settings", settings)

    @model_validator(mode="after")
    def _is_of_a_size(self) -> Self:
        if (number := len(self.points) * len(self.seeds)) > MOST_CELLS:
            raise UserError(f"got {number:,} cells; allowed: at most {MOST_CELLS:,}")
        return self

    @property
    def points(self) -> list[Point]:
        """The runs of one seed, in order."""
        every = [Variant.model_construct(name="", settings={}), *self.variants]
        return [Point(*one) for one in itertools.product(self.data, self.imbalance, every, self.methods)]


def read(path: str | os.PathLike[str]) -> Grid:
    """Return the grid of a TOML file; a mistake is a `UserError` that names the key."""
    with located(f"specification {path}"):
        return parse({"title": Path(path).stem, **toml_table(read_bytes(Path(path), most=MOST_BYTES))})


def toml_table(content: bytes) -> dict[str, Any]:
    """Return the table of a TOML file, with lists as tuples."""
    try:
        return {key: plain(value) for key, value in tomllib.loads(content.decode()).items()}
    except RecursionError:
        raise UserError("lists or tables are nested too deeply") from None
    except ValueError as error:  # not TOML, not UTF-8, or a number of thousands of digits
        raise UserError(f"not TOML: {cut(str(error))}") from None


def parse(values: Mapping[str, Any]) -> Grid:
    """Return the grid of a mapping with the keys of the TOML file."""
    return from_json(Grid, values)


def cells_of(grid: Grid, out: Path, asked_by: str = "") -> list[Cell]:
    """Return every cell, all methods of the first seed first; their runs are folders of `out`/runs.

    A method that refuses the settings is not applicable there. If every method of a variant refuses them on some data,
    or one refuses those of its own entry alone, a `UserError` is raised. No images are read. `asked_by`: the file that
    the grid was read from.
    """
    with located(asked_by and f"specification {asked_by}"):
        planner = Planner(grid, out, asked_by or "specification")
        first = planner.cells()
        planned = [cell.with_seed(seed) for seed in grid.seeds for cell in first]
        for cell in planned:
            cell.check_folder()
        return alike(planned)


class Planner:
    """Makes the cells of a grid; what several have in common is computed once."""

    def __init__(self, grid: Grid, out: Path, asked_by: str) -> None:
        self.grid, self.runs, self.asked_by = grid, out / "runs", asked_by
        self.facts_of, self.chosen_for = functools.cache(facts), functools.cache(own_images.planned)

    def cells(self) -> list[Cell]:
        """Return the cells without their seeds."""
        found = [(point, self.cell(point)) for point in self.grid.points]
        folders: dict[Path, str] = {}
        for point, cell in found:
            if (other := folders.setdefault(cell.folder, cell.data)) != cell.data:
                raise UserError(f"data: {other} and {cell.data} would both be in {cell.folder}")
            if cell.run is None and point.entry.settings and not point.variant.name:
                shared = {key: value for key, value in self.grid.settings.items() if key.startswith("data.")}
                with located(f"methods: {point.entry.name}"):  # its own mistake is not left out silently
                    self.run(point.entry, {**_data(point), **shared, **point.entry.settings})
        for place, group in itertools.groupby(found, lambda pair: pair[0][:3]):
            refused = [cell for _, cell in group]
            if all(cell.run is None for cell in refused):
                cell = next((cell for cell in refused if "did you mean" in cell.reason), refused[0])
                where = f"variants: {place[2].name}" if place[2].name else "settings"
                raise UserError(f"{where}: no method can take them: {cell.method}: {cell.reason}")
        return [cell for _, cell in found]

    def cell(self, point: Point) -> Cell:
        """Return the cell of a point; its method may refuse the settings."""
        data, ratio, variant, entry = point
        place = data.replace(":", "-").replace("/", "-").strip("-.")
        name = "_".join(filter(None, (entry.name, variant.name, place, "" if ratio is None else f"ir{ratio:g}")))
        settings = {**_data(point), **self.grid.settings, **variant.settings, **entry.settings}
        row = f"{entry.name} + {variant.name}" if variant.name else entry.name
        said = {**settings, "protocol": self.grid.protocol}
        cell = Cell(name, row, entry.method, variant.name, data, ratio, 0, self.runs / name, said)
        for key in variant.settings.keys() & entry.settings.keys():
            if variant.settings[key] != entry.settings[key]:
                return replace(cell, reason=f"its own settings say {key} {entry.settings[key]}")
        try:
            chosen = self.chosen(entry, settings)
            return replace(cell, run=self.run(entry, chosen | settings), settings=chosen | said)
        except UserError as error:
            return replace(cell, reason=str(error))

    def chosen(self, entry: Entry, settings: Dotted) -> Dotted:
        """Return settings that `taet train` would choose for the user's own images; every command then states them."""
        if not is_own(str(settings["data.name"])):
            return {}
        about = {key: value for key, value in settings.items() if key.startswith("data.")}
        start = protocols.start(self.grid.protocol, entry.method)
        run = override(start, {"method": Run.default("method"), "settings": None, **about})
        return {name: made.value for name, made in self.chosen_for(run).choices.items()}

    def run(self, entry: Entry, settings: Dotted) -> Run:
        """Return the run of a method with these settings on top of its protocol; raise a `UserError` if it has none."""
        start = protocols.start(self.grid.protocol, entry.method)
        basis: Any = methods.find(entry.method).Config() if start.settings is None else start.settings
        own = {key.removeprefix("method."): value for key, value in settings.items() if key.startswith("method.")}
        shared = {key: value for key, value in settings.items() if not key.startswith("method.")}
        run = override(start, {"settings": override(basis, own, "method."), **shared})
        attacks_of(run.evaluation)
        check_consent(self.asked_by, run.model.name)
        found = self.facts_of(run.data)
        resolved = resolve(run, found)
        check_model(resolved, found)
        return resolved.run


def _data(point: Point) -> Dotted:
    return {"data.name": point.data} | ({} if point.imbalance is None else {"data.imbalance_ratio": point.imbalance})
