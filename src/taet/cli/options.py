"""The options of a command, built from the fields of pydantic models.

A command declares what it takes as a `Command`. Each field is an option in kebab case, or a
positional argument if it is marked POSITIONAL; its docstring, bounds and default are the text of
--help. `Options` add the fields of settings, such as `Data`, under a prefix; only those that were
given are returned.
"""

import argparse
import re
import shlex
import shutil
import textwrap
import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, NoReturn, TypeVar

from pydantic import AfterValidator, Field
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from taet.errors import Done, UserError, nearest, printable
from taet.files import check_output
from taet.formatting import format_radius
from taet.settings.schema import SHORT
from taet.settings.types import (
    PIXEL_UNITS,
    Count,
    OnlyWith,
    Rule,
    Settings,
    allowed_text,
    bounds_of,
    check_value,
    choices,
    hints,
    leaves,
    listed_kind,
    read_text,
)

C = TypeVar("C", bound="Command")
POSITIONAL = object()  # marks a field that is given by its place, not by an option


def _can_be_written_down(path: Path) -> bool:
    return str(path) == printable(str(path)) and not str(path).startswith("-")


RunPath = Annotated[
    Path, Rule(_can_be_written_down, "in UTF-8, on one line, without a dash at its beginning")
]
"""A path that printed commands can name; the library of weights supports no other bytes either."""
OutPath = Annotated[RunPath, AfterValidator(lambda path: check_output(path) or path)]
"""A path outside of the folders of runs."""
Weights = Literal["model", "model-last", "model-best"]
"""Weights of a run: those that it delivers, of its last epoch, or of its best one."""
Device = Annotated[str, Field(description="auto, cpu, cuda or cuda:N.")]
Trusted = Annotated[
    str | None,
    Field(description="The model of the run if it is package.module:callable, to run it."),
]
METAVARS = {int: "N", float: "X", Path: "PATH", str: "TEXT"}


class Command(Settings):
    """What a command takes; the docstring is its description."""

    examples: ClassVar[tuple[str, ...]] = ()


class OfTrained(Command):
    """A command about a trained model: a run, a network with weights, or a file of weights."""

    run: Annotated[Path, POSITIONAL]
    """Run folder, folder of an evaluation, file of weights, or the name of a network, with
    --weights."""
    weights: str | None = None
    """Of a run: model (those that it delivers), model-last or model-best; of a network: a file, as
    of taet evaluate. Default: model."""
    classes: str | None = None
    """Of a network or file: names of its outputs, in order: a file with a name a line, a,b,c or
    imagenet. Default: as in a file that taet wrote, else their numbers."""
    size: Count | None = None
    """Of a network or file: pixels of a side of its images. Default: as in a file that taet wrote,
    else 32."""
    normalize: str = "auto"
    """Of a network or file: none, imagenet, cifar10, cifar100, or M1,M2,M3/S1,S2,S3. Default: as in
    the file or the code of its network, else none."""
    trust_model: Trusted = None


class OfModel(Command):
    """A command about a run or a model of any origin."""

    weights: str | None = None
    """Of a run: model (those that it delivers), model-last or model-best; of --model: a file, of
    public code too (FILE:KEY takes one of several sets in it), or a folder of taet push. Default:
    model; those that the callable returns."""
    normalize: str = "auto"
    """Input normalisation of a model: none, imagenet, cifar10, cifar100, or M1,M2,M3/S1,S2,S3.
    Default: as in the file of weights or the code of its network, else none."""
    classes: str | None = None
    """Names of the outputs of a model with --weights, in order: a file with a name a line, a,b,c or
    imagenet. Default: as in a file that taet wrote, else the classes of --data in their order."""
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
    without: frozenset[str] = frozenset()
    """The fields that would have no effect, which are no options."""


def refuse_idle_trust(trusted: str | None, run: Path | None) -> None:
    """Refuse --trust-model where no custom code would be imported; `run`: the folder that is read,
    if one is."""
    if trusted is None:
        return
    if run is None:
        raise UserError(
            f"--trust-model: got {trusted} without a run; allowed: for the model that a run names"
        )

    from taet.deployment.evaluated_network import is_evaluated, read_network
    from taet.models.trust import is_own
    from taet.run.folder import RunFolder

    of_evaluation = is_evaluated(run)
    name = read_network(run).network if of_evaluation else RunFolder(run).record.run.model.name
    if not is_own(name):
        raise UserError(
            f"--trust-model: got {trusted}; {run} has the model {name}, which needs no trust"
        )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')}; see {self.prog} --help")


def parse(
    kind: type[C], words: Sequence[str], prog: str, parts: Sequence[Options] = ()
) -> tuple[C, dict[str, Any]]:
    """Return the command, and the fields of the parts that were given, by dotted name.

    --help prints the options and ends the command; a mistake is a `UserError`.
    """
    whole = "all" in words or all(part.usual is None for part in parts)
    parser, arguments = _parser(kind, prog, parts, whole)
    if {"-h", "--help"} & {*words}:
        print(parser.format_help(), end="")
        raise Done(0)
    namespace, rest = parser.parse_known_intermixed_args([*words])
    if rest:
        raise _unexpected(rest, parser)
    given = {}
    for dest, values in vars(namespace).items():
        argument = arguments[dest]
        if len(values) > 1:
            raise UserError(f"{argument.names[0]}: got it more than once; allowed: once")
        given[dest] = _read(values[0], argument.hint)
    for name, field in kind.model_fields.items():
        argument = arguments[name]
        if name in given:
            check_value(name.replace("_", " "), given[name], argument.hint)
        elif field.is_required():
            raise _lacking(argument, POSITIONAL in field.metadata, prog)
    of_command = {name: value for name, value in given.items() if "." not in name}
    of_parts = {name: value for name, value in given.items() if "." in name}
    return kind(**of_command), of_parts


def of_part(given: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Return the fields of one part that were given."""
    return {
        name.partition(".")[2]: value
        for name, value in given.items()
        if name.startswith(f"{part}.")
    }


def _lacking(argument: "Argument", positional: bool, prog: str) -> UserError:
    """Return the error for a call without an argument that it needs."""
    name = argument.names[0]
    if positional:
        return UserError(f"which {name.lstrip('-').upper()}? see {prog} --help")
    return UserError(f"which {name}? allowed: {allowed_text(argument.hint)}; see {prog} --help")


class Argument(NamedTuple):
    """A field of a command, or of settings, as an argument of the command line."""

    dest: str
    """Dotted name, e.g. data.name; of a field of the command itself its name."""
    names: Sequence[str]
    """Options, e.g. --data.name; --help shows the first."""
    hint: Any
    default: object
    text: str
    """Of --help; argparse.SUPPRESS hides the argument."""

    @property
    def kinds(self) -> list[Any]:
        """The alternatives of its type, without annotations."""
        return [kind for kind, _ in leaves(self.hint)]

    @property
    def tuples(self) -> list[Any]:
        """Those of its alternatives that take several words."""
        return [kind for kind in self.kinds if typing.get_origin(kind) is tuple]


def _parser(
    kind: type[Command], prog: str, parts: Sequence[Options], whole: bool
) -> tuple[_Parser, dict[str, Argument]]:
    """Return the parser of a command, and its arguments by their dotted names."""
    positional = [name for name, field in kind.model_fields.items() if POSITIONAL in field.metadata]
    width = min(shutil.get_terminal_size().columns, 120)
    parser = _Parser(
        prog,
        usage=" ".join([*prog.split()[:2], *map(str.upper, positional), "[options]"]),
        description=_description(kind, whole, width),
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
            prog, max_help_position=26, width=width
        ),
        add_help=False,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    arguments = [_of_command(name, kind, whole) for name in _fields(kind)]
    group = parser.add_argument_group("options")
    for argument in sorted(arguments, key=lambda argument: argument.dest not in positional):
        if argument.dest in positional:
            _add_positional(group, argument)
        else:
            _add_option(group, argument)
    for part in parts:
        summary = (type(part.settings).__doc__ or "").strip().split("\n")[0] if whole else None
        group = parser.add_argument_group(part.name, summary)
        fields = _fields(type(part.settings), part.without)
        of_part = [_of_part(name, part, whole) for name in fields]
        for argument in of_part:
            _add_option(group, argument)
        arguments += of_part
    return parser, {argument.dest: argument for argument in arguments}


def _fields(kind: type[Settings], without: Collection[str] = ()) -> list[str]:
    """Return the fields that are arguments; settings within settings have options of their own."""
    names = []
    for name in kind.model_fields:
        alternatives = [alternative for alternative, _ in leaves(hints(kind)[name])]
        holds_settings = any(
            isinstance(alternative, type) and issubclass(alternative, Settings)
            for alternative in alternatives
        )
        if name not in without and not holds_settings:
            names.append(name)
    return names


def _of_command(name: str, kind: type[Command], whole: bool) -> Argument:
    """Return a field of a command as an argument."""
    field, hint = kind.model_fields[name], hints(kind)[name]
    text = _help(field, hint, field.default, whole, kind.label)
    option = _dashed(name.removeprefix("as_"))  # json is a name of pydantic's
    return Argument(name, [option], hint, field.default, text)


def _of_part(name: str, part: Options, whole: bool) -> Argument:
    """Return a field of settings as an argument: of its bare, short and dotted names, those that
    are options."""
    kind = type(part.settings)
    default, hint = getattr(part.settings, name), hints(kind)[name]
    dest = f"{part.name}.{name}"
    short = SHORT.get(dest, dest)
    names = [short.rpartition(".")[2] if part.bare else short]
    if "." in short:
        names.append(short)
    names.append(dest)
    text = argparse.SUPPRESS
    if whole or part.usual is None or name in part.usual:
        text = _help(kind.model_fields[name], hint, default, whole, kind.label)
    return Argument(dest, [*dict.fromkeys(map(_dashed, names))], hint, default, text)


def _dashed(name: str) -> str:
    """Return the option of a dotted name."""
    return f"--{name.replace('_', '-')}"


def _add_positional(group: Any, argument: Argument) -> None:
    """Add an argument that is given by its place."""
    group.add_argument(
        argument.dest,
        nargs="*" if argument.tuples else "?",
        metavar=argument.dest.upper(),
        help=argument.text,
        action="append",
    )


def _add_option(group: Any, argument: Argument) -> None:
    """Add an option; --help shows the first of its names."""
    for name in argument.names:
        text = argument.text if name == argument.names[0] else argparse.SUPPRESS
        if bool in argument.kinds:
            _add_switch(group, name, argument, text)
        else:
            group.add_argument(
                name,
                dest=argument.dest,
                action="append",
                nargs=_number_of_words(argument),
                metavar=_metavar(argument.hint),
                help=text,
            )


def _add_switch(group: Any, name: str, argument: Argument, text: str) -> None:
    """Add an option that turns on, and one that turns off; --help shows what changes the
    default."""
    prefix, dot, field = name.removeprefix("--").rpartition(".")
    is_on = bool(argument.default)
    off_text = text if text == argparse.SUPPRESS else f"Turn off: {text}"
    switches = [
        (name, True, argparse.SUPPRESS if is_on else text),
        (f"--{prefix}{dot}no-{field}", False, off_text if is_on else argparse.SUPPRESS),
    ]
    for option, value, shown in switches:
        group.add_argument(
            option, dest=argument.dest, action="append_const", const=value, help=shown
        )


def _number_of_words(argument: Argument) -> str | None:
    """Return how many words an option takes, as argparse writes it: any, one or more, or one."""
    if not argument.tuples:
        return None
    return "*" if any(... in typing.get_args(kind) for kind in argument.tuples) else "+"


def _metavar(hint: Any) -> str:
    """Return what --help shows in place of a value: the choices, and other kinds in capitals."""
    words = []
    for kind, marks in leaves(hint):
        if kind in METAVARS and not listed_kind(marks):
            words.append(METAVARS[kind])
    return "|".join([*words, *choices(hint)]) or "TEXT"


def _help(field: FieldInfo, hint: Any, default: Any, whole: bool, label: str = "") -> str:
    """Return the text of an option: its docstring, bounds, condition and default; or only its first
    sentence and default."""
    docstring = " ".join((field.description or "").split())
    first, *others = re.split(r"(?<=\.) (?=[A-Z])", docstring)
    if not whole:
        others = [sentence for sentence in others if sentence.startswith("Default: ")]
    text = " ".join([first, *others])
    notes = []
    if whole:
        bounds = dict.fromkeys(bounds_of(*leaf) for leaf in leaves(hint))
        notes.append(", or ".join(filter(None, bounds)))
        notes += [mark.text(label) for mark in field.metadata if isinstance(mark, OnlyWith)]
    if not re.search("Default: |[Bb]y default", text):
        notes.append(_default_note(hint, default))
    note = "; ".join(filter(None, notes))
    return (f"{text} ({note})" if note else text).replace("%", "%%")


def _default_note(hint: Any, default: Any) -> str:
    """Return the default of an option in words; "" where there is none, or it is off or empty."""
    if default is None or default is False or default is PydanticUndefined:
        return ""
    if default in ((), ""):
        return ""
    if default is True:
        return "default: on"
    values = default if isinstance(default, tuple) else (default,)
    if any(PIXEL_UNITS in marks for _, marks in leaves(hint)):
        values = tuple(map(format_radius, values))
    return f"default: {' '.join(map(str, values))}"


def _description(kind: type[Command], whole: bool, width: int) -> str:
    """Return the docstring of a command, its paragraphs filled but for indented ones, and its
    examples."""
    parts = []
    for paragraph in textwrap.dedent(f"    {kind.__doc__ or ''}").strip().split("\n\n"):
        if paragraph.startswith(" "):
            parts.append(paragraph)
        else:
            parts.append(textwrap.fill(" ".join(paragraph.split()), width))
    parts.append("\n".join(["examples:", *(f"  {example}" for example in kind.examples)]))
    if not whole:
        parts.append("All options, with their bounds: --help all")
    return "\n\n".join(parts)


def _read(value: Any, hint: Any) -> Any:
    """Return the words of an option as the type of its field."""
    if isinstance(value, bool):
        return value
    kinds = [kind for kind, _ in leaves(hint)]
    for kind in kinds:
        if typing.get_origin(kind) is tuple:
            if value == ["none"] and type(None) in kinds:
                return None
            return tuple(_read(word, typing.get_args(kind)[0]) for word in value)
    return Path(value) if Path in kinds and value else read_text(value, hint)


def _unexpected(rest: Sequence[str], parser: _Parser) -> UserError:
    """Return the error for words that no option takes, with the option of the same last part, or
    the nearest one."""
    see = f"see {parser.prog} --help"
    known = [name for action in parser._actions for name in action.option_strings]
    unknown_options = [word.partition("=")[0] for word in rest if word.startswith("-")]
    if not unknown_options:
        word = rest[0]
        is_data = "--data" in known and Path(word).exists()
        hint = f"did you mean --data {word}? " if is_data else ""
        return UserError(f"unexpected '{word}'; {hint}{see}")
    option = unknown_options[0]
    same_field = [name for name in known if name.endswith(f".{option.lstrip('-')}")]
    near = same_field[0] if same_field else nearest(option, known)
    hint = f"; did you mean {near}?" if near else ""
    return UserError(f"unknown option {option}{hint}; {see}")


def value_of(option: str, words: Sequence[str]) -> str | None:
    """Return the word that a call gives for an option; None without it."""
    for word, following in zip(words, [*words[1:], ""], strict=False):
        name, _, value = word.partition("=")
        if name == option:
            value = value or following
            return None if value.startswith("--") else value
    return None


def call_text(words: Sequence[str]) -> str:
    """Return the call `taet WORDS` as stored in records: as a shell reads it, except for bytes that
    are not text."""
    return printable(shlex.join(["taet", *words]))
