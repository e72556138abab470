"""run.json and a row of metrics.jsonl, each declared once, and the settings that make two runs the same."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Self, TypeAlias

from pydantic import Field, PlainSerializer, model_serializer, model_validator

from taet import statistics
from taet.errors import UserError
from taet.fields import Count, NonNegative, Record, Sha256, StoredCount
from taet.files import digest
from taet.models.heads import Head
from taet.settings import Data, Run, from_json, to_json

JsonDict: TypeAlias = dict[str, Any]
PerClass: TypeAlias = tuple[StoredCount, ...]
Side: TypeAlias = Annotated[int, Field(ge=1, le=2**16)]
PLACE = ("capture", "device", "save_minutes", "tensorboard", "threads", "workers")
MACHINE = frozenset({"data.root", "data.storage", *(f"training.{name}" for name in PLACE)})
"""Settings of place, speed and saving."""
CURVE = frozenset({"training.monitor_every", "training.monitor_images", "training.monitor_steps"})
"""Settings that affect weights only if the curve selects the epoch or the method learns from it."""
LATER = frozenset({"evaluation.attacks", "evaluation.search_precision"})
"""Settings of the evaluation of the finished model."""


def training_settings(run: Run | Mapping[str, Any]) -> JsonDict:
    """Return the settings that determine a run's training, by dotted name.

    `run` may be given as JSON, which is read as this version reads it; what it cannot read is taken as stored.
    """
    if isinstance(run, Run):
        values, behind = to_json(run), JsonDict()
    else:
        values, behind = current(run), left_behind(run)
        with contextlib.suppress(UserError):
            values = to_json(from_json(Run, values))
    return {name: value for name, value in _flat(values).items() if name not in MACHINE | LATER} | behind


def current(stored: Mapping[str, Any]) -> JsonDict:
    """Return stored JSON of a run without the settings of its data that have left."""
    data = {name: value for name, value in stored.get("data", {}).items() if name not in Data.left}
    return {**stored, **({"data": data} if "data" in stored else {})}


def left_behind(stored: Mapping[str, Any]) -> JsonDict:
    """Return the settings that have left and are not at their default, by dotted name."""
    data = stored.get("data", {})
    return {f"data.{name}": data[name] for name, value in Data.left.items() if name in data and data[name] != value}


def run_hash(run: Run | Mapping[str, Any]) -> str:
    """SHA-256 of these settings and the later attacks, as stored in checkpoints and weights.

    For stored JSON it is the hash of the version that wrote it: later versions may have more settings.
    """
    kept = {}
    for part, entry in (to_json(run) if isinstance(run, Run) else run).items():
        is_part = isinstance(entry, Mapping)
        kept[part] = {n: v for n, v in entry.items() if f"{part}.{n}" not in MACHINE} if is_part else entry
    return digest(kept)


def _flat(values: Mapping[str, Any], prefix: str = "") -> JsonDict:
    found = JsonDict()
    for key, value in values.items():
        nested = isinstance(value, Mapping)
        plain = list(value) if isinstance(value, tuple) else value
        found |= _flat(value, f"{prefix}{key}.") if nested else {prefix + key: plain}
    return found


def run_from_json(values: Mapping[str, Any]) -> Run:
    """Rebuild a Run from JSON, with the Config of its method; settings that have left are ignored."""
    return from_json(Run, {**current(values), "settings": values.get("settings") or {}})


class SplitRecord(Record):
    """One split of the data: the positions of its images in their source, a hash, and the images of each class."""

    indices: PerClass = ()
    sha256: Sha256
    class_counts: PerClass = ()


class DataRecord(Record):
    """The data set of a run."""

    name: str = ""
    class_names: tuple[str, ...] = ()
    num_classes: Annotated[int, Field(ge=0, le=2**20)]
    image_shape: tuple[Side, Side, Side]
    """(C, H, W)."""
    resized: bool | None = None
    """None in the records of older versions."""
    imbalance_ratio: float | None = None
    notes: tuple[str, ...] = ()
    arrays: bool
    """Whether the images were passed from memory."""
    splits: dict[str, SplitRecord]
    extra: JsonDict | None = None
    """Extra images: how they were made, in the user's words, and mixed in; their hash and that of the test images."""

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if missing := {"train", "test"} - self.splits.keys():
            raise UserError(f"data splits: the field '{min(missing)}' is missing")
        if (names := len(self.class_names)) not in (0, self.num_classes):
            raise UserError(f"data class_names: got {names}; allowed: {self.num_classes}, one per class")
        return self

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of the images of every split, and of the extra images."""
        extra = {} if self.extra is None else {"extra": self.extra["sha256"]}
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


class RunRecord(Record):
    """run.json: the settings of a run and all facts recorded at its start."""

    version: Count = Field(alias="schema")
    settings: JsonDict = Field(alias="run")
    """The Run as stored JSON; `run` is the typed form."""
    method_title: str
    reference: str | None = None
    deviations: tuple[str, ...]
    stages: tuple[JsonDict, ...] = ()
    """Each `stage` of the training and its first epoch, from 1."""
    selection: SelectionRecord
    data: DataRecord
    model_given: bool
    """Whether the model was passed from memory."""
    head: Annotated[Head, PlainSerializer(Head._asdict)]
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

        The settings of the method are checked by `run`: it need not be installed where the run is only reported.
        """
        record = from_json(cls, values)
        if not isinstance(record.settings.get("method"), str):
            raise UserError("run: the field 'method' is missing")
        from_json(Run, {**current(record.settings), "settings": None})
        return record

    def to_json(self) -> JsonDict:
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

    @cached_property
    def run_hash(self) -> str:
        """The hash that the checkpoint and the weights of the run also carry."""
        return run_hash(self.settings)


class Counts(Record):
    """Numbers of correct and of all examples per class, each (C,)."""

    correct: PerClass
    total: PerClass

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if len(self.correct) != len(self.total) or any(map(int.__gt__, self.correct, self.total)):
            raise UserError("got inconsistent counts; allowed: correct up to total, per class")
        return self

    @property
    def balanced_accuracy(self) -> float:
        return statistics.balanced_accuracy(self.correct, self.total)


class CurvePoint(Record):
    """One point of the accuracy curves: the split, and by name the counts of clean images and under an attack.

    In JSON all names are on one level; `fgsm` is there for a method that attacks with a single step.
    """

    split: str
    counts: dict[str, Counts]

    @model_validator(mode="before")
    @classmethod
    def _split_off(cls, values: Any) -> Any:
        names = {*values} if isinstance(values, dict) else set()
        if "clean" not in names or len(names - {"split", "clean", "fgsm"}) != 1:
            raise UserError(f"monitor: got {values!r:.100}; allowed: split, clean and one attack")
        return {"split": values.get("split"), "counts": {n: counts for n, counts in values.items() if n != "split"}}

    @model_serializer
    def _as_json(self) -> JsonDict:
        return {"split": self.split, **{name: counts.model_dump() for name, counts in self.counts.items()}}

    @property
    def attack(self) -> str:
        """Name of the attack."""
        return next(name for name in self.counts if name not in ("clean", "fgsm"))

    @property
    def clean(self) -> Counts:
        return self.counts["clean"]

    @property
    def attacked(self) -> Counts:
        return self.counts[self.attack]


class Epoch(Record):
    """One row of metrics.jsonl."""

    epoch: Count
    """Number of the epoch, from 1."""
    stage: str
    lr: NonNegative | None = None
    """Of its last step."""
    loss: dict[str, float | None]
    """And its parts, means over the images; None where an older version stored one that was not finite."""
    trained: Counts | None = Field(None, alias="train")
    """Training examples as the training saw them, and the correct ones."""
    predicted: PerClass | None = None
    """Predictions of each class on the training examples, (C,)."""
    distance: tuple[NonNegative, ...] | None = None
    """Mean distance per class between the examples of this and of the previous epoch, (C,)."""
    quartiles: tuple[tuple[NonNegative, NonNegative, NonNegative], ...] | None = Field(None, alias="distance_quartiles")
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

    def to_json(self) -> JsonDict:
        """Return the row."""
        return self.model_dump(mode="json", by_alias=True)

    @property
    def balanced_accuracies(self) -> dict[str, float]:
        """Balanced accuracy on the training examples, if counted, and of each entry of the point of the curve."""
        counts = {"training": self.trained, **({} if self.monitor is None else self.monitor.counts)}
        return {name: one.balanced_accuracy for name, one in counts.items() if one is not None}


def best_epoch(epochs: Sequence[Epoch]) -> int | None:
    """Return the first epoch, from 1, with the best balanced accuracy under attack; None without a curve."""
    scores = {epoch.epoch: epoch.monitor.attacked.balanced_accuracy for epoch in epochs if epoch.monitor}
    return max(scores, key=scores.__getitem__, default=None)
