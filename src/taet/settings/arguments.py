"""The types of the arguments of public functions, checked when they are called."""

import functools
import inspect
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Annotated, Any, Literal, ParamSpec, TypeVar

from taet.errors import UserError, shortened, unknown

P = ParamSpec("P")
R = TypeVar("R")

NAMES: dict[type, str] = {
    str: "a text",
    os.PathLike: "a path",
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    type(None): "None",
    Mapping: "a mapping",
    dict: "a mapping",
    Sequence: "a sequence",
    Iterable: "several values",
}
"""How messages name a type; others by their class."""
CLASSES = {
    "Callable": "a function",
    "Module": "an nn.Module",
    "Tensor": "a torch.Tensor",
    "Generator": "a torch.Generator",
    "Dataset": "a taet.data.Dataset, e.g. Dataset.from_arrays(...)",
    "Run": "a Run, e.g. protocols.taet('at')",
}
"""How messages name classes that are not imported here."""
# what else counts as one of a type: numbers of NumPy are registered with the types of `numbers`
ALSO: dict[type, type] = {int: Integral, float: Real, dict: Mapping}


def checked_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """Let a public function refuse arguments of the wrong type with a `UserError`.

    Only the outermost type of each annotated parameter is checked; what is inside, and bounds, are
    checked by the function itself.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        # a call with other parameters stays Python's own error
        check_arguments(function, signature.bind(*args, **kwargs).arguments)
        return function(*args, **kwargs)

    return wrapper


def check_arguments(function: Callable[..., Any], arguments: Mapping[str, object]) -> None:
    """Refuse arguments, by name, whose type is not that of the parameter of `function`."""
    kinds = _allowed_kinds(function)
    for name, value in arguments.items():
        if name in kinds and not _is_of(value, kinds[name]):
            raise _wrong_type(name.replace("_", " "), value, kinds[name])


@functools.cache
def _allowed_kinds(function: Callable[..., Any]) -> dict[str, tuple[Any, ...]]:
    """Return the types and choices that each parameter may have; parameters of any type are left
    out."""
    kinds: dict[str, tuple[Any, ...]] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        found = _outermost(_hint_of(parameter, function))
        if Any not in found:
            kinds[name] = found
    return kinds


def _hint_of(parameter: inspect.Parameter, function: Callable[..., Any]) -> Any:
    """Return the type of a parameter; any, if only type checkers import it."""
    if not isinstance(parameter.annotation, str):
        return Any if parameter.annotation is parameter.empty else parameter.annotation
    try:
        return typing.get_type_hints(
            types.SimpleNamespace(__annotations__={"it": parameter.annotation}),
            vars(inspect.getmodule(function)),
            include_extras=True,
        )["it"]
    except NameError:
        return Any


def _outermost(hint: Any) -> tuple[Any, ...]:
    """Return the classes that a type stands for, and the values of a `Literal`, without what is in
    them."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return tuple(kind for argument in arguments for kind in _outermost(argument))
    if origin is Annotated:
        return _outermost(arguments[0])
    if origin is Literal:
        return (hint,)
    if isinstance(hint, TypeVar):
        return _outermost(hint.__bound__ or Any)
    kind = origin if isinstance(origin, type) else hint
    # a protocol of type checkers, such as NumPy's ArrayLike, is no type at run time
    is_class = isinstance(kind, type) and not getattr(kind, "_is_protocol", False)
    return (kind,) if is_class and kind is not object else (Any,)


def _is_of(value: object, kinds: tuple[Any, ...]) -> bool:
    for kind in kinds:
        if typing.get_origin(kind) is Literal:
            if isinstance(value, str | int) and value in typing.get_args(kind):
                return True
        elif kind in (int, float) and isinstance(value, bool):
            continue
        elif isinstance(value, (kind, ALSO.get(kind, kind))):
            return True
    return False


def _wrong_type(name: str, value: object, kinds: tuple[Any, ...]) -> UserError:
    choices = [
        str(choice)
        for kind in kinds
        if typing.get_origin(kind) is Literal
        for choice in typing.get_args(kind)
    ]
    if choices and isinstance(value, str):
        return unknown(name, value, choices)
    classes = [kind for kind in kinds if typing.get_origin(kind) is not Literal]
    texts = [
        NAMES.get(kind) or CLASSES.get(kind.__name__, f"a {kind.__name__}") for kind in classes
    ]
    simple = value is None or isinstance(value, str | int | float)
    got = shortened(repr(value)) if simple else f"a {type(value).__name__}"
    return UserError(f"{name}: got {got}; allowed: {' or '.join(dict.fromkeys(choices + texts))}")
