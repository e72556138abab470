"""Reads run folders: what was run, the curves of its training, its result card and its example images.

A folder may hold a result card alone, that of a model from elsewhere.
"""

from __future__ import annotations

import dataclasses
import json
import math
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from taet import metrics
from taet.config import MACHINE
from taet.errors import UserError
from taet.evaluation.card import ResultCard
from taet.training.checkpoint import read_record

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# The machine does not decide a run's numbers, nor does the place of the data, nor which attacks follow.
UNDECIDING = MACHINE | {"evaluation.attacks"}


@dataclass(frozen=True)
class Counts:
    """Correct and all examples per class, (C,) each."""

    correct: Ints
    total: Ints


@dataclass(frozen=True)
class Monitor:
    """One point of the accuracy curves: clean and under an attack, on one split."""

    split: str
    attack: str
    clean: Counts
    attacked: Counts


@dataclass(frozen=True)
class Epoch:
    """One row of metrics.jsonl."""

    epoch: int
    stage: str
    loss: Mapping[str, float]
    predicted: Ints | None
    monitor: Monitor | None
    seconds: float
    peak_memory_mb: float | None


@dataclass(frozen=True)
class Examples:
    """Adversarial images beside clean ones: uint8 and float in [0, 1], (n, H, W, C); labels and predictions (n,)."""

    images: npt.NDArray[np.uint8]
    adversarial: npt.NDArray[np.float32]
    labels: Ints
    clean_predictions: Ints
    adversarial_predictions: Ints
    attack: str
    eps: float


@dataclass(frozen=True)
class Data:
    """The images that a run was trained and tested on; two runs are compared only where these agree."""

    name: str
    class_names: tuple[str, ...]
    train_counts: tuple[int, ...] | None
    """Training images of each class; None where they are not known, and then there are no groups of classes."""
    test_counts: tuple[int, ...]
    test_sha256: str
    notes: tuple[str, ...] = field(compare=False)

    @property
    def imbalance_ratio(self) -> float:
        """Largest over smallest training class, inf where a class has no image; nan where they are not known."""
        if self.train_counts is None:
            return math.nan
        return max(self.train_counts) / min(self.train_counts) if min(self.train_counts) else math.inf

    @property
    def ranks(self) -> Ints:
        """Place of each class by training count, 0 for the largest, (C,); its label where they are not known."""
        return np.arange(len(self.class_names)) if self.train_counts is None else metrics.class_ranks(self.train_counts)

    @property
    def order(self) -> Ints:
        """Classes from the largest to the smallest, (C,)."""
        return np.argsort(self.ranks, kind="stable")

    @property
    def groups(self) -> dict[str, Ints]:
        """Head, body and tail, each an array of class labels; nothing where the training counts are not known."""
        groups = {} if self.train_counts is None else metrics.class_groups(self.train_counts)
        return {name: np.asarray(groups[name], dtype=np.int64) for name in groups if name != "last_half"}

    @property
    def few(self) -> tuple[int, ...]:
        """Labels of the classes with so few test images that one of them moves their accuracy by points."""
        return tuple(metrics.few_images(self.test_counts))


@dataclass(frozen=True)
class RunFolder:
    """Everything of one run that a report shows."""

    path: Path
    record: Mapping[str, Any]
    """run.json; empty where the folder holds a result card alone."""
    epochs: tuple[Epoch, ...]
    card: ResultCard | None
    examples: Examples | None
    data: Data

    @property
    def _alone(self) -> ResultCard | None:
        """The card, where the folder holds nothing else that tells what was run."""
        return None if self.record else self.card

    @property
    def config(self) -> Mapping[str, Any]:
        """How it was trained, as JSON; empty for a model from elsewhere."""
        told = self._alone.run.get("config") if self._alone is not None else self.record["run"]
        return told or {}

    @property
    def method(self) -> str:
        """The method; the name of the model where that is from elsewhere."""
        return self._alone.method if self._alone is not None else str(self.record["run"]["method"])

    @property
    def seed(self) -> int | None:
        """Seed of the training; None of a model from elsewhere."""
        return self._alone.seed if self._alone is not None else int(self.record["run"]["seed"])

    @property
    def deviations(self) -> tuple[str, ...]:
        """Where the method left the protocol, in words."""
        return (
            self._alone.deviations if self._alone is not None else tuple(map(str, self.record.get("deviations") or ()))
        )

    @property
    def seconds(self) -> float:
        """Seconds that training took, with the points of its curve."""
        return sum(epoch.seconds for epoch in self.epochs)

    @property
    def settings(self) -> dict[str, Any]:
        """What runs that differ in nothing but the seed have in common, by dotted name."""
        return {name: value for name, value in deciding(self.config).items() if name != "seed"}


def deciding(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that decide the numbers of a run, given as JSON, by dotted name."""
    return {name: value for name, value in _leaves(run, "") if name not in UNDECIDING}


def _leaves(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, list(value) if isinstance(value, tuple) else value


def read(path: Path) -> RunFolder:
    """Read the folder `path`; one that holds neither run nor result card, or is damaged, is a `UserError`."""
    has_run, has_card = ((path / name).is_file() for name in ("run.json", "evaluation.json"))
    if not (has_run or has_card):
        raise UserError(
            f"{path}: no run folder (it has no run.json, nor an evaluation.json); "
            "allowed: folders that taet train or taet evaluate wrote"
        )
    card = ResultCard.load(path / "evaluation.json") if has_card else None
    record = read_record(path) if has_run else {}
    try:
        data = _told_by_card(card) if card is not None and not has_run else _told_by_run(record)
        run = RunFolder(path, record, _epochs(path / "metrics.jsonl"), card, None, data)
        str(run.method), run.seed  # a record that lacks them is refused here
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: damaged run folder: {type(error).__name__} {error}") from error
    if card is not None and has_run:
        if card.class_names != data.class_names:
            raise UserError(f"{path}: the classes of evaluation.json are not those of run.json; evaluate the run again")
        sha256 = str(card.data.get("test_sha256", data.test_sha256))
        data = dataclasses.replace(data, test_sha256=sha256, test_counts=_tested(card))
    return dataclasses.replace(run, data=data, examples=_examples(path / "artifacts" / "examples.npz", data))


def _told_by_run(record: Mapping[str, Any]) -> Data:
    data = record["data"]
    train, test = data["splits"]["train"], data["splits"]["test"]
    return Data(
        name=str(data["name"]),
        class_names=tuple(str(name) for name in data["class_names"]),
        train_counts=tuple(int(count) for count in train["class_counts"]),
        test_counts=tuple(int(count) for count in test["class_counts"]),
        test_sha256=str(test["sha256"]),
        notes=tuple(str(note) for note in data.get("notes", ())),
    )


def _told_by_card(card: ResultCard) -> Data:
    counts = card.data.get("train_class_counts")
    return Data(
        name=str(card.data["name"]),
        class_names=card.class_names,
        train_counts=None if counts is None else tuple(int(count) for count in counts),
        test_counts=_tested(card),
        test_sha256=str(card.data["test_sha256"]),
        notes=tuple(str(note) for note in card.data.get("notes") or ()),
    )


def _tested(card: ResultCard) -> tuple[int, ...]:
    return tuple(int(count) for count in np.bincount(card.labels, minlength=card.num_classes))


def _epochs(path: Path) -> tuple[Epoch, ...]:
    if not path.is_file():
        return ()
    lines = path.read_text(encoding="utf-8").split("\n")
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows += [_epoch(json.loads(line))] if line.strip() else []
        except json.JSONDecodeError as error:
            # A row ends with a newline: what follows the last one was cut short while it was written.
            if number < len(lines):
                raise UserError(f"{path}: line {number} is damaged: {error}") from error
    return tuple(rows)


def _counts(values: Mapping[str, Any]) -> Counts:
    return Counts(np.asarray(values["correct"], dtype=np.int64), np.asarray(values["total"], dtype=np.int64))


def _epoch(row: Mapping[str, Any]) -> Epoch:
    curve, monitor = row.get("monitor"), None
    if curve is not None:
        (attack,) = (name for name in curve if name not in ("split", "clean"))
        monitor = Monitor(str(curve["split"]), attack, _counts(curve["clean"]), _counts(curve[attack]))
    predicted = row.get("predicted")
    return Epoch(
        epoch=int(row["epoch"]),
        stage=str(row["stage"]),
        loss={name: float("nan") if value is None else float(value) for name, value in row["loss"].items()},
        predicted=None if predicted is None else np.asarray(predicted, dtype=np.int64),
        monitor=monitor,
        seconds=float(row["seconds"]),
        peak_memory_mb=row.get("peak_memory_mb"),
    )


def _examples(path: Path, data: Data) -> Examples | None:
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            examples = Examples(
                images=arrays["images"],
                adversarial=arrays["adversarial"],
                labels=arrays["labels"],
                clean_predictions=arrays["clean_predictions"],
                adversarial_predictions=arrays["adversarial_predictions"],
                attack=str(arrays["attack"]),
                eps=float(arrays["eps"]),
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not readable as example images: {error}") from error
    labels = np.concatenate([examples.labels, examples.clean_predictions, examples.adversarial_predictions])
    fitting = examples.images.shape == examples.adversarial.shape and len(labels) == 3 * len(examples.images)
    if not fitting or not np.isin(labels, range(len(data.class_names))).all():
        raise UserError(f"{path}: the images, labels and predictions do not fit each other or the run's classes")
    return examples
