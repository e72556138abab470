"""The specification of a comparison: a TOML file of methods x data x imbalance ratios x seeds, fully checked."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import itertools
import math
import os
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taet import methods, protocols, registry
from taet.errors import UserError, cut, located, unknown
from taet.fields import LongSeed, Settings, check_value, got_text, hints, read_number
from taet.files import read_bytes
from taet.settings import SHORT, Data, Run, Training

KEYS = ("title", "methods", "data", "imbalance", "seeds", "protocol", "settings", "variants")
METHOD_KEYS = ("name", "method", "settings")
VARIANT_KEYS = ("name", "settings")
LISTS: dict[str, tuple[type | tuple[type, ...], str, list[Any] | None]] = {  # types, in words, and the default
    "methods": ((str, dict), "text or tables", None),
    "data": (str, "text", None),
    "imbalance": ((int, float), "numbers", [None]),
    "seeds": (int, "whole numbers", [0]),
    "variants": (dict, "tables", []),
}
NAME = re.compile(r"[A-Za-z0-9.+-]+")  # names become folders; parts of a folder's name are joined by _
PARTS = tuple(name for name, kind in hints(Run).items() if isinstance(kind, type) and issubclass(kind, Settings))
BARE = {short: name for name, short in SHORT.items()} | {name: f"training.{name}" for name in Training.model_fields}
OWN = {  # settings that are keys of the specification
    "data.name": "data",
    "data.imbalance_ratio": "imbalance",
    "seed": "seeds",
    "protocol": "protocol",
}
MOST_BYTES, MOST_CELLS = 2**20, 100_000
DEEPEST = 8
"""Largest depth of nested tables; settings need two."""

DottedSettings = Mapping[str, Any]
"""Dotted settings of a run, and `method.KNOB` for those of its method; lists are tuples."""


@dataclass(frozen=True)
class Entry:
    """A method of the comparison and the name of its row."""

    name: str
    method: str
    settings: DottedSettings = field(default_factory=dict)


@dataclass(frozen=True)
class Variant:
    """Settings with which the whole grid is repeated; a variant without a name is the unchanged grid."""

    name: str = ""
    settings: DottedSettings = field(default_factory=dict)


@dataclass(frozen=True)
class Point:
    """A run of a comparison; a comparison is a list of them, and a grid is one way to write the list."""

    entry: Entry
    data: str
    imbalance: float | None
    seed: int
    protocol: str
    settings: DottedSettings = field(default_factory=dict)
    """Shared settings, overridden by those of the variant and of the entry."""
    variant: Variant = field(default_factory=Variant)


@dataclass(frozen=True)
class Specification:
    """Methods x data x imbalance ratios x seeds, with shared settings."""

    title: str
    methods: tuple[Entry, ...]
    data: tuple[str, ...]
    imbalance: tuple[float | None, ...]
    """Imbalance ratios; None takes the data as they are."""
    seeds: tuple[int, ...]
    protocol: str
    settings: DottedSettings
    variants: tuple[Variant, ...]
    """The unchanged grid, then every variant."""
    path: Path | None = None
    """The file it was read from."""

    @property
    def points(self) -> tuple[Point, ...]:
        """The runs of the grid, all methods of the first seed first."""
        grid = itertools.product(self.seeds, self.data, self.imbalance, self.variants, self.methods)
        return tuple(
            Point(entry, data, ratio, seed, self.protocol, self.settings, variant)
            for seed, data, ratio, variant, entry in grid
        )


def read(path: str | os.PathLike[str]) -> Specification:
    """Read the specification from the TOML file `path`; raise a `UserError` that names the key of a mistake."""
    path = Path(path)
    with located(f"specification {path}"):
        return dataclasses.replace(parse(table(path), title=path.stem), path=path)


def table(path: Path) -> dict[str, Any]:
    """Return the table in a TOML file."""
    return toml_table(read_bytes(path, most=MOST_BYTES))


def toml_table(content: bytes) -> dict[str, Any]:
    """Return the table of a TOML file; raise a `UserError` if it is not valid TOML."""
    try:
        return tomllib.loads(content.decode())
    except RecursionError:
        raise UserError("not TOML: lists or tables are nested too deeply") from None
    except ValueError as error:  # not TOML, not UTF-8, or a number of thousands of digits
        raise UserError(f"not TOML: {cut(str(error))}") from None


def parse(values: Mapping[str, Any], title: str = "comparison") -> Specification:
    """Return the specification in a TOML table; `title` is the default title."""
    check_keys("key", values, KEYS)
    found = {key: _list(values, key) for key in LISTS}
    protocol = value_in(values, "protocol", str, Run.default("protocol"))
    if protocol not in protocols.PROTOCOLS:
        raise unknown("protocol", protocol, protocols.PROTOCOLS)
    for ratio in found["imbalance"]:
        Data(imbalance_ratio=ratio)
    for seed in found["seeds"]:
        check_value("seeds", seed, LongSeed)
    entries, variants = (
        [entry_of(value) for value in found["methods"]],
        [_variant(value) for value in found["variants"]],
    )
    names = {"methods": [entry.name for entry in entries], "variants": [variant.name for variant in variants]}
    for key, items in (found | names).items():
        for item, count in Counter(items).items():
            if count > 1:
                raise UserError(f"{key}: got {item} {count} times; allowed: each once")
    points = [found[key] for key in ("methods", "data", "imbalance", "seeds")] + [[None, *variants]]
    if math.prod(map(len, points)) > MOST_CELLS:
        raise UserError(f"got {math.prod(map(len, points)):,} cells; allowed: at most {MOST_CELLS:,}")
    return Specification(
        title=value_in(values, "title", str, title),
        methods=tuple(entries),
        data=tuple(found["data"]),
        imbalance=tuple(found["imbalance"]),
        seeds=tuple(found["seeds"]),
        protocol=protocol,
        settings=_settings("settings", value_in(values, "settings", dict, {})),
        variants=(Variant(), *variants),
    )


def entry_of(value: Any) -> Entry:
    """Return a method of the comparison: its name alone, or a table with its name, method and settings."""
    if isinstance(value, str):
        registry.find("methods", value)
        return Entry(value, value)
    check_keys("key of an entry of methods", value, METHOD_KEYS)
    name = _name("methods", value)
    method = value_in(value, "method", str, name)
    registry.find("methods", method)
    own, where = value_in(value, "settings", dict, {}), f"methods: {name}"
    with located(where):  # a method is imported only for its settings
        knobs = list(methods.find(method).Config.model_fields) if own else []
    return Entry(name, method, _settings(where, own, knobs))


def _variant(value: Any) -> Variant:
    check_keys("key of an entry of variants", value, VARIANT_KEYS)
    name = _name("variants", value)
    settings = _settings(f"variants: {name}", value_in(value, "settings", dict, {}))
    if not settings:
        raise UserError(f"variants: {name}: got no settings; allowed: one or more")
    return Variant(name, settings)


def check_keys(what: str, values: Iterable[str], allowed: Iterable[str]) -> None:
    """Raise a `UserError` for a key that is not allowed."""
    for key in values:
        if key not in allowed:
            raise unknown(what, key, allowed)


def _is(value: Any, kinds: type | tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def _list(values: Mapping[str, Any], key: str) -> list[Any]:
    kinds, words, default = LISTS[key]
    if key not in values and default is not None:
        return default
    if key not in values:
        raise UserError(f"{key} is missing; allowed: a list of {words}")
    found = values[key]
    if key == "methods" and found == "all":
        return [*registry.entries("methods")]
    if not isinstance(found, list) or not found:
        every = " or 'all'" if key == "methods" else ""
        raise UserError(f"{key}: got {got_text(found)}; allowed: a list of {words}, one or more{every}")
    for item in found:
        if not _is(item, kinds):
            raise UserError(f"{key}: got {got_text(item)}; allowed: {words}")
    return found


def value_in(values: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
    """Return the text or the table that a key of a table holds; raise a `UserError` for any other kind of value."""
    value = values.get(key, default)
    if not _is(value, kind):
        raise UserError(f"{key}: got {got_text(value)}; allowed: {'a table' if kind is dict else 'text'}")
    return value


def _name(key: str, values: Mapping[str, Any]) -> str:
    name = value_in(values, "name", str, "")
    if not NAME.fullmatch(name):
        raise UserError(f"{key}: got the name {name!r}; allowed: letters, digits and the signs . + -")
    return str(name)


def _settings(where: str, values: Mapping[str, Any], knobs: Sequence[str] = ()) -> dict[str, Any]:
    """Return settings by dotted name, from dotted or command-line names; `knobs` need no `method.`."""
    settings: dict[str, Any] = {}
    with located(where):
        for key, value in flat(values):
            name = key.replace("-", "_")
            name = f"method.{name}" if name in knobs else BARE.get(name, name)
            if name in OWN:
                raise UserError(f"got {key}; allowed: as {OWN[name]} of the specification")
            part, dot, _ = name.partition(".")
            if not dot or part not in (*PARTS, "method"):
                raise UserError(_no_part(name, knobs))
            if name in settings:
                raise UserError(f"got {key} twice; allowed: each once")
            settings[name] = _setting(name, value)
    return settings


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return (dotted key, value) of a table: `"a.b" = 1` and `a.b = 1` are the same."""
    pairs = []
    if prefix.count(".") > DEEPEST:
        raise UserError(f"got the key {cut(prefix)}; allowed: at most {DEEPEST} tables inside each other")
    for key, value in values.items():
        pairs += flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(prefix + key, value)]
    return pairs


def _no_part(name: str, knobs: Sequence[str]) -> str:
    dotted = [f"{part}.{name}" for part in PARTS for name in type(getattr(Run(), part)).model_fields]
    known = [*knobs, *BARE, *dotted]
    near = [full for full in dotted if full.partition(".")[2] == name] or difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    parts = ", ".join([*knobs, *(f"{part}.*" for part in (*PARTS, "method"))])
    return f"unknown setting '{name}'; allowed: {parts}, or an option of taet train by its name{hint}"


def _setting(name: str, value: Any) -> Any:
    """Return a value as the dataclasses store it: lists as tuples, 8/255 as a number."""
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str | int | float | bool) for item in items):
        raise UserError(f"{name}: got {got_text(value)}; allowed: text, a number, true or false, or a list of them")
    if any(isinstance(item, int) and item.bit_length() > 64 for item in items):
        raise UserError(f"{name}: got {got_text(value)}; allowed: whole numbers of at most 64 bits")
    if isinstance(value, list):
        return tuple(_setting(name, item) for item in value)
    if isinstance(value, str) and "/" in value and name.rpartition(".")[2] in ("eps", "step_size"):
        with contextlib.suppress(ValueError):  # the setting rejects it later
            return read_number(value)
    return value
