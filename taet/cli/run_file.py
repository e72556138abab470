"""A run as a file: what `taet train --print-config` prints, `--config` reads, and run.json holds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from taet import methods, protocols
from taet.errors import UserError, cut, located, nearest, unknown
from taet.experiments.grid import MOST_BYTES, flat, toml_table
from taet.fields import PIXEL_UNITS, Settings, check_value, got_text, hints, plain, read_text
from taet.files import parse_json, read_bytes
from taet.formatting import size
from taet.settings import Run, to_json

WORDS = ("method", "protocol", "seed")
"""Keys outside of a table."""


class RunFile(NamedTuple):
    """The settings in a file, checked one by one."""

    path: Path
    method: str | None
    protocol: str | None
    settings: dict[str, Any]
    """Dotted fields of the run; those of the method begin with `settings.`."""


def read(path: Path, method: str | None = None) -> RunFile:
    """Read a TOML or JSON file; `method` replaces that of the file. A mistake is a `UserError` with file and key."""
    content = read_bytes(path, most=MOST_BYTES)
    with located(str(path)):
        is_json = content.lstrip().startswith(b"{")
        values: Mapping[str, Any] = parse_json(content, "JSON") if is_json else toml_table(content)
        if isinstance(values.get("run"), Mapping):  # run.json
            values = values["run"]
        values = {key: value for key, value in values.items() if not (key == "settings" and value is None)}
        for name in ("method", "protocol"):
            check_value(name, values.get(name, ""), str)
        protocol = values.get("protocol")
        if protocol is not None and protocol not in protocols.PROTOCOLS:
            raise unknown("protocol", protocol, protocols.PROTOCOLS)
        method = method or values.get("method")
        known = _known(methods.find(method or Run.default("method")).Config)
        return RunFile(path, method, protocol, dict(_settings(values, known)))


def _known(own: type) -> dict[str, Any]:
    """Return the type of every setting of a run by its dotted name."""
    known = dict(hints(Run))
    parts = {name: kind for name, kind in known.items() if isinstance(kind, type) and issubclass(kind, Settings)}
    parts["settings"] = own
    inner = {f"{part}.{name}": hint for part, kind in parts.items() for name, hint in hints(kind).items()}
    return {name: hint for name, hint in known.items() if name not in parts} | inner


def _settings(values: Mapping[str, Any], known: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in flat(values):
        if any(key.startswith(f"{name}.") for key in known):
            raise UserError(f"{name}: got {got_text(value)}; allowed: a table, [{name}]")
        if name not in known:
            near = nearest(name, known)
            raise UserError(f"unknown key '{cut(name)}'" + (f"; did you mean '{near}'?" if near else ""))
        if name not in ("method", "protocol"):
            yield name, _value(name, value, known[name])


def _value(name: str, value: Any, hint: Any) -> Any:
    """Return a value in the type of its field: lists as tuples, `8/255` as a number, `none` as None."""
    value = plain(value) if isinstance(value, list) else value
    try:
        check_value(name, value, hint)
    except UserError:
        if not isinstance(value, str) or not (value == "none" or "/" in value):
            raise
        value = read_text(value, hint)
        check_value(name, value, hint)
    return value


def text(run: Run) -> str:
    """Return a run as TOML: every setting that is not None, or "none" where that is not what the protocol has."""
    assert run.settings is not None
    values, known = to_json(run), _known(type(run.settings))
    start = to_json(protocols.start(run.protocol, run.method))
    start["settings"] = start["settings"] or to_json(type(run.settings)())
    lines = [f"{name} = {_toml(values[name], known[name])}" for name in WORDS]
    for part, fields in values.items():
        if isinstance(fields, Mapping):
            lines += ["", f"[{part}]"]
            said = {name: value for name, value in fields.items() if value is not None or start[part][name] is not None}
            lines += [f"{name} = {_toml(value, known[f'{part}.{name}'])}" for name, value in said.items()]
    return "\n".join(lines)


def _toml(value: Any, hint: Any) -> str:
    if value is None:
        return '"none"'
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(item, hint) for item in value)}]"
    if isinstance(value, float):
        in_pixels = PIXEL_UNITS in getattr(hint, "__metadata__", ())
        written = size(value, None, 0) if in_pixels else repr(value)
        return f'"{written}"' if "/" in written else written
    # A JSON string is also a TOML string, except that TOML escapes DEL too.
    return re.sub("\x7f", r"\\u007f", json.dumps(value, ensure_ascii=False))
