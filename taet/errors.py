"""The error for mistakes of the user: printed as one line with exit status 2, without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A mistake that the user can correct; its text is one line: what, what was given and what is allowed."""


def nearest(got: str, allowed: Iterable[str]) -> str | None:
    """Return the allowed name that resembles `got` most; None if none does."""
    lower = {name.lower(): name for name in allowed}
    near = difflib.get_close_matches(got.lower(), lower, n=1, cutoff=0.5)
    return lower[near[0]] if near else None


def unknown(kind: str, got: str, allowed: Iterable[str]) -> UserError:
    """Return the error for a name that is not in `allowed`, with the nearest match if there is one."""
    names = sorted(allowed)
    near = nearest(got, names)
    hint = "" if near is None else f"; did you mean '{near}'?"
    return UserError(f"unknown {kind} '{got}'; allowed: {', '.join(names)}{hint}")


@contextmanager
def located(where: str) -> Iterator[None]:
    """Let the message of a `UserError` inside begin with `where`, if that is not empty."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}" if where else str(error)) from None
