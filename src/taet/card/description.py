"""What a result card says of its model, data, run and machine: every field that is read again.

The parts of a card are plain JSON, so that fields of other versions stay as they are.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from taet.data.notes import StoredNote, note_from_json
from taet.files import Json
from taet.settings.types import STRICT, StoredCount, refused, to_python

Text = Annotated[str, Field(min_length=1)]


@with_config(STRICT)
class ModelIdentity(TypedDict):
    """What every card says of its model."""

    name: Text
    weights_sha256: Text


@with_config(STRICT)
class ModelDescription(ModelIdentity, total=False):
    """The evaluated model."""

    file_sha256: str | None
    parameters: StoredCount
    selection: str | None  # rule by which the epoch was chosen
    epoch: StoredCount | None
    leak: bool  # whether the epoch was chosen on the test set
    notes: Sequence[str]
    code: str  # hash of the source of its layers
    # logits and gradient norms of the first images; none where they are not finite
    answers: Sequence[Sequence[float | None]]


@with_config(STRICT)
class ExtraDescription(TypedDict, total=False):
    """The extra training images."""

    source: str
    compared: bool  # whether they were compared with the test images


@with_config(STRICT)
class DataIdentity(TypedDict):
    """What every card says of its test images."""

    name: Text
    class_names: Annotated[Sequence[str], Field(min_length=1)]
    test_sha256: Text


@with_config(STRICT)
class DataDescription(DataIdentity, total=False):
    """The test images, and how many images of each class the model was trained on."""

    train_class_counts: Sequence[StoredCount] | None
    imbalance_ratio: Annotated[float, Field(ge=1)] | None
    notes: Sequence[StoredNote]
    extra: ExtraDescription


@with_config(STRICT)
class ConfigDataDescription(TypedDict, total=False):
    """The settings of the data that a report reads."""

    group_share: float


@with_config(STRICT)
class ConfigDescription(TypedDict, total=False):
    """The settings of the training run, as its version stored them."""

    method: str
    protocol: str
    seed: int
    data: ConfigDataDescription
    model: Mapping[str, Any]
    threat: Mapping[str, Any]
    outer: Mapping[str, Any]
    training: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    settings: Mapping[str, Any]


@with_config(STRICT)
class RunDescription(TypedDict, total=False):
    """The training run; empty for a model that was trained elsewhere."""

    config: ConfigDescription
    hash: str
    command: str
    deviations: Sequence[str]
    code: Mapping[str, str]  # hashes of plug-ins, by their part of the run
    pretrained_sha256: str | None


@with_config(STRICT)
class EnvironmentDescription(TypedDict, total=False):
    """The machine and the software of the evaluation."""

    versions: Mapping[str, str | None]
    commit: str | None
    device: str


def with_notes(data: Any) -> Any:
    """Return what a card says of its data, with the kinds of the notes that its file stores."""
    if not isinstance(data, Mapping) or not isinstance(data.get("notes"), list | tuple):
        return data  # without notes, or for the check to refuse
    return {**data, "notes": [note_from_json(note) for note in data["notes"]]}


DESCRIPTIONS: Mapping[str, Any] = {
    "model": ModelDescription,
    "data": DataDescription,
    "run": RunDescription,
    "environment": EnvironmentDescription,
}

_adapter = functools.cache(TypeAdapter[Any])


def check_description(part: str, stored: Json) -> None:
    """Refuse a part of a card, one of `DESCRIPTIONS`, with a field of a wrong type."""
    kind = DESCRIPTIONS[part]
    try:
        _adapter(kind).validate_python(to_python(stored))
    except ValidationError as error:
        raise refused(error, kind, part) from None
