"""The result card: what each attack did to each test image, and every number that follows from it."""

from __future__ import annotations

import base64
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taet import metrics
from taet.errors import UserError, unknown
from taet.files import write_json

SCHEMA = 1
KIND = "taet result card"
TOLERANCE = 1e-9  # of a stored share against the recomputed one: far above rounding, far below one image

Mask = NDArray[np.bool_]
Ints = NDArray[np.int64]
Interval = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Column:
    """One attack on all test images, in test order."""

    name: str
    norm: str | None
    """Norm of the ball, e.g. "linf"; None for clean images."""
    eps: float | None
    """Radius of the ball in units of the image range; None for clean images and unbounded attacks."""
    bounded: bool
    """Whether the attack had to stay in the ball."""
    parameters: dict[str, Any]
    """What the attack was given: steps, step size, start, seed, iterations, target classes."""
    correct: Mask
    """(N,): still classified correctly under the attack."""
    predictions: Ints
    """(N,): class predicted under the attack."""
    parts: dict[str, Mask] = field(default_factory=dict)
    """Of an attack in parts, in the order they ran: (N,) still correct after that part."""
    seconds: float = 0.0
    forwards: int = 0
    """Image-forwards: images that passed through the model."""
    backwards: int = 0
    """Image-backwards: images whose gradient was computed."""


@dataclass(frozen=True, eq=False)
class Summary:
    """The numbers of one column; shares are in [0, 1], intervals are at 95 %, a class without test images is nan."""

    correct: Ints
    """(C,): test images classified correctly."""
    total: Ints
    """(C,): test images."""
    accuracy: float
    accuracy_interval: Interval
    balanced: float
    """Mean recall over the classes that have test images."""
    balanced_interval: Interval
    per_class: metrics.Floats
    per_class_interval: tuple[metrics.Floats, metrics.Floats]
    """(low, high), each (C,)."""
    groups: dict[str, float]
    """Balanced accuracy of head, body, tail and last_half; empty where the training counts are not known."""
    group_intervals: dict[str, Interval]
    worst_class: tuple[int, float]
    """(label, recall) of the class with the lowest recall."""
    confusion: Ints
    """(C, C), rows true, columns predicted."""

    def to_json(self) -> dict[str, Any]:
        """Return all but the confusion matrix as plain lists and numbers, None for nan."""
        low, high = self.per_class_interval
        values = {
            "correct": self.correct,
            "total": self.total,
            "accuracy": self.accuracy,
            "accuracy_interval": self.accuracy_interval,
            "balanced": self.balanced,
            "balanced_interval": self.balanced_interval,
            "per_class": self.per_class,
            "per_class_interval": (low, high),
            "groups": self.groups,
            "group_intervals": self.group_intervals,
            "worst_class": self.worst_class,
        }
        return {name: _plain(value) for name, value in values.items()}


@dataclass(frozen=True, eq=False)
class ResultCard:
    """The only source of any table: a model, the images it was tested on, and one column per attack."""

    method: str
    title: str
    protocol: str
    threat: dict[str, Any]
    """Norm and radius that the evaluation is about: {"norm": "linf", "eps": 0.0314}."""
    seed: int | None
    """Seed of the training run; None for a model from elsewhere."""
    model: dict[str, Any]
    """name, weights_sha256, parameters, selection, epoch, leak (was the epoch chosen by looking at the test set)."""
    data: dict[str, Any]
    """name, class_names, test_sha256; train_class_counts, imbalance_ratio and notes where they are known."""
    batch_size: int
    labels: Ints
    """(N,): true classes in test order."""
    columns: tuple[Column, ...]
    flags: tuple[dict[str, str], ...] = ()
    """Warnings of the diagnostics: {"flag": short name, "text": what it means and what to do}."""
    probe: dict[str, Any] = field(default_factory=dict)
    """What was tried on the first images to find out what attacks can be fooled by (`taet.evaluation.probe`); empty
    where it was not run, since nothing was attacked."""
    run: dict[str, Any] = field(default_factory=dict)
    """How the model was trained: {"config": the whole Run, "command": the call}, and where it is known, "deviations":
    where the method leaves the protocol, in words; empty for a model from elsewhere."""
    environment: dict[str, Any] = field(default_factory=dict)
    created: str = ""
    command: str = ""

    def __post_init__(self) -> None:
        count, classes = len(self.labels), self.num_classes
        _check_classes("labels", self.labels, count, classes)
        counts = self.data.get("train_class_counts")
        if counts is not None and len(counts) != classes:
            raise UserError(f"data train_class_counts: got {len(counts)}; allowed: {classes}, one per class")
        names = [column.name for column in self.columns]
        if len(set(names)) < len(names):
            raise UserError(f"columns: got {', '.join(names)}; allowed: each attack once")
        for column in self.columns:
            where = f"column '{column.name}'"
            _check_classes(f"{where} predictions", column.predictions, count, classes)
            if column.correct.shape != (count,) or (column.correct != (column.predictions == self.labels)).any():
                raise UserError(f"{where} correct: does not agree with its predictions and the labels")
            before = np.ones(count, dtype=bool)
            for part, mask in column.parts.items():
                if mask.shape != (count,) or (mask & ~before).any():
                    raise UserError(f"{where} part '{part}': an image that was broken before is correct again")
                before = mask
            if column.parts and (before != column.correct).any():
                raise UserError(f"{where} parts: the last one does not agree with the column")

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.data["class_names"])

    @property
    def num_classes(self) -> int:
        return len(self.data["class_names"])

    @property
    def deviations(self) -> tuple[str, ...]:
        """Where the training left the protocol, in words; empty also where the card does not know."""
        return tuple(map(str, self.run.get("deviations") or ()))

    def column(self, name: str) -> Column:
        """Return the column of an attack; an unknown name is a `UserError` with the nearest match."""
        for column in self.columns:
            if column.name == name:
                return column
        raise unknown("column", name, [column.name for column in self.columns])

    def summary(self, name: str) -> Summary:
        """Compute the numbers of a column from its masks."""
        column, classes = self.column(name), self.num_classes
        correct, total = metrics.class_counts(column.correct, self.labels, classes)
        train_counts = self.data.get("train_class_counts")
        groups = metrics.class_groups(train_counts) if train_counts is not None else {}
        low, high = metrics.wilson_interval(correct.sum(), total.sum())
        return Summary(
            correct=correct,
            total=total,
            accuracy=metrics.accuracy(correct, total),
            accuracy_interval=(float(low), float(high)),
            balanced=metrics.balanced_accuracy(correct, total),
            balanced_interval=metrics.balanced_interval(correct, total),
            per_class=metrics.per_class_accuracy(correct, total),
            per_class_interval=metrics.wilson_interval(correct, total),
            groups=metrics.group_accuracy(correct, total, groups),
            group_intervals={name: metrics.balanced_interval(correct[of], total[of]) for name, of in groups.items()},
            worst_class=metrics.worst_class(correct, total),
            confusion=metrics.confusion_matrix(self.labels, column.predictions, classes),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the card as plain JSON; masks are packed bits in base64, first image in the highest bit."""
        return {
            "kind": KIND,
            "schema": SCHEMA,
            "method": self.method,
            "title": self.title,
            "protocol": self.protocol,
            "threat": self.threat,
            "seed": self.seed,
            "model": self.model,
            "data": _plain(self.data),
            "batch_size": self.batch_size,
            "created": self.created,
            "command": self.command,
            "run": _plain(self.run),
            "environment": self.environment,
            "flags": list(self.flags),
            "probe": self.probe,
            "columns": [
                {
                    "name": column.name,
                    "norm": column.norm,
                    "eps": column.eps,
                    "bounded": column.bounded,
                    "parameters": _plain(column.parameters),
                    "seconds": column.seconds,
                    "forwards": column.forwards,
                    "backwards": column.backwards,
                    "summary": self.summary(column.name).to_json(),
                    "correct": _pack_mask(column.correct),
                    "predictions": _pack_integers(column.predictions),
                    "parts": {part: _pack_mask(mask) for part, mask in column.parts.items()},
                }
                for column in self.columns
            ],
            "labels": _pack_integers(self.labels),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the card as JSON; whatever happens, the file is the old one or the new one, never a part."""
        write_json(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ResultCard:
        """Read a card and recompute every number in it from the masks.

        A file that is no card, a newer schema, and a number that does not agree are each a `UserError`.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"result card {path}: cannot be read ({error.strerror})") from error
        except UnicodeDecodeError as error:
            raise UserError(f"result card {path}: not a JSON file") from error
        try:
            return cls.from_json(json.loads(text))
        except json.JSONDecodeError as error:
            raise UserError(f"result card {path}: truncated or not JSON (line {error.lineno}: {error.msg})") from error
        except UserError as error:
            raise UserError(f"result card {path}: {error}") from error

    @classmethod
    def from_json(cls, stored: Any) -> ResultCard:
        """Rebuild a card from what `to_json` gave."""
        if not isinstance(stored, Mapping) or stored.get("kind") != KIND:
            raise UserError("not a result card")
        schema = stored.get("schema")
        if schema != SCHEMA:
            hint = "; update taet" if isinstance(schema, int) and schema > SCHEMA else ""
            raise UserError(f"schema: got {schema}; allowed: {SCHEMA}{hint}")
        try:
            card = _read(cls, stored)
            summaries = [(column["name"], column["summary"]) for column in stored["columns"]]
        except KeyError as error:
            raise UserError(f"the field {error} is missing") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(f"a field has the wrong form ({error})") from error
        for name, summary in summaries:
            _compare(f"column '{name}' summary", summary, card.summary(name).to_json())
        return card

    def __repr__(self) -> str:
        head = f"{self.title or self.method} on {self.data.get('name', 'arrays')}: {len(self.labels)} test images"
        rows = [("attack", "accuracy %", "balanced %", "worst class %")]
        for column in self.columns:
            summary = self.summary(column.name)
            label, value = summary.worst_class
            rows.append(
                (
                    column.name,
                    _percent(summary.accuracy, summary.accuracy_interval),
                    _percent(summary.balanced, summary.balanced_interval),
                    f"{100 * value:.1f} ({self.class_names[label]})" if label >= 0 else "-",
                )
            )
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        deviations = (f"leaves the protocol: {text}" for text in self.deviations)
        return "\n".join([head, *lines, *deviations, *(f"! {flag['text']}" for flag in self.flags)])


def _read(cls: type[ResultCard], stored: Mapping[str, Any]) -> ResultCard:
    columns = tuple(
        Column(
            name=str(column["name"]),
            norm=column["norm"],
            eps=column["eps"],
            bounded=bool(column["bounded"]),
            parameters=dict(column["parameters"]),
            correct=_unpack_mask(column["correct"]),
            predictions=_unpack_integers(column["predictions"]),
            parts={part: _unpack_mask(mask) for part, mask in column["parts"].items()},
            seconds=float(column["seconds"]),
            forwards=int(column["forwards"]),
            backwards=int(column["backwards"]),
        )
        for column in stored["columns"]
    )
    return cls(
        method=stored["method"],
        title=stored["title"],
        protocol=stored["protocol"],
        threat=dict(stored["threat"]),
        seed=stored["seed"],
        model=dict(stored["model"]),
        data=dict(stored["data"]),
        batch_size=int(stored["batch_size"]),
        labels=_unpack_integers(stored["labels"]),
        columns=columns,
        flags=tuple(dict(flag) for flag in stored["flags"]),
        probe=dict(stored["probe"]),
        run=dict(stored["run"]),
        environment=dict(stored["environment"]),
        created=stored["created"],
        command=stored["command"],
    )


def _compare(where: str, stored: Any, computed: Any) -> None:
    """Refuse a stored value that differs from the recomputed one, and name it."""
    if isinstance(computed, dict) and isinstance(stored, dict) and stored.keys() == computed.keys():
        for key, value in computed.items():
            _compare(f"{where} {key}", stored[key], value)
    elif isinstance(computed, list) and isinstance(stored, list) and len(stored) == len(computed):
        for index, value in enumerate(computed):
            _compare(f"{where}[{index}]", stored[index], value)
    elif not _agree(stored, computed):
        raise UserError(f"{where}: stored {_short(stored)}, recomputed from the masks {_short(computed)}")


def _agree(stored: Any, computed: Any) -> bool:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (stored, computed))
    return math.isclose(stored, computed, rel_tol=0, abs_tol=TOLERANCE) if numbers else bool(stored == computed)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _check_classes(where: str, values: Ints, count: int, classes: int) -> None:
    if values.shape != (count,) or values.dtype.kind not in "iu":
        raise UserError(f"{where}: got {values.dtype} {values.shape}; allowed: integers ({count},)")
    if count and not (values.min() >= 0 and values.max() < classes):
        raise UserError(f"{where}: got {values.min()} to {values.max()}; allowed: 0 to {classes - 1}")


def _pack_mask(mask: Mask) -> dict[str, Any]:
    return {"count": len(mask), "bits": base64.b64encode(np.packbits(mask).tobytes()).decode()}


def _unpack_mask(packed: Mapping[str, Any]) -> Mask:
    count, content = int(packed["count"]), base64.b64decode(packed["bits"], validate=True)
    if len(content) != (count + 7) // 8:
        raise ValueError(f"{len(content)} bytes for {count} bits")
    return np.unpackbits(np.frombuffer(content, dtype=np.uint8), count=count).astype(bool)


def _pack_integers(values: Ints) -> dict[str, Any]:
    return {"count": len(values), "uint16": base64.b64encode(values.astype("<u2").tobytes()).decode()}


def _unpack_integers(packed: Mapping[str, Any]) -> Ints:
    values = np.frombuffer(base64.b64decode(packed["uint16"], validate=True), dtype="<u2")
    if len(values) != int(packed["count"]):
        raise ValueError(f"{len(values)} integers for {packed['count']}")
    return values.astype(np.int64)


def _plain(value: Any) -> Any:
    """Return arrays and tuples as lists, numpy scalars as numbers and nan as None."""
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _percent(value: float, interval: Interval) -> str:
    return f"{100 * value:.1f} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if not math.isnan(value) else "-"
