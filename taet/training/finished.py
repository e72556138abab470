"""Loads the model and the data of finished runs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from torch import nn

from taet import models
from taet.data import Dataset, load
from taet.errors import UserError
from taet.settings import Run
from taet.training.folder import DELIVERED, RunFolder
from taet.training.record import RunRecord


def load_model(
    folder: str | Path, weights: str = DELIVERED, *, model: nn.Module | None = None
) -> tuple[Run, nn.Module, RunRecord]:
    """Return (run, model with its weights in eval mode, record) of a finished run; no data are needed.

    `weights` is `model` (what the run delivers), `model-last` or `model-best`. A run that was trained from a module in
    memory needs a module of the same structure as `model`, which receives the weights. A run's package.module:callable
    is imported and called only inside `taet.models.trusted`; code inside the folder is always refused.
    """
    path = RunFolder(Path(folder))
    record = path.record
    check_given(path.path, record, "model", model)
    chosen, data = record.run.model, record.data
    if model is None:
        models.check_trust(path.path, chosen.name)
        model = models.build(chosen.name, data.num_classes, data.image_shape, head=record.head, stem=chosen.stem)
    model = models.adapted(model, data.num_classes)
    path.load_weights(weights, model)
    return record.run, model.eval(), record


def load_run(
    folder: str | Path, weights: str = DELIVERED, *, model: nn.Module | None = None, dataset: Dataset | None = None
) -> tuple[Run, nn.Module, Dataset, RunRecord]:
    """Return (run, model with its weights, data set, record) of a finished run: see `load_model`.

    A run that was trained on arrays in memory needs them again. Test images that differ from the run's are refused.
    """
    folder = Path(folder)
    record = RunFolder(folder).record
    check_given(folder, record, "dataset", dataset)
    check_given(folder, record, "model", model)  # before the data are read
    data = record.run.data
    dataset = load(data) if dataset is None else dataset
    recorded = record.data.test.sha256
    if dataset.test.sha256 != recorded:
        raise UserError(
            f"the test images of {data.name} are not those of {folder}: "
            f"got SHA-256 {dataset.test.sha256[:12]}, the run had {recorded[:12]}"
        )
    run, model, record = load_model(folder, weights, model=model)
    return run, model, dataset, record


def check_given(folder: Path, record: RunRecord, name: Literal["model", "dataset"], given: object) -> None:
    """Refuse a missing `model` or `dataset` that the run needs from memory, or one that it does not need."""
    needed = record.model_given if name == "model" else record.data.arrays
    if needed and given is None:
        raise UserError(f"{folder} was trained with a {name} from memory: give it again, from Python, as {name}=...")
    if given is not None and not needed:
        raise UserError(f"{folder} names its own {name}: got another as {name}=...")
