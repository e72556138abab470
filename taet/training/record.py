"""run.json and a row of metrics.jsonl, each declared once, and the settings that make two runs the same."""

import contextlib
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Annotated, Any, Self, TypeAlias

from pydantic import ConfigDict, Field, PlainSerializer, model_validator

from taet import registry, statistics
from taet.errors import UserError
from taet.fields import Count, NonNegative, Record, Sha256, StoredCount
from taet.files import Json, digest, file_sha256
from taet.models.classifier import Head
from taet.settings import Data, Run, Training, flat, from_json

PerClass: TypeAlias = tuple[StoredCount, ...]
Side: TypeAlias = Annotated[int, Field(ge=1, le=2**16)]
PLACE = ("capture", "compile", "device", "save_minutes", "tensorboard", "threads", "workers")
MACHINE = frozenset({"data.root", "data.storage", *(f"training.{name}" for name in PLACE)})
RETIRED = dict(flat({"data": Data.retired, "training": Training.retired}))
"""Settings of earlier versions by dotted name, with their defaults."""
CURVE = frozenset({"training.monitor_every", "training.monitor_images", "training.monitor_steps"})
CURVE |= {"evaluation.eps", "evaluation.step_size", "evaluation.batch_size"}  # step and start noise of its attack
"""Settings that affect weights only if the curve selects the epoch or the method learns from it."""
LATER = frozenset({"evaluation.attacks", "evaluation.search_precision"})
"""Settings of the evaluation of the finished model."""


def training_settings(run: Run | Mapping[str, Any]) -> Json:
    """Return the settings that determine a run's training, by dotted name.

    Stored JSON is read as this version of taet reads a run; JSON that it cannot read is used as stored.
    """
    if isinstance(run, Run):
        values, retired = run.model_dump(), Json()
    else:
        values, retired = without(run, RETIRED), retired_settings(run)
        with contextlib.suppress(UserError):
            values = from_json(Run, values).model_dump()
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in flat(values)}
    if plain.get("evaluation.eps") == plain.get("threat.eps"):
        plain["evaluation.eps"] = None  # the default means the same radius
    return {name: value for name, value in plain.items() if name not in MACHINE | LATER} | retired


def without(stored: Mapping[str, Any], names: Collection[str]) -> Json:
    """Return the stored JSON of a run without the settings of these dotted names; a part that is no object stays."""
    parts = {part: values for part, values in stored.items() if isinstance(values, Mapping)}
    kept = {part: {n: v for n, v in of.items() if f"{part}.{n}" not in names} for part, of in parts.items()}
    return {**stored, **kept}


def retired_settings(stored: Mapping[str, Any]) -> Json:
    """Return the retired settings of data and training that are not at their default, by dotted name."""
    left = {name: default for name, default in RETIRED.items() if name not in MACHINE}
    return {name: value for name, value in flat(stored) if name in left and value != left[name]}


def run_hash(stored: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a run's JSON as stored, without settings of the machine; checkpoints and weights have it.

    It is never computed from a Run, since later versions may have more settings.
    """
    return digest(without(stored, MACHINE))


def code_of(run: Run) -> dict[str, str]:
    """Return the SHA-256 of the files of a run's method, wrapped method and model, as far as they are plug-ins."""
    known = registry.entries("methods")
    found = {"method": known.get(run.method), "base": known.get(str(getattr(run.settings, "base", "")))}
    found["model"] = registry.entries("models").get(run.model.name)
    return {name: file_sha256(entry.path) for name, entry in found.items() if entry and entry.path}


def run_from_json(values: Mapping[str, Any]) -> Run:
    """Rebuild a Run from JSON, with the Config of its method; retired settings are ignored."""
    return from_json(Run, {**without(values, RETIRED), "settings": values.get("settings") or {}})


class SplitRecord(Record):
    """One split of the data."""

    indices: PerClass = ()
    """Positions of its images in their source."""
    sha256: Sha256
    class_counts: PerClass = ()


class DataRecord(Record):
    """The data set of a run."""

    name: str = ""
    class_names: tuple[str, ...]
    image_shape: tuple[Side, Side, Side]
    resized: bool
    imbalance_ratio: float | None = None
    notes: tuple[str, ...] = ()
    arrays: bool
    splits: dict[str, SplitRecord]
    fingerprints: str = ""
    """The hash of every training image but the extra ones, 16 hexadecimal digits each."""
    extra: Json | None = None
    """Extra images: how they were made, in the user's words, and mixed in; their hash and that of the test images."""

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if missing := {"train", "test"} - self.splits.keys():
            raise UserError(f"data splits: the field '{min(missing)}' is missing")
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
    """How the delivered epoch was chosen, and the split of the curve."""

    rule: str
    split: str = ""


class RunRecord(Record):
    """run.json: the settings of a run and all facts recorded at its start.

    `settings` is the Run as stored JSON, `run` its typed form; `data.arrays`, `model_given`: what came from memory.
    """

    version: Count = Field(alias="schema")
    settings: Json = Field(alias="run")
    method_title: str
    reference: str | None = None
    deviations: tuple[str, ...]
    selection: SelectionRecord
    data: DataRecord
    model_given: bool
    head: Annotated[Head, PlainSerializer(Head._asdict)]
    parameters: StoredCount | None = None
    trained_parameters: StoredCount | None = None
    model_notes: tuple[str, ...] = ()
    pretrained_sha256: str | None = None
    code: dict[str, str] = Field(default={})
    """`code_of` the run."""
    threads: Count
    processes: Count | None = None
    versions: dict[str, str | None] = Field(default={})
    commit: str | None = None
    device: str | None = None
    started: str | None = None
    command: str

    @model_validator(mode="after")
    def _names_a_method(self) -> Self:
        """The method's settings are checked by `run`: it need not be installed where the run is only reported."""
        if not isinstance(self.settings.get("method"), str):
            raise UserError("run: the field 'method' is missing")
        from_json(Run, {**without(self.settings, RETIRED), "settings": None})
        return self

    @cached_property
    def run(self) -> Run:
        """The settings; a method that is not installed raises a UserError."""
        return run_from_json(self.settings)

    @cached_property
    def run_hash(self) -> str:
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

    `fgsm` is there for a method that attacks with a single step.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Counts]
    split: str
    clean: Counts

    @model_validator(mode="after")
    def _has_one_attack(self) -> Self:
        if len(self.counts.keys() - {"clean", "fgsm"}) != 1:
            raise UserError(f"monitor: got {', '.join(self.counts)}; allowed: clean and one attack")
        return self

    @property
    def counts(self) -> dict[str, Counts]:
        return {"clean": self.clean, **self.__pydantic_extra__}

    @property
    def attack(self) -> str:
        return next(name for name in self.counts if name not in ("clean", "fgsm"))

    @property
    def attacked(self) -> Counts:
        return self.counts[self.attack]


class Epoch(Record):
    """One row of metrics.jsonl; epochs count from 1, and `lr` is that of the last step.

    `loss` and its parts are means over the images, None where an older version stored one that was not finite. `train`
    and `predicted` (C,) count the training examples as the training saw them. Mean (C,) and quartiles (C, 3) of
    `distance` are between the examples of this and the previous epoch. `images_per_second` is without the curve.
    """

    epoch: Count
    stage: str
    lr: NonNegative | None = None
    loss: dict[str, float | None]
    trained: Counts | None = Field(None, alias="train")
    predicted: PerClass | None = None
    distance: tuple[NonNegative, ...] | None = None
    quartiles: tuple[tuple[NonNegative, NonNegative, NonNegative], ...] | None = Field(None, alias="distance_quartiles")
    monitor: CurvePoint | None = None
    seconds: NonNegative
    images_per_second: NonNegative | None = None
    peak_memory_mb: NonNegative | None = None
