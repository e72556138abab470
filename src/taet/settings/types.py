"""How a field of settings or of a record is declared, checked and refused.

`lr: Annotated[float, Field(gt=0)] = 0.1` declares type and bounds; pydantic checks them, and
`refused` turns its error into one line, `label lr: got X; allowed: Y; did you mean Z?`. --help
shows the same words.
"""

import dataclasses
import functools
import math
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from numbers import Number
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from typing_extensions import is_typeddict

from taet import registry
from taet.errors import UserError, shortened, unknown
from taet.formatting import DURATION, read_number


@dataclasses.dataclass(frozen=True)
class Note:
    """Text that follows the bounds in messages and in --help; `suggest` returns a hint about a
    refused number."""

    text: str
    suggest: Callable[[float], str]


@dataclasses.dataclass(frozen=True)
class Rule:
    """A condition that bounds cannot express; `text` describes it in messages and in --help."""

    test: Callable[[Any], object]
    text: str

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return AfterValidator(self._checked).__get_pydantic_core_schema__(source, handler)

    def _checked(self, value: object) -> object:
        if not self.test(value):
            raise ValueError(self.text)
        return value


@dataclasses.dataclass(frozen=True)
class NameOf:
    """The name of something that the registry lists: `NameOf("losses")`."""

    kind: registry.Kind

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return AfterValidator(self._checked).__get_pydantic_core_schema__(source, handler)

    def _checked(self, value: str) -> str:
        if value not in registry.entries(self.kind):
            raise ValueError(f"a name of taet list {self.kind}")
        return value


class OnlyWith:
    """The field has an effect only where another field has one of these values:
    `OnlyWith(absent="ema")`.

    A tuple lists several values, ... stands for any value but None and 0, and several names are
    alternatives. Where no condition holds, the field must keep its default.
    """

    def __init__(self, **others: object) -> None:
        self.others = {
            name: value if isinstance(value, tuple) else (value,) for name, value in others.items()
        }

    def holds(self, config: "Settings") -> bool:
        """Whether the field has an effect in `config`."""
        for name, allowed in self.others.items():
            value = getattr(config, name)
            is_set = value not in (None, 0)
            if value in allowed or (... in allowed and is_set):
                return True
        return False

    def text(self, label: str) -> str:
        """Return the condition in words; `label` replaces the field called `name`."""
        parts = []
        for name, values in self.others.items():
            word = label if name == "name" and label else name.replace("_", " ")
            if values not in ((True,), (...,)):
                word += f" {' or '.join(map(str, values))}"
            parts.append(word)
        return f"with {' or '.join(parts)} only"


# bounds from here on only stop typing errors; only messages about a larger value name them
LARGEST = 10**6
Count = Annotated[int, Field(ge=1, le=LARGEST)]
Whole = Annotated[int, Field(ge=0, le=LARGEST)]
ImageCount = Annotated[int, Field(ge=1, le=10**9)]
StoredCount = Annotated[int, Field(ge=0, le=2**53)]
Processes = Annotated[int, Field(ge=1, le=1024)]
"""Processes or threads of this machine."""
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
PartialShare = Annotated[float, Field(ge=0, lt=1)]
"""A share of less than the whole."""
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
LongSeed = Annotated[int, Field(ge=0, le=2**63 - 1)]
RATIO = Note(
    "largest class over smallest",
    lambda value: f"; did you mean {1 / value:g}?" if 0 < value < 1 else "",
)
Ratio = Annotated[float, Field(ge=1), RATIO]
PIXEL_UNITS = Note(
    "in units of the image range, e.g. 8/255",
    lambda v: f"; did you mean {v:g}/255?" if 1 < v <= 255 else "",
)
FRACTION = BeforeValidator(
    lambda value: read_text(value, float) if isinstance(value, str) and "/" in value else value
)
Radius = Annotated[float, FRACTION, Field(ge=0, le=1), PIXEL_UNITS]
"""The size of an L-infinity perturbation of an image in [0, 1]; files may hold 8/255 as text."""
RadiusL2 = Annotated[float, FRACTION, Field(ge=0)]
"""The size of an L2 perturbation; it grows with the image and may exceed 1."""
Duration = Annotated[str, Rule(DURATION.fullmatch, "hours, minutes and seconds, e.g. 2h30m or 90m")]
Sha256 = Annotated[str, Rule(re.compile("[0-9a-f]{64}").fullmatch, "64 hexadecimal digits")]

ModelName = Annotated[
    str,
    Rule(
        re.compile(r"(?=\S)[^\x00-\x1f\x7f\ud800-\udfff]{1,80}(?<=\S)").fullmatch,
        "1 to 80 letters on a line",
    ),
]
"""What a user calls a model in tables."""

UNWRITABLE = re.compile("[\0\ud800-\udfff]")
"""Characters that no file in UTF-8 can hold; arguments that are not UTF-8 contain lone
surrogates."""
STRICT = ConfigDict(strict=True, allow_inf_nan=False, frozen=True)
"""No text for a number, no True for 1, no NaN: what files and calls must hold."""


class Record(BaseModel):
    """A part of a file, frozen; a later version may have added fields. Lists are declared as
    tuples."""

    model_config = ConfigDict(**STRICT, extra="ignore", serialize_by_alias=True)


class Settings(BaseModel):
    """Settings that are checked when they are built, frozen, with the docstring of every field
    beside it."""

    model_config = ConfigDict(
        **STRICT, extra="forbid", use_attribute_docstrings=True, validate_default=True
    )
    label: ClassVar[str] = ""
    """Precedes the names of the fields in messages."""
    retired: ClassVar[Mapping[str, object]] = {}
    """Fields of earlier versions with their defaults; one with its default is read as if it were
    absent."""

    @model_validator(mode="wrap")
    @classmethod
    def _in_one_line(cls, data: object, build: Callable[[object], Self]) -> Self:
        if not isinstance(data, Mapping):
            return build(data)
        values = cls._checked_names(data)
        try:
            built = build(values)
        except ValidationError as error:
            raise refused(error, cls, cls.label) from None
        for name in cls.model_fields:
            given = values.get(name)
            if isinstance(given, int | tuple) and given == getattr(built, name):
                # 1 stays 1 in a field of float: hashes of runs depend on it
                built.__dict__[name] = given
        built._refuse_idle_fields()
        return built

    @classmethod
    def _checked_names(cls, data: Mapping[Any, Any]) -> dict[str, Any]:
        """Return the given fields without retired ones that have their default; refuse other
        retired ones, names that are no text, and text that no file can hold."""
        values = {
            name: to_python(value)
            for name, value in data.items()
            if name not in cls.retired or cls.retired[name] != value
        }
        for name, value in values.items():
            if not isinstance(name, str):
                raise unknown(f"field of {cls.__name__}", repr(name), cls.model_fields)
            words = name.replace("_", " ")
            is_field = name in cls.model_fields
            if name in cls.retired and not is_field:
                owner = cls.label or cls.__name__.lower()
                raise UserError(
                    f"{owner} {words}: got {got_text(value)}; this setting has left, see "
                    "CHANGELOG.md"
                )
            if is_field and isinstance(value, str) and UNWRITABLE.search(value):
                raise wrong(words, value, hints(cls)[name], cls.label)
        return values

    def _refuse_idle_fields(self) -> None:
        """Refuse a changed field that has no effect beside the other settings (`OnlyWith`)."""
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if value == field.default:
                continue
            for mark in field.metadata:
                if isinstance(mark, OnlyWith) and not mark.holds(self):
                    words = field.title or f"{self.label} {name.replace('_', ' ')}".strip()
                    raise UserError(
                        f"{words}: got {got_text(value)}; allowed: {mark.text(self.label)}"
                    )

    @classmethod
    def default(cls, name: str) -> Any:
        """Return the default of a field."""
        return cls.model_fields[name].default

    def replace(self, **changes: Any) -> Self:
        """Return these settings with some fields changed, checked again."""
        return type(self)(**{**self.__dict__, **changes})


def to_python(value: Any) -> Any:
    """Return a value with NumPy numbers as Python numbers and lists as tuples, at any depth."""
    if type(value) in (list, tuple):
        return tuple(to_python(item) for item in value)
    if type(value) is dict:
        return {key: to_python(item) for key, item in value.items()}
    if isinstance(value, Number) and hasattr(value, "item"):
        return value.item()
    return value


def leaves(hint: Any, marks: tuple[Any, ...] = ()) -> list[tuple[Any, tuple[Any, ...]]]:
    """Return the alternatives of a type, each with its annotations."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        own: list[Any] = []
        for mark in hint.__metadata__:
            own += mark.metadata if isinstance(mark, FieldInfo) else [mark]
        return leaves(arguments[0], (*own, *marks))
    if origin in (typing.Union, types.UnionType):
        return [leaf for argument in arguments for leaf in leaves(argument, marks)]
    if origin in (typing.Required, typing.NotRequired):
        return leaves(arguments[0], marks)
    return [(hint, marks)]


@functools.cache
def hints(kind: Any) -> dict[str, Any]:
    """Return the type of every field of a model, dataclass or typed dictionary, with its
    annotations."""
    if hasattr(kind, "model_fields"):
        return {name: field.rebuild_annotation() for name, field in kind.model_fields.items()}
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        of_names = typing.get_type_hints(kind, include_extras=True)
        return {field.name: of_names[field.name] for field in dataclasses.fields(kind)}
    return typing.get_type_hints(kind, include_extras=True) if is_typeddict(kind) else {}


WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    Path: "a path",
}


def listed_kind(marks: tuple[Any, ...]) -> registry.Kind | None:
    """Return the kind of names that an alternative of a type allows, if the registry lists them."""
    return next((mark.kind for mark in marks if isinstance(mark, NameOf)), None)


def choices(hint: Any) -> list[str]:
    """Return the texts between which a type lets users choose."""
    texts: list[str] = []
    for kind, marks in leaves(hint):
        if typing.get_origin(kind) is Literal:
            texts += map(str, typing.get_args(kind))
        listed = listed_kind(marks)
        if listed is not None:
            texts += registry.entries(listed)
    return texts


def _type_text(kind: Any, marks: tuple[Any, ...]) -> str:
    """Return a type in words, without its bounds."""
    if listed := listed_kind(marks):
        return ", ".join(registry.entries(listed))
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return ", ".join(map(str, arguments))
    if origin is tuple:
        item, _ = leaves(arguments[0])[0]
        if item in WORDS:
            items = WORDS[item].removeprefix("a ") + "s"
            return items if ... in arguments else f"{len(arguments)} {items}"
    if origin in (list, tuple):
        return "a list"
    return WORDS.get(kind, "an object")


LIMITS = {"gt": "above {}", "ge": "{} or more", "lt": "below {}", "le": "up to {}"}


def bounds_of(kind: Any, marks: tuple[Any, ...], value: object = None) -> str:
    """Return the bounds of an alternative of a type in words: `0 to 1`, `1 or more`, `above 0,
    below 1`."""
    limits = _limits(marks)
    exceeds = isinstance(value, int | float) and value > limits.get("le", math.inf)
    if limits.get("le", 0) >= LARGEST and not exceeds:
        del limits["le"]
    if "gt" in limits:
        limits.pop("ge", None)  # a field may narrow the bounds of its type
    if limits.keys() == {"ge", "le"}:
        parts = [f"{limits['ge']} to {limits['le']}"]
    else:
        parts = [text.format(limits[name]) for name, text in LIMITS.items() if name in limits]
    if typing.get_origin(kind) is tuple:
        item, item_marks = leaves(typing.get_args(kind)[0])[0]
        of_item = bounds_of(item, item_marks)
        if of_item:
            parts = [f"each {of_item}"]
    parts += [f"at least {mark.min_length}" for mark in marks if hasattr(mark, "min_length")]
    parts += [mark.text for mark in marks if isinstance(mark, Note | Rule)]
    return ", ".join(parts)


def _limits(marks: tuple[Any, ...]) -> dict[str, float]:
    """Return the bounds among the annotations of a type, by their names in `LIMITS`; of several of
    one name, the last."""
    limits: dict[str, float] = {}
    for mark in marks:
        for name in LIMITS:
            if hasattr(mark, name):
                limits[name] = getattr(mark, name)
    return limits


def allowed_text(hint: Any, value: object = None) -> str:
    """Return a type and its bounds in words; for a text with a rule, the rule names both."""
    texts = []
    for kind, marks in leaves(hint):
        if kind is not types.NoneType:
            has_rule = kind is str and any(isinstance(mark, Rule) for mark in marks)
            parts = ("" if has_rule else _type_text(kind, marks), bounds_of(kind, marks, value))
            texts.append(", ".join(filter(None, parts)))
    return ", or ".join(texts)


def got_text(value: object) -> str:
    """Return a refused value in the form that messages use."""
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value == () else shortened(repr(value))


def wrong(what: str, value: object, hint: Any, label: str = "") -> UserError:
    """Return the error for a value that a type does not allow; for a choice, that of `unknown`."""
    alternatives = leaves(hint)
    if isinstance(value, str):
        for _, marks in alternatives:
            if listed := listed_kind(marks):
                return registry.unknown_name(listed, value)
        if names := choices(hint):
            return unknown(label if what == "name" and label else what, value, names)
    suggestion = ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        for _, marks in alternatives:
            suggestion += "".join(mark.suggest(value) for mark in marks if isinstance(mark, Note))
    takes_floats = any(kind is float for kind, _ in alternatives)
    got = got_text(value)
    if isinstance(value, float) and not takes_floats:
        got = repr(value)  # 3.0 is no whole number
    message = f"{what}: got {got}; allowed: {allowed_text(hint, value)}{suggestion}"
    return UserError(f"{label} {message}".strip().replace(" : ", ": "))


def _part_type(hint: Any, step: int | str) -> Any:
    """Return the type of the part `step`, a field, key or index, of a value; None if it is not
    declared."""
    for kind, _ in leaves(hint):
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin is None and step in (fields := hints(kind)):
            return fields[str(step)]
        if isinstance(step, int) and origin in (list, tuple, Sequence):
            return arguments[step] if origin is tuple and ... not in arguments else arguments[0]
        if origin in (dict, Mapping):
            return arguments[1]
    return None


def refused(error: ValidationError, kind: Any, label: str = "") -> UserError:
    """Return the first error that pydantic found in a value of type `kind`, in one line.

    `label` names the value. This is the only place where an error of pydantic becomes text.
    """
    first = error.errors(include_url=False)[0]
    # names of options are written in words, others as in files
    is_option = isinstance(kind, type) and issubclass(kind, Settings)
    what, title = "", ""
    for step in first["loc"]:
        inner = _part_type(kind, step)
        if inner is None:
            break
        field = getattr(kind, "model_fields", {}).get(step)
        if field is not None:
            title = field.title or ""
        if isinstance(step, int):
            what += f"[{step}]"
        else:
            what = f"{what} {step.replace('_', ' ') if is_option else step}".strip()
        kind = inner
    last = str(first["loc"][-1]) if first["loc"] else ""
    if first["type"] == "missing":
        return UserError(f"{label} {what}: the field '{last}' is missing".lstrip(" :"))
    if first["type"] == "extra_forbidden":
        owner = getattr(kind, "__name__", what)
        return unknown(f"field of {owner}", last, getattr(kind, "model_fields", ()))
    if first["type"] == "value_error" and not first["loc"]:
        return UserError(f"{label}: {first['ctx']['error']}".removeprefix(": "))
    return wrong(title or what, first["input"], kind, "" if title else label)


_adapter = functools.cache(functools.partial(TypeAdapter[Any], config=STRICT))


def fits(value: object, hint: Any) -> bool:
    """Return whether a value is of the type `hint` and within its bounds."""
    try:
        _adapter(hint).validate_python(to_python(value))
    except ValidationError:
        return False
    return not (isinstance(value, str) and UNWRITABLE.search(value))


def check_value(what: str, value: Any, hint: Any, label: str = "") -> None:
    """Refuse a value that does not fit the type `hint` and its bounds."""
    if not fits(value, hint):
        raise wrong(what, to_python(value), hint, label)


def read_text(text: str, hint: Any) -> Any:
    """Return the text that a user wrote for a field as a value of its type, or unchanged, for the
    check to refuse.

    `None` becomes None if the type allows it; so does `none`, unless `none` is one of the choices.
    """
    kinds = [kind for kind, _ in leaves(hint)]
    if types.NoneType in kinds and (
        text == "None" or (text == "none" and Literal["none"] not in kinds)
    ):
        return None
    if text in ("true", "false") and bool in kinds:
        return text == "true"
    if int in kinds and re.fullmatch(r"[+-]?\d{1,40}", text, re.ASCII):
        return int(text)
    try:
        return read_number(text) if float in kinds else text
    except ValueError:
        return text
