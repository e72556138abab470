"""Bounds declared beside the fields of a dataclass, and the check, error message and help text that follow from them.

`lr: Annotated[float, Gt(0), Le(1e38)] = 0.1` declares a field in the terms of the library annotated-types. `Settings`
checks its fields when it is built, `check_fields` those of any other dataclass. Numbers are always finite.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from annotated_types import BaseMetadata, Ge, GroupedMetadata, Gt, Le, Lt, MinLen

from taet.errors import UserError, cut, unknown


@dataclass(frozen=True)
class Note:
    """Text that follows the bounds in messages and in --help; `suggest` returns a hint about a refused value."""

    text: str
    suggest: Callable[[Any], str] | None = None


@dataclass(frozen=True)
class Rule:
    """A condition that bounds cannot express; `text` describes it in messages and in --help."""

    test: Callable[[Any], bool]
    text: str


@dataclass(frozen=True)
class Called:
    """The name of a field in messages, if it differs from the name of the attribute."""

    name: str


class OnlyWith:
    """The field has an effect only where another field has one of these values: `OnlyWith(absent="ema")`.

    A tuple lists several values; several names are alternatives. Otherwise the field must keep its default.
    """

    def __init__(self, **others: Any) -> None:
        self.others = {name: value if isinstance(value, tuple) else (value,) for name, value in others.items()}

    def holds(self, config: Any) -> bool:
        """Whether the field has an effect in `config`."""
        return any(getattr(config, name) in values for name, values in self.others.items())

    def text(self, label: str) -> str:
        """Return the condition in words; `label` replaces the field called `name`."""
        parts = []
        for name, values in self.others.items():
            word = label if name == "name" and label else name.replace("_", " ")
            parts.append(word if values == (True,) else f"{word} {' or '.join(map(str, values))}")
        return f"with {' or '.join(parts)} only"


def _pixel_hint(value: float) -> str:
    return f"; did you mean {value:g}/255?" if 1 < value <= 255 else ""


def _ratio_hint(value: float) -> str:
    return f"; did you mean {1 / value:g}?" if 0 < value < 1 else ""


class Limit(Le):
    """An upper bound against typing errors and overflow, mentioned only in messages about values beyond it."""


LARGEST = 10**6
Count = Annotated[int, Ge(1), Limit(LARGEST)]
Whole = Annotated[int, Ge(0), Limit(LARGEST)]
ImageCount = Annotated[int, Ge(1), Limit(10**9)]
Processes = Annotated[int, Ge(1), Le(1024)]
"""Processes or threads of this machine."""
NonNegative = Annotated[float, Ge(0)]
Positive = Annotated[float, Gt(0)]
Share = Annotated[float, Ge(0), Le(1)]
"""A share of a whole, 0 to 1."""
PartialShare = Annotated[float, Ge(0), Lt(1)]
"""A share of less than the whole."""
Seed = Annotated[int, Ge(0), Le(2**32 - 1)]
LongSeed = Annotated[int, Ge(0), Le(2**63 - 1)]
Ratio = Annotated[float, Ge(1), Note(" (largest class over smallest)", _ratio_hint)]
"""An imbalance ratio."""
PIXEL_UNITS = Note(", in units of the image range, e.g. 8/255", _pixel_hint)
Radius = Annotated[float, Ge(0), Le(1), PIXEL_UNITS]
"""The size of an L-infinity perturbation of an image in [0, 1]."""
RadiusL2 = Annotated[float, Ge(0), Note(", e.g. 1.0 or 128/255")]
"""The size of an L2 perturbation; it grows with the image and may exceed 1."""


def _alternatives(hint: Any) -> list[Any]:
    """Return the members of a union, each with the bounds of the union, or the type itself; None is omitted."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return [leaf for argument in arguments for leaf in _alternatives(argument)]
    if origin is Annotated:
        return [Annotated[leaf, *hint.__metadata__] for leaf in _alternatives(arguments[0])]
    return [] if hint is types.NoneType else [hint]


def _bare(hint: Any) -> Any:
    """Return a type without its declarations."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint


def _rules(hint: Any) -> Iterator[Any]:
    """Yield the rules of the members of a type; an interval or a length as its bounds."""
    return (rule for leaf in _alternatives(hint) for rule in _declared(leaf))


def _declared(hint: Any) -> Iterator[Any]:
    """Yield the rules that a type itself declares."""
    for rule in getattr(hint, "__metadata__", ()):
        single = isinstance(rule, BaseMetadata) or not isinstance(rule, GroupedMetadata)  # the second test is slow
        yield from (rule,) if single else rule


def _holds(rule: Any, value: Any) -> bool:
    match rule:
        case Gt():
            holds = value > rule.gt
        case Ge():
            holds = value >= rule.ge
        case Lt():
            holds = value < rule.lt
        case Le():
            holds = value <= rule.le
        case MinLen():
            holds = len(value) >= rule.min_length
        case Rule():
            holds = rule.test(value)
        case BaseMetadata():
            raise TypeError(f"a field declares {rule}, which taet.bounds does not check; use Rule")
        case _:  # no condition on the value alone
            holds = True
    return bool(holds)


def _fits(value: Any, hint: Any, *, bounds: bool = True) -> bool:
    """Whether `value` is of the type `hint`, and within the bounds that it declares."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        if value is None or not _fits(value, arguments[0], bounds=bounds):
            return _fits(value, arguments[0])
        return not bounds or all(_holds(rule, value) for rule in _declared(hint))
    if hint is Any:
        return True
    if origin is Literal:
        return value in arguments
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, argument, bounds=bounds) for argument in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        hints = arguments[:1] * len(value) if arguments[-1] is ... else arguments
        pairs = zip(value, hints, strict=False)
        return len(value) == len(hints) and all(_fits(item, wanted, bounds=bounds) for item, wanted in pairs)
    if hint in (int, float):  # Python's own types are recognised faster than numbers of other packages
        wanted = (int, numbers.Integral) if hint is int else (float, int, numbers.Real)
        right = isinstance(value, wanted) and not isinstance(value, bool)
        return right and (not bounds or _is_finite(value))
    return isinstance(value, hint) and (not bounds or hint is not str or _is_text(value))


def _is_text(value: str) -> bool:
    """Whether a text can be encoded; arguments that are not UTF-8 contain lone surrogates."""
    return re.search("[\0\ud800-\udfff]", value) is None


def _is_finite(value: Any) -> bool:
    """Whether a number is finite, also as a float; NaN is not."""
    return bool(-sys.float_info.max <= value <= sys.float_info.max)


def _kind_text(hint: Any) -> str:
    """Return a type in words, without its bounds."""
    hint = _bare(hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return ", ".join(map(str, arguments))
    if origin is tuple:
        item = _kind_text(arguments[0]).removeprefix("a ")
        count = "" if arguments[-1] is ... else f"{'two' if len(arguments) == 2 else len(arguments)} "
        return f"{count}{item}s"
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", Path: "a path"}
    return words.get(hint, str(getattr(hint, "__name__", hint)))


def _range_text(rules: list[Any], value: Any = None) -> str:
    """Return the allowed range in words: `above 0, up to 1`; a `Limit` only if `value` is beyond it."""
    rules = [rule for rule in rules if not isinstance(rule, Limit) or (value is not None and value > rule.le)]
    lows = [(r.gt, True) for r in rules if isinstance(r, Gt)] + [(r.ge, False) for r in rules if isinstance(r, Ge)]
    highs = [(r.lt, False) for r in rules if isinstance(r, Lt)] + [(r.le, True) for r in rules if isinstance(r, Le)]
    low, above = max(lows, default=(None, False))
    high, included = min(highs, default=(None, True))
    if isinstance(high, int) and high > 2**32:
        high = f"2^{high.bit_length()} - 1" if not high & (high + 1) else f"{high:,}"
    if low is None or high is None or above:
        start = [] if low is None else [f"above {low}" if above else f"{low} or more"]
        end = [] if high is None else [f"up to {high}" if included else f"below {high}"]
        return ", ".join(start + end)
    return f"{low} to {high}" if included else f"{low} up to, not including, {high}"


def bounds_text(hint: Any) -> str:
    """Return the bounds that a type declares, in words: `above 0, up to 1`; "" if it declares none."""
    return ", or ".join(filter(None, map(_bounds_of, _alternatives(hint))))


def _bounds_of(leaf: Any, value: Any = None) -> str:
    """Return the bounds of a type other than a union, in words; a `Limit` only if `value` is beyond it."""
    rules = list(_rules(leaf))
    inner = _bare(leaf)
    if typing.get_origin(inner) is tuple:
        largest = max((item for item in value or () if isinstance(item, int | float)), default=None)
        each, value = _bounds_of(typing.get_args(inner)[0], largest), None
    else:
        each = ""
    parts = [f"each {each}" if each else "", _range_text(rules, value)]
    parts += [f"at least {rule.min_length}" for rule in rules if isinstance(rule, MinLen)]
    parts += [rule.text for rule in rules if isinstance(rule, Rule)]
    notes = "".join(rule.text for rule in rules if isinstance(rule, Note))
    return ", ".join(filter(None, parts)) + notes


def condition_text(hint: Any, label: str = "") -> str:
    """Return in words the settings under which the field has an effect; "" if it always has."""
    return "; ".join(rule.text(label) for rule in _rules(hint) if isinstance(rule, OnlyWith))


def allowed_text(hint: Any, value: Any = None) -> str:
    """Return a type and its bounds in words: `a number, above 0, up to 1, or search`.

    For alternatives of the same kind as the refused `value`, only the bounds.
    """
    texts = []
    for leaf in _alternatives(hint):
        right_kind = value is not None and _fits(value, leaf, bounds=False)
        bounds = _bounds_of(leaf, value if right_kind else None)
        if right_kind and isinstance(value, numbers.Real) and not _is_finite(value):
            bounds = ", ".join(filter(None, [bounds, "a finite number"]))
        elif right_kind and not bounds:
            bounds = "text in UTF-8 without zero bytes" if isinstance(value, str) else _kind_text(leaf)
        texts.append(bounds if right_kind else ", ".join(filter(None, [_kind_text(leaf), bounds])))
    return ", or ".join(texts)


def got_text(value: Any) -> str:
    """Return a refused value as messages write it."""
    if isinstance(value, float):
        return f"{value:g}"
    try:
        return "none" if value == () else cut(repr(value))
    except (ValueError, RecursionError):  # a number of thousands of digits; nested lists
        return f"a {type(value).__name__} too large to print"


def read_whole(text: str) -> int:
    """Return a whole number as users write it, with at most 40 digits; anything else raises a ValueError."""
    if WHOLE.fullmatch(text) is None:
        raise ValueError(text)
    return int(text)


def read_number(text: str) -> float:
    """Return a finite number as users write it, also as a fraction such as 8/255; anything else raises a ValueError."""
    parts = text.split("/")
    if len(parts) > 2 or not all(map(NUMBER.fullmatch, parts)):
        raise ValueError(text)
    values = [float(part) for part in parts]
    if not values[-1] and len(values) > 1:
        raise ValueError("division by zero")
    value = values[0] / values[1] if len(values) > 1 else values[0]
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def read_text(text: str, hint: Any) -> Any:
    """Return the value that a user wrote for a field; a text that does not fit raises a ValueError.

    `none` becomes None if the type allows it.
    """
    if text == "none" and _fits(None, hint):
        return None
    for leaf in _alternatives(hint):
        kind = _bare(leaf)
        try:
            value = READERS[kind](text) if kind in READERS else text
        except ValueError:
            continue
        if _fits(value, leaf):
            return value
    raise ValueError(text)


WHOLE = re.compile(r"[+-]?\d{1,40}", re.ASCII)
NUMBER = re.compile(r"[+-]?(\d{1,400}\.?\d{0,400}|\.\d{1,400})(e[+-]?\d{1,4})?", re.ASCII | re.IGNORECASE)


def is_readable(hint: Any) -> bool:
    """Whether a command line can set a field of this type."""
    for kind in map(_bare, _alternatives(hint)):
        inner = [one for one in typing.get_args(kind) if one is not ...]
        if typing.get_origin(kind) is tuple:
            if not all(map(is_readable, inner)):
                return False
        elif typing.get_origin(kind) is not Literal and kind is not str and kind not in READERS:
            return False
    return True


def _read_bool(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(text)
    return text == "true"


READERS: dict[Any, Callable[[str], Any]] = {int: read_whole, float: read_number, bool: _read_bool}


def check_value(what: str, value: Any, hint: Any, label: str = "") -> None:
    """Refuse a value that does not fit the type `hint` and its bounds.

    The message is `label what: got X; allowed: Y; did you mean Z?`, or that of `unknown` for a choice.
    """
    if _fits(value, hint):
        return
    leaves = _alternatives(hint)
    literals = [bare for bare in map(_bare, leaves) if typing.get_origin(bare) is Literal]
    choices = [choice for literal in literals for choice in typing.get_args(literal)]
    if isinstance(value, str) and choices:
        raise unknown(what, value, choices)
    notes = [rule for rule in _rules(hint) if isinstance(rule, Note)] if _fits(value, hint, bounds=False) else []
    suggestion = "".join(note.suggest(value) for note in notes if note.suggest)
    message = f"{what}: got {got_text(value)}; allowed: {allowed_text(hint, value)}{suggestion}"
    raise UserError(f"{label} {message}".strip())


def hints(kind: type) -> dict[str, Any]:
    """Return the type of every field of a dataclass, with the bounds that it declares."""
    return _hints(kind)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    found = typing.get_type_hints(kind, include_extras=True)
    return {field.name: found[field.name] for field in dataclasses.fields(kind)}


class _Field(NamedTuple):
    """What a dataclass declares about a field."""

    name: str
    hint: object
    default: object
    allows_default: bool
    called: str | None
    conditions: list[OnlyWith]

    def words(self, label: str) -> tuple[str, str]:
        """Return the label and the name in messages."""
        return ("", self.called) if self.called else (label, self.name.replace("_", " "))


@functools.cache
def _fields(kind: type) -> list[_Field]:
    found = []
    for field in dataclasses.fields(kind):
        hint = hints(kind)[field.name]
        called = next((rule.name for rule in _rules(hint) if isinstance(rule, Called)), None)
        conditions = [rule for rule in _rules(hint) if isinstance(rule, OnlyWith)]
        plain = field.default is not dataclasses.MISSING and not hasattr(field.default, "item")  # no NumPy number
        fits = plain and _fits(field.default, hint)
        found.append(_Field(field.name, hint, field.default, fits, called, conditions))
    return found


def check_fields(config: Any, label: str = "") -> None:
    """Refuse a field of the wrong type, outside its choices or bounds, or set where it has no effect.

    `label` precedes the names of fields in messages: `label name: got X; allowed: Y`.
    """
    kind: type = type(config)
    fields = _fields(kind)
    for field in fields:
        value = getattr(config, field.name)
        if value is field.default and field.allows_default:
            continue
        if isinstance(value, numbers.Number) and hasattr(value, "item"):  # NumPy's numbers are not JSON
            value = value.item()
            object.__setattr__(config, field.name, value)
        before, what = field.words(label)
        check_value(what, value, field.hint, before)
    for field in fields:
        value = getattr(config, field.name)
        for rule in field.conditions:
            if value != field.default and not rule.holds(config):
                what = " ".join(field.words(label)).strip()
                raise UserError(f"{what}: got {got_text(value)}; allowed: {rule.text(label)}")


@dataclass(frozen=True)
class Settings:
    """Settings that are checked when they are built. A subclass is a frozen dataclass as well."""

    label = ""
    """Precedes the names of the fields in messages."""

    def __post_init__(self) -> None:
        check_fields(self, self.label)


def check_radius(what: str, value: float, norm: str) -> None:
    """Refuse a perturbation size that a ball of `norm` cannot have."""
    check_value(what, value, Radius if norm == "linf" else RadiusL2)
