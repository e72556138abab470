"""Runs: trained from the start in a new folder, continued from a checkpoint, and loaded once they are finished."""

import contextlib
import copy
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from taet import models
from taet.data import Dataset, load
from taet.distributed import joined, on_first
from taet.errors import UserError
from taet.files import Json
from taet.formatting import plural
from taet.models.tuning import extend
from taet.progress import Progress
from taet.settings import Run, from_json, override
from taet.training.curve import training_flags
from taet.training.environment import resolve_device
from taet.training.fit import Pauses, fit, resume_call
from taet.training.folder import DELIVERED, RunFolder, folder_of
from taet.training.prepare import TrainingPlan, describe, prepare
from taet.training.record import Epoch, RunRecord, code_of, retired_settings
from taet.training.state import State

KINDS: dict[str, tuple[type, str]] = {  # the types of objects that a caller may pass
    "model": (nn.Module, "an nn.Module"),
    "dataset": (Dataset, "a taet.data.Dataset, e.g. Dataset.from_arrays(...)"),
}


@dataclass(frozen=True, repr=False)
class TrainingResult:
    """A finished run: its folder, the model that it delivers (eval mode), the data, and one row per epoch."""

    folder: Path
    run: Run
    model: nn.Module
    dataset: Dataset
    history: tuple[Json, ...]

    def __repr__(self) -> str:
        epochs = [from_json(Epoch, row) for row in self.history]
        lines = [f"{self.run.method} on {self.dataset.name}: {plural(len(epochs), 'epoch')}, {self.folder}"]
        for point in [epoch.monitor for epoch in epochs if epoch.monitor][-1:]:
            for name, counts in point.counts.items():
                accuracy = f"{name:8} balanced accuracy {100 * counts.balanced_accuracy:.2f} %"
                lines.append(f"  {accuracy} ({point.split}, last point of the curve)")
        return "\n".join([*lines, *(f"  {name}: {text}" for name, text in training_flags(epochs).items())])


def default_folder(run: Run, dataset: Dataset | None = None) -> Path:
    """Return the folder of a run without `out`."""
    kind, _, path = (run.data.name if dataset is None else dataset.name).rpartition(":")
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
    announce: Callable[[TrainingPlan, State, RunFolder], None] | None = None,
) -> TrainingResult:
    """Train `run` from the start in the new folder `out`, and return the result.

    A copy of `model` (images (N, C, H, W) in [0, 1] -> logits) and `dataset`, as it is, replace those of the run.
    `command` is stored in the run's record, and `announce` is called once, before the first step. After a
    KeyboardInterrupt, `resume` continues from the checkpoint, on a CPU with bit-identical results. All processes of
    torchrun must make this call and share every batch; only the first writes.
    """
    if not isinstance(run, Run):
        raise UserError(f"train: got {run!r:.60}; allowed: a Run, e.g. protocols.taet('at')")
    for what, given in (("model", model), ("dataset", dataset)):
        _check_kind(what, given)
    folder = RunFolder(Path(out) if out is not None else default_folder(run, dataset))
    with _isolated(run):
        on_first(lambda: check_free(folder))
        plan, state = prepare(run, model=model, dataset=dataset, progress=progress)
        with owned(folder):
            on_first(lambda: check_free(folder))  # another process may have been faster
            on_first(lambda: folder.create(describe(plan, state, command)))
            pauses = Pauses(plan, state, folder, progress)
            pauses.save()  # the initial weights are on disk before they change
            try:
                if announce is not None:
                    announce(plan, state, folder)
            except KeyboardInterrupt:
                raise pauses.stopped() from None
            return _finished(plan, state, pauses)


def resume(
    folder: str | Path,
    *,
    model: nn.Module | None = None,
    dataset: Dataset | None = None,
    progress: Progress | None = None,
) -> TrainingResult:
    """Continue the run in `folder`, with any number of processes, or return it if it is finished."""
    run_folder = RunFolder(Path(folder))
    record = run_folder.record
    _check_given(run_folder.path, "dataset", dataset, record.data.arrays)
    _check_given(run_folder.path, "model", model, record.model_given)
    if model is None:
        models.check_trust(run_folder.path, record.run.model.name)
    run = override(record.run, {"training.threads": record.threads})
    with _isolated(run), owned(run_folder):
        if run_folder.is_done:
            run, trained, loaded, _ = load_run(run_folder.path, model=model, dataset=dataset)
            rows = tuple(row.model_dump(mode="json") for row in run_folder.metrics)
            return TrainingResult(run_folder.path, run, trained, loaded, rows)
        check_code(run_folder, *record.code)
        begun = on_first(run_folder.checkpoint.exists)
        plan, state = prepare(run, model=model, dataset=dataset, progress=progress, begun=begun)
        for name, sha256 in record.data.hashes.items():
            if plan.hashes.get(name) != sha256:
                what = f"the {name} images are not those that {run_folder.path} was started with"
                raise UserError(f"{what}; nothing was changed")
        pauses = Pauses(plan, state, run_folder, progress)
        pauses.restore()
        return _finished(plan, state, pauses)


@contextlib.contextmanager
def _isolated(run: Run) -> Iterator[None]:
    """Join the processes of torchrun, without the caller's autocast, inference mode and disabled gradients."""
    device = resolve_device(run.training.device).type
    with joined(device), torch.inference_mode(False), torch.autocast(device, enabled=False):
        yield


def _finished(plan: TrainingPlan, state: State, pauses: Pauses) -> TrainingResult:
    fit(plan, state, pauses)
    return TrainingResult(pauses.folder.path, plan.run, state.model.eval(), plan.dataset, tuple(state.rows))


@contextlib.contextmanager
def owned(folder: RunFolder | None) -> Iterator[None]:
    """Lock a folder, if there is one, for this job: the first process holds the lock for all."""
    with contextlib.ExitStack() as released:
        if folder is not None:
            on_first(lambda: released.enter_context(folder.own()))
        yield


def check_free(folder: RunFolder) -> None:
    """Refuse a folder that exists."""
    if not folder.is_taken:
        return
    if not folder.is_run:
        raise UserError(f"{folder.path} exists and is no run; choose another --out, or remove the folder")
    way = "" if folder.is_done else f", continue it, with its own settings, by {resume_call(folder)}"
    raise UserError(f"{folder.path} holds a run; choose another --out{way}, or remove the folder")


def check_code(folder: RunFolder, *names: str) -> None:
    """Refuse plug-ins of a run that have changed since it was started, or are missing; `names`: those that are used."""
    recorded, now = folder.record.code, code_of(folder.record.run)
    for name in names:
        if name in recorded and recorded[name] != now.get(name):
            where = f"the plug-in of the {name} is not the file that {folder.path} was started with"
            raise UserError(f"{where}; allowed: the same file, in a folder of TAET_PLUGINS; or remove the run")


def load_model(
    folder: str | os.PathLike[str], weights: str = DELIVERED, *, model: nn.Module | None = None
) -> tuple[Run, nn.Module, RunRecord]:
    """Return (run, model with its weights in eval mode, record) of a finished run; no data are needed.

    `weights` is `model` (what the run delivers), `model-last` or `model-best`. A run that was trained from a module in
    memory needs a module of the same structure as `model`. A run's package.module:callable is imported and called only
    inside `taet.models.trusted`; code inside the folder is always refused.
    """
    run_folder = folder_of(folder)
    path, record = run_folder.path, run_folder.record
    _check_given(path, "model", model, record.model_given)
    chosen, data, classes = record.run.model, record.data, len(record.data.class_names)
    if (left := retired_settings(record.settings).get("data.fit")) is not None:
        raise UserError(f"{path} was trained with data fit {left}; this setting has left, see CHANGELOG.md")
    if model is None:
        models.check_trust(path, chosen.name)
        check_code(run_folder, "model")
        model = models.build(chosen.name, classes, data.image_shape, head=record.head, stem=chosen.stem)
    else:
        model = copy.deepcopy(model)
    model = models.adapted(model, classes)
    extend(model, chosen.tune)
    run_folder.load_weights(weights, model)
    return record.run, model.eval(), record


def load_run(
    folder: str | Path, weights: str = DELIVERED, *, model: nn.Module | None = None, dataset: Dataset | None = None
) -> tuple[Run, nn.Module, Dataset, RunRecord]:
    """Return (run, model with its weights, data set, record) of a finished run: see `load_model`.

    A run that was trained on arrays in memory needs them again. Test images that differ from the run's are refused.
    """
    run, model, record = load_model(folder, weights, model=model)
    _check_given(Path(folder), "dataset", dataset, record.data.arrays)
    dataset = load(run.data) if dataset is None else dataset
    if (got := dataset.test.sha256) != (recorded := record.data.test.sha256):
        what = f"the test images of {dataset.name} are not those of {folder}"
        raise UserError(f"{what}: got SHA-256 {got[:12]}, the run had {recorded[:12]}")
    return run, model, dataset, record


def _check_kind(name: str, given: object) -> None:
    kind, allowed = KINDS[name]
    if given is not None and not isinstance(given, kind):
        raise UserError(f"{name}: got a {type(given).__name__}; allowed: {allowed}")


def _check_given(folder: Path, name: str, given: object, needed: bool) -> None:
    """Refuse a model or data set from memory that is missing, not needed, or of another type."""
    _check_kind(name, given)
    if needed and given is None:
        raise UserError(f"{folder} was trained with a {name} from memory: give it again, from Python, as {name}=...")
    if given is not None and not needed:
        raise UserError(f"{folder} names its own {name}: got another as {name}=...")
