"""The options of a command, built from the fields of pydantic models.

A command declares what it takes as a `Command`. Each field is an option in kebab case, or a positional argument if it
is marked POSITIONAL; its docstring, bounds and default are the text of --help. `Options` add the fields of settings,
such as `Data`, under a prefix: of these only what was given is returned.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import textwrap
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Literal, NamedTuple, NoReturn, TypeVar

from pydantic.fields import FieldInfo

from taet.errors import Done, UserError, nearest, printable
from taet.fields import PIXEL_UNITS, OnlyWith, Rule, Settings, bounds_of, check_value, leaves, read_text
from taet.formatting import size
from taet.settings import SHORT

C = TypeVar("C", bound="Command")
POSITIONAL = object()
"""Marks a field that is given by its place, not by an option."""
RunPath = Annotated[Path, Rule(lambda path: str(path) == printable(str(path)), "a path in UTF-8, on one line")]
"""A folder for files of weights; their library supports no other paths."""
Weights = Literal["model", "model-last", "model-best"]
"""Weights of a run: those that it delivers, of its last epoch, or of its best one."""
METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


class Command(Settings):
    """What a command takes; the docstring is its description."""

    examples: ClassVar[tuple[str, ...]] = ()


class OfRun(Command):
    """A command about a finished run."""

    run: Annotated[Path, POSITIONAL]
    """Run folder."""
    weights: Weights = "model"
    """Weights: those that the run delivers, those of its last epoch, or of its best one."""
    trust_model: str | None = None
    """Name of the run's model if it is package.module:callable. Its code is imported and run only if it is named
    here."""


class Options(NamedTuple):
    """Settings whose fields are options."""

    name: str
    """First part of their dotted names, e.g. data."""
    settings: Settings
    """Their defaults."""
    bare: bool = False
    """Whether the options need no prefix."""
    usual: tuple[str, ...] | None = None
    """The fields that --help shows; --help all shows every one. Default: all."""


class Parsed(NamedTuple, Generic[C]):
    """A call."""

    command: C
    given: dict[str, Any]
    """The fields of the parts that were given, by dotted name."""

    def of(self, part: str) -> dict[str, Any]:
        """Return the fields of one part that were given."""
        return {name.partition(".")[2]: value for name, value in self.given.items() if name.startswith(f"{part}.")}


class _Once(argparse.Action):
    """Keeps the words of an option, which may be given once."""

    def __call__(self, parser: object, namespace: object, values: Any, option_string: str | None = None) -> None:
        if hasattr(namespace, self.dest):
            raise UserError(f"{option_string}: got it more than once; allowed: once")
        on = not re.match(r"--([^.]*\.)?no-", option_string or "") or option_string == self.option_strings[0]
        setattr(namespace, self.dest, on if self.nargs == 0 else values)


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26, width=width())

    def _format_action_invocation(self, action: argparse.Action) -> str:
        """Show one name of an option: of a switch the one that changes the default."""
        if not action.option_strings or action.nargs != 0:
            action.option_strings = action.option_strings[:1]
            return super()._format_action_invocation(action)
        on, off = action.option_strings[0], _negated(action.option_strings[0])
        return {True: off, False: on}.get(action.const, f"{on}, {off}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')}; see {self.prog} --help")


def parse(kind: type[C], words: Sequence[str], prog: str, parts: Sequence[Options] = ()) -> Parsed[C]:
    """Read a call; --help prints the options and ends the command, and a mistake is a `UserError`."""
    asked = {"-h", "--help"} & {*words}
    hints: dict[str, Any] = {}
    parser = _parser(kind, prog, [part._replace(usual=None) for part in parts] if "all" in words else parts, hints)
    if asked:
        print(parser.format_help(), end="")
        raise Done(0)
    namespace, rest = parser.parse_known_args([*words])
    if rest:
        raise _unexpected(rest, parser)
    found = {name: _read(value, hints[name]) for name, value in vars(namespace).items()}
    own = {name: value for name, value in found.items() if "." not in name}
    for name, field in kind.model_fields.items():
        if name in own:
            check_value(name.replace("_", " "), own[name], hints[name])
        elif field.is_required():
            raise UserError(f"which {_metavar(name, field)}? see {prog} --help")
    return Parsed(kind(**own), {name: value for name, value in found.items() if "." in name})


def _parser(kind: type[Command], prog: str, parts: Sequence[Options], hints: dict[str, Any]) -> _Parser:
    fields = kind.model_fields.items()
    places = [_metavar(name, field) for name, field in fields if POSITIONAL in field.metadata]
    parser = _Parser(
        prog,
        usage=" ".join([*prog.split()[:2], *places, "[options]"]),
        description=_description(kind, any(part.usual is not None for part in parts)),
        formatter_class=_Help,
        add_help=False,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    group = parser.add_argument_group("options")
    for name, field in fields:
        hints[name] = field.rebuild_annotation()
        if POSITIONAL in field.metadata:
            many = any(typing.get_origin(one) is tuple for one, _ in leaves(hints[name]))
            parser.add_argument(
                name, nargs="*" if many else "?", metavar=_metavar(name, field), help=_help(field, None)
            )
        else:
            names = [f"--{name.removeprefix('as_').replace('_', '-')}"]  # json is a name of pydantic's
            _add(group, name, names, field, _help(field, field.default), field.default)
    for part in parts:
        group = parser.add_argument_group(part.name, (type(part.settings).__doc__ or "").strip().split("\n")[0])
        for name, field in type(part.settings).model_fields.items():
            full = f"{part.name}.{name}"
            hints[full] = field.rebuild_annotation()
            if any(isinstance(kind, type) and issubclass(kind, Settings) for kind, _ in leaves(hints[full])):
                continue  # has options of its own
            names = [f"--{one.replace('_', '-')}" for one in (name if part.bare else SHORT.get(full, full), full)]
            value = getattr(part.settings, name)
            shown = part.usual is None or name in part.usual
            text = _help(field, value, type(part.settings).label) if shown else argparse.SUPPRESS
            _add(group, full, [*dict.fromkeys(names)], field, text, value)
    return parser


def _add(group: Any, dest: str, names: list[str], field: FieldInfo, text: str, default: object) -> None:
    kinds = [one for one, _ in leaves(field.rebuild_annotation())]
    sizes = [len(typing.get_args(one)) for one in kinds if typing.get_origin(one) is tuple]
    nargs: int | str | None = None if not sizes else "*" if any(... in typing.get_args(one) for one in kinds) else "+"
    metavar = "|".join(filter(None, map(_word, kinds)))
    if bool in kinds:
        group.add_argument(*names, *map(_negated, names), dest=dest, nargs=0, const=default, action=_Once, help=text)
    else:
        group.add_argument(*names, dest=dest, nargs=nargs, metavar=metavar, action=_Once, help=text)


def _negated(name: str) -> str:
    """--no-capture of --capture, --method.no-tail of --method.tail."""
    start, dot, field = name.removeprefix("--").rpartition(".")
    return f"--{start}{dot}no-{field}"


def _word(kind: Any) -> str:
    """What stands for a value of a type in --help."""
    if typing.get_origin(kind) is tuple:
        return _word(leaves(typing.get_args(kind)[0])[0][0])
    return "|".join(map(str, typing.get_args(kind))) if typing.get_origin(kind) is Literal else METAVARS.get(kind, "")


def _metavar(name: str, field: FieldInfo) -> str:
    return field.title or name.upper().replace("_", "-")


def _help(field: FieldInfo, default: Any, label: str = "") -> str:
    """Text of an option: its docstring, bounds, condition and default."""
    hint, text = field.rebuild_annotation(), " ".join((field.description or "").split())
    notes = [
        ", or ".join(filter(None, (bounds_of(*leaf) for leaf in leaves(hint)))),
        *(mark.text(label) for mark in field.metadata if isinstance(mark, OnlyWith)),
    ]
    if default not in (None, (), "", False) and not re.search("Default: |[Bb]y default", text):
        notes.append(f"default: {_shown(default, hint)}")
    said = "; ".join(filter(None, notes))
    return (f"{text} ({said})" if said else text).replace("%", "%%")


def _shown(value: Any, hint: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(_shown(item, hint) for item in value)
    if isinstance(value, bool):
        return "on"
    in_pixels = any(PIXEL_UNITS in marks for _, marks in leaves(hint))
    return size(value) if in_pixels else f"{value:.6g}" if isinstance(value, float) else str(value)


def _description(kind: type[Command], is_cut: bool) -> str:
    paragraphs = textwrap.dedent(f"    {kind.__doc__ or ''}").strip().split("\n\n")
    filled = [one if one.startswith(" ") else textwrap.fill(" ".join(one.split()), width()) for one in paragraphs]
    if kind.examples:
        filled.append("\n".join(["examples:", *(f"  {example}" for example in kind.examples)]))
    return "\n\n".join([*filled, "All options: --help all"] if is_cut else filled)


def width() -> int:
    """Return the width of help texts in columns: that of the terminal, at most 120."""
    return min(shutil.get_terminal_size().columns, 120)


def _read(value: Any, hint: Any) -> Any:
    """Return the words of an option as the type of its field."""
    if isinstance(value, bool):
        return value
    kinds = [one for one, _ in leaves(hint)]
    found = next((one for one in kinds if typing.get_origin(one) is tuple), None)
    if found is None:
        return Path(value) if Path in kinds and value else read_text(value, hint)
    if value == ["none"] and type(None) in kinds:
        return None
    items = typing.get_args(found)
    return tuple(_read(word, items[0]) for word in ([value] if isinstance(value, str) else value))


def _unexpected(rest: Sequence[str], parser: _Parser) -> UserError:
    """Return the error for words that no option takes, with the nearest option, of the same prefix if that is known."""
    option = next((word.partition("=")[0] for word in rest if word.startswith("-")), None)
    if option is None:
        return UserError(f"unexpected '{rest[0]}'; see {parser.prog} --help")
    known = [name for action in parser._actions for name in action.option_strings]
    start, dot, _ = option.partition(".")
    prefix = f"{start}."
    same = next((name for name in known if name.endswith(f".{option.lstrip('-')}")), None)
    alike = [name for name in known if name.startswith(prefix)] or [name for name in known if "." in name or not dot]
    near = same or nearest(option, alike)
    hint = f"; did you mean {near}?" if near else ""
    return UserError(f"unknown option {option}{hint}; see {parser.prog} --help")


def value_of(option: str, words: Sequence[str]) -> str | None:
    """Return the word that a call gives for an option; None without it."""
    pairs = zip(words, [*words[1:], ""], strict=False)
    found = (word.partition("=")[2] or after for word, after in pairs if word.partition("=")[0] == option)
    value = next(found, None)
    return None if value is None or value.startswith("--") else value


def without(words: Sequence[str], option: str) -> list[str]:
    """Return the words of a call without an option and its value."""
    pairs = zip(["", *words], words, strict=False)
    return [word for before, word in pairs if option not in (before, word.partition("=")[0])]


def call_text(words: Sequence[str]) -> str:
    """Return the call `taet WORDS` as stored in records: as a shell reads it, except for bytes that are not text."""
    return printable(shlex.join(["taet", *words]))
