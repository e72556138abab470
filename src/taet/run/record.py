"""run.json and a row of metrics.jsonl, each declared once, and the settings that make two runs the
same."""

from functools import cached_property
from typing import Annotated, Self, TypeAlias

from pydantic import ConfigDict, Field, PlainSerializer, model_validator

from taet.data.notes import StoredNote
from taet.errors import UserError
from taet.files import Json
from taet.metrics import accuracies
from taet.models.classifier import Head
from taet.run.identity import RETIRED, run_from_json, run_hash, without
from taet.settings import Run
from taet.settings.schema import from_json
from taet.settings.types import Count, NonNegative, Record, Sha256, StoredCount

PerClass: TypeAlias = tuple[StoredCount, ...]
Side: TypeAlias = Annotated[int, Field(ge=1, le=2**16)]


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
    notes: tuple[StoredNote, ...] = ()
    arrays: bool
    splits: dict[str, SplitRecord]
    fingerprints: str = ""
    """The hash of every training image but the extra ones, 16 hexadecimal digits each."""
    extra: Json | None = None
    """Extra images: how they were made, in the user's words, and mixed in; their hash and that of
    the test images."""

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

    `settings` is the Run as stored JSON, `run` its typed form; `data.arrays`, `model_given`: what
    came from memory.
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
    choices: dict[str, str] = Field(default={})
    """Value of each setting that was chosen for this machine, by dotted name, and the reason."""
    processes: Count | None = None
    versions: dict[str, str | None] = Field(default={})
    commit: str | None = None
    device: str | None = None
    started: str | None = None
    command: str

    @model_validator(mode="after")
    def _names_a_method(self) -> Self:
        """The method's settings are checked by `run`: it need not be installed where the run is
        only reported."""
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
        return accuracies.balanced_accuracy(self.correct, self.total)


class CurvePoint(Record):
    """One point of the accuracy curves: the split, and by name the counts of clean images and under
    an attack.

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

    `loss` and its parts are means over the images, None where an older version stored one that was
    not finite. `train` and `predicted` (C,) count the training examples as the training saw them.
    Mean (C,) and quartiles (C, 3) of `distance` are between the examples of this and the previous
    epoch. `images_per_second` is without the curve.
    """

    epoch: Count
    stage: str
    lr: NonNegative | None = None
    loss: dict[str, float | None]
    trained: Counts | None = Field(None, alias="train")
    predicted: PerClass | None = None
    distance: tuple[NonNegative, ...] | None = None
    quartiles: tuple[tuple[NonNegative, NonNegative, NonNegative], ...] | None = Field(
        None, alias="distance_quartiles"
    )
    monitor: CurvePoint | None = None
    seconds: NonNegative
    images_per_second: NonNegative | None = None
    peak_memory_mb: NonNegative | None = None
