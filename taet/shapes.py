"""Shapes of JSON values, declared as types, and one check that a value has its shape.

A shape is a TypedDict, a dataclass or a named tuple (fields with a default may be missing), `dict[str, ...]`,
`list[...]`, `tuple[..., ...]`, `Any` for every finite JSON value, a scalar with bounds as in `taet.fields`, or one of
these or None. `Annotated[dict[str, Any], Run]` is the JSON of a model. Checked values have the declared types.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NotRequired

from pydantic import BaseModel

from taet.errors import UserError
from taet.fields import allowed_text, check_value

WIDEST = 2**63
"""Whole numbers are below this bound, as in 64-bit arrays."""
DEEPEST = 50
"""Largest number of nested levels."""


def check_shape(what: str, value: object, shape: Any) -> None:
    """Refuse a value that does not have a shape, with a `UserError` that names the wrong part.

    An undeclared field may hold any finite JSON value, so that later versions can add fields.
    """
    _check(what, value, shape, 0)


def _check(what: str, value: object, shape: Any, depth: int) -> None:
    if depth > DEEPEST:
        raise UserError(f"{what}: got more than {DEEPEST} levels of nesting; allowed: fewer")
    kind = typing.get_args(shape)[0] if typing.get_origin(shape) is NotRequired else shape
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        rest = [one for one in typing.get_args(kind) if one is not types.NoneType]
        if value is None and len(rest) < len(typing.get_args(kind)):
            return
        kind = rest[0] if len(rest) == 1 else kind
    inner = typing.get_args(kind)[0] if typing.get_origin(kind) is Annotated else kind
    record = next((mark for mark in getattr(kind, "__metadata__", ()) if isinstance(mark, type)), None)
    origin, arguments = typing.get_origin(inner), typing.get_args(inner)
    if kind is Any:
        _check_any(what, value, depth)
    elif (
        record
        or typing.is_typeddict(kind)
        or dataclasses.is_dataclass(kind)
        or _is_model(kind)
        or hasattr(kind, "_field_defaults")
    ):
        _check_fields(what, value, _fields(record or kind), depth)
    elif origin in (dict, Mapping):
        for key, entry in _mapping(what, value).items():
            _check(f"{what} '{key[:60]}'".strip(), entry, arguments[1], depth + 1)
    elif origin in (list, tuple):
        entries = _sequence(what, value)
        if {*map(type, entries)} == {int}:  # there may be a million entries
            entries = [min(entries), max(entries)]  # type: ignore[type-var]
        for number, entry in enumerate(entries):
            _check(f"{what}[{number}]", entry, arguments[0], depth + 1)
    else:
        _check_scalar(what, value, kind)


def _check_fields(what: str, value: object, fields: Mapping[str, Any], depth: int) -> None:
    values = _mapping(what, value)
    for name, shape in fields.items():
        if name in values:
            _check(f"{what} {name}".strip(), values[name], shape, depth + 1)
        elif typing.get_origin(shape) is not NotRequired:
            raise UserError(f"{what}: the field '{name}' is missing".removeprefix(": "))
    for name in values.keys() - fields.keys():
        _check(f"{what} {name[:60]}".strip(), values[name], Any, depth + 1)


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


@functools.cache
def _fields(kind: Any) -> Mapping[str, Any]:
    """Return the shape of every field of a class, marked NotRequired where it may be missing or has a default."""
    if typing.is_typeddict(kind):
        found = typing.get_type_hints(kind, include_extras=True)
        optional = {*(() if kind.__total__ else found)}
    elif hasattr(kind, "_field_defaults"):
        found, optional = typing.get_type_hints(kind, include_extras=True), {*kind._field_defaults}
    elif _is_model(kind):
        found = typing.get_type_hints(kind, include_extras=True)
        found, optional = (
            {name: Any if name == "settings" else found[name] for name in kind.model_fields},
            {*kind.model_fields},
        )
    else:
        found, missing = typing.get_type_hints(kind, include_extras=True), (dataclasses.MISSING, dataclasses.MISSING)
        found = {one.name: found[one.name] for one in dataclasses.fields(kind)}
        optional = {f.name for f in dataclasses.fields(kind) if (f.default, f.default_factory) != missing}
    return {name: NotRequired[one] if name in optional else one for name, one in found.items()}


def _check_any(what: str, value: object, depth: int) -> None:
    if isinstance(value, Mapping):
        _check(what, value, dict[str, Any], depth)
    elif isinstance(value, list | tuple):
        _check(what, value, list[Any], depth)
    elif value is not None:
        _check_scalar(what, value, bool | int | float | str)


def _check_scalar(what: str, value: object, kind: Any) -> None:
    """Refuse a value that is not of this kind, or that a file cannot hold; messages never repeat a huge value."""
    if isinstance(value, Mapping | list | tuple):
        raise UserError(f"{what}: got {kind_text(value)}; allowed: {allowed_text(kind)}")
    if isinstance(value, int) and not -WIDEST <= value < WIDEST:
        raise UserError(f"{what}: got a whole number of {value.bit_length()} bits; allowed: up to 64")
    check_value(what, value, kind)


def _mapping(what: str, value: object) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise UserError(f"{what}: got {kind_text(value)}; allowed: an object".removeprefix(": "))
    for key in value:
        check_value(f"{what}: a name".removeprefix(": "), key, str)
    return value


def _sequence(what: str, value: object) -> Sequence[object]:
    if not isinstance(value, list | tuple):
        raise UserError(f"{what}: got {kind_text(value)}; allowed: a list")
    return value


def kind_text(value: object) -> str:
    """Describe a value in words that fit into a message, however large it is."""
    if isinstance(value, bool) or value is None:
        return "null" if value is None else "true or false"
    kinds = {Mapping: "an object", list | tuple: "a list", str: "a text", int | float: "a number"}
    return next((words for kind, words in kinds.items() if isinstance(value, kind)), type(value).__name__)
