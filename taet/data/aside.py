"""A hidden folder for output that is moved to its place when it is complete."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from taet.errors import UserError
from taet.files import LOCK, lock, make_folder


def _empty(folder: Path) -> None:
    for child in folder.iterdir():
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child, ignore_errors=True)
        elif child.name != LOCK:
            child.unlink()


def _remove(folder: Path) -> None:
    with contextlib.suppress(OSError):  # another process has begun to use it
        folder.rmdir()


@contextlib.contextmanager
def aside(folder: Path) -> Iterator[None]:
    """Own the empty folder `folder` until the end of the block; then remove it with its content.

    After a kill the folder stays, and the next owner empties it. A `UserError` names another process that owns it.
    """
    if folder.is_symlink():
        raise UserError(f"'{folder}' is a link; delete it, so that nothing is written through it")
    make_folder(folder)
    with contextlib.ExitStack() as stack:
        stack.callback(_remove, folder)  # after the lock in it is given back
        stack.enter_context(lock(folder))
        stack.callback(_empty, folder)
        _empty(folder)
        yield
