"""Options of an attack: what users write after a colon, read by the type and the bounds of a dataclass field."""

from __future__ import annotations

import types
import typing
from typing import Annotated, Literal

from taet.bounds import bounds_text, check_value, read_number
from taet.errors import UserError

WORDS: dict[object, str] = {int: "a whole number", float: "a number", bool: "true, false", str: "text"}


def read(text: str, hint: object) -> object:
    """Return the value that a user wrote for a field; what does not fit its type and bounds is a `ValueError`.

    Numbers may be fractions, such as 8/255; `none` is None where the field allows it.
    """
    for choice in _choices(hint):
        try:
            value = _convert(text, _bare(choice))
            check_value("", value, choice)
        except (ValueError, UserError):
            continue
        return value
    raise ValueError(text)


def allowed(hint: object) -> str:
    """Return in words what a field takes."""
    return ", or ".join(filter(None, map(_allowed_one, _choices(hint))))


def _allowed_one(hint: object) -> str:
    bare = _bare(hint)
    if typing.get_origin(bare) is Literal:
        return ", ".join(typing.get_args(bare))
    bounds = bounds_text(hint)
    return " ".join(filter(None, (WORDS.get(bare, ""), "of" if bounds[:1].isdigit() else "", bounds)))


def _choices(hint: object) -> list[object]:
    """Return the members of a union, each with the bounds of the whole, or the type itself."""
    bare, marks = _bare(hint), getattr(hint, "__metadata__", ())
    members = typing.get_args(bare) if typing.get_origin(bare) in (typing.Union, types.UnionType) else (bare,)
    return [Annotated[member, *marks] if marks and member is not types.NoneType else member for member in members]


def _bare(hint: object) -> object:
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint


def _convert(text: str, kind: object) -> object:
    if kind is float:
        return read_number(text)
    words: dict[object, dict[str, object]] = {types.NoneType: {"none": None}, bool: {"true": True, "false": False}}
    return int(text) if kind is int else words.get(kind, {}).get(text, text)
