"""Flags from dataclasses through tyro, with its errors turned into one line."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import io
import itertools
import os
import re
import typing
from collections.abc import Iterator, Sequence
from typing import Annotated, TypeVar

import tyro

from taet.errors import UserError, unknown

T = TypeVar("T")

FRACTION = re.compile(r"([+-]?\d+(?:\.\d+)?)/(\d+)")
BALL_FLAG = re.compile(r"--(?:[\w-]+\.)?(?:eps|step-size)(?:-l2)?")  # image units, which may be written as a fraction
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
    words = normalise(arguments)
    if any(word in ("-h", "--help") for word in words):
        return tyro.cli(kind, args=words, prog=prog, description=text)  # prints, and exits
    with _captured() as output:
        try:
            return tyro.cli(kind, args=words, prog=prog, description=text)
        except SystemExit as exit_:
            if not exit_.code:
                raise
    raise UserError(f"{_mistake(output.getvalue(), kind, words, prog)}; see {prog} --help")


# --- mistakes --------------------------------------------------------------------------------------------------------


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


def _mistake(box: str, kind: type, words: Sequence[str], prog: str) -> str:
    """What tyro's box of text says, in one line: what, what was got and what is allowed."""
    text = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip("│╭╮╰╯| \t") for line in box.splitlines()]
    lines = [line for line in text if set(line) - set("─-+ ")]  # first the title of the box, then its message
    message, whole = lines[1] if len(lines) > 1 else "the options cannot be read", " ".join(lines)
    if found := re.search(r"invalid choice '(.*?)' for argument '(.*?)'. Expected one of (\(.*?\))", whole):
        return str(unknown(found[2], found[1], ast.literal_eval(found[3])))
    if found := re.match(r"Missing value for argument '(--.*?)'", message):
        return f"{found[1]} needs a value"
    if message.startswith("Missing from") and len(lines) > 2:
        return f"{lines[2]} is missing"
    if found := re.match(r"Error parsing (--[\w.-]+)", message):
        metavar = next((line for line in lines if line.startswith(f"{found[1]} ")), "").partition(" ")[2]
        return f"{found[1]}: got '{_given(found[1], words)}'; allowed: {_form(found[1], metavar)}"
    if found := re.match(r"Unrecognized options: ([^,\s]+)", message):
        near = re.search(r"(?:Perhaps you meant|Arguments similar to [^:]*):\s*(--[\w.-]+)", whole)
        return _unknown_option(found[1], near[1] if near else None, kind, prog)
    return message.rstrip(".")


def _given(option: str, words: Sequence[str]) -> str:
    """The values that follow the last `option` among the words, or its value after =."""
    values: list[str] = []
    for position, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") == option:
            after = itertools.takewhile(lambda other: not re.match(r"--?[A-Za-z]", other), words[position + 1 :])
            values = [value] if equals else list(after)
    return " ".join(values)


def _form(option: str, metavar: str) -> str:
    """What tyro calls INT, {None}|FLOAT, INT|{auto} or {INT INT}, in words."""
    kinds = re.findall("INT|FLOAT", metavar)
    noun = "number" if "FLOAT" in kinds else "whole number"
    if not kinds:
        return metavar
    if "..." in metavar:
        return f"{noun}s"
    if len(kinds) > 1:
        return f"{'two' if len(kinds) == 2 else len(kinds)} {noun}s"
    words = [word for group in re.findall(r"\{([a-z,]+)\}", metavar) for word in group.split(",")]
    example = ", e.g. 8/255" if BALL_FLAG.fullmatch(option) else ""
    return " or ".join([f"a {noun}{example}", *words])


def _unknown_option(option: str, near: str | None, kind: type, prog: str) -> str:
    """An option that there is not; one with a dot is compared with those of its part, or with all that have a dot."""
    if not option.startswith("-"):
        return f"got '{option}', which belongs to no option"
    part, dot, last = option.partition(".")
    if dot:
        parts = _options(kind)
        own = parts.get(part.removeprefix("--"))
        if own == []:
            return f"unknown option {option}; {prog.rpartition(' ')[2]} has none of its own"
        if own is not None:
            matches = [f"{part}.{name}" for name in _near(last, [name.partition(".")[2] for name in own])]
        else:
            dotted = [name for names in parts.values() for name in names if "." in name]
            matches = [f"--{last}"] if f"--{last}" in parts[""] else _near(option, dotted)
    else:
        matches = [near] if near else _near(option, [*ALIASES])
    return f"unknown option {option}" + (f"; did you mean {matches[0]}?" if matches else "")


def _near(name: str, known: Sequence[str]) -> list[str]:
    return difflib.get_close_matches(name, known, n=1)


def _options(kind: type) -> dict[str, list[str]]:
    """The options of every part that has a prefix, and of all others under ''."""
    parts: dict[str, list[str]] = {"": []}
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        inner, *extras = typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint,)
        fields = [field.name for field in dataclasses.fields(inner)] if dataclasses.is_dataclass(inner) else None
        prefixed = fields is not None and not any(getattr(extra, "name", None) == "" for extra in extras)
        words = [f"--{name}.{field}" if prefixed else f"--{field}" for field in ([name] if fields is None else fields)]
        parts.setdefault(name if prefixed else "", []).extend(word.replace("_", "-") for word in words)
    return parts


def switch(arguments: list[str], flag: str) -> bool:
    """Remove `flag` from `arguments` wherever it stands, and say whether it was there."""
    found = flag in arguments
    arguments[:] = [argument for argument in arguments if argument != flag]
    return found


def take(arguments: list[str], flag: str) -> str | None:
    """Remove `flag VALUE` or `flag=VALUE` from `arguments` and return the value; None where it is not given."""
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name != flag:
            continue
        if not equals:
            value = arguments.pop(position + 1) if position + 1 < len(arguments) else ""
        if not value or value.startswith("--"):
            raise UserError(f"{flag} needs a value")
        arguments.pop(position)
        return value
    return None
