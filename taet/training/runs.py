"""Runs: trained from the start in a new folder, or continued from a checkpoint."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from torch import nn

from taet import models
from taet.data import Dataset
from taet.distributed import first, joined
from taet.errors import UserError
from taet.progress import Progress
from taet.settings import Run, override
from taet.training.decisive_settings import run_hash
from taet.training.environment import resolve_device
from taet.training.finished import check_given
from taet.training.folder import MetricsMark, RunFolder
from taet.training.result import TrainingResult
from taet.training.setup import check_pretrained
from taet.training.trainer import Trainer


def default_folder(run: Run) -> Path:
    """Return the folder of a run without `out`."""
    kind, _, path = run.data.name.rpartition(":")
    data = Path(path).resolve().stem if kind or "/" in path else path
    ratio = "" if run.data.imbalance_ratio is None else f"-ir{run.data.imbalance_ratio:g}"
    return Path("runs") / f"{run.method}-{data}{ratio}-{run.model.name}-{run.protocol}-seed{run.seed}"


def train(
    run: Run,
    *,
    out: str | Path | None = None,
    model: nn.Module | None = None,
    dataset: Dataset | None = None,
    progress: Progress | None = None,
    command: str = "",
    announce: Callable[[Trainer], None] | None = None,
) -> TrainingResult:
    """Train `run` from the start in the new folder `out`, and return the result.

    `model` (images (N, C, H, W) in [0, 1] -> logits) and `dataset` replace those named by the run. `command` is
    stored in the run's record. `announce` is called once, before the first step. An existing folder is refused. After a
    KeyboardInterrupt, `resume` continues from the checkpoint with bit-identical results.

    All processes of torchrun must make this call and share every batch; only the first one writes.
    """
    folder = Path(out) if out is not None else default_folder(run)
    with joined(resolve_device(run.training.device).type):
        trainer = Trainer(run, folder, model=model, dataset=dataset, progress=progress)
        first(lambda: _check_free(trainer))
        with owned(trainer.folder):
            first(lambda: _check_free(trainer))  # another process may have been faster
            first(lambda: trainer.folder.create(trainer.description(command)))
            trainer.save()  # the initial weights are on disk before they change
            if announce is not None:
                announce(trainer)
            return trainer.fit()


@contextlib.contextmanager
def owned(folder: RunFolder | None) -> Iterator[None]:
    """Lock a folder, if there is one, for this job: the first process holds the lock for all."""
    with contextlib.ExitStack() as released:
        if folder is not None:
            first(lambda: released.enter_context(folder.own()))
        yield


def _check_free(trainer: Trainer) -> None:
    """Refuse a folder that is not empty; the message names a run in it."""
    folder = trainer.folder
    if folder.is_taken:
        try:
            same = run_hash(folder.record.run) == trainer.run_hash
        except UserError:
            same = False
        if not same:
            raise UserError(f"{folder.path} exists and is not this run; choose another --out")
        way = (
            f"it is finished, see taet evaluate {folder.path}"
            if folder.is_done
            else f"continue it with --resume {folder.path}"
        )
        raise UserError(f"{folder.path} exists: {way}, or choose another --out")


def resume(
    folder: str | Path,
    *,
    model: nn.Module | None = None,
    dataset: Dataset | None = None,
    progress: Progress | None = None,
    announce: Callable[[Trainer], None] | None = None,
) -> TrainingResult:
    """Continue the run in `folder` from its last checkpoint, or return it if it is finished.

    `announce` is called once, before the first step.

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
                check_pretrained(run.model, record.pretrained_sha256, place.path)
        trainer = Trainer(run, place.path, model=model, dataset=dataset, progress=progress, begun=begun)
        recorded, held = record.data.hashes, trainer.hashes()
        for name in (*recorded, *held):
            if held.get(name) != recorded.get(name):
                raise UserError(
                    f"the {name} images are not those that {place.path} was started with; nothing was changed"
                )
        trainer.run_hash = record.run_hash  # as in the version that began the run: this one may have more settings
        if begun:
            trainer.restore()
            trainer.model.notes = record.model_notes
        else:  # killed before the first checkpoint: start again
            first(lambda: place.cut_metrics(MetricsMark()))
        if announce is not None:
            announce(trainer)
        return trainer.fit()
