"""What a checkpoint must hold, checked before a run continues from it.

The checks name the field of the checkpoint; the reader of the file adds the path.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from taet.errors import UserError
from taet.files import Json
from taet.run.record import Epoch
from taet.settings.schema import from_json
from taet.settings.types import NonNegative, Record, StoredCount

EpochOrNone = Annotated[int, Field(ge=-1)]
"""An epoch, from 0, or -1 for none."""
# of a parameter group of an optimiser, apart from the learning rate, which is set at every step
HYPERPARAMETERS = ("weight_decay", "momentum", "dampening", "nesterov", "betas", "eps")


class SavedSums(Record):
    """The sums over the finished steps of the current epoch."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    counts: Tensor
    sums: dict[str, Tensor]
    images: StoredCount


class SavedProgress(Record):
    """How far a run has come: the fields of a checkpoint that are plain Python, and the sums."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    epoch: StoredCount
    step: StoredCount
    seconds: NonNegative
    training_seconds: NonNegative
    asked: EpochOrNone
    best: tuple[float, StoredCount, dict[str, Tensor]] | None
    rows: tuple[Epoch, ...]
    sums: SavedSums


def check_progress(saved: Mapping[str, Any], epochs: int, steps_per_epoch: int) -> None:
    """Refuse a checkpoint whose progress a run of this length cannot have."""
    progress = from_json(SavedProgress, {name: saved[name] for name in SavedProgress.model_fields})
    _check_most("epoch", progress.epoch, epochs)
    last_step = 0 if progress.epoch == epochs else steps_per_epoch
    _check_most("step", progress.step, last_step)
    last_measured = min(progress.epoch, epochs - 1)
    _check_most("asked", progress.asked, last_measured)
    if progress.best is not None:
        _check_most("best epoch", progress.best[1], last_measured)
    numbers = [row.epoch for row in progress.rows]
    if numbers != list(range(1, progress.epoch + 1)):
        got = ", ".join(map(str, numbers)) or "none"
        allowed = f"1 to {progress.epoch}" if progress.epoch else "none"
        raise UserError(f"rows: got those of the epochs {got}; allowed: {allowed}")
    begun = progress.step > 0
    if begun != (progress.sums.images > 0) or begun != ("total" in progress.sums.sums):
        got = f"sums of {progress.sums.images} images after step {progress.step}"
        raise UserError(f"sums: got {got}; allowed: of the images of the finished steps")


def _check_most(name: str, value: int, most: int) -> None:
    if value > most:
        raise UserError(f"{name}: got {value}; allowed: up to {most} in this run")


def check_tensor(name: str, value: object, like: Tensor) -> None:
    """Refuse a value that is no tensor of the shape of `like`, or not finite."""
    if not isinstance(value, Tensor):
        raise UserError(f"{name}: got a {type(value).__name__}; allowed: a tensor")
    if value.shape != like.shape:
        raise UserError(f"{name}: got shape {[*value.shape]}; allowed: {[*like.shape]}")
    if value.is_floating_point() != like.is_floating_point() or not value.isfinite().all():
        raise UserError(f"{name}: got {value.dtype} values; allowed: {like.dtype}, all finite")


def check_tensors(name: str, values: Mapping[str, Any], like: Mapping[str, Tensor]) -> None:
    """Refuse a state of other tensors than those of `like`."""
    if other := sorted(values.keys() ^ like.keys()):
        raise UserError(f"{name}: got other tensors than this run has, such as {other[0]}")
    for key, tensor in like.items():
        check_tensor(f"{name}: {key}", values[key], tensor)


def check_optimizer(saved: Json, optimizer: torch.optim.Optimizer) -> None:
    """Refuse the state of an optimiser with other hyperparameters, or for other parameters."""
    parameters = []
    for group, own in zip(saved["param_groups"], optimizer.param_groups, strict=True):
        parameters += own["params"]
        _check_hyperparameters(group, own)
    for index, state in saved["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.ndim:
                check_tensor(f"optimizer: {name} {index}", value, parameters[index])


def _check_hyperparameters(group: Json, own: Mapping[str, Any]) -> None:
    """Refuse a group of parameters whose hyperparameters differ from those of the run's own."""
    for name in HYPERPARAMETERS:
        in_both = name in group and name in own
        if in_both and not _equal(group[name], own[name]):
            raise UserError(f"optimizer: {name}: got {group[name]}; allowed: {own[name]}")


def _equal(saved: Any, own: Any) -> bool:
    if isinstance(own, float) and isinstance(saved, int | float):
        return math.isclose(saved, own)
    return list(saved) == list(own) if isinstance(own, tuple) else bool(saved == own)
