"""The journal of a search: Optuna's file of its trials, a line for every change."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

from taet.errors import UserError, needed
from taet.files import changed

JOURNAL = "trials.journal"
DAMAGED = (ValueError, LookupError, TypeError, AttributeError, AssertionError, RecursionError)
"""Exceptions that Optuna raises for a line that it did not write."""


def load_optuna() -> ModuleType:
    """Import Optuna, which `taet tune` needs, and let it print warnings only."""
    module: ModuleType = needed("optuna", "taet tune", "tune")
    module.logging.set_verbosity(module.logging.WARNING)
    return module


def open_journal(folder: Path) -> object:
    """Return Optuna's storage of the trials in `folder`, whose last line is removed if it was not finished.

    Optuna would append to such a line, after which no process could read the file.

    Raises:
        UserError: another line is damaged. It cannot be skipped, because later lines depend on earlier ones.
    """
    storages = load_optuna().storages
    path = (folder / JOURNAL).absolute()  # of the lock, a link to it, Optuna asks the age
    lock = storages.journal.JournalFileSymlinkLock(str(path))
    backend = storages.journal.JournalFileBackend(str(path), lock)
    with contextlib.ExitStack() as held:
        lock.acquire()
        held.callback(lock.release)
        with changed(path) as file:
            whole = [line for line in file.readlines() if line.endswith(b"\n")]
            file.truncate(sum(map(len, whole)))
        _check(folder / JOURNAL, whole, storages)
    return storages.JournalStorage(backend)


def _check(path: Path, lines: list[bytes], storages: ModuleType) -> None:
    """Raise a `UserError` for a line that Optuna cannot read; Optuna ignores a bad last line and appends to it."""
    number = 0

    def entries(_: int) -> Iterator[object]:
        nonlocal number
        for line in lines:
            number += 1
            yield json.loads(line)

    try:
        storages.JournalStorage(SimpleNamespace(read_logs=entries))
    except DAMAGED:
        raise UserError(
            f"{path}: line {number} is damaged; remove it and all later lines to keep the trials before it, or "
            "choose another --out"
        ) from None
