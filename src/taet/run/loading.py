"""A run from its folder: its model and data loaded, what may go on in it, and the lock of a job."""

import contextlib
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from torch import nn

from taet import models
from taet.data import Dataset, load
from taet.distributed import run_on_rank_zero
from taet.errors import UserError
from taet.machine import float32_by_default
from taet.models.classifier import adapted
from taet.models.trust import check_trust, consent
from taet.models.tuning import extend
from taet.network import copy_of
from taet.randomness import seeded
from taet.run.folder import DELIVERED, RunFolder, folder_of
from taet.run.identity import code_of, retired_settings
from taet.run.record import RunRecord
from taet.settings import Run

KINDS: dict[str, tuple[type, str]] = {  # the types of objects that a caller may pass
    "model": (nn.Module, "an nn.Module"),
    "dataset": (Dataset, "a taet.data.Dataset, e.g. Dataset.from_arrays(...)"),
}


class LoadedModel(NamedTuple):
    """The model of a finished run, in eval mode, with the settings and the record of the run."""

    run: Run
    model: nn.Module
    record: RunRecord


class LoadedRun(NamedTuple):
    """A finished run: its settings, its model in eval mode, its data set and its record."""

    run: Run
    model: nn.Module
    dataset: Dataset
    record: RunRecord


@float32_by_default()
def load_model(
    folder: str | os.PathLike[str], weights: str = DELIVERED, *, model: nn.Module | None = None
) -> LoadedModel:
    """Return the model of a finished run with its weights; no data are needed.

    `weights` is `model` (what the run delivers), `model-last` or `model-best`. A run that was
    trained from a module in memory needs a module of the same structure as `model`. A run's
    package.module:callable is imported and called only inside `taet.models.trusted`; code inside
    the folder is always refused.
    """
    run_folder = folder_of(folder)
    path, record = run_folder.path, run_folder.record
    check_given(path, "model", model, record.model_given)
    chosen, data, classes = record.run.model, record.data, len(record.data.class_names)
    if (left := retired_settings(record.settings).get("data.fit")) is not None:
        raise UserError(
            f"{path} was trained with data fit {left}; this setting has left, see CHANGELOG.md"
        )
    if model is None:
        check_trust(path, chosen.name)
        check_code(run_folder, "model")
        model = models.build(
            chosen.name, classes, data.image_shape, head=record.head, stem=chosen.stem
        )
    else:
        model = copy_of(model)
        if run_folder.has_head(weights):
            with seeded(record.run.seed, "weights"):
                model = models.split_head(model, classes, data.image_shape)
    model = adapted(model, classes)
    extend(model, chosen.tune)
    run_folder.load_weights(weights, model)
    return LoadedModel(record.run, model.eval(), record)


def load_run(
    folder: str | Path,
    weights: str = DELIVERED,
    *,
    model: nn.Module | None = None,
    dataset: Dataset | None = None,
) -> LoadedRun:
    """Return a finished run with its data set; of `weights` and `model` see `load_model`.

    A run that was trained on arrays in memory needs them again. Test images that differ from the
    run's are refused.
    """
    run, model, record = load_model(folder, weights, model=model)
    check_given(Path(folder), "dataset", dataset, record.data.arrays)
    dataset = load(run.data) if dataset is None else dataset
    if (got := dataset.test.sha256) != (recorded := record.data.test.sha256):
        what = f"the test images of {dataset.name} are not those of {folder}"
        raise UserError(f"{what}: got SHA-256 {got[:12]}, the run had {recorded[:12]}")
    return LoadedRun(run, model, dataset, record)


def check_kind(name: str, given: object) -> None:
    """Refuse a `model` or `dataset` that a caller passes as an object of another type."""
    kind, allowed = KINDS[name]
    if given is not None and not isinstance(given, kind):
        raise UserError(f"{name}: got a {type(given).__name__}; allowed: {allowed}")


def check_given(folder: Path, name: str, given: object, needed: bool) -> None:
    """Refuse a model or data set from memory that is missing, not needed, or of another type."""
    check_kind(name, given)
    if needed and given is None:
        raise UserError(
            f"{folder} was trained with a {name} from memory: give it again, from Python, as "
            f"{name}=..."
        )
    if given is not None and not needed:
        raise UserError(f"{folder} names its own {name}: got another as {name}=...")


@contextlib.contextmanager
def locked_by_job(folder: RunFolder | None) -> Iterator[None]:
    """Lock a folder, if there is one, for this job; its first process holds the lock for all."""
    with contextlib.ExitStack() as released:
        if folder is not None:
            run_on_rank_zero(lambda: released.enter_context(folder.own()))
        yield


def check_free(folder: RunFolder) -> None:
    """Refuse a folder that exists."""
    if not folder.is_taken:
        return
    if not folder.is_run:
        raise UserError(
            f"{folder.path} exists and is no run; choose another --out, or remove the folder"
        )
    way = ""
    if not folder.is_done and not folder.has_diverged:
        way = f", continue it, with its own settings, by {resume_call(folder)}"
    raise UserError(f"{folder.path} holds a run; choose another --out{way}, or remove the folder")


def check_code(folder: RunFolder, *names: str) -> None:
    """Refuse plug-ins of a run that have changed since it was started, or are missing.

    `names` are the plug-ins that are used: see `code_of`.
    """
    recorded, now = folder.record.code, code_of(folder.record.run)
    for name in names:
        if name in recorded and recorded[name] != now.get(name):
            where = f"the plug-in of the {name} is not the file that {folder.path} was started with"
            raise UserError(
                f"{where}; allowed: the same file, in a folder of TAET_PLUGINS; or remove the run"
            )


def resume_call(folder: RunFolder) -> str:
    """Return the command, or the call in Python, that continues a run."""
    record, path = folder.record, str(folder.path)
    given = {"model": record.model_given, "dataset": record.data.arrays}
    if any(given.values()):  # a command cannot name what is in memory
        arguments = [repr(path), *(f"{name}=..." for name in given if given[name])]
        return f"taet.resume({', '.join(arguments)})"
    return shlex.join(["taet", "train", "--resume", path, *consent(record.run.model.name)])
