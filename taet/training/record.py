"""The contents of run.json and of a row of metrics.jsonl, each declared once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Self, TypeAlias

import numpy as np
from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, model_serializer, model_validator

from taet import methods, statistics
from taet.errors import UserError
from taet.fields import Count, NonNegative, Record, Sha256, StoredCount
from taet.formatting import listed
from taet.models.heads import Head
from taet.settings import Fit, Run, from_json
from taet.training.decisive_settings import current, run_hash

MOST_VALUES = 2**28
"""Largest number of values of an image, so that no record can demand a model that exceeds the memory."""
Classes = Annotated[int, Field(ge=0, le=2**20)]
ImageSide = Annotated[int, Field(ge=1, le=2**16)]
MetricsRow: TypeAlias = dict[str, Any]
"""A row of metrics.jsonl as JSON."""

if TYPE_CHECKING:
    from taet.statistics import Floats, Ints
else:  # read as lists, checked, and kept as arrays
    _listed = AfterValidator(np.array), PlainSerializer(np.ndarray.tolist)
    Ints = Annotated[tuple[StoredCount, ...], *_listed]
    Floats = Annotated[tuple[NonNegative, ...] | tuple[tuple[NonNegative, NonNegative, NonNegative], ...], *_listed]


def _known_head(values: object) -> dict[str, object]:
    if isinstance(values, Head):
        return values._asdict()
    if not isinstance(values, dict):
        raise UserError(f"head: got {values!r:.60}; allowed: an object")
    return {name: values[name] for name in Head._fields if name in values}


StoredHead = Annotated[Head, BeforeValidator(_known_head), PlainSerializer(Head._asdict)]


class SplitRecord(Record):
    """One split of the data: the positions of its images in their source, a hash, and the images of each class."""

    indices: tuple[StoredCount, ...] = ()
    sha256: Sha256
    class_counts: tuple[StoredCount, ...] = ()


class ExtraRecord(Record):
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
    left_out: dict[str, tuple[StoredCount, StoredCount]] = Field(default={})
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
        left_out = f"; left out as repeats of images in {listed(self.left_out)}: {exact} exact, {near} near"
        return (
            f"extra images, {self.per_batch} of {self.batch_size} in every batch, by the rule {self.classes}: "
            f"{self.source.strip().rstrip('.')}; saw the removed tail: {self.saw_removed_tail}"
            + (f"; labels: {self.labels}" if self.labels else "")
            + (f"; filter: kept {self.kept:g} of each class{judge}" if self.kept < 1 else "")
            + (left_out if self.left_out else "")
        )


class DataRecord(Record):
    """The data set of a run."""

    name: str = ""
    class_names: tuple[str, ...] = ()
    num_classes: Classes = 0
    image_shape: tuple[ImageSide, ImageSide, ImageSide] = (0, 0, 0)
    """(C, H, W)."""
    resized: bool | None = None
    """None in the records of older versions."""
    imbalance_ratio: float | None = None
    notes: tuple[str, ...] = ()
    arrays: bool
    """Whether the images were passed from memory."""
    splits: dict[str, SplitRecord]
    extra: ExtraRecord | None = None

    @model_validator(mode="before")
    @classmethod
    def _counted(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("class_names"), tuple):
            return {"num_classes": len(values["class_names"]), **values}
        return values

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        names, classes, shape = self.class_names, self.num_classes, self.image_shape
        if names and len(names) != classes:
            raise UserError(f"data class_names: got {len(names)} names; allowed: {classes}, one per class")
        if math.prod(shape) > MOST_VALUES:
            raise UserError(f"data image_shape: got {shape!r:.60}; allowed: channels, height and width of an image")
        if "test" not in self.splits:
            raise UserError("data splits: the field 'test' is missing")
        for name, split in self.splits.items():
            if split.class_counts and len(split.class_counts) != classes:
                raise UserError(f"data splits {name} class_counts: got {len(split.class_counts)}; allowed: {classes}")
        return self

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


class SelectionRecord(Record):
    """How the delivered epoch was chosen: the rule, the split of the curve, and whether it was the test set."""

    rule: str
    split: str = ""
    leak: bool = False


class StageRecord(Record):
    """A stage of the training and its first epoch, from 1."""

    stage: str
    from_epoch: Count


class RunRecord(Record):
    """run.json: the settings of a run and all facts recorded at its start."""

    version: Count = Field(alias="schema")
    settings: dict[str, Any] = Field(alias="run")
    """The Run as stored JSON; `run` is the typed form."""
    method_title: str
    reference: str | None = None
    deviations: tuple[str, ...]
    stages: tuple[StageRecord, ...] = ()
    selection: SelectionRecord
    data: DataRecord
    model_given: bool
    """Whether the model was passed from memory."""
    head: StoredHead
    parameters: StoredCount | None = None
    model_notes: tuple[str, ...] = ()
    pretrained_sha256: str | None = None
    threads: Count
    processes: Count | None = None
    versions: dict[str, str | None] = Field(default={})
    commit: str | None = None
    device: str | None = None
    started: str | None = None
    command: str

    @classmethod
    def from_json(cls, values: object) -> RunRecord:
        """Build a record from JSON; a missing or wrong field is a UserError, unknown ones are ignored.

        Invalid settings are refused too; a run of a method that is not installed can still be reported.
        """
        record = from_json(cls, values)
        if not isinstance(record.settings.get("method"), str):
            raise UserError("run: the field 'method' is missing")
        try:
            methods.find(record.method)
        except UserError:
            from_json(Run, {**record.settings, "settings": None})
        else:
            _ = record.run
        return record

    def to_json(self) -> dict[str, Any]:
        """Return the content of run.json."""
        return self.model_dump(by_alias=True)

    @cached_property
    def run(self) -> Run:
        """The settings; a method that is not installed raises a UserError."""
        return run_from_json(self.settings)

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


def run_from_json(values: Mapping[str, Any]) -> Run:
    """Rebuild a Run from JSON, with the Config of its method; settings that have left are ignored."""
    return from_json(Run, {**current(values), "settings": values.get("settings") or {}})


class Counts(Record):
    """Numbers of correct and of all examples per class, each (C,)."""

    correct: Ints
    total: Ints

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.correct.shape != self.total.shape or (self.correct > self.total).any():
            raise UserError("got inconsistent counts; allowed: correct up to total, per class")
        return self

    @property
    def balanced_accuracy(self) -> float:
        return statistics.balanced_accuracy(self.correct, self.total)


class CurvePoint(Record):
    """One point of the accuracy curves: clean and under an attack, on one split.

    In JSON the name of the attack is the key of its counts.
    """

    split: str
    clean: Counts
    fgsm: Counts | None = None
    """Under FGSM, for a method that attacks with a single step."""
    attack: str
    attacked: Counts

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: Any) -> Any:
        attacks = (
            [name for name in values if name not in ("split", "clean", "fgsm")] if isinstance(values, dict) else []
        )
        if len(attacks) != 1:
            got = f"{', '.join(values)!r:.100}" if isinstance(values, dict) else f"{values!r:.100}"
            raise UserError(f"monitor: got the fields {got}; allowed: split, clean and one attack")
        (attack,) = attacks
        return {**values, "attack": attack, "attacked": values[attack]}

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if len({counts.total.shape for counts in self.counts.values()}) > 1:
            raise UserError("monitor: got another number of classes for clean images; allowed: the same")
        return self

    @model_serializer
    def _as_json(self) -> dict[str, Any]:
        return {"split": self.split, **{name: counts.model_dump() for name, counts in self.counts.items()}}

    @property
    def counts(self) -> dict[str, Counts]:
        """Counts of clean images and under each attack, by its name."""
        single = {} if self.fgsm is None else {"fgsm": self.fgsm}
        return {"clean": self.clean, **single, self.attack: self.attacked}


if TYPE_CHECKING:
    Losses: TypeAlias = dict[str, float]
else:  # a loss that was not finite is stored as null
    _known = AfterValidator(lambda values: {k: math.nan if v is None else float(v) for k, v in values.items()})
    Losses = Annotated[dict[str, float | None], _known, PlainSerializer(dict)]


class Epoch(Record):
    """One row of metrics.jsonl."""

    epoch: Count
    """Number of the epoch, from 1."""
    stage: str
    lr: NonNegative | None = None
    """Of its last step."""
    loss: Losses
    trained: Counts | None = Field(None, alias="train")
    """Training examples as the training saw them, and the correct ones."""
    predicted: Ints | None = None
    """Predictions of each class on the training examples, (C,)."""
    distance: Floats | None = None
    """Mean distance per class between the examples of this and of the previous epoch, (C,)."""
    quartiles: Floats | None = Field(None, alias="distance_quartiles")
    """Quartiles of these distances, (C, 3); None in runs that recorded only means."""
    monitor: CurvePoint | None = None
    seconds: NonNegative
    """All of the epoch, with its point of the curve."""
    images_per_second: NonNegative | None = None
    """Without the curve."""
    peak_memory_mb: NonNegative | None = None

    @classmethod
    def from_json(cls, row: object) -> Epoch:
        """Build an epoch from a row; a missing or wrong field is a UserError, unknown ones are ignored."""
        return from_json(cls, row)

    def to_json(self) -> MetricsRow:
        """Return the row."""
        return self.model_dump(by_alias=True)

    @property
    def training_seconds(self) -> float:
        """Seconds without the curve; the same as `seconds` in rows without a rate or counts."""
        if self.trained is None or not self.images_per_second:
            return self.seconds
        return float(self.trained.total.sum() / self.images_per_second)

    @property
    def num_classes(self) -> set[int]:
        """The numbers of classes of everything that is counted by class; one, in a row of a run."""
        points = {} if self.monitor is None else self.monitor.counts
        counts = (self.predicted, self.distance, self.quartiles)
        totals = [one.total for one in (self.trained, *points.values()) if one is not None]
        return {len(one) for one in (*counts, *totals) if one is not None}

    @property
    def balanced_accuracies(self) -> dict[str, float]:
        """Balanced accuracy on the training examples, if counted, and of each entry of the point of the curve."""
        counts = {"training": self.trained, **({} if self.monitor is None else self.monitor.counts)}
        return {name: one.balanced_accuracy for name, one in counts.items() if one is not None}


def best_epoch(epochs: Sequence[Epoch]) -> int | None:
    """Return the first epoch, from 1, with the best balanced accuracy under attack; None without a curve."""
    scores = {epoch.epoch: epoch.monitor.attacked.balanced_accuracy for epoch in epochs if epoch.monitor}
    return max(scores, key=scores.__getitem__, default=None)
