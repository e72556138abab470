"""The result card: what each attack did to each test image, and every number computed from it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from taet import metrics
from taet.errors import UserError, unknown
from taet.evaluation.column import WORST_CASE, Column, Ints, check_classes
from taet.evaluation.packing import Json, pack_integers, plain, unpack_integers
from taet.evaluation.paired import Difference, difference
from taet.evaluation.schema import KIND, SCHEMA, check_schema, check_summary, migrate
from taet.evaluation.summary import Interval, Summary, summarise
from taet.files import write_json
from taet.formatting import short
from taet.training.folder import RunFolder

STORED: Mapping[str, Callable[[Any], Any]] = {
    "method": str,
    "title": str,
    "protocol": str,
    "threat": dict,
    "seed": lambda seed: seed,
    "model": dict,
    "data": dict,
    "batch_size": int,
    "created": str,
    "command": str,
    "run": dict,
    "environment": dict,
    "flags": lambda flags: tuple(map(dict, flags)),
    "probe": dict,
}
"""The fields of a card that are stored as they are, in this order, and what makes each from JSON."""


@dataclass(frozen=True, eq=False)
class ResultCard:
    """The only source of any table: a model, the images that it was tested on, and one column per attack."""

    method: str
    title: str
    protocol: str
    threat: Json
    """Norm and radius of the evaluation: {"norm": "linf", "eps": 0.0314}."""
    seed: int | None
    """Seed of the training run; None for a model that was trained elsewhere."""
    model: Json
    """name, weights_sha256, parameters, selection, epoch, leak (whether the epoch was chosen on the test set)."""
    data: Json
    """name, class_names, test_sha256; if known also train_class_counts, imbalance_ratio and notes."""
    batch_size: int
    labels: Ints
    """(N,): true classes in test order."""
    columns: tuple[Column, ...]
    flags: tuple[dict[str, str], ...] = ()
    """Warnings of the diagnostics: {"flag": short name, "text": what was found, what it means and what to do}."""
    probe: Json = field(default_factory=dict)
    """Facts about the answers to a sample of images (`taet.evaluation.probe`); empty if nothing was attacked."""
    run: Json = field(default_factory=dict)
    """How the model was trained: {"config": the Run as JSON, "command": the call, "deviations": in words, where the
    method leaves the protocol, if known}; empty for a model that was trained elsewhere."""
    environment: Json = field(default_factory=dict)
    created: str = ""
    command: str = ""

    def __post_init__(self) -> None:
        count, classes = len(self.labels), self.num_classes
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
    def deviations(self) -> tuple[str, ...]:
        """Where the training left the protocol, in words; also empty if the card does not store it."""
        return tuple(map(str, self.run.get("deviations") or ()))

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

        An image is correct if it is correct without attack and under every attack that had to stay in this ball.
        Columns measured only for a curve, and examples made on another model, are left out. A broken image has the
        prediction of the first column that broke it; `parts` shows which one that was.

        Args:
            norm: linf or l2.
            eps: radius in units of the image range; by default that of the card's threat or, in the other norm, the
                only one there is.

        Raises:
            UserError: no bounded attack in this norm, or several radii.
        """
        inside = [column for column in self.columns if column.bounded and column.norm == norm and column.ordinary]
        if eps is None and self.threat.get("norm") == norm:
            eps = self.threat["eps"]
        radii = sorted({column.eps for column in inside if column.eps is not None and eps in (None, column.eps)})
        if len(radii) != 1:
            got = f"attacks of radius {', '.join(f'{one:g}' for one in radii)}" if radii else "none"
            wanted = "" if eps is None else f" of radius {eps:g}"
            raise UserError(f"worst case: got {got}; allowed: bounded {norm} attacks{wanted}, all of one radius")
        inside = [column for column in inside if column.eps == radii[0]]
        columns = [*([self.clean] if self.clean else []), *inside]
        masks = np.stack([column.correct for column in columns])
        left = dict(zip((column.name for column in columns), metrics.worst_case(masks), strict=True))
        first = masks.argmin(0)  # the first that is False; 0 where none is, and there every prediction is the label
        return Column(
            name=WORST_CASE[norm],
            norm=norm,
            eps=radii[0],
            bounded=True,
            parameters={
                "attacks": [
                    {"name": c.name, "norm": c.norm, "eps": c.eps, **c.parameters}
                    for c in sorted(inside, key=lambda one: one.name)
                ]
            },
            correct=left[columns[-1].name],
            predictions=np.stack([column.predictions for column in columns])[first, np.arange(len(first))],
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
        return next((column for column in self.columns if column.name == "clean"), None)

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
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the card as JSON, atomically: if writing fails, the old file stays as it was."""
        write_json(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ResultCard:
        """Read a card from a file or a run folder, and recompute every number in it from the masks.

        Raises:
            UserError: the file is not a card, its schema is newer, or a number does not agree with the masks.
        """
        path = Path(path)
        path = RunFolder(path).card() if path.is_dir() else path
        try:
            text = path.read_text(encoding="utf-8")
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
        """Rebuild a card from what `to_json` returned, in this schema or an older one."""
        schema = check_schema(stored)
        try:
            current = migrate(stored)
            card = cls(
                **{name: read(current[name]) for name, read in STORED.items()},
                columns=tuple(map(Column.from_json, current["columns"])),
                labels=unpack_integers(current["labels"]),
            )
            summaries = [(column["name"], column["summary"]) for column in stored["columns"]]
        except KeyError as error:
            raise UserError(f"the field {error} is missing") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(f"a field has the wrong form ({error})") from error
        for name, summary in summaries:
            check_summary(f"column '{name}' summary", summary, card.summary(name).to_json(), schema)
        return card

    def __repr__(self) -> str:
        head = f"{self.title or self.method} on {self.data.get('name', 'arrays')}: {len(self.labels)} test images"
        if self.threat:
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
                    _reach(column, summary),
                )
            )
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        deviations = (f"leaves the protocol: {text}" for text in self.deviations)
        return "\n".join([head, *lines, *deviations, *(f"! {flag['text']}" for flag in self.flags)])


def compare_runs(first: Sequence[ResultCard], second: Sequence[ResultCard], column: str) -> Difference:
    """Return the difference in balanced accuracy under one attack between two methods, with one card per seed.

    The i-th card of `first` is paired with the i-th of `second`, as runs with the same seed (see `paired.difference`).

    Raises:
        UserError: different numbers of cards, different test images, or different settings of the attack (its random
            seed aside).
    """
    if len(first) != len(second) or not first:
        raise UserError(f"comparison: got {len(first)} and {len(second)} cards; allowed: the same number on both sides")
    cards = [*first, *second]
    columns = [card.column(column) for card in cards]
    images, settings = cards[0].data.get("test_sha256"), _settings(columns[0])
    for card, measured in zip(cards, columns, strict=True):
        other, others = card.data.get("test_sha256"), _settings(measured)
        if images is None or other != images:
            raise UserError(f"comparison: got test images {short(images)} and {short(other)}; allowed: the same images")
        for name in sorted(settings.keys() | others.keys()):
            if settings.get(name) != others.get(name):
                got = f"{name} {short(settings.get(name))} and {short(others.get(name))}"
                raise UserError(f"comparison: '{column}' was measured with {got}; allowed: the same settings")
    masks = [measured.correct for measured in columns]
    return difference(masks[: len(first)], masks[len(first) :], cards[0].labels, cards[0].num_classes)


def _settings(column: Column) -> dict[str, object]:
    attack = column.identity
    ball = {"norm": attack.norm, "eps": attack.eps, "bounded": attack.bounded}
    return {**ball, **dict(attack.settings), "attacks": attack.members}


def _percent(value: float, interval: Interval) -> str:
    return f"{100 * value:.1f} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if not math.isnan(value) else "-"


def _reach(column: Column, summary: Summary) -> str:
    """Return the median distance of an unbounded attack in words: its accuracy, nearly 0, says little."""
    if column.norm is None or column.bounded:
        return ""
    known = not math.isnan(summary.median_distance)
    return f"no bound; median {column.norm} distance {summary.median_distance:.3g}" if known else "no bound"
