"""Settings chosen automatically, with the reasons, as `taet train` prints them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from taet.formatting import size
from taet.settings import option


class Chosen(NamedTuple):
    """The value of a setting, and the reason for it."""

    value: Any
    why: str


def choice_lines(choices: Mapping[str, Chosen]) -> list[str]:
    """Return a line for each choice, by dotted name of the setting, with the option that changes it."""
    rows = [(f"--{option(name)}", _words(made.value), made.why) for name, made in choices.items()]
    wide = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    return [f"{name:{wide[0]}}  {value:{wide[1]}}  {why}" for name, value, why in rows]


def _words(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(value)
    return size(value) if isinstance(value, float) else str(value)
