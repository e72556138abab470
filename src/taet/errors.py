"""The error for mistakes of the user: printed as one line with exit status 2, without a
traceback."""

import difflib
import importlib
import re
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["UserError"]
PLUGIN = "taet_plugin_"  # first part of the names of the modules that plug-ins become
CUSTOM: set[str] = set()  # top-level names of other packages and modules that hold custom code
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, which may steer a terminal or reverse text, and lone surrogates, which UTF-8
cannot encode."""
OUT_OF_MEMORY = (
    *(
        "DefaultCPUAllocator: can't allocate memory",
        "Cannot allocate memory",
        "could not create a primitive",
    ),
    *("can't start new thread", "failed to map segment from shared object"),
)
"""What libraries say where an allocation fails."""


class UserError(Exception):
    """A mistake that the user can correct.

    Its text is one line: what, the given value and the allowed ones.

    `suggestion` is the nearest allowed name, where a name was misspelt.

    Example:
        >>> import taet
        >>> try:
        ...     taet.methods.find("tradse")
        ... except taet.errors.UserError as error:
        ...     print(error.suggestion)
        trades
    """

    def __init__(self, text: str, suggestion: str | None = None) -> None:
        super().__init__(text)
        self.suggestion = suggestion


class Done(SystemExit):
    """Ends a command that has printed its result. Any other SystemExit comes from custom code."""


def needed(package: str, what: str, extra: str, otherwise: str = "") -> Any:
    """Import a package that `what` needs.

    If it is missing, a `UserError` names the extra of taet that has it.
    """
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(
            f"{what} needs the package {package}: pip install 'taet[{extra}]'{otherwise}"
        ) from None


def exception_text(error: BaseException) -> str:
    """Return the type and the message of an exception in one line."""
    return ": ".join(
        filter(None, (type(error).__name__, shortened(" ".join(str(error).split()), 1000)))
    )


@contextmanager
def wrapping_user_code(what: str) -> Iterator[None]:
    """Turn any exception of custom code, even an attempt to exit, into a `UserError` about
    `what`."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        hint = "; a smaller batch size takes less memory" if is_out_of_memory(error) else ""
        raise UserError(f"{what}: {exception_text(error)}{hint}") from error


@contextmanager
def prefix_errors(where: str) -> Iterator[None]:
    """Within this context, prefix messages of a `UserError` with `where`, if that is not empty."""
    try:
        yield
    except UserError as error:
        text = f"{where}: {error}" if where else str(error)
        raise UserError(text, error.suggestion) from None


def custom_origin(error: BaseException) -> str | None:
    """Return file and line of the custom code that raised an exception.

    It is None if other code raised it.
    """
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        module = str(frame.f_globals.get("__name__"))
        if module.startswith(PLUGIN) or module.partition(".")[0] in CUSTOM:
            return f"{frame.f_code.co_filename}, line {line}"
    return None


def printable(text: str) -> str:
    """Return the text with UNPRINTABLE characters replaced by their codes."""
    return UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, PyTorch or the system ran out of memory.

    Native code reports it only by the message.
    """
    named = type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError)
    return named or (
        isinstance(error, Exception) and any(text in str(error) for text in OUT_OF_MEMORY)
    )


def shortened(text: str, most: int = 200) -> str:
    """Return the first `most` characters of a text."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"


def nearest(got: str, allowed: Iterable[str]) -> str | None:
    """Return the allowed name that resembles `got` most; None if none does."""
    lower = {name.lower(): name for name in allowed}
    return next(
        (lower[near] for near in difflib.get_close_matches(shortened(got).lower(), lower, n=1)),
        None,
    )


def unknown(kind: str, got: str, allowed: Iterable[str], also: Iterable[str] = ()) -> UserError:
    """Return the error for a name that is not in `allowed`, with the nearest match if there is one.

    `also` are names that may be suggested, too many to be listed.
    """
    names = sorted(allowed)
    near = nearest(got, [*also, *names])
    hint = f"; did you mean '{near}'?" if near else ""
    allowed_names = ", ".join(names) or "none"
    return UserError(f"unknown {kind} '{shortened(got)}'; allowed: {allowed_names}{hint}", near)
