"""One column of a result card: what one attack did to each test image."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taet.attacks import catalogue
from taet.attacks.identity import Identity, identity
from taet.attacks.spec import AttackSpec
from taet.errors import UserError, unknown
from taet.evaluation.packing import (
    Json,
    pack_floats,
    pack_integers,
    pack_mask,
    plain,
    unpack_floats,
    unpack_integers,
    unpack_mask,
)
from taet.evaluation.schema import CURVES, StoredColumn
from taet.fields import check_radius
from taet.statistics import Ints, Mask

WORST_CASE = {"linf": "worst-case", "l2": "worst-case-l2"}
"""Name of the column that holds the worst case within the balls of a norm."""

Floats32 = NDArray[np.float32]


@dataclass(frozen=True, eq=False, repr=False)
class Column:
    """One attack on all test images, in test order."""

    name: str
    norm: str | None
    """Norm of the ball, e.g. "linf"; None for clean images."""
    eps: float | None
    """Radius of the ball in units of the image range; None for clean images and unbounded attacks."""
    bounded: bool
    """Whether the attack had to stay in the ball."""
    parameters: Json
    """Settings of the attack: steps, step size, start, seed, iterations, target classes."""
    correct: Mask
    """(N,): classified correctly under the attack."""
    predictions: Ints
    """(N,): class predicted under the attack."""
    parts: dict[str, Mask] = field(default_factory=dict)
    """For an attack made of several parts, in the order they ran: (N,) still correct after that part."""
    seconds: float = 0.0
    forwards: int = 0
    """Forward passes, counted in images."""
    backwards: int = 0
    """Backward passes, counted in images."""
    distances: Floats32 | None = None
    """(N,), for attacks that minimise the perturbation: its norm, 0 where the image was misclassified before, nan where
    the attack failed; None for other attacks."""
    roc_auc: Floats32 | None = None
    """(C, C): how well the score of class j separates it from class k (`statistics.pairwise_auc`); None where it was
    not measured, e.g. with more than `statistics.PAIRED_CLASSES` classes."""
    curve: str = ""
    """The curve that this column was measured for, one of `CURVES`; empty for an attack that tables show."""

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
        return cls(
            name=attack.name,
            norm=attack.norm,
            eps=attack.eps,
            bounded=attack.bounded,
            correct=predictions == labels,
            predictions=predictions,
            curve=attack.curve,
            **measured,
        )

    @classmethod
    def worst_of(
        cls, attacks: Iterable[Json], norm: str, eps: float | None, predictions: Ints, labels: Ints, **measured: Any
    ) -> Column:
        """Return the worst case over attacks, given as JSON, within one ball."""
        chain = {"attacks": sorted(attacks, key=lambda attack: str(attack["name"]))}
        return cls(WORST_CASE[norm], norm, eps, True, chain, predictions == labels, predictions, **measured)

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
        if self.eps is not None:
            check_radius(f"{where} eps", self.eps, self.norm or "linf")
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
        if self.curve not in CURVES:
            raise unknown("curve", self.curve, filter(None, CURVES))

    def to_json(self, summary: Json) -> Json:
        """Return the column as plain JSON together with the summary computed from it."""
        return {
            "name": self.name,
            "norm": self.norm,
            "eps": self.eps,
            "bounded": self.bounded,
            "parameters": plain(self.parameters),
            "seconds": self.seconds,
            "forwards": self.forwards,
            "backwards": self.backwards,
            "summary": summary,
            "correct": pack_mask(self.correct),
            "predictions": pack_integers(self.predictions),
            "parts": {part: pack_mask(mask) for part, mask in self.parts.items()},
            "distances": pack_floats(self.distances),
            "roc_auc": pack_floats(self.roc_auc),
            "curve": self.curve,
        }

    @classmethod
    def from_json(cls, stored: StoredColumn) -> Column:
        """Rebuild a column from what `to_json` returned, checked by `taet.evaluation.schema`."""
        column = cls(
            name=stored["name"],
            norm=stored["norm"],
            eps=stored["eps"],
            bounded=stored["bounded"],
            parameters={**stored["parameters"]},
            correct=unpack_mask(stored["correct"]),
            predictions=unpack_integers(stored["predictions"]),
            parts={part: unpack_mask(mask) for part, mask in stored["parts"].items()},
            seconds=float(stored["seconds"]),
            forwards=stored["forwards"],
            backwards=stored["backwards"],
            distances=unpack_floats(stored["distances"]),
            roc_auc=unpack_floats(stored["roc_auc"]),
            curve=stored["curve"],
        )
        column.attack  # noqa: B018  # raises an error for settings that the attack cannot have
        return column


def check_classes(where: str, values: Ints, count: int, classes: int) -> None:
    """Raise a `UserError` unless `values` are `count` class labels from 0 to `classes` - 1."""
    if values.shape != (count,) or values.dtype.kind not in "iu":
        raise UserError(f"{where}: got {values.dtype} {values.shape}; allowed: integers ({count},)")
    if count and not (values.min() >= 0 and values.max() < classes):
        raise UserError(f"{where}: got {values.min()} to {values.max()}; allowed: 0 to {classes - 1}")


def _check_floats(where: str, values: Floats32, known: Mask, most: float) -> None:
    """Raise a `UserError` unless values are in [0, `most`] where `known` is True and nan elsewhere."""
    if values.shape != known.shape or values.dtype != np.float32:
        raise UserError(f"{where}: got {values.dtype} {values.shape}; allowed: float32 {known.shape}")
    if (np.isfinite(values) != known).any() or not ((values[known] >= 0) & (values[known] <= most)).all():
        raise UserError(f"{where}: a number is missing, out of range, or where there can be none")
