"""Flags from dataclasses through tyro, with its errors turned into one line."""

from __future__ import annotations

import ast
import contextlib
import difflib
import io
import os
import re
from collections.abc import Iterator, Sequence
from typing import TypeVar

import tyro

from taet.errors import UserError, unknown

T = TypeVar("T")

FRACTION = re.compile(r"([+-]?\d+(?:\.\d+)?)/(\d+)")
BALL_FLAG = re.compile(r"--(?:[\w-]+\.)?(?:eps|step-size)")  # what is measured in grey levels and written as a fraction
ALIASES = {"--data": "--data.name", "--model": "--model.name", "--outer": "--outer.name"}


def normalise(arguments: Sequence[str]) -> list[str]:
    """Write k/255 after --eps and --step-size as a number, and the short forms --data, --model and --outer in full."""
    result: list[str] = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if equals and BALL_FLAG.fullmatch(flag):
            argument = f"{flag}={_number(value)}"
        elif result and BALL_FLAG.fullmatch(result[-1]):
            argument = _number(argument)
        elif flag in ALIASES:
            argument = ALIASES[flag] + equals + value
        result.append(argument)
    return result


def _number(text: str) -> str:
    found = FRACTION.fullmatch(text)
    return repr(float(found[1]) / int(found[2])) if found and int(found[2]) else text


def parse(
    kind: type[T],
    arguments: Sequence[str],
    *,
    prog: str,
    description: str,
    examples: Sequence[str],
) -> T:
    """Fill the dataclass `kind` from `arguments`; a mistake is a `UserError` in one line, --help prints and exits."""
    text = description + "\n\nexamples:\n" + "\n".join(f"  {example}" for example in examples)
    asks_for_help = any(argument in ("-h", "--help") for argument in arguments)
    with contextlib.nullcontext(io.StringIO()) if asks_for_help else _captured() as output:
        try:
            return tyro.cli(kind, args=normalise(arguments), prog=prog, description=text)
        except SystemExit as exit_:
            if not exit_.code:
                raise
    raise UserError(_one_line(output.getvalue(), prog))


@contextlib.contextmanager
def _captured() -> Iterator[io.StringIO]:
    """Catch what tyro prints, on lines too long to be wrapped."""
    output, before = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "4000"
    try:
        with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
            yield output
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def _one_line(box: str, prog: str) -> str:
    text = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip("│╭╮╰╯| \t") for line in box.splitlines()]
    lines = [line for line in text if set(line) - set("─-+ ")]  # first the title of the box, then its message
    choice = re.search(r"invalid choice '(.*?)' for argument '(.*?)'. Expected one of (\(.*?\))", " ".join(lines))
    if choice:
        return str(unknown(choice[2], choice[1], ast.literal_eval(choice[3])))
    message = lines[1] if len(lines) > 1 else "the options cannot be read"
    if message.startswith("Missing from"):
        message = f"{lines[2]} is missing" if len(lines) > 2 else message
    message = re.sub(r"^Unrecognized options: ([^,\s]+).*", r"unknown option \1", message)
    near = re.search(r"(?:Perhaps you meant|Arguments similar to [^:]*):\s*(--[\w.-]+)", " ".join(lines))
    short = difflib.get_close_matches(message.rpartition(" ")[2], ALIASES, n=1)
    hint = f"; did you mean {near[1] if near else short[0]}?" if near or short else ""
    return f"{message.rstrip('.')}{hint}; see {prog} --help"


def take(arguments: list[str], flag: str) -> str | None:
    """Remove `flag VALUE` or `flag=VALUE` from `arguments` and return the value; None where it is not given."""
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name != flag:
            continue
        if not equals:
            if position + 1 == len(arguments):
                raise UserError(f"{flag} needs a value")
            value = arguments.pop(position + 1)
        arguments.pop(position)
        return value
    return None
