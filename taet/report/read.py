"""Reads run folders: what was run, the curves of its training, its result card and its example images."""

from __future__ import annotations

import dataclasses
import json
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
from taet.evaluation.result import ResultCard
from taet.training.checkpoint import read_record

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# The machine does not decide a run's numbers, nor does the place of the data, nor which attacks follow.
UNDECIDING = {f"training.{name}" for name in MACHINE}
UNDECIDING |= {"data.root", "evaluation.attacks"}


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
    train_counts: tuple[int, ...]
    test_counts: tuple[int, ...]
    test_sha256: str
    notes: tuple[str, ...] = field(compare=False)

    @property
    def imbalance_ratio(self) -> float:
        return max(self.train_counts) / min(self.train_counts)

    @property
    def ranks(self) -> Ints:
        """Place of each class by training count, 0 for the largest, (C,)."""
        return metrics.class_ranks(self.train_counts)

    @property
    def order(self) -> Ints:
        """Classes from the largest to the smallest, (C,)."""
        return np.argsort(self.ranks, kind="stable")

    @property
    def groups(self) -> dict[str, Ints]:
        """Head, body and tail, each an array of class labels."""
        groups = metrics.class_groups(self.train_counts)
        return {name: np.asarray(groups[name], dtype=np.int64) for name in ("head", "body", "tail")}


@dataclass(frozen=True)
class RunFolder:
    """Everything of one run that a report shows."""

    path: Path
    record: Mapping[str, Any]
    epochs: tuple[Epoch, ...]
    card: ResultCard | None
    examples: Examples | None
    data: Data

    @property
    def method(self) -> str:
        return str(self.record["run"]["method"])

    @property
    def seed(self) -> int:
        return int(self.record["run"]["seed"])

    @property
    def deviations(self) -> tuple[str, ...]:
        """Where the method left the protocol, in words."""
        return tuple(map(str, self.record.get("deviations") or ()))

    @property
    def seconds(self) -> float:
        """Seconds that training took, with the points of its curve."""
        return sum(epoch.seconds for epoch in self.epochs)

    @property
    def settings(self) -> dict[str, Any]:
        """What runs that differ in nothing but the seed have in common, by dotted name."""
        return {name: value for name, value in deciding(self.record["run"]).items() if name != "seed"}


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
    """Read the run folder `path`; a folder that is no run, or that is damaged, is a `UserError`."""
    if not (path / "run.json").is_file():
        raise UserError(f"{path}: no run folder (it has no run.json); allowed: folders that taet train wrote")
    record = read_record(path)
    try:
        data = _data(record)
        epochs = _epochs(path / "metrics.jsonl")
        str(record["run"]["method"]), int(record["run"]["seed"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: damaged run folder: {type(error).__name__} {error}") from error
    card = ResultCard.load(path / "evaluation.json") if (path / "evaluation.json").is_file() else None
    if card is not None:
        if card.class_names != data.class_names:
            raise UserError(f"{path}: the classes of evaluation.json are not those of run.json; evaluate the run again")
        tested = np.bincount(card.labels, minlength=len(data.class_names))
        test_counts = tuple(int(count) for count in tested)
        data = dataclasses.replace(
            data, test_sha256=str(card.data.get("test_sha256", data.test_sha256)), test_counts=test_counts
        )
    return RunFolder(path, record, epochs, card, _examples(path / "artifacts" / "examples.npz", data), data)


def _data(record: Mapping[str, Any]) -> Data:
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
