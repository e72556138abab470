"""The stored form of result cards: the type and bounds of every field, its version, and the check of stored numbers."""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from pydantic import Field

from taet.attacks.ball import Norm
from taet.errors import UserError
from taet.evaluation.packing import Json, PackedFloats, PackedIntegers, PackedMask
from taet.fields import Name, NonNegative, Sha256, StoredCount
from taet.formatting import short
from taet.settings import Run
from taet.shapes import check_shape, kind_text

KIND = "taet result card"
DECISION = "taet decision"
"""Kind of the card of a decision between two models (`taet.evaluation.decision_card`)."""
SCHEMA = 3
CurveName = Literal["steps", "eps", "logit-scale"]
CURVES = ("", *typing.get_args(CurveName))
TOLERANCE = 1e-9  # between a stored and a recomputed share: far above rounding, far below one image


class ThreatAbout(TypedDict):
    """The ball that a card is about."""

    norm: Norm
    eps: Annotated[float, Field(gt=0)]


class ModelAbout(TypedDict):
    """The evaluated model."""

    name: str
    weights_sha256: Sha256
    """Hash of the names, shapes and values of its tensors (`taet.training.checkpoint.weights_digest`)."""
    file_sha256: NotRequired[Sha256]
    """Hash of the weights file in the run folder."""
    parameters: NotRequired[StoredCount]
    selection: NotRequired[str | None]
    epoch: NotRequired[StoredCount | None]
    leak: NotRequired[bool]
    """Whether the epoch was chosen on the test set."""
    notes: NotRequired[list[str]]
    answers: NotRequired[list[list[float | None]]]
    """Logits and gradient norms of the first images; None is nan."""


class ExtraAbout(TypedDict):
    """Extra training images of the model; the run's record has more details."""

    source: str
    saw_removed_tail: Literal["no", "yes", "unknown"]
    sha256: Sha256
    per_batch: StoredCount
    batch_size: StoredCount
    classes: str
    class_counts: list[StoredCount]
    trained_on: NotRequired[str]
    """What their generator was trained on: this-set, balanced-original or other."""
    labels: NotRequired[str]
    """given with the images, or pseudo: predicted by a model."""
    kept: NotRequired[NonNegative]
    """Fraction of each class that a filter kept."""
    judge_sha256: NotRequired[Sha256 | None]
    """SHA-256 of the weights of the model that filtered them."""
    left_out: NotRequired[dict[str, tuple[StoredCount, StoredCount]]]
    """For each split: images left out as exact and as near duplicates of its images; empty for copies."""
    left_out_by: NotRequired[str]
    """How duplicates were found."""
    compared: NotRequired[bool]
    """Whether they were compared with the test images, which excludes duplicates."""


EXTRA_ABOUT = tuple(name for name in ExtraAbout.__annotations__ if name != "compared")
"""What a card repeats of the run's record of its extra images."""


class DataAbout(TypedDict):
    """The test images, and what is known about the training images."""

    name: str
    class_names: list[str]
    test_sha256: Sha256
    train_class_counts: NotRequired[list[StoredCount] | None]
    imbalance_ratio: NotRequired[NonNegative | None]
    notes: NotRequired[list[str]]
    extra: NotRequired[ExtraAbout]


class Flag(TypedDict):
    """A warning of the diagnostics."""

    flag: Name
    text: str
    """What was found, what it means and what to do."""


class TrainedRun(TypedDict, total=False):
    """How the model was trained."""

    config: Annotated[dict[str, Any], Run]
    """The settings as JSON."""
    hash: Sha256
    """Hash of the settings (`taet.training.decisive_settings.run_hash`), as stored in the weights file."""
    command: str
    deviations: list[str]
    """Deviations of the method from the protocol, in words."""


class Environment(TypedDict, total=False):
    """The machine and the software of an evaluation."""

    versions: dict[str, str | None]
    commit: str | None
    device: str


class SourceAbout(TypedDict):
    """The model that adversarial examples were made on."""

    name: str
    weights_sha256: Sha256


class WorstCaseMember(TypedDict):
    """An attack of a worst case."""

    name: Name
    norm: NotRequired[Norm | None]
    eps: NotRequired[NonNegative | None]
    attacks: NotRequired[list[WorstCaseMember]]


class Parameters(TypedDict, total=False):
    """Settings of an attack that any reader may need; its specification defines the types of the other settings."""

    seed: int | None
    source: SourceAbout
    source_sha256: Sha256
    attacks: list[WorstCaseMember]
    note: str


class StoredColumn(TypedDict):
    """One attack on all test images."""

    name: Name
    norm: Norm | None
    eps: NonNegative | None
    bounded: bool
    parameters: Parameters
    seconds: Annotated[NonNegative, Field(le=1e12)]
    forwards: StoredCount
    backwards: StoredCount
    summary: dict[str, Any]
    """Numbers computed from the masks; on reading they are recomputed and compared."""
    correct: PackedMask
    predictions: PackedIntegers
    parts: dict[str, PackedMask]
    distances: PackedFloats | None
    roc_auc: PackedFloats | None
    curve: Literal["", CurveName]


ADDED_2 = (
    *("flip_rate", "class_flip_rate", "natural_error", "boundary_error"),
    *("weak_classes", "few_images", "median_distance", "roc_auc"),
)
"""The numbers of a summary that schema 2 added."""
CHANGED_3 = ("balanced_interval", "group_intervals")
"""Intervals whose computation changed with schema 3; older ones are not compared, only the numbers behind them."""


def check_schema(stored: object) -> int:
    """Return the schema of a stored card; raise a `UserError` if it is not a card or this version cannot read it."""
    if isinstance(stored, Mapping) and stored.get("kind") == DECISION:
        raise UserError("not a result card, but a decision between two models on some of the images")
    if not isinstance(stored, Mapping) or stored.get("kind") != KIND:
        raise UserError("not a result card")
    schema = stored.get("schema")
    if type(schema) is not int or not 1 <= schema <= SCHEMA:
        hint = "; update taet" if type(schema) is int and schema > SCHEMA else ""
        got = short(schema) if isinstance(schema, int | str) else kind_text(schema)
        raise UserError(f"schema: got {got}; allowed: 1 to {SCHEMA}{hint}")
    return schema


def stored_columns(stored: Any, schema: int) -> list[StoredColumn]:
    """Return the columns of a stored card in the current schema; fields that an older one lacks are not measured.

    Summaries are not converted: they are recomputed, and the numbers that they contain are compared.
    """
    migrated = stored
    if schema < 2 and isinstance(stored, list):
        added = {"distances": None, "roc_auc": None, "curve": ""}
        migrated = [{**column, **added} if isinstance(column, dict) else column for column in stored]
    check_shape("columns", migrated, list[StoredColumn])
    return typing.cast(list[StoredColumn], migrated)


def check_summary(where: str, stored: object, computed: Json, schema: int) -> None:
    """Raise a `UserError` if any number of a stored summary, by its schema, differs from the recomputed one."""
    changed = CHANGED_3 if schema < 3 else ()
    left_out = {*(ADDED_2 if schema < 2 else ()), *changed}
    if isinstance(stored, dict):
        stored = {name: value for name, value in stored.items() if name not in changed}
    check_values(where, stored, {name: value for name, value in computed.items() if name not in left_out})


def check_values(where: str, stored: object, computed: object) -> None:
    """Raise a `UserError` that names the value if a stored value differs from the recomputed one."""
    if isinstance(computed, dict) and isinstance(stored, dict) and stored.keys() == computed.keys():
        for key, value in computed.items():
            check_values(f"{where} {key}", stored[key], value)
    elif isinstance(computed, list) and isinstance(stored, list) and len(stored) == len(computed):
        for index, value in enumerate(computed):
            check_values(f"{where}[{index}]", stored[index], value)
    elif not _agree(stored, computed):
        raise UserError(f"{where}: stored {short(stored)}, recomputed from the masks {short(computed)}")


def _agree(stored: object, computed: object) -> bool:
    if bool in (type(stored), type(computed)) or not isinstance(stored, int | float):
        return stored == computed
    return isinstance(computed, int | float) and math.isclose(stored, computed, rel_tol=0, abs_tol=TOLERANCE)
