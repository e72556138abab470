"""What run.json and metrics.jsonl hold, as types."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from taet import config, methods
from taet.config import Run
from taet.models.heads import Head

Ints = npt.NDArray[np.int64]
T = TypeVar("T")
Row = dict[str, Any]
"""A row of metrics.jsonl as JSON."""


def run_from_json(values: Mapping[str, Any]) -> Run:
    """Rebuild a Run from JSON, with the Config of its method."""
    settings = values.get("settings")
    run: Run = config.from_json(Run, {**values, "settings": None})
    return config.override(run, {"settings": config.from_json(methods.find(run.method).Config, settings or {})})


def _built(kind: type[T], values: Mapping[str, Any], **parts: Any) -> T:
    """Build the dataclass `kind` from the JSON fields that it knows; `parts` are built already."""
    known = {f.name for f in dataclasses.fields(kind)} - parts.keys()  # type: ignore[arg-type]
    return kind(**{name: _immutable(value) for name, value in values.items() if name in known}, **parts)


def _immutable(value: Any) -> Any:
    return tuple(map(_immutable, value)) if isinstance(value, list) else value


@dataclass(frozen=True, kw_only=True)
class SplitRecord:
    """One split of the data: the positions of its images in their source, a hash, and the images of each class."""

    indices: tuple[int, ...] = ()
    sha256: str
    class_counts: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DataRecord:
    """The data set of a run."""

    name: str = ""
    class_names: tuple[str, ...] = ()
    num_classes: int = 0
    image_shape: tuple[int, int, int] = (0, 0, 0)
    """(C, H, W)."""
    resized: bool | None = None
    """None in the records of older versions."""
    imbalance_ratio: float | None = None
    notes: tuple[str, ...] = ()
    arrays: bool
    """Whether the images were passed from memory."""
    splits: Mapping[str, SplitRecord]

    @property
    def test(self) -> SplitRecord:
        return self.splits["test"]

    @property
    def train(self) -> SplitRecord:
        return self.splits["train"]


@dataclass(frozen=True, kw_only=True)
class SelectionRecord:
    """How the delivered epoch was chosen: the rule, the split of the curve, and whether it was the test set."""

    rule: str
    split: str = ""
    leak: bool = False


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """A stage of the training and its first epoch, from 1."""

    stage: str
    from_epoch: int


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """run.json: the settings of a run and everything that was known when it began."""

    schema: int
    settings: Mapping[str, Any]
    """The Run as JSON, as it was written; `run` is the same, typed."""
    method_title: str
    reference: str | None = None
    deviations: tuple[str, ...]
    stages: tuple[StageRecord, ...] = ()
    selection: SelectionRecord
    data: DataRecord
    model_given: bool
    """Whether the model was passed from memory."""
    head: Head
    parameters: int | None = None
    model_notes: tuple[str, ...] = ()
    pretrained_sha256: str | None = None
    threads: int
    processes: int | None = None
    versions: Mapping[str, str | None] = field(default_factory=dict)
    commit: str | None = None
    device: str | None = None
    started: str | None = None
    command: str = ""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RunRecord:
        """Build a record from JSON; missing fields raise KeyError or TypeError, unknown ones are ignored."""
        values["run"]["method"], values["command"]
        data, splits = values["data"], values["data"]["splits"]
        read = {name: _built(SplitRecord, split) for name, split in splits.items()}
        read["test"]  # every run has one
        classes = data.get("num_classes", len(data.get("class_names", ())))
        return _built(
            cls,
            values,
            settings=values["run"],
            stages=tuple(_built(StageRecord, stage) for stage in values.get("stages", ())),
            selection=_built(SelectionRecord, values["selection"]),
            data=_built(DataRecord, data, num_classes=classes, splits=read),
            head=Head(**values["head"]),
        )

    def to_json(self) -> dict[str, Any]:
        """Return what run.json holds."""
        values = {"run" if name == "settings" else name: value for name, value in dataclasses.asdict(self).items()}
        return values | {"head": self.head._asdict()}

    @cached_property
    def run(self) -> Run:
        """The settings; a method that is not installed is a UserError."""
        return run_from_json(self.settings)

    @property
    def method(self) -> str:
        return str(self.settings["method"])


@dataclass(frozen=True)
class Counts:
    """Correct and all examples per class, (C,) each."""

    correct: Ints
    total: Ints

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Counts:
        """Build the counts from two lists."""
        return cls(np.asarray(values["correct"], dtype=np.int64), np.asarray(values["total"], dtype=np.int64))


@dataclass(frozen=True)
class CurvePoint:
    """One point of the accuracy curves: clean and under an attack, on one split."""

    split: str
    attack: str
    clean: Counts
    attacked: Counts

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> CurvePoint:
        """Build a point from JSON, where the attack's counts stand under its name."""
        (attack,) = (name for name in values if name not in ("split", "clean"))
        return cls(str(values["split"]), attack, Counts.from_json(values["clean"]), Counts.from_json(values[attack]))


@dataclass(frozen=True)
class Epoch:
    """One row of metrics.jsonl."""

    epoch: int
    """From 1."""
    stage: str
    loss: Mapping[str, float]
    predicted: Ints | None
    """Predicted classes of the examples trained on, (C,)."""
    monitor: CurvePoint | None
    seconds: float
    peak_memory_mb: float | None

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Epoch:
        """Build an epoch from a row; a loss of None is nan."""
        point, predicted = row.get("monitor"), row.get("predicted")
        return cls(
            epoch=int(row["epoch"]),
            stage=str(row["stage"]),
            loss={name: float("nan") if value is None else float(value) for name, value in row["loss"].items()},
            predicted=None if predicted is None else np.asarray(predicted, dtype=np.int64),
            monitor=None if point is None else CurvePoint.from_json(point),
            seconds=float(row["seconds"]),
            peak_memory_mb=row.get("peak_memory_mb"),
        )
