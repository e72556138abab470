"""The door for files that others made: ordinary ones of a plausible size, whose faults are one line with their name."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from taet.errors import UserError, cut, printable
from taet.files import opened

MOST_IMAGES = 50_000_000
"""Images of a split, at most: their labels, groups and names are kept in memory."""
MOST_BYTES = 1 << 30
"""Of a table, and of an array that is kept in memory whatever its size: labels, groups, names."""
RATIO = 200
"""A file of more than MOST_BYTES may be this many times as large as it is packed; deflate reaches 1,032."""


def reason(error: Exception) -> str:
    """Return in one short line why a file cannot be read."""
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
    """Open an ordinary file of at most `most` bytes; whatever a reader inside raises is a `UserError` with its name.

    Readers of foreign formats raise errors of any kind. `what` says which part of the file is read.
    """

    def refused(error: Exception) -> UserError:
        return UserError(f"cannot read '{path}': {what and f'{what}: '}{reason(error)}; allowed: {allowed}")

    try:
        there = path.exists()
    except OSError as error:
        raise refused(error) from None
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
            raise refused(error) from error


def check_unpacked(size: int, packed: int) -> None:
    """Refuse to unpack `size` bytes from `packed` ones if that is no plausible compression of data."""
    if size > max(MOST_BYTES, RATIO * packed):
        raise ValueError(f"it unpacks from {packed:,} to {size:,} bytes, more than {RATIO} times as many")
