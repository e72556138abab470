"""`taet doctor RUN`: read every file of a run folder as its users do, and report numbers without a checksum."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from taet.errors import UserError
from taet.evaluation import card_store
from taet.evaluation.examples import read_examples
from taet.files import check_seal, is_leftover, read_json
from taet.training.folder import DELIVERED, DONE, METRICS, RUN, MetricsMark, RunFolder


class FileFinding(NamedTuple):
    """The state of a file of a run folder."""

    file: str
    problem: str = ""
    """The problem in one line; '' if there is none."""
    unverified: str = ""
    """Reason why its numbers cannot be verified; '' if a checksum covers them."""


OLD = "written by an older version, without a checksum"


def verify(path: Path) -> list[FileFinding]:
    """Read every file of the run folder `path`, and check that they belong together."""
    folder = RunFolder(path)
    if not path.is_dir():
        return [FileFinding(".", problem=f"no such folder: '{path}'")]
    found = []
    for name, read in _readers(folder):
        try:
            found.append(FileFinding(name, unverified=read()))
        except UserError as error:
            found.append(FileFinding(name, problem=" ".join(str(error).split())))
    return found


def _readers(folder: RunFolder) -> Iterator[tuple[str, Callable[[], str]]]:
    """Yield the name of each file with a function that reads it and returns what cannot be verified."""
    yield ".", lambda: _plain(folder)
    if folder.is_run or not (folder.card().exists() or folder.audit().exists()):
        # without a card and an audit, the folder must be a run
        yield RUN, lambda: _record(folder)
        if folder.is_done or (folder.path / METRICS).exists():
            yield METRICS, lambda: _rows(folder)
        if folder.checkpoint.exists():
            yield folder.checkpoint.name, lambda: _checkpoint(folder)
        if folder.is_done:
            yield DONE, lambda: "" if folder.sums else OLD
        for name in _all_weights(folder) if folder.is_done else ():
            yield folder.weights(name).name, lambda name=name: _weights(folder, name)  # type: ignore[misc]
    for path in sorted(folder.path.glob(folder.audit(f"{DELIVERED}*").name)):
        yield path.name, lambda path=path: _audit(path)  # type: ignore[misc]
    for path, name in folder.cards():
        yield path.name, lambda path=path, name=name: _card(folder, path, name)  # type: ignore[misc]


def _all_weights(folder: RunFolder) -> list[str]:
    """Return the names of the weights that exist and of those that should exist."""
    with contextlib.suppress(UserError):  # an error in `done` is reported for `done`
        return folder.weights_names
    return [DELIVERED]


def _plain(folder: RunFolder) -> str:
    folder.check_plain()
    left = [path.name for path in folder.path.iterdir() if is_leftover(path.name)]
    return f"{len(left)} files of a process that is at work, or was killed" if left else ""


def _record(folder: RunFolder) -> str:
    _ = folder.record  # its method need not be installed here
    return "" if folder.sealed else OLD


def _rows(folder: RunFolder) -> str:
    _ = folder.metrics
    return OLD if folder.is_done and not folder.sums else ""


def _checkpoint(folder: RunFolder) -> str:
    state = folder.load_checkpoint(folder.record.run_hash)
    at = state.get("position", state)  # of an older version
    folder.check_metrics(MetricsMark(at.get("metrics_bytes", 0), at.get("metrics_sha256", "")))
    return "" if at.get("metrics_sha256") else OLD


def _weights(folder: RunFolder, name: str) -> str:
    folder.check_weights(name)
    return "" if folder.weights(name).name in folder.sums else OLD


def _audit(path: Path) -> str:
    if not check_seal(path, read_json(path)):
        raise UserError(f"{path} was not written by taet audit, or was changed: it has no SHA-256")
    return ""


def _card(folder: RunFolder, path: Path, name: str) -> str:
    card = card_store.read(folder, path, name)
    if path == folder.card(name):  # earlier cards may be about earlier images
        read_examples(folder.examples(path), card)
    return "" if card.sealed else OLD
