"""Command-line options from dataclasses, through tyro; its errors become one line.

A command declares its options as a dataclass. `options(default)` adds those that change the fields of a configuration,
such as `Evaluation`: with bounds and defaults in --help, and parsed to a dictionary of those that were given.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import functools
import io
import itertools
import os
import re
import shlex
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import docstring_parser
import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from taet.cli import wrapped
from taet.errors import Done, UserError, printable, unknown
from taet.fields import PIXEL_UNITS, Rule, allowed_text, bounds_text, check_value, condition_text, hints, read_number
from taet.formatting import size
from taet.settings import SHORT, option

T = TypeVar("T")
Given = dict[str, Any]
"""The fields of a configuration that were given as options."""
Options = dict[str, dict[str, Any]]
"""The options of every prefix, with those without a prefix under "", each with the type of its value."""

SOURCE_UNREAD = (tyro.conf.HelptextFromCommentsOff,)  # every text is in a docstring, not in a comment
RunPath = Annotated[Path, Rule(lambda path: str(path) == printable(str(path)), "a path in UTF-8, on one line")]
"""A folder for files of weights; their library supports no other paths."""

REGISTRY = ConstructorRegistry()
NONE = "{None}|"
"""How tyro writes that an option may have no value."""
TEXT = "{description}"  # in the page of tyro, which would join the lines of the text itself


def read_path(text: str) -> Path:
    """Return a path; an empty one raises a ValueError."""
    if not text:
        raise ValueError(text)
    return Path(text)


def _add_rule(kind: type, metavar: str, read: Callable[[str], Any], write: Callable[[Any], str] = str) -> None:
    """Read options of type `kind` by `read`, which may raise ValueError; --help shows defaults by `write`."""

    @REGISTRY.primitive_rule
    def rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        if info.type is not kind:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar=metavar,
            instance_from_str=lambda words: read(words[0]),
            is_instance=lambda value: isinstance(value, int | float if kind is float else kind),
            str_from_instance=lambda value: [write(value)],
        )


_add_rule(float, "FLOAT", read_number, lambda value: f"{value:.6g}")
_add_rule(int, "INT", int)
_add_rule(Path, "PATH", read_path)


def options(default: Any, prefix: str = "", alias: str = "") -> Any:
    """Declare a field for the options that change `default`, a configuration; parsed, it holds those that were given.

    Each option is --PREFIX.FIELD, or --FIELD without a prefix; `alias` is a short form of --PREFIX.name.
    """
    return dataclasses.field(default_factory=dict, metadata={"default": default, "prefix": prefix, "alias": alias})


def _documentation(kind: type) -> dict[str, str]:
    """Return the docstring of every field of a dataclass."""
    return {name: text for base in reversed(kind.__mro__[:-1]) for name, text in _own_documentation(base).items()}


@functools.cache
def _own_documentation(kind: type) -> dict[str, str]:
    fields = docstring_parser.parse_from_object(kind).params
    return {field.arg_name: " ".join((field.description or "").split()) for field in fields}


def _text(value: Any, hint: Any) -> str:
    """Return a default as --help shows it."""
    if isinstance(value, tuple):
        return " ".join(_text(item, hint) for item in value)
    in_pixels = PIXEL_UNITS in getattr(hint, "__metadata__", ())
    return size(value) if in_pixels else f"{value:.6g}" if isinstance(value, float) else str(value)


def _described(hint: Any, text: str, default: Any, label: str = "") -> Any:
    """Return the type of an option with its --help: text, bounds, condition and default."""
    unsaid = default in (None, (), "") or re.search("Default: |[Bb]y default", text)
    said = "required" if default is dataclasses.MISSING else "" if unsaid else f"default: {_text(default, hint)}"
    notes = "; ".join(filter(None, (bounds_text(hint), condition_text(hint, label), said)))
    return Annotated[hint, tyro.conf.arg(help=text, help_behavior_hint=f"({notes})" if notes else "")]


def _given_types(default: Any) -> dict[str, Any]:
    """Return the types of the options that change the fields of `default`."""
    kind = type(default)
    texts = {name: " ".join((field.description or "").split()) for name, field in kind.model_fields.items()}
    label = kind.label
    types = hints(kind).items()
    return {name: _described(hint, texts.get(name, ""), getattr(default, name), label) for name, hint in types}


def _expanded(kind: type[T]) -> tuple[type[T], Options]:
    """Return `kind` with types that hold what --help says, and those that `options` stands for; and all options."""
    made, texts = [], _documentation(kind)
    found: Options = {"": {}}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        hint, about = hints(kind)[field.name], field.metadata
        if "default" in about:
            types, prefix, alias = _given_types(about["default"]), about["prefix"], about["alias"]
            start = f"--{prefix}." if prefix else "--"
            found.setdefault(prefix, {}).update({start + option(name): own for name, own in types.items()})
            if alias:
                found[""][alias] = types["name"]
                types["name"] = Annotated[types["name"], tyro.conf.arg(aliases=[alias])]  # noqa: F821, a key
            given = typing.TypedDict(type(about["default"]).__name__, types, total=False)  # type: ignore[misc]
            given.__doc__ = type(about["default"]).__doc__
            # Without a prefix, the field's name is only that of the section of --help.
            bare = tyro.conf.arg(name=field.name), tyro.conf.OmitArgPrefixes
            hint = Annotated[given, tyro.conf.arg(name=prefix)] if prefix else Annotated[given, *bare]
        else:
            hint = _described(hint, texts.get(field.name, ""), field.default)
            if tyro.conf.Positional not in hint.__metadata__:
                named = (getattr(one, "name", None) for one in hint.__metadata__)
                found[""][f"--{option(next(filter(None, named), field.name))}"] = hint
        made.append((field.name, hint, field))
    expanded = dataclasses.make_dataclass(kind.__name__, made, bases=(kind,), frozen=True)
    expanded.__doc__ = kind.__doc__
    return expanded, found


def parse(kind: type[T], arguments: Sequence[str], prog: str, description: str, examples: Sequence[str]) -> T:
    """Fill the dataclass `kind` from `arguments`; a mistake raises a one-line `UserError`, --help prints and exits."""
    text = wrapped(description) + "\n\nexamples:\n" + "\n".join(f"  {example}" for example in examples)
    expanded, known = _expanded(kind)

    def read() -> T:
        return tyro.cli(expanded, args=arguments, prog=prog, description=TEXT, registry=REGISTRY, config=SOURCE_UNREAD)

    if {"-h", "--help"} & set(arguments):
        shown = io.StringIO()
        try:
            with contextlib.redirect_stdout(shown):
                return read()  # prints, and exits
        except SystemExit as exit_:
            print(_without_none(shown.getvalue()).replace(TEXT, text, 1), end="")
            raise Done(exit_.code) from None
    parsed: T | None = None
    with _captured() as output, contextlib.suppress(SystemExit):
        parsed = read()
    if parsed is not None:
        for field in dataclasses.fields(kind):  # type: ignore[arg-type]
            if "default" not in field.metadata:
                value, hint = getattr(parsed, field.name), hints(kind)[field.name]
                check_value(field.name.replace("_", " "), value, hint)
        return parsed
    raise UserError(f"{_mistake(output.getvalue(), known, arguments, prog)}; see {prog} --help")


def _without_none(page: str) -> str:
    """Return a page of --help without the None of optional values, and with every text in its column."""

    def bare(words: re.Match[str]) -> str:
        return words[0].replace(NONE, "").ljust(len(words[0]))

    return re.sub(r"\S+(?: \S+)*", bare, page)


@contextlib.contextmanager
def _captured() -> Iterator[io.StringIO]:
    """Capture the output of tyro without line wrapping."""
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


def _mistake(box: str, parts: Options, words: Sequence[str], prog: str) -> str:
    """Return tyro's box of text (its typed errors are private) as one line: what, the given and the allowed values."""
    text = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip("│╭╮╰╯| \t") for line in box.splitlines()]
    lines = [line for line in text if set(line) - set("─-+ ")]  # first the title of the box, then its message
    message, whole = lines[1] if len(lines) > 1 else "the options cannot be read", " ".join(lines)
    if found := re.search(r"invalid choice '(.*?)' for argument '(.*?)'. Expected one of (\(.*?\))", whole):
        return str(unknown(found[2].rpartition("/")[2], found[1], ast.literal_eval(found[3])))
    if found := re.match(r"Missing value for argument '(--.*?)'", message):
        return f"{found[1]} needs a value"
    if message.startswith("Missing from") and len(lines) > 2:
        return f"{lines[2]} is missing"
    if found := re.match(r"Error parsing (--[\w.-]+)", message):
        hint = next((options[found[1]] for options in parts.values() if found[1] in options), str)
        return f"{found[1]}: got '{value_of(found[1], words)}'; allowed: {allowed_text(hint)}"
    if found := re.match(r"Unrecognized options: ([^,\s]+)", message):
        return _unknown_option(found[1], parts, prog)
    return message.rstrip(".")


def options_of(words: Sequence[str]) -> set[str]:
    """Return the options among the words of a call, without values."""
    return {word.partition("=")[0] for word in words if word.startswith("-")}


def value_of(option: str, words: Sequence[str]) -> str:
    """Return the words that follow the last `option`, or its value after =; "" if it is not given."""
    values: list[str] = []
    for position, word in enumerate(words):
        name, equals, value = word.partition("=")
        if _short(name) == option:
            after = itertools.takewhile(lambda other: not re.match(r"--?[A-Za-z]", other), words[position + 1 :])
            values = [value] if equals else list(after)
    return " ".join(values)


def _short(name: str) -> str:
    return {f"--{long}": f"--{short}" for long, short in SHORT.items()}.get(name, name)


def _unknown_option(option: str, parts: Options, prog: str) -> str:
    """Refuse an unknown option; one with a known prefix is compared with the options of that prefix."""
    if not option.startswith("-"):
        return f"got '{option}', which no option takes"
    prefix, dot, field = option.removeprefix("--").partition(".")
    if dot and parts.get(prefix) == {}:
        return f"unknown option {option}; {prog.rpartition(' ')[2]} has none of its own"
    if dot and prefix in parts:
        near = difflib.get_close_matches(field, [name.partition(".")[2] for name in parts[prefix]], n=1)
        near = [f"--{prefix}.{name}" for name in near]
    else:
        known = [name for names in parts.values() for name in names]
        bare = {name.removeprefix("--"): name for name in known}  # the dashes would make any two short names similar
        close = difflib.get_close_matches(option.removeprefix("--"), bare, n=1)
        near = [f"--{field}"] if f"--{field}" in parts[""] else [bare[name] for name in close]
    return f"unknown option {option}" + (f"; did you mean {near[0]}?" if near else "")


def call_text(words: Sequence[str]) -> str:
    """Return the call `taet WORDS` as stored in records: as a shell reads it, except for bytes that are not text."""
    return printable(shlex.join(["taet", *words]))


def given(parsed: object, *names: str) -> list[str]:
    """Return those of the fields of a call that have a value, as options."""
    return [f"--{option(name)}" for name in names if getattr(parsed, name)]


def without(words: Sequence[str], option: str) -> list[str]:
    """Return the words without `option VALUE` or `option=VALUE`."""
    return [
        word
        for position, word in enumerate(words)
        if word.partition("=")[0] != option and (position == 0 or words[position - 1] != option)
    ]
