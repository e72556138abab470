"""The contents of run.json and metrics.jsonl as types, checked when the files are read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, NotRequired, TypedDict, TypeVar

import numpy as np
from pydantic import Field

from taet import methods, statistics
from taet.errors import UserError
from taet.fields import Count, NonNegative, Sha256, StoredCount, plain
from taet.formatting import listed
from taet.models.heads import Head
from taet.settings import LEFT, Fit, Run, from_json
from taet.shapes import check_shape
from taet.statistics import Floats, Ints
from taet.training.decisive_settings import run_hash

ImageSide = Annotated[int, Field(ge=0, le=2**16)]
MOST_VALUES = 2**28
"""Largest number of values of an image, so that no record can demand a model that exceeds the memory."""
T = TypeVar("T")
MetricsRow = dict[str, Any]
"""A row of metrics.jsonl as JSON."""


def run_from_json(values: Mapping[str, Any]) -> Run:
    """Rebuild a Run from JSON, with the Config of its method; settings that have left are ignored."""
    data = {name: value for name, value in values.get("data", {}).items() if name not in LEFT}
    return from_json(Run, {**values, "data": data, "settings": values.get("settings") or {}})


def _built(kind: type[T], values: Mapping[str, Any], **parts: Any) -> T:
    """Build the dataclass `kind` from its JSON fields, ignoring others; `parts` are already built."""
    known = {f.name for f in dataclasses.fields(kind)} - parts.keys()  # type: ignore[arg-type]
    return kind(**{name: plain(value) for name, value in values.items() if name in known}, **parts)


@dataclass(frozen=True, kw_only=True)
class SplitRecord:
    """One split of the data: the positions of its images in their source, a hash, and the images of each class."""

    indices: tuple[StoredCount, ...] = ()
    sha256: Sha256
    class_counts: tuple[StoredCount, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ExtraRecord:
    """The extra images of a run: their source, how they were mixed in, and which were left out."""

    source: str
    """How they were made, in the user's words."""
    trained_on: str = ""
    saw_removed_tail: str
    """no, yes or unknown."""
    labels: str = ""
    sha256: Sha256
    class_counts: tuple[StoredCount, ...] = ()
    """Available images of each class."""
    per_batch: StoredCount = 0
    batch_size: StoredCount = 0
    classes: str = ""
    """Rule for the proportions of the classes."""
    draw: tuple[NonNegative, ...] = ()
    """Probability with which each class is drawn."""
    exposure: tuple[NonNegative, ...] = ()
    """Class counts for the losses."""
    kept: NonNegative = 1.0
    """Fraction of each class that a filter kept."""
    judge_sha256: Sha256 | None = None
    """SHA-256 of the weights of the model that filtered them."""
    left_out: Mapping[str, tuple[StoredCount, StoredCount]] = field(default_factory=dict)
    """For each split: images left out as exact and as near duplicates of its images."""
    left_out_by: str = ""
    """How duplicates were found."""
    test_sha256: Sha256 | None = None
    """SHA-256 of the test images in that search: all of the source, even if the run uses only a part."""

    @property
    def sentence(self) -> str:
        """The sentence about extra images in every table."""
        exact, near = (sum(counts[degree] for counts in self.left_out.values()) for degree in (0, 1))
        judge = f" by the model {self.judge_sha256[:12]}" if self.judge_sha256 else ""
        return (
            f"extra images, {self.per_batch} of {self.batch_size} in every batch, by the rule {self.classes}: "
            f"{self.source.strip().rstrip('.')}; saw the removed tail: {self.saw_removed_tail}"
            + (f"; labels: {self.labels}" if self.labels else "")
            + (f"; filter: kept {self.kept:g} of each class{judge}" if self.kept < 1 else "")
            + (
                f"; left out as repeats of images in {listed(self.left_out)}: {exact} exact, {near} near"
                if self.left_out
                else ""
            )
        )


@dataclass(frozen=True, kw_only=True)
class DataRecord:
    """The data set of a run."""

    name: str = ""
    class_names: tuple[str, ...] = ()
    num_classes: Annotated[int, Field(ge=0, le=2**20)] = 0
    image_shape: tuple[ImageSide, ImageSide, ImageSide] = (0, 0, 0)
    """(C, H, W)."""
    resized: bool | None = None
    """None in the records of older versions."""
    imbalance_ratio: float | None = None
    notes: tuple[str, ...] = ()
    arrays: bool
    """Whether the images were passed from memory."""
    splits: Mapping[str, SplitRecord]
    extra: ExtraRecord | None = None

    def __post_init__(self) -> None:
        names, classes, shape = self.class_names, self.num_classes, self.image_shape
        if names and len(names) != classes:
            raise UserError(f"data class_names: got {len(names)} names; allowed: {classes}, one per class")
        if len(shape) != 3 or math.prod(shape) > MOST_VALUES:
            raise UserError(f"data image_shape: got {shape!r:.60}; allowed: channels, height and width of an image")
        for name in {"test", *self.splits}:
            if name not in self.splits:
                raise UserError(f"data splits: the field {name!r} is missing")
            counts = self.splits[name].class_counts
            if counts and len(counts) != classes:
                raise UserError(f"data splits {name} class_counts: got {len(counts)}; allowed: {classes}")

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of the images of every split, and of the extra images."""
        extra = {} if self.extra is None else {"extra": self.extra.sha256}
        return {name: split.sha256 for name, split in self.splits.items()} | extra

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
    from_epoch: Count


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """run.json: the settings of a run and all facts recorded at its start."""

    schema: Count
    settings: Annotated[Mapping[str, Any], Run]
    """The Run as stored JSON; `run` is the typed form."""
    method_title: str
    reference: str | None = None
    deviations: tuple[str, ...]
    stages: tuple[StageRecord, ...] = ()
    selection: SelectionRecord
    data: DataRecord
    model_given: bool
    """Whether the model was passed from memory."""
    head: Head
    parameters: StoredCount | None = None
    model_notes: tuple[str, ...] = ()
    pretrained_sha256: str | None = None
    threads: Count
    processes: Count | None = None
    versions: Mapping[str, str | None] = field(default_factory=dict)
    commit: str | None = None
    device: str | None = None
    started: str | None = None
    command: str = ""

    @classmethod
    def from_json(cls, values: object) -> RunRecord:
        """Build a record from JSON; a missing or wrong field is a UserError, unknown ones are ignored."""
        check_shape("", values, StoredRecord)
        assert isinstance(values, Mapping)
        check_shape("", {**values, "settings": values["run"]}, cls)
        data = values["data"]
        classes, extra = data.get("num_classes", len(data.get("class_names", ()))), data.get("extra")
        splits = {name: _built(SplitRecord, split) for name, split in data["splits"].items()}
        made = None if extra is None else _built(ExtraRecord, extra)
        return _built(
            cls,
            values,
            settings=values["run"],
            stages=tuple(_built(StageRecord, stage) for stage in values.get("stages", ())),
            selection=_built(SelectionRecord, values["selection"]),
            data=_built(DataRecord, data, num_classes=classes, splits=splits, extra=made),
            head=Head(**{name: values["head"][name] for name in Head._fields if name in values["head"]}),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the content of run.json."""
        values = {"run" if name == "settings" else name: value for name, value in dataclasses.asdict(self).items()}
        return values | {"head": self.head._asdict()}

    @cached_property
    def run(self) -> Run:
        """The settings; a method that is not installed raises a UserError."""
        return run_from_json(self.settings)

    def check_settings(self) -> None:
        """Refuse invalid settings of the method; a run of a method that is not installed can still be reported."""
        try:
            methods.find(self.method)
        except UserError:
            return
        _ = self.run

    @property
    def resizes(self) -> bool:
        """Whether the images were resized; inferred for older records, which do not say so."""
        return self.run.data.size is not None if self.data.resized is None else self.data.resized

    @property
    def fit(self) -> Fit:
        """How images that are not square are resized for the run."""
        return self.run.data.fit if self.resizes else "squeeze"

    @cached_property
    def run_hash(self) -> str:
        """The hash that the checkpoint and the weights of the run also carry."""
        return run_hash(self.settings)

    @property
    def method(self) -> str:
        return str(self.settings["method"])

    @property
    def seed(self) -> int:
        return int(self.settings["seed"])


class StoredRecord(TypedDict):
    """Fields that identify a file as run.json."""

    run: MethodName
    command: str


class MethodName(TypedDict):
    """The field that the settings of every run have."""

    method: str


class StoredCounts(TypedDict):
    """Counts per class, in metrics.jsonl."""

    correct: list[StoredCount]
    total: list[StoredCount]


class StoredEpoch(TypedDict):
    """A row of metrics.jsonl."""

    epoch: Count
    stage: str
    lr: NotRequired[NonNegative]
    loss: dict[str, float | None]
    train: NotRequired[StoredCounts]
    predicted: NotRequired[list[StoredCount] | None]
    distance: NotRequired[list[NonNegative] | None]
    distance_quartiles: NotRequired[list[list[NonNegative]] | None]
    monitor: NotRequired[dict[str, Any] | None]
    seconds: NonNegative
    images_per_second: NotRequired[NonNegative]
    peak_memory_mb: NotRequired[NonNegative | None]


@dataclass(frozen=True)
class Counts:
    """Numbers of correct and of all examples per class, each (C,)."""

    correct: Ints
    total: Ints

    @classmethod
    def from_json(cls, values: object, what: str = "") -> Counts:
        """Build the counts from two lists of equal length, with each correct count at most its total."""
        check_shape(what, values, StoredCounts)
        assert isinstance(values, Mapping)
        correct, total = (np.asarray(values[name], dtype=np.int64) for name in ("correct", "total"))
        if correct.shape != total.shape or (correct > total).any():
            raise UserError(f"{what}: got inconsistent counts; allowed: correct up to total, per class")
        return cls(correct, total)


@dataclass(frozen=True)
class CurvePoint:
    """One point of the accuracy curves: clean and under an attack, on one split."""

    split: str
    attack: str
    clean: Counts
    attacked: Counts
    fgsm: Counts | None = None
    """Under FGSM, for a method that attacks with a single step."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> CurvePoint:
        """Build a point from JSON, in which the name of the attack is the key of its counts."""
        attacks = [name for name in values if name not in ("split", "clean", "fgsm")]
        if len(attacks) != 1 or not isinstance(values.get("split"), str):
            raise UserError(f"monitor: got the fields {', '.join(values)!r:.100}; allowed: split, clean and one attack")
        names = ["clean", *attacks, *(name for name in values if name == "fgsm")]
        clean, attacked, *single = (Counts.from_json(values.get(name), f"monitor {name}") for name in names)
        if any(other.total.shape != clean.total.shape for other in (attacked, *single)):
            raise UserError("monitor: got another number of classes for clean images; allowed: the same")
        return cls(values["split"], attacks[0], clean, attacked, *single)


@dataclass(frozen=True)
class Epoch:
    """One row of metrics.jsonl."""

    epoch: int
    """Number of the epoch, from 1."""
    stage: str
    loss: Mapping[str, float]
    predicted: Ints | None
    """Predictions of each class on the training examples, (C,)."""
    trained: Counts | None
    """Training examples as the training saw them, and the correct ones."""
    distance: Floats | None
    """Mean distance per class between the examples of this and of the previous epoch, (C,)."""
    quartiles: Floats | None
    """Quartiles of these distances, (C, 3); None in runs that recorded only means."""
    monitor: CurvePoint | None
    seconds: float
    """All of the epoch, with its point of the curve."""
    training_seconds: float
    """Without the curve; the same as `seconds` in rows without a rate or counts."""
    peak_memory_mb: float | None

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Epoch:
        """Build an epoch from a row and check its fields; a loss of None becomes nan."""
        check_shape("", row, StoredEpoch)
        point, predicted, trained = row.get("monitor"), row.get("predicted"), row.get("train")
        distance, quartiles = row.get("distance"), row.get("distance_quartiles")
        counts, rate = None if trained is None else Counts.from_json(trained, "train"), row.get("images_per_second")
        if quartiles is not None and {*map(len, quartiles)} != {3}:
            raise UserError("distance_quartiles: got values of another shape; allowed: three per class")
        return cls(
            epoch=row["epoch"],
            stage=row["stage"],
            loss={name: float("nan") if value is None else float(value) for name, value in row["loss"].items()},
            predicted=None if predicted is None else np.asarray(predicted, dtype=np.int64),
            trained=counts,
            distance=None if distance is None else np.asarray(distance, dtype=np.float64),
            quartiles=None if quartiles is None else np.asarray(quartiles, dtype=np.float64),
            monitor=None if point is None else CurvePoint.from_json(point),
            seconds=row["seconds"],
            training_seconds=float(counts.total.sum() / rate) if counts is not None and rate else row["seconds"],
            peak_memory_mb=row.get("peak_memory_mb"),
        )


def balanced_accuracies(counts: Mapping[str, object] | None) -> dict[str, float]:
    """Return the balanced accuracy of each entry that has counts, such as those of a row's point of the curve."""
    found = {name: values for name, values in (counts or {}).items() if isinstance(values, dict)}
    return {name: statistics.balanced_accuracy(each["correct"], each["total"]) for name, each in found.items()}


def best_epoch(epochs: Sequence[Epoch]) -> int | None:
    """Return the first epoch, from 1, with the best balanced accuracy under attack; None without a curve."""
    best, found = -math.inf, None
    for epoch in epochs:
        if epoch.monitor is not None:
            counts = epoch.monitor.attacked
            score = statistics.balanced_accuracy(counts.correct, counts.total)
            best, found = (score, epoch.epoch) if score > best else (best, found)
    return found
