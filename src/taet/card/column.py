"""One column of a result card, and how a card packs arrays into JSON."""

import base64
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, GetCoreSchemaHandler, PlainSerializer
from pydantic_core import CoreSchema, core_schema, to_jsonable_python

from taet.attacks import catalogue
from taet.attacks.ball import Norm
from taet.attacks.spec import AttackSpec
from taet.files import Json
from taet.settings.types import Record

CurveName = Literal["steps", "eps", "logit-scale"]


def to_jsonable(value: object) -> Any:
    """Return a value as JSON: tuples and arrays as lists, numpy scalars as numbers, nan as None, at
    any depth."""
    return to_jsonable_python(value, inf_nan_mode="null", fallback=lambda array: array.tolist())


class Packed(NamedTuple):
    """Annotation of an array that JSON holds in base64, little-endian, beside its number of entries
    or its shape. The first of eight bits is the highest of its byte."""

    name: str
    kind: str

    def pack(self, values: NDArray[Any]) -> Json:
        size = {"shape": list(values.shape)} if self.name == "float32" else {"count": len(values)}
        stored = np.packbits(values) if self.name == "bits" else values.astype(self.kind)
        return {**size, self.name: base64.b64encode(stored.tobytes()).decode()}

    def unpack(self, value: Any) -> NDArray[Any]:
        """Return the array of its JSON; an array is returned as it is."""
        if isinstance(value, np.ndarray):
            return value
        stored = np.frombuffer(base64.b64decode(value[self.name], validate=True), self.kind)
        if self.name == "float32":
            return stored.astype(np.float32).reshape(value["shape"])
        bits = (
            np.unpackbits(stored)[: value["count"]].astype(bool)
            if self.name == "bits"
            else stored.astype(np.int64)
        )
        if len(bits) != value["count"]:
            raise ValueError(f"got {len(bits)} entries where {value['count']} are counted")
        return bits

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        written = core_schema.plain_serializer_function_ser_schema(self.pack)
        return core_schema.no_info_plain_validator_function(self.unpack, serialization=written)


Stored = Annotated[Json, PlainSerializer(to_jsonable)]
PackedMask = Annotated[NDArray[np.bool_], Packed("bits", "u1")]
PackedLabels = Annotated[NDArray[np.int64], Packed("uint16", "<u2")]
PackedFloats = Annotated[NDArray[np.float32], Packed("float32", "<f4")]


class CardPart(Record):
    """A part of a card; two are equal only if they are the same object."""

    def changed(self, **fields: Any) -> Self:
        """Return a copy with other values of these fields, checked again."""
        return type(self)(
            **{name: getattr(self, name) for name in type(self).model_fields} | fields
        )

    def __str__(self) -> str:
        return repr(self)

    __eq__ = object.__eq__
    __hash__ = object.__hash__


class Identity(NamedTuple):
    """Two results are comparable if they have the same identity: attack and settings, without
    random seeds."""

    name: str
    # sorted names and hashable values, with norm, eps and bounded
    settings: tuple[tuple[str, Any], ...]

    def differences(self, other: Self) -> dict[str, tuple[object, object]]:
        """Return both values of every setting in which two attacks differ, sorted."""
        ours, theirs = dict(self.settings), dict(other.settings)
        names = sorted(ours.keys() | theirs.keys())
        return {
            name: (ours.get(name), theirs.get(name))
            for name in names
            if ours.get(name) != theirs.get(name)
        }


def _frozen(value: Any) -> Any:
    """Return a JSON value as a hashable one, without the keys "seed" and "from", the origin of a
    result."""
    if isinstance(value, Mapping):
        return tuple(
            (key, _frozen(value[key])) for key in sorted(value) if key not in ("seed", "from")
        )
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


class Column(CardPart):
    """One attack on all test images, in test order; fields with a default are missing in columns of
    older schemas.

    Example:
        >>> import taet
        >>> column = taet.Card.load("runs/example/evaluation.json").column("pgd-2")
        >>> column.norm, round(255 * column.eps), len(column.correct) == len(column.predictions)
        ('linf', 8, True)
    """

    name: str
    norm: Norm | None  # of the ball; None for clean images
    # radius in units of the image range; None for clean images and unbounded attacks
    eps: float | None
    bounded: bool
    parameters: Stored
    seconds: float = 0.0
    forwards: int = 0  # passes are counted in images
    backwards: int = 0
    # numbers read from a file; `Card` recomputes them
    stored: Stored = Field(default={}, alias="summary", repr=False)
    correct: PackedMask  # (N,): classified correctly under the attack
    predictions: PackedLabels  # (N,): class predicted under the attack
    # (N,) still correct after each part of a suite
    parts: dict[str, PackedMask] = Field(default_factory=dict)
    distances: PackedFloats | None = None
    """(N,), for attacks that minimise the perturbation: its norm, 0 where the image was
    misclassified before, nan where the attack failed; None for other attacks."""
    roc_auc: PackedFloats | None = None
    """(C, C): of cards before schema 4 (`taet.card.retired.mean_auc`)."""
    # curve that it is a point of; empty for an attack that tables show
    curve: Literal["", CurveName] = ""

    @cached_property
    def attack(self) -> AttackSpec:
        """The attack as a typed specification; a `RecordedAttack` if this installation does not
        know it."""
        return catalogue.stored(self.name, self.norm, self.eps, self.parameters)

    @cached_property
    def identity(self) -> Identity:
        """The attack and its settings without random seeds; comparable columns of two cards have
        the same."""
        given = {**self.parameters, "norm": self.norm, "eps": self.eps, "bounded": self.bounded}
        if "attacks" in given:  # of a worst case, in any order
            given["attacks"] = sorted(given["attacks"], key=lambda attack: str(attack["name"]))
        return Identity(self.name, _frozen(given))

    def __repr__(self) -> str:
        ball = f", {self.norm} {self.eps:.4g}" if self.eps is not None else ""
        return (
            f"Column('{self.name}'{ball}: {int(self.correct.sum())} of {len(self.correct)} correct)"
        )

    @property
    def ball(self) -> tuple[str | None, float | None]:
        return self.norm, self.eps

    @property
    def is_transfer(self) -> bool:
        """Whether the adversarial examples were made on another model."""
        return "source" in self.parameters

    @property
    def ordinary(self) -> bool:
        """Whether the attack is on the model itself, and not only a point of a curve."""
        return not self.curve and not self.is_transfer
