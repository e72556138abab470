"""Runs: trained from the start in a new folder, or continued from a checkpoint."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

from torch import nn

from taet import models
from taet.data import Dataset
from taet.distributed import first, joined
from taet.errors import UserError
from taet.files import file_sha256
from taet.models.hub import weights_file
from taet.progress import Progress
from taet.settings import Data, Run, override
from taet.training.decisive_settings import run_hash
from taet.training.environment import resolve_device
from taet.training.finished import check_given
from taet.training.fit import Observer, fit
from taet.training.folder import RunFolder
from taet.training.pauses import Pauses
from taet.training.prepare import TrainingPlan, describe, prepare
from taet.training.record import RunRecord
from taet.training.result import TrainingResult
from taet.training.state import State

Announce: TypeAlias = Callable[[TrainingPlan, State, RunFolder], None]
"""Called once, before the first step."""


def default_folder(run: Run) -> Path:
    """Return the folder of a run without `out`."""
    kind, _, path = run.data.name.rpartition(":")
    data = Path(path).resolve().stem if kind or "/" in path else path
    ratio = "" if run.data.imbalance_ratio is None else f"-ir{run.data.imbalance_ratio:g}"
    return Path("runs") / f"{run.method}-{data}{ratio}-{run.model.name}-{run.protocol}-seed{run.seed}"


def train(
    run: Run | str,
    data: str | None = None,
    *,
    out: str | Path | None = None,
    model: nn.Module | None = None,
    dataset: Dataset | None = None,
    progress: Progress | None = None,
    command: str = "",
    announce: Announce | None = None,
    observe: Observer | None = None,
) -> TrainingResult:
    """Train `run` from the start in the new folder `out`, and return the result.

    `run` may be a method's name: then the protocol taet on `data`, a data set's name or your own images. `model`
    (images (N, C, H, W) in [0, 1] -> logits) and `dataset` replace those named by the run. `command` is stored in the
    run's record. An existing folder is refused. After a KeyboardInterrupt, `resume` continues from the checkpoint with
    bit-identical results.

    All processes of torchrun must make this call and share every batch; only the first one writes.
    """
    if isinstance(run, str):
        run = Run(method=run, data=Data() if data is None else Data(name=data))
    elif data is not None:
        raise UserError(f"data: got {data} beside a Run, which names its own; allowed: a method's name and data")
    folder = RunFolder(Path(out) if out is not None else default_folder(run))
    with joined(resolve_device(run.training.device).type):
        plan, state = prepare(run, model=model, dataset=dataset, progress=progress)
        first(lambda: _check_free(folder, plan.run))
        with owned(folder):
            first(lambda: _check_free(folder, plan.run))  # another process may have been faster
            first(lambda: folder.create(describe(plan, state, command)))
            pauses = Pauses(plan, state, folder, progress)
            pauses.save()  # the initial weights are on disk before they change
            if announce is not None:
                announce(plan, state, folder)
            return fit(plan, state, pauses, observe)


def resume(
    folder: str | Path,
    *,
    model: nn.Module | None = None,
    dataset: Dataset | None = None,
    progress: Progress | None = None,
    announce: Announce | None = None,
    observe: Observer | None = None,
) -> TrainingResult:
    """Continue the run in `folder` from its last checkpoint, or return it if it is finished.

    Processes of torchrun share the work; their number may differ from before.
    """
    place = RunFolder(Path(folder))
    record = place.record
    check_given(place.path, record, "model", model)
    check_given(place.path, record, "dataset", dataset)
    run = override(record.run, {"training.threads": record.threads})
    with joined(resolve_device(run.training.device).type), owned(place):
        begun = first(place.checkpoint.exists)
        if model is None:
            models.check_trust(place.path, run.model.name)
            if not begun:
                _check_pretrained(record, place.path)
        plan, state = prepare(run, model=model, dataset=dataset, progress=progress, begun=begun)
        recorded, held = record.data.hashes, plan.hashes
        for name in (*recorded, *held):
            if held.get(name) != recorded.get(name):
                raise UserError(
                    f"the {name} images are not those that {place.path} was started with; nothing was changed"
                )
        pauses = Pauses(plan, state, place, progress)
        pauses.restore()
        if announce is not None:
            announce(plan, state, place)
        return fit(plan, state, pauses, observe)


@contextlib.contextmanager
def owned(folder: RunFolder | None) -> Iterator[None]:
    """Lock a folder, if there is one, for this job: the first process holds the lock for all."""
    with contextlib.ExitStack() as released:
        if folder is not None:
            first(lambda: released.enter_context(folder.own()))
        yield


def _check_free(folder: RunFolder, run: Run) -> None:
    """Refuse a folder that is not empty; the message names a run in it."""
    if not folder.is_taken:
        return
    try:
        same = run_hash(folder.record.run) == run_hash(run)
    except UserError:
        same = False
    if not same:
        raise UserError(f"{folder.path} exists and is not this run; choose another --out")
    done = f"it is finished, see taet evaluate {folder.path}"
    way = done if folder.is_done else f"continue it with --resume {folder.path}"
    raise UserError(f"{folder.path} exists: {way}, or choose another --out")


def _check_pretrained(record: RunRecord, folder: Path) -> None:
    """Refuse to restart from a file of pretrained weights whose SHA-256 is not the recorded one."""
    chosen = record.run.model
    if chosen.weights is None:
        return
    path = weights_file(Path(chosen.weights))
    found = file_sha256(path) if path.is_file() else ""
    if found != record.pretrained_sha256:
        got = f"SHA-256 {found[:12]}" if found else "no file"
        wanted = str(record.pretrained_sha256)[:12]
        raise UserError(f"weights {path}: got {got}; {folder} was started with SHA-256 {wanted}")
