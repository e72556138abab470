"""The result card: the outcome of each attack on each test image, and the numbers computed from it."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from taet import statistics
from taet.bounds import Count, check_radius, hints
from taet.errors import UserError, located, unknown
from taet.evaluation.column import WORST_CASE, Column, check_classes
from taet.evaluation.facts import ModelFacts, probed
from taet.evaluation.packing import Json, PackedIntegers, pack_integers, plain, unpack_integers
from taet.evaluation.schema import (
    KIND,
    SCHEMA,
    DataAbout,
    Environment,
    Flag,
    ModelAbout,
    ThreatAbout,
    TrainedRun,
    check_schema,
    check_summary,
    stored_columns,
)
from taet.evaluation.summary import Interval, Summary, summarise
from taet.files import check_seal, read_json, seal, write_json
from taet.formatting import short
from taet.shapes import Sha256, check_shape
from taet.statistics import Difference, Ints, difference
from taet.training.folder import RunFolder

STORED = (
    *("method", "title", "protocol", "threat", "seed", "model", "data", "batch_size"),
    *("created", "command", "run", "environment", "flags", "probe"),
)
"""The fields of a card that are stored unchanged, in this order."""
MOST_BYTES = 2**29
"""Largest file of a card: with 1,000 classes a column takes 6 MB."""
MOST_CLASSES = 2**16
"""Most classes: a predicted class is stored in two bytes."""


@dataclass(frozen=True, eq=False)
class ResultCard:
    """The only source of any table: a model, the images that it was tested on, and one column per attack."""

    method: str
    title: str
    protocol: str
    threat: ThreatAbout
    """Norm and radius of the evaluation: {"norm": "linf", "eps": 0.0314}."""
    seed: int | None
    """Seed of the training run; None for a model that was trained elsewhere."""
    model: ModelAbout
    data: DataAbout
    batch_size: Count
    labels: Ints
    """(N,): true classes in test order."""
    columns: tuple[Column, ...]
    flags: tuple[Flag, ...] = ()
    """Warnings of the diagnostics."""
    probe: dict[str, int | float] = field(default_factory=dict)
    """Facts about outputs on a sample of images (`taet.evaluation.probe`); empty if nothing was attacked."""
    run: TrainedRun = field(default_factory=TrainedRun)
    """How the model was trained; empty for a model that was trained elsewhere."""
    environment: Environment = field(default_factory=Environment)
    created: str = ""
    command: str = ""
    examples_sha256: Sha256 | None = None
    """SHA-256 of the card's file of example images; None if there is none, or it is not known."""
    sealed: bool = True
    """Whether the card was read from a file with a checksum; files of older versions have none."""

    def __post_init__(self) -> None:
        shapes = hints(ResultCard)
        for name in (*STORED, "examples_sha256"):
            check_shape(name, plain(getattr(self, name)), shapes[name])
        check_radius("threat eps", self.threat["eps"], self.threat["norm"])
        self.facts  # noqa: B018  # refuses a probe that cannot be
        count, classes = len(self.labels), self.num_classes
        if not 2 <= classes <= MOST_CLASSES:
            raise UserError(f"data class_names: got {classes}; allowed: 2 to {MOST_CLASSES}")
        check_classes("labels", self.labels, count, classes)
        counts = self.data.get("train_class_counts")
        if counts is not None and len(counts) != classes:
            raise UserError(f"data train_class_counts: got {len(counts)}; allowed: {classes}, one per class")
        names = [column.name for column in self.columns]
        if len(set(names)) < len(names):
            raise UserError(f"columns: got {', '.join(names)}; allowed: each attack once")
        for column in self.columns:
            column.check(self.labels, classes)

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.data["class_names"])

    @property
    def num_classes(self) -> int:
        return len(self.data["class_names"])

    @property
    def test_class_counts(self) -> Ints:
        """Number of test images of each class, (C,)."""
        return np.bincount(self.labels, minlength=self.num_classes)

    @cached_property
    def facts(self) -> ModelFacts | None:
        """The facts of the probe, typed; None if nothing was attacked."""
        return probed(self.probe, self.batch_size)

    @property
    def deviations(self) -> tuple[str, ...]:
        """How the training deviated from the protocol, in words; also empty if the card does not store it."""
        return tuple(self.run.get("deviations", ()))

    def column(self, name: str) -> Column:
        """Return the column of an attack; `worst-case` and `worst-case-l2` are computed if they were not measured.

        Raises:
            UserError: an unknown name, with the nearest match.
        """
        for column in self.columns:
            if column.name == name:
                return column
        for norm, known in WORST_CASE.items():
            if known == name:
                return self.worst_case(norm)
        raise unknown("column", name, [*(column.name for column in self.columns), *WORST_CASE.values()])

    def worst_case(self, norm: str = "linf", eps: float | None = None) -> Column:
        """Return the exact worst case over the card's attacks within one ball, image by image, as a column.

        An image is correct if it is correct without attack and under every attack within this ball. Columns measured
        only for a curve, and examples made on another model, are left out. A broken image has the prediction of the
        first column that broke it; `parts` tells which one.

        Args:
            norm: linf or l2.
            eps: radius in units of the image range; by default that of the card's threat or, in the other norm, the
                only radius on the card.

        Raises:
            UserError: no bounded attack in this norm, or several radii.
        """
        inside = [column for column in self.columns if column.bounded and column.norm == norm and column.ordinary]
        if eps is None and self.threat["norm"] == norm:
            eps = self.threat["eps"]
        radii = sorted({column.eps for column in inside if column.eps is not None and eps in (None, column.eps)})
        if len(radii) != 1:
            got = f"attacks of radius {', '.join(f'{one:g}' for one in radii)}" if radii else "none"
            wanted = "" if eps is None else f" of radius {eps:g}"
            raise UserError(f"worst case: got {got}; allowed: bounded {norm} attacks{wanted}, all of one radius")
        inside = [column for column in inside if column.eps == radii[0]]
        columns = [*([self.clean] if self.clean else []), *inside]
        masks = np.stack([column.correct for column in columns])
        left = dict(zip((column.name for column in columns), statistics.worst_case(masks), strict=True))
        first = masks.argmin(0)  # the first that is False; 0 where none is, and there every prediction is the label
        return Column.worst_of(
            ({"name": column.name, "norm": norm, "eps": column.eps, **column.parameters} for column in inside),
            norm,
            radii[0],
            np.stack([column.predictions for column in columns])[first, np.arange(len(first))],
            self.labels,
            parts={column.name: left[column.name] for column in inside},
            seconds=sum(column.seconds for column in columns),
            forwards=sum(column.forwards for column in columns),
            backwards=sum(column.backwards for column in columns),
        )

    def compare(self, other: ResultCard, column: str) -> Difference:
        """Return the difference in balanced accuracy under one attack between this card's model and another one.

        The interval covers the choice of the test images only: it tells which of the two models is better. To compare
        two methods, several seeds are needed (`compare_runs`).
        """
        return compare_runs([self], [other], column)

    @property
    def clean(self) -> Column | None:
        """The column of the clean images; None if it was not measured."""
        return next((column for column in self.columns if column.norm is None), None)

    def summary(self, name: str) -> Summary:
        """Compute the numbers of an attack from the masks of its column."""
        return self.summary_of(self.column(name))

    def summary_of(self, column: Column) -> Summary:
        """Compute the numbers of a column on the card's images from its masks."""
        return summarise(column, self.clean, self.labels, self.num_classes, self.data.get("train_class_counts"))

    def to_json(self) -> Json:
        """Return the card as plain JSON; masks are bits packed in base64, the first image in the highest bit."""
        return {
            "kind": KIND,
            "schema": SCHEMA,
            **{name: plain(getattr(self, name)) for name in STORED},
            "columns": [column.to_json(self.summary(column.name).to_json()) for column in self.columns],
            "labels": pack_integers(self.labels),
            **({} if self.examples_sha256 is None else {"examples_sha256": self.examples_sha256}),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the card as JSON with its checksum, atomically: if writing fails, the old file stays as it was."""
        write_json(Path(path), seal(self.to_json()))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ResultCard:
        """Read a card from a file or a run folder, and recompute every number in it from the masks.

        Raises:
            UserError: the file is not a card, its schema is newer, its checksum is another, or a number does not agree
                with the masks.
        """
        path = Path(path)
        path = RunFolder(path).card() if path.is_dir() else path
        stored = read_json(path, most=MOST_BYTES)
        with located(f"result card {path}"):
            check_schema(stored)
        sealed = check_seal(path, stored)
        with located(f"result card {path}"):
            return replace(cls.from_json(stored), sealed=sealed)

    @classmethod
    def from_json(cls, stored: Any) -> ResultCard:
        """Rebuild a card from the output of `to_json`, in this schema or an older one."""
        schema, shapes = check_schema(stored), hints(cls)
        for name in (*STORED, "columns", "labels"):
            if name not in stored:
                raise UserError(f"the field '{name}' is missing")
        for name in (*STORED, "examples_sha256"):
            if name in stored:
                check_shape(name, stored[name], shapes[name])
        columns = stored_columns(stored["columns"], schema)
        check_shape("labels", stored["labels"], PackedIntegers)
        try:
            arrays = tuple(map(Column.from_json, columns)), unpack_integers(stored["labels"])
        except ValueError as error:  # the packed bytes do not fit their number
            raise UserError(f"a field has the wrong form ({error})") from error
        fields = {name: stored[name] for name in STORED} | {"flags": tuple(stored["flags"])}
        examples = stored.get("examples_sha256")
        card = cls(**fields, columns=arrays[0], labels=arrays[1], examples_sha256=examples)
        for column in columns:
            name = column["name"]
            check_summary(f"column '{name}' summary", column["summary"], card.summary(name).to_json(), schema)
        return card

    def __repr__(self) -> str:
        head = f"{self.title or self.method} on {self.data['name']}: {len(self.labels)} test images"
        head += f", {self.threat['norm']} ball of {self.threat['eps']:.4g}"
        rows = [("attack", "accuracy %", "balanced %", "worst class %", "")]
        for column in self.columns:
            if column.curve:
                continue
            summary = self.summary(column.name)
            label, value = summary.worst_class
            rows.append(
                (
                    column.name,
                    _percent(summary.accuracy, summary.accuracy_interval),
                    _percent(summary.balanced, summary.balanced_interval),
                    f"{100 * value:.1f} ({self.class_names[label]})" if label >= 0 else "-",
                    _remark(column, summary),
                )
            )
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        deviations = (f"leaves the protocol: {text}" for text in self.deviations)
        return "\n".join([head, *lines, *deviations, *(f"! {flag['text']}" for flag in self.flags)])


def compare_runs(
    first: Sequence[ResultCard], second: Sequence[ResultCard], column: str, comparisons: int = 1
) -> Difference:
    """Return the difference in balanced accuracy under one attack between two methods, with one card per seed.

    The i-th card of `first` is paired with the i-th of `second`, as runs with the same seed. `comparisons` differences
    share the error of their intervals (see `paired.difference`).

    Raises:
        UserError: different numbers of cards, different test images, or different settings of the attack (its random
            seed aside).
    """
    if len(first) != len(second) or not first:
        raise UserError(f"comparison: got {len(first)} and {len(second)} cards; allowed: the same number on both sides")
    cards = [*first, *second]
    columns = [card.column(column) for card in cards]
    images = cards[0].data["test_sha256"]
    for card, measured in zip(cards, columns, strict=True):
        other = card.data["test_sha256"]
        if other != images:
            raise UserError(f"comparison: got test images {short(images)} and {short(other)}; allowed: the same images")
        for name, (one, two) in columns[0].identity.differences(measured.identity).items():
            got = f"{name} {short(one)} and {short(two)}"
            raise UserError(f"comparison: '{column}' was measured with {got}; allowed: the same settings")
    masks = [measured.correct for measured in columns]
    sides = (masks[: len(first)], masks[len(first) :])
    return difference(*sides, cards[0].labels, cards[0].num_classes, comparisons=comparisons)


def _percent(value: float, interval: Interval) -> str:
    return f"{100 * value:.1f} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if not math.isnan(value) else "-"


def _remark(column: Column, summary: Summary) -> str:
    """Return remarks on the precision of the search and on an unbounded attack, whose accuracy says little."""
    said = [f"searched in {column.parameters['precision']}"] if "precision" in column.parameters else []
    if column.norm is not None and not column.bounded:
        said.append("no bound")
        if not math.isnan(summary.median_distance):
            said.append(f"median {column.norm} distance {summary.median_distance:.3g}")
    return "; ".join(said)
