"""Safe reading of foreign files: ordinary files of a plausible size; errors are one line with the file's name."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from taet.errors import UserError, cut, printable
from taet.files import opened

MOST_IMAGES = 50_000_000
"""Most images of a split: their labels, groups and names are kept in memory."""
MOST_BYTES = 1 << 30
"""Largest table, and largest array of labels, groups or names, which are always kept in memory."""
RATIO = 200
"""Largest compression ratio of a file with more than MOST_BYTES; deflate reaches 1,032."""


def reason(error: Exception) -> str:
    """Return the reason why a file cannot be read, in one short line."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not in UTF-8"
    if isinstance(error, KeyError):
        return f"{error} is missing"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return printable(cut(" ".join(str(error).split()))) or type(error).__name__


@contextlib.contextmanager
def reading(path: Path, allowed: str, what: str = "", *, most: int | None = None) -> Iterator[IO[bytes]]:
    """Open an ordinary file of at most `most` bytes; any error of a reader inside becomes a `UserError` with its name.

    Readers of foreign formats raise errors of any type. `what` names the part of the file that is read.
    """
    try:
        there = path.exists()
    except OSError as error:
        raise UserError(f"cannot read '{path}': {reason(error)}; allowed: {allowed}") from None
    if not there:
        raise UserError(f"no such file: '{path}'; allowed: {allowed}")
    with opened(path) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            if most is not None and size > most:
                raise ValueError(f"it has {size:,} bytes, more than {most:,}")
            yield file
        except UserError:
            raise
        except Exception as error:
            why = f"{what and f'{what}: '}{reason(error)}"
            raise UserError(f"cannot read '{path}': {why}; allowed: {allowed}") from error


def check_unpacked(size: int, packed: int) -> None:
    """Refuse to unpack `size` bytes from `packed` bytes if no real data compress that well."""
    if size > max(MOST_BYTES, RATIO * packed):
        raise ValueError(f"it unpacks from {packed:,} to {size:,} bytes, more than {RATIO} times as many")
