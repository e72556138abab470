"""Runs: trained from the start in a new folder, and continued from a checkpoint."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from taet.data import Dataset
from taet.distributed import joined, rank, run_on_rank_zero
from taet.errors import UserError
from taet.files import Json
from taet.formatting import plural
from taet.machine import float32_by_default, resolve_device
from taet.models.trust import check_trust
from taet.progress import Progress, chosen
from taet.run.folder import RunFolder
from taet.run.loading import (
    check_code,
    check_free,
    check_given,
    check_kind,
    load_run,
    locked_by_job,
)
from taet.run.record import Epoch
from taet.settings import Run, override
from taet.settings.arguments import checked_arguments
from taet.settings.schema import from_json
from taet.training.compilation import with_compiled_view
from taet.training.curve import training_flags
from taet.training.loop import TrainingMonitor, fit
from taet.training.prepare import TrainingPlan, describe, prepare
from taet.training.state import State


@dataclass(frozen=True, repr=False)
class TrainingResult:
    """A finished run: its folder, the model that it delivers, the data, and one row per epoch.

    The model is in eval mode.

    Example:
        >>> import taet
        >>> result = taet.resume("runs/example")
        >>> result.folder.name, result.run.method, result.history[-1]["epoch"]
        ('example', 'at', 1)
    """

    folder: Path
    run: Run
    model: nn.Module
    dataset: Dataset
    history: tuple[Json, ...]

    def __repr__(self) -> str:
        epochs = [from_json(Epoch, row) for row in self.history]
        what = f"{self.run.method} on {self.dataset.name}"
        lines = [f"{what}: {plural(len(epochs), 'epoch')}, {self.folder}"]
        points = [epoch.monitor for epoch in epochs if epoch.monitor]
        if points:
            last = points[-1]
            for name, counts in last.counts.items():
                accuracy = f"{name:8} balanced accuracy {100 * counts.balanced_accuracy:.2f} %"
                lines.append(f"  {accuracy} ({last.split}, last point of the curve)")
        lines += [f"  {name}: {text}" for name, text in training_flags(epochs).items()]
        return "\n".join(lines)


def default_folder(run: Run, dataset: Dataset | None = None) -> Path:
    """Return the folder of a run without `out`."""
    source = run.data.name if dataset is None else dataset.name
    kind, _, path = source.rpartition(":")
    data = Path(path).resolve().stem if kind or "/" in path else path
    ratio = run.data.imbalance_ratio
    if ratio is not None:
        data += f"-ir{ratio:g}"
    name = f"{run.method}-{data}-{run.model.name}-{run.protocol}-seed{run.seed}"
    return Path("runs") / name


@checked_arguments
def train(
    run: Run,
    *,
    out: str | Path | None = None,
    model: nn.Module | None = None,
    dataset: Dataset | None = None,
    progress: Progress | bool | None = None,
    command: str = "",
    announce: Callable[[TrainingPlan, State, RunFolder], None] | None = None,
) -> TrainingResult:
    """Train `run` from the start in the new folder `out`, and return the result.

    After a KeyboardInterrupt, `resume` continues from the checkpoint, on a CPU with bit-identical
    results. All processes of torchrun must make this call and share every batch; only the first
    writes.

    Args:
        run: the settings, e.g. `taet.protocols.taet("at")` with changes.
        out: a new folder. Default: a folder in runs/, named after the settings.
        model: a Module from images (N, C, H, W) in [0, 1] to logits, of which a copy is trained in
            place of the run's network.
        dataset: images in place of the run's, used as they are.
        progress: True shows the progress, False does not, and a function is called as
            progress(done, total, label). Default: shown on a terminal and in a notebook.
        command: the call that started the training, for the run's record.
        announce: called once, before the first step.

    Raises:
        UserError: settings, images or a model that do not fit, or a folder that is not free.

    Example:
        >>> import taet
        >>> changes = {"model.name": "resnet8", "training.epochs": 1, "data.max_count": 30}
        >>> run = taet.settings.override(taet.protocols.taet("at"), changes)
        >>> result = taet.train(run, out="runs/example")
        >>> result.dataset.name, len(result.history)
        ('digits-lt', 1)
    """
    if not isinstance(run, Run):
        raise UserError(f"train: got {run!r:.60}; allowed: a Run, e.g. protocols.taet('at')")
    for what, given in (("model", model), ("dataset", dataset)):
        check_kind(what, given)
    folder = RunFolder(Path(out) if out is not None else default_folder(run, dataset))
    with _isolated(run), chosen(_of_first(progress), run.method) as report:
        run_on_rank_zero(lambda: check_free(folder))
        plan, state = prepare(run, model=model, dataset=dataset, progress=report)
        plan = with_compiled_view(plan, state)
        with locked_by_job(folder):
            run_on_rank_zero(lambda: check_free(folder))  # another process may have been faster
            run_on_rank_zero(lambda: folder.create(describe(plan, state, command)))
            monitor = TrainingMonitor(plan, state, folder, report)
            monitor.save()  # the initial weights are on disk before they change
            try:
                if announce is not None:
                    announce(plan, state, folder)
            except KeyboardInterrupt:
                raise monitor.stopped() from None
            return _finished(plan, state, monitor)


@checked_arguments
def resume(
    folder: str | Path,
    *,
    model: nn.Module | None = None,
    dataset: Dataset | None = None,
    progress: Progress | bool | None = None,
) -> TrainingResult:
    """Continue the run in `folder`, or return it if it is finished.

    The number of processes may differ from that of the start. `model`, `dataset` and `progress` are
    as of `train`. A folder that holds no run, is in use or is damaged is a `UserError`.

    Example:
        >>> import taet
        >>> taet.resume("runs/example").folder.name  # a finished run is returned
        'example'
    """
    run_folder = RunFolder(Path(folder))
    record = run_folder.record
    check_given(run_folder.path, "dataset", dataset, record.data.arrays)
    check_given(run_folder.path, "model", model, record.model_given)
    if model is None:
        check_trust(run_folder.path, record.run.model.name)
    run = override(record.run, {"training.threads": record.threads})
    with _isolated(run), locked_by_job(run_folder):
        if run_folder.is_done:
            run, trained, loaded, _ = load_run(run_folder.path, model=model, dataset=dataset)
            rows = tuple(row.model_dump(mode="json") for row in run_folder.metrics)
            return TrainingResult(run_folder.path, run, trained, loaded, rows)
        check_code(run_folder, *record.code)
        begun = run_on_rank_zero(run_folder.checkpoint.exists)
        with chosen(_of_first(progress), f"resume {run_folder.path}") as report:
            plan, state = prepare(run, model=model, dataset=dataset, progress=report, begun=begun)
            for name, sha256 in record.data.hashes.items():
                if plan.hashes.get(name) != sha256:
                    what = f"the {name} images are not those that {run_folder.path} was started"
                    raise UserError(f"{what} with; nothing was changed")
            plan = with_compiled_view(plan, state)
            monitor = TrainingMonitor(plan, state, run_folder, report)
            monitor.restore()
            return _finished(plan, state, monitor)


def _of_first(progress: Progress | bool | None) -> Progress | bool | None:
    """Return the argument `progress` for the first process; the others show nothing."""
    return progress if rank() == 0 else False


@contextlib.contextmanager
def _isolated(run: Run) -> Iterator[None]:
    """Join the processes of torchrun, without the caller's modes.

    These are autocast, inference mode, disabled gradients and another default type of tensors.
    """
    device = resolve_device(run.training.device).type
    with (
        joined(device),
        torch.inference_mode(False),
        torch.autocast(device, enabled=False),
        float32_by_default(),
    ):
        yield


def _finished(plan: TrainingPlan, state: State, monitor: TrainingMonitor) -> TrainingResult:
    fit(plan, state, monitor)
    return TrainingResult(
        monitor.folder.path, plan.run, state.model.eval(), plan.dataset, tuple(state.rows)
    )
