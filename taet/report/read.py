"""Run folders as the report shows them: settings, epochs of training, result card and example images.

A folder may contain only a result card, of a model that was trained elsewhere.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from taet import statistics
from taet.data.sources import is_own
from taet.errors import UserError, located
from taet.evaluation import card_store
from taet.evaluation.card import ResultCard
from taet.evaluation.examples import Examples, read_examples
from taet.evaluation.packing import Json
from taet.files import digest, parse_json, read_bytes, write_atomically
from taet.settings import Run
from taet.statistics import Ints
from taet.training.decisive_settings import left_behind, training_settings
from taet.training.folder import METRICS, RUN, RunFolder
from taet.training.record import Epoch, MetricsRow, RunRecord, run_from_json


@dataclass(frozen=True)
class ReportedData:
    """The images that a run was trained and tested on; runs are compared only if these are equal."""

    name: str
    class_names: tuple[str, ...]
    train_counts: tuple[int, ...] | None
    """Training images of each class; None if not known: then there are no groups of classes."""
    test_counts: tuple[int, ...]
    test_sha256: str
    notes: tuple[str, ...] = field(compare=False)

    @property
    def imbalance_ratio(self) -> float:
        """Ratio of the largest to the smallest training class; inf if a class is empty, nan if not known."""
        if self.train_counts is None:
            return math.nan
        return max(self.train_counts) / min(self.train_counts) if min(self.train_counts) else math.inf

    @property
    def ranks(self) -> Ints:
        """Rank of each class by training images, 0 for the largest, (C,); its label if the counts are not known."""
        return (
            np.arange(len(self.class_names)) if self.train_counts is None else statistics.class_ranks(self.train_counts)
        )

    @property
    def order(self) -> Ints:
        """Labels of the classes from the largest to the smallest, (C,)."""
        return np.argsort(self.ranks, kind="stable")

    @property
    def groups(self) -> dict[str, Ints]:
        """Labels of the head, body and tail classes; empty if the training counts are not known."""
        groups = {} if self.train_counts is None else statistics.class_groups(self.train_counts)
        return {name: np.asarray(groups[name], dtype=np.int64) for name in groups if name != "last_half"}

    @property
    def few(self) -> tuple[int, ...]:
        """Labels of the classes with few test images (`statistics.few_images`)."""
        return tuple(statistics.few_images(self.test_counts))


@dataclass(frozen=True)
class ReportedRun:
    """Everything about one run that a report shows."""

    path: Path
    record: RunRecord | None
    """None if the folder contains only a result card."""
    epochs: tuple[Epoch, ...]
    card: ResultCard | None
    examples: Examples | None
    data: ReportedData

    @property
    def about(self) -> RunRecord | ResultCard:
        """The record of how the model was trained: run.json, or without one the card."""
        found = self.record or self.card
        assert found is not None
        return found

    @property
    def written(self) -> Mapping[str, Any]:
        """Settings of the training as stored, hence without those of later versions; empty if not known."""
        about = self.about
        return about.settings if isinstance(about, RunRecord) else about.run.get("config", {})

    @property
    def method(self) -> str:
        """The method, or the name of a model that was trained elsewhere."""
        return self.about.method

    @property
    def seed(self) -> int | None:
        """Seed of the training; None for a model that was trained elsewhere."""
        return self.about.seed

    @property
    def deviations(self) -> tuple[str, ...]:
        """Deviations of the method from the protocol, in words."""
        return self.about.deviations

    @property
    def selection(self) -> str | None:
        """The rule that chose the epoch of the card's weights; without a card, of those that the run delivers."""
        of_card = None if self.card is None else self.card.model.get("selection")
        return of_card or self.settings.get("training.selection")

    @property
    def seconds(self) -> float:
        """Seconds of training, with the points of its curve; 0 for a card alone, whose stored epochs are thinned."""
        return 0.0 if self.record is None else sum(epoch.seconds for epoch in self.epochs)

    @property
    def settings(self) -> Json:
        """Settings that determine the results, by dotted name, without the seed: equal for runs of one series.

        A setting that is newer than the stored run has its default, if its method is known here. Not on own images
        without `data.mirror`: such runs mirrored them all.
        """
        run: Run | Json = {**self.written}
        data = self.written.get("data", {})
        if self.written and ("mirror" in data or not is_own(str(data.get("name")))):
            with contextlib.suppress(UserError):
                run = run_from_json(self.written)
        found = training_settings(run) | left_behind(self.written)
        return {name: value for name, value in found.items() if name != "seed"}


def is_decision(path: Path) -> bool:
    """Return whether a folder contains a decision between two models, and neither a run nor a result card."""
    folder = RunFolder(path)
    return folder.decision.exists() and not folder.is_run and not folder.card().exists()


def is_shown(path: Path) -> bool:
    """Return whether a folder contains anything that a report shows."""
    folder = RunFolder(path)
    return folder.is_run or folder.card().is_file() or is_decision(path)


def read(path: Path) -> ReportedRun:
    """Read a folder, or a file with a result card and the epochs beside it.

    Raises:
        UserError: the folder contains neither a run nor a result card, or is damaged; the file is not a card.
    """
    if path.is_file():
        alone = ResultCard.load(path)
        epochs = (*map(Epoch.from_json, rows_beside(path, alone)),)
        return ReportedRun(path, None, epochs, alone, None, data_of_card(alone))
    folder = RunFolder(path)
    card = card_store.of_folder(folder)
    examples = None if card is None else read_examples(folder.examples(folder.card()), card)
    if not folder.is_run:
        if card is None:
            lacks = f"no run folder (it has neither {RUN} nor {folder.card().name})"
            raise UserError(f"{path}: {lacks}; allowed: folders that taet train or taet evaluate wrote")
        return ReportedRun(path, None, (), card, examples, data_of_card(card))
    record = folder.record
    kept, train, test = record.data, record.data.train, record.data.test
    tested = test.class_counts if card is None else _tested(card)
    data = ReportedData(kept.name, kept.class_names, train.class_counts, tested, test.sha256, kept.notes)
    return ReportedRun(path, record, folder.metrics, card, examples, data)


def beside(card: Path, file: str) -> Path:
    """Return the path of a run's file beside a card: NAME.metrics.jsonl, as `taet reproduce --save` writes it."""
    return card.with_suffix(f".{file}")


def cards_in(folder: Path) -> list[Path]:
    """Return the card files of a folder, without the embeddings beside them."""
    embeddings = beside(Path("*"), RunFolder(folder).embedding("*").name)
    return sorted(path for path in folder.glob("*.json") if not path.match(str(embeddings)))


def write_rows(card: Path, rows: Sequence[MetricsRow], weights_sha256: str) -> None:
    """Write epochs beside a card, after a line with the SHA-256 of the card's weights and of the epochs."""
    head = {"weights_sha256": weights_sha256, "rows_sha256": digest([*rows])}
    write_atomically(beside(card, METRICS), "".join(f"{json.dumps(row)}\n" for row in (head, *rows)).encode())


def rows_beside(path: Path, card: ResultCard) -> tuple[MetricsRow, ...]:
    """Return the epochs stored beside a card, checked; none if there is no such file.

    Raises:
        UserError: the epochs are damaged, were changed, or are those of other weights.
    """
    path = beside(path, METRICS)
    if not path.exists():
        return ()
    lines = enumerate(read_bytes(path).splitlines(), 1)
    head, *rows = [parse_json(line, f"{path}: line {number} is damaged") for number, line in lines] or [None]
    with located(str(path)):
        if not isinstance(head, dict) or head.get("rows_sha256") != digest(rows):
            raise UserError("was changed or damaged: its SHA-256 differs from the one in its first line")
        if head.get("weights_sha256") != card.model.get("weights_sha256"):
            raise UserError("the epochs are those of other weights than the card's; remove it")
        for row in rows:
            Epoch.from_json(row)
    return (*rows,)


def data_of_card(card: ResultCard) -> ReportedData:
    """Return what a card says about its images."""
    counts = card.data.get("train_class_counts")
    return ReportedData(
        name=card.data["name"],
        class_names=card.class_names,
        train_counts=None if counts is None else tuple(counts),
        test_counts=_tested(card),
        test_sha256=card.data["test_sha256"],
        notes=tuple(card.data.get("notes", ())),
    )


def _tested(card: ResultCard) -> tuple[int, ...]:
    return tuple(int(count) for count in np.bincount(card.labels, minlength=card.num_classes))
