"""The options of a command, built from the fields of pydantic models.

A command declares what it takes as a `Command`. Each field is an option in kebab case, or a positional argument if it
is marked POSITIONAL; its docstring, bounds and default are the text of --help. `Options` add the fields of settings,
such as `Data`, under a prefix; only those that were given are returned.
"""

import argparse
import re
import shlex
import shutil
import textwrap
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, NoReturn, TypeVar

from pydantic import AfterValidator, Field
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from taet.errors import Done, UserError, nearest, printable
from taet.fields import PIXEL_UNITS, OnlyWith, Rule, Settings, bounds_of, check_value, hints, leaves, read_text
from taet.files import check_output
from taet.formatting import size
from taet.settings import SHORT

C = TypeVar("C", bound="Command")
POSITIONAL = object()  # marks a field that is given by its place, not by an option
RunPath = Annotated[Path, Rule(lambda path: str(path) == printable(str(path)), "in UTF-8, on one line")]
"""A folder for files of weights; their library supports no other paths."""
OutPath = Annotated[RunPath, AfterValidator(lambda path: check_output(path) or path)]
"""A path outside of the folders of runs."""
Weights = Literal["model", "model-last", "model-best"]
"""Weights of a run: those that it delivers, of its last epoch, or of its best one."""
Device = Annotated[str, Field(description="auto, cpu, cuda or cuda:N.")]
Trusted = Annotated[str | None, Field(description="The model of the run if it is package.module:callable, to run it.")]
METAVARS = {int: "N", float: "X", Path: "PATH", str: "TEXT"}


class Command(Settings):
    """What a command takes; the docstring is its description."""

    examples: ClassVar[tuple[str, ...]] = ()


class OfRun(Command):
    """A command about a finished run."""

    run: Annotated[Path, POSITIONAL]
    """Run folder."""
    weights: Weights = "model"
    """Weights: those that the run delivers, those of its last epoch, or of its best one."""
    trust_model: Trusted = None


class OfModel(Command):
    """A command about a run or a model of any origin."""

    weights: str | None = None
    """Of a run: model (those that it delivers), model-last or model-best; of --model: a file, or a folder of taet push.
    Default: model; those that the callable returns."""
    normalize: str = "none"
    """Input normalisation of a model: none, imagenet, cifar10, cifar100, or M1,M2,M3/S1,S2,S3."""
    trust_model: Trusted = None
    device: Device = "auto"


class Options(NamedTuple):
    """Settings whose fields are options."""

    name: str
    """First part of their dotted names, e.g. data."""
    settings: Settings
    """Their defaults."""
    bare: bool = False
    """Whether the options need no prefix."""
    usual: tuple[str, ...] | None = None
    """The fields that --help shows; --help all shows every one, and whole texts. Default: all."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')}; see {self.prog} --help")


def parse(kind: type[C], words: Sequence[str], prog: str, parts: Sequence[Options] = ()) -> tuple[C, dict[str, Any]]:
    """Return the command, and the fields of the parts that were given, by dotted name.

    --help prints the options and ends the command; a mistake is a `UserError`.
    """
    parser, known = _parser(kind, prog, parts, "all" in words or all(part.usual is None for part in parts))
    if {"-h", "--help"} & {*words}:
        print(parser.format_help(), end="")
        raise Done(0)
    namespace, rest = parser.parse_known_intermixed_args([*words])
    if rest:
        raise _unexpected(rest, parser)
    found = {}
    for name, values in vars(namespace).items():
        option, hint = known[name]
        if len(values) > 1:
            raise UserError(f"{option}: got it more than once; allowed: once")
        found[name] = _read(values[0], hint)
    for name, field in kind.model_fields.items():
        if name in found:
            check_value(name.replace("_", " "), found[name], known[name][1])
        elif field.is_required():
            raise UserError(f"which {known[name][0].lstrip('-').upper()}? see {prog} --help")
    own = {name: value for name, value in found.items() if "." not in name}
    return kind(**own), {name: value for name, value in found.items() if "." in name}


def of_part(given: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Return the fields of one part that were given."""
    return {name.partition(".")[2]: value for name, value in given.items() if name.startswith(f"{part}.")}


def _parser(
    kind: type[Command], prog: str, parts: Sequence[Options], whole: bool
) -> tuple[_Parser, dict[str, tuple[str, Any]]]:
    """Return the parser of a command, and the first name and the type of each option, by its dotted name."""
    known: dict[str, tuple[str, Any]] = {}
    places = {name: name.upper() for name, field in kind.model_fields.items() if POSITIONAL in field.metadata}
    width = min(shutil.get_terminal_size().columns, 120)
    parser = _Parser(
        prog,
        usage=" ".join([*prog.split()[:2], *places.values(), "[options]"]),
        description=_description(kind, whole, width),
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=26, width=width),
        add_help=False,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    for part in (None, *parts):
        cls = kind if part is None else type(part.settings)
        about = (cls.__doc__ or "").strip().split("\n")[0] if whole and part is not None else None
        group = parser.add_argument_group("options" if part is None else part.name, about)
        for name, field in sorted(cls.model_fields.items(), key=lambda item: item[0] not in places):
            hint, dest, default = hints(cls)[name], name, field.default
            if any(isinstance(one, type) and issubclass(one, Settings) for one, _ in leaves(hint)):
                continue  # its fields are options of their own
            names = [name.removeprefix("as_")]  # json is a name of pydantic's
            if part is not None:
                dest, default = f"{part.name}.{name}", getattr(part.settings, name)
                names = [name if part.bare else SHORT.get(dest, dest), dest]
            names = [f"--{one.replace('_', '-')}" for one in dict.fromkeys(names)]
            shown = whole or part is None or part.usual is None or name in part.usual
            text = _help(field, hint, default, whole, cls.label) if shown else argparse.SUPPRESS
            known[dest] = names[0], hint
            if dest in places:
                many = "*" if any(typing.get_origin(one) is tuple for one, _ in leaves(hint)) else "?"
                group.add_argument(name, nargs=many, metavar=places[name], help=text, action="append")
            else:
                _add(group, dest, names, hint, default, text)
    return parser, known


def _add(group: Any, dest: str, names: list[str], hint: Any, default: object, text: str) -> None:
    """Add an option; --help shows the first of its names, and of a switch the one that changes the default."""
    kinds = [one for one, _ in leaves(hint)]
    items = [typing.get_args(one) for one in kinds if typing.get_origin(one) is tuple]
    nargs = None if not items else "*" if any(... in one for one in items) else "+"
    choices = [str(value) for one in kinds if typing.get_origin(one) is Literal for value in typing.get_args(one)]
    metavar = "|".join([*(METAVARS[one] for one in kinds if one in METAVARS), *choices]) or "TEXT"
    for name in names:
        text = text if name == names[0] else argparse.SUPPRESS
        if bool in kinds:
            start, dot, field = name.removeprefix("--").rpartition(".")
            for one, value in ((name, True), (f"--{start}{dot}no-{field}", False)):
                off = "" if value or text == argparse.SUPPRESS else "Turn off: "
                shown = off + text if value is not bool(default) else argparse.SUPPRESS
                group.add_argument(one, dest=dest, action="append_const", const=value, help=shown)
        else:
            group.add_argument(name, dest=dest, action="append", nargs=nargs, metavar=metavar, help=text)


def _help(field: FieldInfo, hint: Any, default: Any, whole: bool, label: str = "") -> str:
    """Text of an option: its docstring, bounds, condition and default; or its first sentence and default."""
    sentences = re.split(r"(?<=\.) (?=[A-Z])", " ".join((field.description or "").split()))
    text = " ".join(one for one in sentences if whole or one in sentences[:1] or one.startswith("Default: "))
    notes = []
    if whole:
        notes = [", or ".join(filter(None, (bounds_of(*leaf) for leaf in leaves(hint))))]
        notes += [mark.text(label) for mark in field.metadata if isinstance(mark, OnlyWith)]
    has_default = not any(default is one for one in (None, False, PydanticUndefined)) and default not in ((), "")
    if has_default and not re.search("Default: |[Bb]y default", text):
        in_pixels = any(PIXEL_UNITS in marks for _, marks in leaves(hint))
        items = [size(one) if in_pixels else one for one in (default if isinstance(default, tuple) else (default,))]
        notes.append(f"default: {'on' if default is True else ' '.join(map(str, items))}")
    note = "; ".join(filter(None, notes))
    return (f"{text} ({note})" if note else text).replace("%", "%%")


def _description(kind: type[Command], whole: bool, width: int) -> str:
    paragraphs = textwrap.dedent(f"    {kind.__doc__ or ''}").strip().split("\n\n")
    filled = [one if one.startswith(" ") else textwrap.fill(" ".join(one.split()), width) for one in paragraphs]
    filled.append("\n".join(["examples:", *(f"  {example}" for example in kind.examples)]))
    return "\n\n".join(filled if whole else [*filled, "All options, with their bounds: --help all"])


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
    return tuple(_read(word, typing.get_args(found)[0]) for word in value)


def _unexpected(rest: Sequence[str], parser: _Parser) -> UserError:
    """Return the error for words that no option takes, with the option of the same last part, or the nearest one."""
    option = next((word.partition("=")[0] for word in rest if word.startswith("-")), None)
    known = [name for action in parser._actions for name in action.option_strings]
    if option is None:
        hint = f"did you mean --data {rest[0]}? " if "--data" in known and Path(rest[0]).exists() else ""
        return UserError(f"unexpected '{rest[0]}'; {hint}see {parser.prog} --help")
    near = next((name for name in known if name.endswith(f".{option.lstrip('-')}")), None) or nearest(option, known)
    return UserError(f"unknown option {option}{f'; did you mean {near}?' if near else ''}; see {parser.prog} --help")


def value_of(option: str, words: Sequence[str]) -> str | None:
    """Return the word that a call gives for an option; None without it."""
    pairs = zip(words, [*words[1:], ""], strict=False)
    found = (word.partition("=")[2] or after for word, after in pairs if word.partition("=")[0] == option)
    value = next(found, None)
    return None if value is None or value.startswith("--") else value


def call_text(words: Sequence[str]) -> str:
    """Return the call `taet WORDS` as stored in records: as a shell reads it, except for bytes that are not text."""
    return printable(shlex.join(["taet", *words]))
