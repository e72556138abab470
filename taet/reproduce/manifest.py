"""The tables and figures of both papers and the scales of their reproduction, from the files beside this one.

published.tsv contains every published number; items.toml assigns a run to each of its rows, and lists the figures;
scales.toml defines the changes at each scale.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import tomllib
import typing
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from taet.errors import UserError, cut, located, unknown
from taet.evaluation.embedding import Space
from taet.experiments.specification import Entry, Point
from taet.fields import read_number
from taet.formatting import size, words
from taet.shapes import check_shape

FOLDER = Path(__file__).parent
PAPERS = {"TAET": "taet", "REAT": "reat"}
"""The papers and their protocols."""
SECONDS = "seconds_per_epoch"
"""The only published column that is not an accuracy."""
Shows = Literal["values", "classes", "curves", "predictions", "distances", "embedding"]
SettingPairs = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class PaperRow:
    """The run behind a row of a table or a series of a figure; equal rows are one run."""

    paper: str
    method: str
    data: str
    imbalance: float | None
    """Imbalance ratio; None for data sets that are used unchanged."""
    model: str
    settings: SettingPairs = ()
    """Dotted settings that differ from the protocol."""
    shown_as: str = field(default="", compare=False)
    setting: str = field(default="", compare=False)
    """The paper's words for the settings."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Properties that may distinguish it from other rows: name, setting, data, imbalance ratio and network."""
        ratio = "" if self.imbalance is None else f"IR {self.imbalance:g}"
        return self.shown_as, self.setting, self.data, ratio, self.model


@dataclass(frozen=True)
class PaperColumn:
    """The meaning of a column: a metric with its average, or for one class."""

    metric: str
    average: str = "balanced"
    """balanced, balanced-test-set (the same on a balanced test set), sample (over all images), per-class or cost."""
    of_class: str = ""

    @property
    def label(self) -> str:
        """Its heading."""
        return f"{self.of_class} {self.metric}".strip().replace("_", " ")


@dataclass(frozen=True)
class Item:
    """A table or a figure of a paper."""

    name: str
    title: str
    shows: Shows
    rows: tuple[PaperRow, ...]
    columns: tuple[PaperColumn, ...]
    published: Mapping[tuple[PaperRow, PaperColumn], float] = field(default_factory=dict)
    """Accuracies in per cent, or seconds."""
    notes: tuple[str, ...] = ()
    epochs: tuple[int, ...] = ()
    """The epochs that a figure shows; by default the first and the last."""
    of: Space = "features"
    """The space that a figure of an embedding shows."""
    costs_of: str = ""
    """The item whose rows a figure of seconds and memory shows."""

    @property
    def has_seconds(self) -> bool:
        """Whether a column is the seconds of an epoch."""
        return any(column.metric == SECONDS for column in self.columns)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the rows: those of their parts that are not equal in all rows."""
        parts = [row.parts for row in self.rows]
        varied = [place for place in range(len(parts[0])) if place == 0 or len({part[place] for part in parts}) > 1]
        return tuple(", ".join(part[place] for place in varied if part[place]) for part in parts)

    def columns_of(self, row: PaperRow) -> tuple[PaperColumn, ...]:
        """Return the columns of a row in the item; a table leaves out unpublished ones."""
        if not self.published:
            return self.columns
        return tuple(column for column in self.columns if (row, column) in self.published)


@dataclass(frozen=True)
class Scale:
    """The size of a reproduction: what replaces the published networks, data, attacks and seeds."""

    says: str
    seeds: Mapping[str, list[int]]
    models: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    attacks: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    """By paper, what its runs do otherwise."""
    name: str = ""
    """Its key in scales.toml."""

    def differences(self, item: Item) -> list[str]:
        """Return what the scale changes in an item, in words."""
        said: dict[tuple[str, str], list[str]] = {}
        having: Counter[str] = Counter()
        for row in item.rows:
            model = self.models.get(row.model, self.models.get("all", row.model))
            data = self.data.get(row.data, self.data.get("all", {})).get("name", row.data)
            attacks = {column.metric: self.attack(row, column.metric) for column in item.columns_of(row)}
            changes = {row.model: model, row.data: data, **attacks}
            having.update(changes.keys())
            for old, new in changes.items():
                if old != new and old != SECONDS:
                    said.setdefault((old, new or ""), []).append(row.method)
        texts = {change: f"{change[1]} for {change[0]}" if change[1] else f"no {change[0]}" for change in said}
        return [
            text if len(said[change]) == having[change[0]] else f"{text} ({', '.join(dict.fromkeys(said[change]))})"
            for change, text in texts.items()
        ]

    def attack(self, row: PaperRow, metric: str) -> str | None:
        """Return the attack for a published column of a row; None if the scale omits it or it is not an attack."""
        if metric == SECONDS:
            return None
        default = self.attacks.get(metric, metric)
        wanted = self.attacks.get(f"{row.paper} {metric}", default)
        columns = items_file()["columns"]
        own = columns.get(f"{row.paper} {row.method} {row.data} {metric}", wanted) if wanted == metric else wanted
        return own or None

    def points(self, row: PaperRow, metrics: Sequence[str]) -> list[Point]:
        """Return the runs of a row, one per seed, with the attacks of these columns."""
        found = [self.attack(row, metric) for metric in ("clean", *metrics)]
        attacks = tuple(dict.fromkeys(attack for attack in found if attack is not None))
        kept = self.data.get(row.data, self.data.get("all", {}))
        data, ratio = kept.get("name", row.data), kept.get("imbalance", row.imbalance)
        settings: dict[str, Any] = {"model.name": self.models.get(row.model, self.models.get("all", row.model))}
        for key in ("all", row.paper, row.data, row.model):
            settings |= self.settings.get(key, {})
        settings["evaluation.attacks"] = attacks
        entry = Entry(row.method, row.method, {**dict(row.settings)})
        return [Point(entry, data, ratio, seed, PAPERS[row.paper], settings) for seed in self.seeds_of(row)]

    def seeds_of(self, row: PaperRow) -> list[int]:
        """Return the seeds that an item needs for a row."""
        return self.seeds.get(row.paper, self.seeds.get("all", [0]))


class AliasEntry(TypedDict):
    """The method and the settings of a row of published.tsv."""

    method: str
    settings: NotRequired[dict[str, Any]]


class RowEntry(AliasEntry):
    """The entry of a row in items.toml."""

    name: NotRequired[str]
    data: NotRequired[str]
    imbalance: NotRequired[float]
    model: NotRequired[str]


class PaperEntry(TypedDict):
    """Data and network of a paper's figures."""

    data: str
    imbalance: float
    model: str


class FigureEntry(TypedDict):
    """The entry of a figure in items.toml."""

    title: str
    shows: Shows
    rows: list[RowEntry]
    columns: list[str]
    data: NotRequired[str]
    imbalance: NotRequired[float]
    model: NotRequired[str]
    epochs: NotRequired[list[int]]
    of: NotRequired[Space]
    costs_of: NotRequired[str]


class ItemsFile(TypedDict):
    """items.toml."""

    titles: dict[str, str]
    rows: dict[str, AliasEntry]
    settings: dict[str, str]
    natural: dict[str, bool]
    columns: dict[str, str]
    classes: dict[str, int]
    papers: dict[str, PaperEntry]
    figures: dict[str, FigureEntry]
    notes: dict[str, list[str]]
    errata: dict[str, list[str]]


def read_toml(path: Path, shape: Any) -> Any:
    """Read a file of the manifest; raise a `UserError` of one line that names the key of a mistake."""
    with located(str(path)):
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"not TOML: {cut(str(error))}") from None
        check_shape("", values, shape)
        _check_keys("", values, shape)
    return values


def _check_keys(where: str, value: Any, shape: Any) -> None:
    """Raise a `UserError` for a key that the shape does not declare."""
    shape = typing.get_args(shape)[0] if typing.get_origin(shape) is NotRequired else shape
    if typing.is_typeddict(shape) or dataclasses.is_dataclass(shape):
        fields = typing.get_type_hints(shape, include_extras=True)
        for key, entry in value.items():
            if key not in fields:
                raise unknown(f"key{f' of {where}' if where else ''}", key, fields)
            _check_keys(f"{where} {key}".strip(), entry, fields[key])
    elif typing.get_origin(shape) in (dict, Mapping):
        for key, entry in value.items():
            _check_keys(f"{where} {key}".strip(), entry, typing.get_args(shape)[1])
    elif typing.get_origin(shape) is list:
        for entry in value:
            _check_keys(where, entry, typing.get_args(shape)[0])


@functools.cache
def items_file() -> ItemsFile:
    """The content of items.toml."""
    found: ItemsFile = read_toml(FOLDER / "items.toml", ItemsFile)
    return found


@functools.cache
def scales() -> Mapping[str, Scale]:
    """The scales by name, the largest first."""
    found = read_toml(FOLDER / "scales.toml", dict[str, Scale])
    return {name: Scale(**{**entry, "name": name}) for name, entry in found.items()}


def scale_named(name: str) -> Scale:
    """Return the scale of this name; raise a `UserError` if there is none."""
    if name not in scales():
        raise unknown("scale", name, scales())
    return scales()[name]


@functools.cache
def published() -> tuple[Mapping[str, str], ...]:
    """The rows of published.tsv."""
    with (FOLDER / "published.tsv").open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file, delimiter="\t"))


def row_of(line: Mapping[str, str]) -> PaperRow:
    """Return the run behind a row of published.tsv."""
    read, method, setting = items_file(), line["method"], line["setting"]
    entry = read["rows"].get(f"{method} {setting}")
    if entry is not None:
        method, settings = entry["method"], entry.get("settings", {})
    else:
        words = [word.partition("=") for word in setting.split()]
        missing = [name for name, _, _ in words if name not in read["settings"]]
        if missing:
            raise UserError(f"published.tsv: setting '{setting}' of {method} is in no table of items.toml")
        try:
            numbers = [read_number(value) if {*value} & {*"./"} else int(value) for _, _, value in words]
        except (ValueError, ZeroDivisionError):
            raise UserError(f"published.tsv: setting '{setting}' of {method}: got a value that is no number") from None
        settings = {read["settings"][name]: number for (name, _, _), number in zip(words, numbers, strict=True)}
    ratio = None if line["dataset"] in read["natural"] else float(line["imbalance_ratio"])
    shown, model = line["shown_as"], line["model"]
    return PaperRow(line["paper"], method, line["dataset"], ratio, model, setting_pairs(settings), shown, setting)


def setting_pairs(settings: Mapping[str, Any]) -> SettingPairs:
    """Return settings in a fixed order; a fraction such as 8/255 becomes a number."""
    values = dict(settings)
    for name in (name for name, value in settings.items() if "/" in str(value)):
        try:
            values[name] = read_number(settings[name])
        except (ValueError, ZeroDivisionError):
            raise UserError(f"{name}: got '{settings[name]}'; allowed: a number, e.g. 8/255") from None
    return tuple(sorted(values.items()))


def row_from(entry: Mapping[str, Any], paper: str, defaults: Mapping[str, Any] | None = None) -> PaperRow:
    """Return the run of an entry in a manifest; missing keys are taken from `defaults`, then from the paper."""
    said = {**items_file()["papers"][paper], **(defaults or {}), **entry}
    natural = said["data"] in items_file()["natural"] or said["data"] in ("cifar10", "cifar100")
    ratio = None if natural else float(said["imbalance"])
    name = entry.get("name", entry["method"])
    return PaperRow(
        paper, said["method"], said["data"], ratio, said["model"], setting_pairs(said.get("settings", {})), name
    )


def row_words(row: PaperRow) -> str:
    """Return a row in words: its method, and how it differs from the paper's usual run."""
    usual = row_from({"method": row.method}, row.paper)
    own = [] if row.data == usual.data else [row.data]
    own += [] if row.imbalance in (None, usual.imbalance) else [f"IR {row.imbalance:g}"]
    return settings_words(row.method, row.settings, own)


def settings_words(method: str, settings: SettingPairs, others: Sequence[str] = ()) -> str:
    """Return a method with its settings, and other words about its run, in parentheses."""
    own = [words(value) if name == "outer.name" else _setting_words(name, value) for name, value in settings]
    said = [*own, *others]
    return f"{method} ({', '.join(said)})" if said else method


def _setting_words(name: str, value: object) -> str:
    """Return a setting in words; a step as k/255."""
    said = size(value) if name == "threat.step_size" and isinstance(value, float) else words(value)
    return f"{name.rpartition('.')[2]} {said}"


def errata() -> Mapping[str, Sequence[str]]:
    """Return, by paper, the statements outside its tables in which it contradicts itself."""
    return items_file()["errata"]


def class_number(name: str) -> int:
    """Return the label of a class that a table names."""
    return items_file()["classes"][name]


@functools.cache
def items() -> Mapping[str, Item]:
    """Every numbered table and figure by name, e.g. taet/table1: the tables of a paper, then its figures."""
    tables: dict[str, list[Mapping[str, str]]] = {}
    for line in published():
        tables.setdefault(f"{PAPERS[line['paper']]}/table{line['table']}", []).append(line)
    read = items_file()
    for name in [*read["notes"], *read["titles"]]:
        if name not in tables and name not in read["figures"]:
            raise unknown("item in items.toml", name, [*tables, *read["figures"]])
    found = {name: _table(name, lines) for name, lines in tables.items()}
    found |= {name: _figure(name, entry) for name, entry in read["figures"].items()}
    order = sorted(found, key=lambda name: (not name.startswith("taet"), "figure" in name))
    return {name: found[name] for name in order}


def _table(name: str, lines: Sequence[Mapping[str, str]]) -> Item:
    values: dict[tuple[PaperRow, PaperColumn], float] = {}
    for line in lines:
        column = PaperColumn(line["metric"], line["average"], line["class"])
        key = row_of(line), column
        if key in values:
            raise UserError(f"published.tsv: {name} has {line['shown_as']}, {column.label} twice")
        values[key] = float(line["value"])
    rows, columns = dict.fromkeys(row for row, _ in values), dict.fromkeys(column for _, column in values)
    if name not in items_file()["titles"]:
        raise UserError(f"items.toml: {name} has no title")
    notes = tuple(items_file()["notes"].get(name, ()))
    found = Item(name, items_file()["titles"][name], "values", (*rows,), (*columns,), values, notes)
    return dataclasses.replace(found, costs_of=name) if found.has_seconds else found


def _figure(name: str, entry: FigureEntry) -> Item:
    paper = name.partition("/")[0].upper()
    rows = tuple(row_from(row, paper, entry) for row in entry["rows"])
    columns = tuple(PaperColumn(metric, "cost" if metric == SECONDS else "balanced") for metric in entry["columns"])
    notes, epochs = (*items_file()["notes"].get(name, ()),), (*entry.get("epochs", ()),)
    shows, of, costs = entry["shows"], entry.get("of", "features"), entry.get("costs_of", "")
    return Item(name, entry["title"], shows, rows, columns, {}, notes, epochs, of, costs)
