"""One column of a result card: what one attack did to each test image. Also how a card packs arrays into JSON."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema
from typing_extensions import TypedDict

from taet.attacks import catalogue
from taet.attacks.ball import Norm
from taet.attacks.spec import AttackSpec, Identity, identity
from taet.errors import UserError
from taet.fields import Name, NonNegative, Record, Rule, Sha256, StoredCount, refused
from taet.statistics import Ints

T = TypeVar("T")
Json = dict[str, Any]
"""A JSON object, as `json.loads` returns it."""
WORST_CASE: dict[Norm, str] = {"linf": "worst-case", "l2": "worst-case-l2"}
"""Name of the column that holds the worst case within the balls of a norm."""
CurveName = Literal["steps", "eps", "logit-scale"]


def plain(value: Any) -> Any:
    """Return a value as JSON: tuples and arrays as lists, numpy scalars as numbers and nan as None, at any depth."""
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value


class Packed(Rule):
    """Annotation of an array that JSON holds in base64, little-endian, beside its number of entries or its shape.

    `kind` is the type of the stored numbers; of bits, the first of eight is the highest of its byte.
    """

    def __init__(self, name: str, kind: str) -> None:
        super().__init__(lambda _: True, "in base64, as many as its count says")
        self.name, self.kind = name, kind

    def pack(self, values: NDArray[Any]) -> Json:
        """Return the array as JSON."""
        size = {"shape": list(values.shape)} if self.name == "float32" else {"count": len(values)}
        stored = np.packbits(values) if self.name == "bits" else values.astype(self.kind)
        return {**size, self.name: base64.b64encode(stored.tobytes()).decode()}

    def unpack(self, value: Any) -> NDArray[Any]:
        """Return the array of its JSON; an array is returned as it is."""
        if isinstance(value, np.ndarray):
            return value
        try:
            stored = np.frombuffer(base64.b64decode(value[self.name], validate=True), self.kind)
            shape = value["shape"] if self.name == "float32" else [value["count"]]
            entries = math.prod(shape)
            if stored.size != ((entries + 7) // 8 if self.name == "bits" else entries) or min(shape, default=0) < 0:
                raise ValueError(self.text)
            if self.name == "bits":
                return np.unpackbits(stored, count=entries).astype(bool)
            return stored.astype(np.float32 if self.name == "float32" else np.int64).reshape(shape)
        except (KeyError, TypeError, OverflowError):
            raise ValueError(self.text) from None

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        written = core_schema.plain_serializer_function_ser_schema(self.pack)
        return core_schema.no_info_plain_validator_function(self.unpack, serialization=written)


@dataclass(frozen=True)
class AsGiven:
    """Annotation of a value that is checked, as a `kind` if that is given, and kept with all its further fields."""

    kind: Any = None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        known = handler(source) if self.kind is None else handler.generate_schema(self.kind)
        written = core_schema.plain_serializer_function_ser_schema(plain)
        return core_schema.no_info_wrap_validator_function(_as_given, known, serialization=written)


def _as_given(value: Any, check: Callable[[Any], object]) -> Any:
    check(value)
    return value


AsItIs = Annotated[T, AsGiven()]
PackedMask = Annotated[NDArray[np.bool_], Packed("bits", "u1")]
PackedLabels = Annotated[NDArray[np.int64], Packed("uint16", "<u2")]
PackedFloats = Annotated[NDArray[np.float32], Packed("float32", "<f4")]


class CardPart(Record):
    """A part of a card, whose errors are one line each; two are equal only if they are the same object."""

    model_config = ConfigDict(serialize_by_alias=True)
    what: ClassVar[str] = ""
    """Begins a message; of a part with a name, together with that."""

    @model_validator(mode="wrap")
    @classmethod
    def _one_line(cls, values: Any, check: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return check(values)
        except ValidationError as error:
            name = values.get("name") if isinstance(values, Mapping) and cls.what else None
            raise refused(error, cls, f"{cls.what} '{name[:60]}'" if isinstance(name, str) else cls.what) from None

    def changed(self, **fields: Any) -> Self:
        """Return a copy with other values of these fields, checked again."""
        return type(self)(**{name: getattr(self, name) for name in type(self).model_fields} | fields)

    def __str__(self) -> str:
        return repr(self)

    __eq__ = object.__eq__
    __hash__ = object.__hash__


class SourceAbout(TypedDict):
    """The model that adversarial examples were made on."""

    name: str
    weights_sha256: Sha256


class Parameters(TypedDict, total=False):
    """Settings of an attack that any reader may need; its specification checks the others."""

    seed: int | None
    source: SourceAbout
    attacks: list[Json]
    """Of a worst case: its attacks."""


class Column(CardPart):
    """One attack on all test images, in test order; a default is what a column of an older schema lacks."""

    what: ClassVar[str] = "column"

    name: Name
    norm: Norm | None
    """None for clean images."""
    eps: NonNegative | None
    """Radius of the ball in units of the image range; None for clean images and unbounded attacks."""
    bounded: bool
    parameters: Annotated[Json, AsGiven(Parameters)]
    seconds: Annotated[NonNegative, Field(le=1e12)] = 0.0
    forwards: StoredCount = 0
    """Passes are counted in images."""
    backwards: StoredCount = 0
    stored: AsItIs[Json] = Field(default={}, alias="summary", repr=False)
    """The numbers that a file states beside the masks; `ResultCard` recomputes and compares them."""
    correct: PackedMask
    """(N,): classified correctly under the attack."""
    predictions: PackedLabels
    """(N,): class predicted under the attack."""
    parts: dict[str, PackedMask] = Field(default_factory=dict)
    """For an attack made of several parts, in the order they ran: (N,) still correct after that part."""
    distances: PackedFloats | None = None
    """(N,), for attacks that minimise the perturbation: its norm, 0 where the image was misclassified before, nan where
    the attack failed; None for other attacks."""
    roc_auc: PackedFloats | None = None
    """(C, C): how well the score of class j separates it from class k (`statistics.pairwise_auc`); None where it was
    not measured, e.g. with more than `statistics.PAIRED_CLASSES` classes."""
    curve: Literal["", CurveName] = ""
    """The curve that this column was measured for; empty for an attack that tables show."""

    @cached_property
    def attack(self) -> AttackSpec:
        """The attack as a typed specification; a `RecordedAttack` if this installation does not know it."""
        return catalogue.stored(self.name, self.norm, self.eps, self.parameters)

    @cached_property
    def identity(self) -> Identity:
        """Equal for comparable columns of two cards: the same attack with the same settings, except random seeds."""
        return identity(self.name, self.norm, self.eps, self.parameters, self.bounded)

    @classmethod
    def of(cls, attack: AttackSpec, predictions: Ints, labels: Ints, **measured: Any) -> Column:
        """Return the column of an attack, given its predictions (N,) and the labels (N,)."""
        measured["parameters"] = attack.parameters | measured.get("parameters", {})
        names = ("name", "norm", "eps", "bounded", "curve")
        measured |= {name: getattr(attack, name) for name in names}
        return cls(correct=predictions == labels, predictions=predictions, **measured)

    def __repr__(self) -> str:
        ball = f", {self.norm} {self.eps:.4g}" if self.eps is not None else ""
        return f"Column('{self.name}'{ball}: {int(self.correct.sum())} of {len(self.correct)} correct)"

    @property
    def is_transfer(self) -> bool:
        """Whether the adversarial examples were made on another model."""
        return "source" in self.parameters

    @property
    def ordinary(self) -> bool:
        """Whether tables show the column: an attack on the model itself that is not only a point of a curve."""
        return not self.curve and not self.is_transfer

    def check(self, labels: Ints, num_classes: int) -> None:
        """Raise a `UserError` if the column contradicts itself or the true classes of the images, (N,)."""
        where = f"column '{self.name}'"
        if (self.eps is not None or self.bounded) and (self.norm is None or self.eps is None):
            raise UserError(f"{where}: got norm {self.norm} and eps {self.eps}; allowed: a ball has both")
        if self.norm == "linf" and self.eps is not None and self.eps > 1:
            raise UserError(f"{where} eps: got {self.eps:g}; allowed: 0 to 1")
        check_classes(f"{where} predictions", self.predictions, len(labels), num_classes)
        if self.correct.shape != labels.shape or (self.correct != (self.predictions == labels)).any():
            raise UserError(f"{where} correct: does not agree with its predictions and the labels")
        before = np.ones(len(labels), dtype=bool)
        for part, mask in self.parts.items():
            if mask.shape != labels.shape or (mask & ~before).any():
                raise UserError(f"{where} part '{part}': an image that was broken before is correct again")
            before = mask
        if self.parts and (before != self.correct).any():
            raise UserError(f"{where} parts: the last one does not agree with the column")
        if self.distances is not None:
            _check_floats(f"{where} distances", self.distances, ~self.correct, math.inf)
        if self.roc_auc is not None:
            present = np.bincount(labels, minlength=num_classes) > 0
            pairs = present & present[:, None] & ~np.eye(num_classes, dtype=bool)
            _check_floats(f"{where} roc_auc", self.roc_auc, pairs, 1.0)


def check_classes(where: str, values: Ints, count: int, classes: int) -> None:
    """Raise a `UserError` unless `values` are `count` class labels from 0 to `classes` - 1."""
    if values.shape != (count,) or values.dtype.kind not in "iu":
        raise UserError(f"{where}: got {values.dtype} {values.shape}; allowed: integers ({count},)")
    if count and not (values.min() >= 0 and values.max() < classes):
        raise UserError(f"{where}: got {values.min()} to {values.max()}; allowed: 0 to {classes - 1}")


def _check_floats(where: str, values: NDArray[np.float32], known: NDArray[np.bool_], most: float) -> None:
    """Raise a `UserError` unless values are in [0, `most`] where `known` is True and nan elsewhere."""
    if values.shape != known.shape or values.dtype != np.float32:
        raise UserError(f"{where}: got {values.dtype} {values.shape}; allowed: float32 {known.shape}")
    if (np.isfinite(values) != known).any() or not ((values[known] >= 0) & (values[known] <= most)).all():
        raise UserError(f"{where}: a number is missing, out of range, or where there can be none")
