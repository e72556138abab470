"""The tables and figures of both papers as grids of `taet compare`, and the scales at which they
are run."""

import csv
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from taet.errors import UserError, unknown
from taet.files import read_toml

FOLDER = Path(__file__).parent
PAPERS = ("taet", "reat")
"""The papers, by the names of their protocols."""
SCALES = ("full", "gpu", "cpu", "mini", "smoke")
"""The largest first."""
SECONDS = "seconds_per_epoch"
"""The only published column that is not an accuracy."""
GRID = ("protocol", "methods", "data", "imbalance", "settings", "variants")
"""Keys of a comparison (`taet compare`); the other keys of an entry are about the paper."""
ABOUT = ("title", "shows", "seconds", "epochs", "notes", "rows", "columns", "grids")
Settings = Mapping[str, Any]
"""Values by dotted name, such as threat.steps or method.beta."""


@dataclass(frozen=True)
class Row:
    """A run as a paper has it, but for its seed."""

    name: str
    method: str
    protocol: str
    data: str
    imbalance: float | None
    """Imbalance ratio; None for data that are used unchanged."""
    settings: Settings
    """What differs from the protocol, and the network."""
    attacks: tuple[str, ...]
    columns: Settings = field(default_factory=dict)
    """Attack here of a published column, where the names differ."""

    @property
    def model(self) -> str:
        return str(self.settings["model.name"])

    @property
    def words(self) -> tuple[str, ...]:
        """What may distinguish it from other rows: name, data, imbalance ratio and network."""
        return (
            self.name,
            self.data,
            "" if self.imbalance is None else f"IR {self.imbalance:g}",
            self.model,
        )


@dataclass(frozen=True)
class Item:
    """A table or a figure."""

    name: str
    title: str
    shows: str
    """values, or of a figure: classes, curves, predicted, distance, features or logits."""
    rows: tuple[Row, ...]
    columns: tuple[tuple[str, str], ...]
    """Metric, and class or nothing."""
    notes: tuple[str, ...]
    """Where the paper contradicts itself, and what is not as published at any scale."""
    epochs: tuple[int, ...]
    """The epochs that a figure shows; by default some, evenly spaced."""
    average: str = "balanced"
    """As in published.tsv; sample: over the images of a long-tailed test set."""
    published: Mapping[tuple[int, str, str], float] = field(default_factory=dict)
    """Per cent, or seconds, by number of the row, metric and class."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the rows, with what else differs between them."""
        names, *others = zip(*(row.words for row in self.rows), strict=True)
        differing = [words for words in others if len({*words}) > 1]
        rows = zip(names, *differing, strict=True)
        return tuple(", ".join(filter(None, words)) for words in rows)


@dataclass(frozen=True)
class Scale:
    """The size of a reproduction: what replaces published networks, data, attacks, seeds and
    settings."""

    name: str
    values: Mapping[str, Any]
    """The file in scales/."""

    @property
    def says(self) -> str:
        return str(self.values["says"])

    def of(self, key: str, protocol: str) -> Any:
        """Return a table of the scale with the entries of a protocol."""
        return {**self.values.get(key, {}), **self.values.get(protocol, {}).get(key, {})}

    def seeds(self, protocol: str) -> list[int]:
        return list(self.values.get(protocol, {}).get("seeds", self.values["seeds"]))

    def attack(self, row: Row, column: str) -> str:
        """Return the attack of a published column of a row; empty if there is none, or the scale
        leaves it out."""
        if column == SECONDS:
            return ""
        attack = str(row.columns.get(column, column))
        name = attack.partition(":")[0]
        return str(self.of("attacks", row.protocol).get(name, attack))

    def run(self, row: Row) -> Row:
        """Return a row as it is run at this scale, with the attacks that it takes."""
        models = self.values.get("models", {})
        settings = {
            **self.of("settings", row.protocol),
            **self.values.get("on", {}).get(row.data, {}),
            **self.values.get("with", {}).get(row.model, {}),
            **row.settings,
            "model.name": models.get(row.model, models.get("all", row.model)),
        }
        own_names = replace(row, columns={})
        attacks = [self.attack(own_names, attack) for attack in ("clean", *row.attacks)]
        return replace(
            own_names,
            data=self.values.get("data", row.data),
            settings=settings,
            attacks=tuple(dict.fromkeys(filter(None, attacks))),
        )

    def differences(self, item: Item) -> list[str]:
        """Return what the scale puts in the place of published networks, data and attacks, in
        words."""
        texts = []
        for row in item.rows:
            run = self.run(row)
            replaced = {row.model: run.model, row.data: run.data}
            for metric, _ in item.columns:
                if metric != SECONDS:
                    replaced[metric] = self.attack(row, metric)
            for published, here in replaced.items():
                only = f" ({row.method})" if published in row.columns else ""
                if not here:
                    texts.append(f"no {published}")
                elif here != published:
                    texts.append(f"{here} for {published}{only}")
        return list(dict.fromkeys(texts))


@functools.cache
def scale(name: str) -> Scale:
    """Return the scale of this name; raise a `UserError` if there is none."""
    if name not in SCALES:
        raise unknown("scale", name, SCALES)
    return Scale(name, read_toml(FOLDER / "scales" / f"{name}.toml"))


@functools.cache
def items() -> Mapping[str, Item]:
    """Every item by name, e.g. taet/table1: of each paper its tables, its figures, and runs that
    only claims need."""
    found: dict[str, Item] = {}
    for paper in PAPERS:
        files = {path.stem: read_toml(path) for path in (FOLDER / "grids" / paper).glob("*.toml")}
        figures = _figures(files.pop("figures"))
        claims = {"claims": files.pop("claims")}
        tables = {name: files[name] for name in sorted(files, key=lambda name: (len(name), name))}
        for name, entry in (tables | figures | claims).items():
            found[f"{paper}/{name}"] = _item(f"{paper}/{name}", entry)
    return found


def _figures(file: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the entry of each figure, with what the file says for all of them."""
    shared = {key: file[key] for key in GRID if key in file}
    figures: dict[str, Mapping[str, Any]] = {}
    for name, entry in file.items():
        if name not in GRID:
            settings = {**shared["settings"], **entry.get("settings", {})}
            figures[name] = {**shared, **entry, "settings": settings}
    return figures


def chosen(names: Sequence[str], methods: Sequence[str] = ()) -> list[Item]:
    """Return the items of these names, which must have the methods; `taet` and `reat` mean all of a
    paper."""
    for name in names:
        if name not in items() and name not in PAPERS:
            raise unknown("item", name, [*PAPERS, *items()])
    found = []
    for item in items().values():
        paper = item.name.partition("/")[0]
        if item.name in names or paper in names:
            found.append(item)
    known = dict.fromkeys(row.method for item in found for row in item.rows)
    for method in methods:
        if method not in known:
            raise unknown("method of these items", method, known)
    return found


def _item(name: str, entry: Mapping[str, Any]) -> Item:
    """Return the item of an entry: a grid, or several that share the keys of the entry."""
    for key in entry:
        if key not in (*GRID, *ABOUT):
            raise unknown(f"key of {name}", key, (*GRID, *ABOUT))
    rows: list[Row] = []
    for grid in entry.get("grids", [{}]):
        rows += _rows({**entry, **grid}, entry.get("columns", {}))
    published: dict[tuple[int, str, str], float] = {}
    averages = []
    for line in _published().get(name, []):
        place = _place(name, rows, entry.get("rows", {}), line)
        number = (place, line["metric"], line["class"])
        if number in published:
            raise UserError(f"published.tsv: {name} has a number twice")
        published[number] = float(line["value"])
        if line["average"] != "cost":
            averages.append(line["average"])
    columns = [(metric, of) for _, metric, of in published]
    if not columns:
        columns = [(attack, "") for row in rows for attack in row.attacks]
        columns += [(SECONDS, "")] if entry.get("seconds") else []
    return Item(
        name,
        entry["title"],
        entry.get("shows", "values"),
        tuple(rows),
        tuple(dict.fromkeys(columns)),
        tuple(entry.get("notes", ())),
        tuple(entry.get("epochs", ())),
        averages[0] if averages else "balanced",
        published,
    )


def _rows(grid: Mapping[str, Any], columns: Mapping[str, Settings]) -> Iterator[Row]:
    """Yield the rows of a grid: data x imbalance ratios x variants x methods."""
    variants = [{}, *(variant["settings"] for variant in grid.get("variants", []))]
    ratios = grid.get("imbalance") or [None]
    for data, ratio, variant, method in itertools.product(
        grid["data"], ratios, variants, grid["methods"]
    ):
        entry = {"name": method, "method": method} if isinstance(method, str) else method
        settings = {**grid["settings"], **variant, **entry.get("settings", {})}
        attacks = tuple(settings.pop("evaluation.attacks"))
        own = columns.get(entry["name"], {})
        yield Row(
            entry["name"], entry["method"], grid["protocol"], data, ratio, settings, attacks, own
        )


@functools.cache
def _published() -> Mapping[str, list[Mapping[str, str]]]:
    """The lines of published.tsv by table."""
    found: dict[str, list[Mapping[str, str]]] = {}
    with (FOLDER / "published.tsv").open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file, delimiter="\t"):
            found.setdefault(f"{line['paper'].lower()}/table{line['table']}", []).append(line)
    return found


def _place(
    name: str, rows: Sequence[Row], words: Mapping[str, str], line: Mapping[str, str]
) -> int:
    """Return the number of the row that a line of published.tsv belongs to."""
    said = f"{line['method']} {line['setting']}".strip()
    asked = said, line["dataset"], line["model"]
    for place, row in enumerate(rows):
        if (words.get(row.name, row.method), row.data, row.model) == asked and (
            row.imbalance is None or row.imbalance == float(line["imbalance_ratio"])
        ):
            return place
    raise UserError(
        f"published.tsv: {name} has no row for {' '.join(asked)} at ratio {line['imbalance_ratio']}"
    )
