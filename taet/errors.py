"""The error for mistakes of the user: printed as one line with exit status 2, without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A mistake that the user can correct; its text is one line: what, what was given and what is allowed."""


def unknown(kind: str, got: str, allowed: Iterable[str]) -> UserError:
    """Return the error for a name that is not in `allowed`, with the nearest match if there is one."""
    names = sorted(allowed)
    lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(got.lower(), lower, n=1, cutoff=0.5)
    hint = f"; did you mean '{lower[near[0]]}'?" if near else ""
    return UserError(f"unknown {kind} '{got}'; allowed: {', '.join(names)}{hint}")


@contextmanager
def located(where: str) -> Iterator[None]:
    """Let the message of a `UserError` inside begin with `where`, if that is not empty."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}" if where else str(error)) from None
