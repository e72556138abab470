"""The result card: the outcome of each attack on each test image, the numbers computed from it, and how it is kept."""

import itertools
import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from pydantic import Field, ValidationError, model_validator
from typing_extensions import TypedDict  # that of typing is known to pydantic from Python 3.12 on

from taet.attacks.ball import Norm
from taet.attacks.counted import WORK
from taet.errors import UserError, cut, located, said, unknown
from taet.evaluation.column import WORST_CASE, CardPart, Column, PackedLabels, Stored, Summary, disagreements
from taet.evaluation.facts import MASKED, ModelFacts
from taet.fields import check_value, refused
from taet.files import SEAL, Json, check_seal, file_sha256, read_bytes, read_json, seal, write_atomically, write_json
from taet.formatting import size
from taet.statistics import Difference, Ints, difference
from taet.training.folder import DELIVERED, RunFolder
from taet.training.record import training_settings

KIND, SCHEMA = "taet result card", 3
MOST_BYTES = 2**29  # of the largest card file: with 1,000 classes a column takes 6 MB
LOGIT_TOLERANCE = 1e-3  # relative difference of one model's logits in two evaluations; rounding alone gives about 1e-6
SMALLEST = 0.01  # least size to which the tolerance is relative: smaller gradients are mostly rounding
CHANGED_3 = ("balanced_interval", "group_intervals")  # computed differently before schema 3, so not compared
_logger = logging.getLogger(__name__)


class Flag(TypedDict):
    """A warning about a card: its name and its sentence."""

    flag: str
    text: str


class Ball(TypedDict):
    """The set of perturbed images around an image."""

    norm: Norm
    eps: float


class Card(CardPart):
    """The only source of any table: a model, the images that it was tested on, and one column per attack."""

    method: str
    title: str
    protocol: str
    threat: Ball  # the ball that the card is about
    seed: int | None  # of the training run; None for a model that was trained elsewhere, whose `run` is empty
    model: Stored
    """Name, SHA-256 of weights and file, parameters, selection, epoch, whether that was a leak of the test set, notes;
    and `answers`, logits and gradient norms of the first images."""
    data: Stored
    """Name, class names, SHA-256 of the test images, training images of each class, imbalance ratio, notes; and `extra`
    training images: source, counts, and whether they were `compared` with the test images."""
    batch_size: int
    created: str = ""
    command: str = ""
    run: Stored = Field(default_factory=dict)  # config, hash, command and deviations of the training, as stored
    environment: Stored = Field(default_factory=dict)  # versions, commit, device
    flags: Annotated[tuple[Flag, ...], Field(strict=False)] = ()
    probe: Stored = Field(default_factory=dict)  # `ModelFacts` of a sample of images; empty if nothing was attacked
    columns: Annotated[tuple[Column, ...], Field(strict=False)]
    labels: PackedLabels  # (N,): true classes in test order
    examples_sha256: str | None = Field(None, exclude_if=lambda value: value is None)  # of a file of older versions
    sealed: bool = Field(True, exclude=True)  # read from a file with a checksum; those of older versions have none

    @model_validator(mode="after")
    def _check(self) -> Self:
        """Refuse a card that contradicts itself."""
        _ = np.array(self.model.get("answers", ()), np.float64), self.facts  # raises an error for a wrong type
        counts = self.data.get("train_class_counts")
        if counts is not None and len(counts) != self.num_classes:
            raise UserError(f"data train_class_counts: got {len(counts)}; allowed: {self.num_classes}, one per class")
        names = [column.name for column in self.columns]
        if len(set(names)) < len(names):
            raise UserError(f"columns: got {', '.join(names)}; allowed: each attack once")
        for column in self.columns:
            arrays = column.predictions, column.correct, *column.parts.values()
            if any(array.shape != self.labels.shape for array in arrays):
                raise UserError(f"column '{column.name}': has not one entry for each of {len(self.labels)} images")
            if (column.correct != (column.predictions == self.labels)).any():
                raise UserError(f"column '{column.name}' correct: does not agree with its predictions and the labels")
        return self

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
        known = {name: value for name, value in self.probe.items() if name in ModelFacts.__dataclass_fields__}
        check_value("probe", known, dict[str, int | float])
        return ModelFacts(**{**known, "batch_size": self.batch_size}) if known else None

    @property
    def deviations(self) -> tuple[str, ...]:
        """How the training deviated from the protocol, in words; also empty if the card does not store it."""
        return tuple(self.run.get("deviations", ()))

    @property
    def clean(self) -> Column | None:
        """The column of the clean images; None if it was not measured."""
        return next((column for column in self.columns if column.norm is None), None)

    def column(self, name: str) -> Column:
        """Return the column of an attack; `worst-case` and `worst-case-l2` are computed if they were not measured."""
        known = {column.name: column for column in self.columns}
        norms = {worst: norm for norm, worst in WORST_CASE.items()}
        if name not in known | norms:
            raise unknown("column", name, [*known, *norms])
        return known[name] if name in known else self.worst_case(norms[name])

    def worst_case(self, norm: Norm = "linf") -> Column:
        """Return the exact worst case over the card's attacks within one ball, image by image, as a column.

        An image is correct if it is correct without attack and under every attack within this ball. Columns measured
        only for a curve, and examples made on another model, are left out. A broken image has the prediction of the
        first column that broke it; `parts` tells which one. The radius is that of the card's threat or, in the other
        norm, the only one on the card; no bounded attack, or several radii, are a `UserError`.
        """
        inside = [column for column in self.columns if column.bounded and column.norm == norm and column.ordinary]
        eps = self.threat["eps"] if self.threat["norm"] == norm else None
        radii = sorted({column.eps for column in inside if column.eps is not None and eps in (None, column.eps)})
        if len(radii) != 1:
            got = f"attacks of radius {', '.join(f'{one:g}' for one in radii)}" if radii else "none"
            wanted = "" if eps is None else f" of radius {eps:g}"
            raise UserError(f"worst case: got {got}; allowed: bounded {norm} attacks{wanted}, all of one radius")
        inside = [column for column in inside if column.eps == radii[0]]
        columns = [*([self.clean] if self.clean else []), *inside]
        masks = np.stack([column.correct for column in columns])
        after = dict(zip((column.name for column in columns), np.logical_and.accumulate(masks), strict=True))
        first = masks.argmin(0)  # the first column that broke it; 0 if none did, and then every prediction is the label
        attacks = [{"name": column.name, "norm": norm, "eps": column.eps, **column.parameters} for column in inside]
        return Column(
            name=WORST_CASE[norm],
            norm=norm,
            eps=radii[0],
            bounded=True,
            parameters={"attacks": sorted(attacks, key=lambda attack: str(attack["name"]))},
            correct=np.asarray(masks.all(0)),
            predictions=np.stack([column.predictions for column in columns])[first, np.arange(len(first))],
            parts={column.name: after[column.name] for column in inside},
            **{name: sum(getattr(column, name) for column in columns) for name in WORK},
        )

    def summary(self, name: str) -> Summary:
        """Compute the numbers of an attack from the masks of its column."""
        return self.summary_of(self.column(name))

    def summary_of(self, column: Column) -> Summary:
        """Compute the numbers of a column on the card's images from its masks."""
        return Summary(column, self.clean, self.labels, self.num_classes, self.data.get("train_class_counts"))

    def to_json(self) -> Json:
        """Return the card as plain JSON; masks are bits packed in base64, the first image in the highest bit."""
        stored = self.model_dump()
        for column, fields in zip(self.columns, stored["columns"], strict=True):
            computed = self.summary_of(column).to_json()  # only rounding leaves a summary as it was read
            fields["summary"] = computed if any(disagreements("", column.stored, computed)) else column.stored
        return {"kind": KIND, "schema": SCHEMA, **stored, **{name: [*stored[name]] for name in ("flags", "columns")}}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the card as JSON with its checksum, atomically: if writing fails, the old file stays as it was."""
        write_json(Path(path), seal(self.to_json()))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a card from a file or a run folder, and recompute every number in it from the masks.

        A newer schema, a wrong checksum and a number that does not agree with the masks are a `UserError`.
        """
        path = Path(path)
        path = RunFolder(path).card() if path.is_dir() else path
        stored = read_json(path, most=MOST_BYTES)
        if sealed := isinstance(stored, dict) and SEAL in stored:
            check_seal(path, stored)
        with located(f"result card {path}"):
            return cls.from_json(stored, sealed=sealed)

    @classmethod
    def from_json(cls, stored: Any, *, sealed: bool = True) -> Self:
        """Rebuild a card from the output of `to_json`, in this schema or an older one."""
        if not isinstance(stored, Mapping) or stored.get("kind") != KIND:
            raise UserError("not a result card")
        schema = stored.get("schema")
        if type(schema) is not int or not 1 <= schema <= SCHEMA:
            hint = "; update taet" if type(schema) is int and schema > SCHEMA else ""
            raise UserError(f"schema: got {cut(repr(schema), 60)}; allowed: 1 to {SCHEMA}{hint}")
        try:
            card = cls(**{name: value for name, value in stored.items() if name != "sealed"}, sealed=sealed)
            for column in card.columns:
                column.attack  # noqa: B018  # raises an error for settings that the attack cannot have
                computed = card.summary_of(column).to_json()
                for name in column.stored.keys() & computed.keys() - (set() if schema >= 3 else {*CHANGED_3}):
                    where = f"column '{column.name}' summary {name}"
                    for message in disagreements(where, column.stored[name], computed[name]):
                        raise UserError(message)
        except ValidationError as error:
            raise refused(error, cls) from None
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:  # what no card of taet holds
            raise UserError(f"is damaged: {said(error)}") from None
        return card

    def __repr__(self) -> str:
        head = f"{self.title or self.method} on {self.data['name']}: {len(self.labels)} test images"
        head += f", {self.threat['norm']} ball of {size(self.threat['eps'])}"
        rows = [("attack", "accuracy %", "balanced %", "worst class %", "")]
        for column in (one for one in self.columns if not one.curve):
            summary = self.summary_of(column)
            label, value = summary.worst_class
            equals = f" and {equal} more" if (equal := int((summary.per_class == value).sum()) - 1) > 0 else ""
            worst = f"{100 * value:.1f} ({self.class_names[label]}{equals})" if label >= 0 else "-"
            shares = (summary.accuracy, *summary.accuracy_interval), (summary.balanced, *summary.balanced_interval)
            plain, balanced = ("{:.1f} [{:.1f}, {:.1f}]".format(*(100 * share for share in of)) for of in shares)
            notes = [f"searched in {column.parameters['precision']}"] if "precision" in column.parameters else []
            if column.norm not in (None, self.threat["norm"]) and column.eps is not None:
                notes.append(f"{column.norm} ball of {size(column.eps)}")
            if column.norm is not None and not column.bounded:  # whose accuracy says little
                reach = summary.median_distance
                notes += ["no bound", *([] if math.isnan(reach) else [f"median {column.norm} distance {reach:.3g}"])]
            rows.append((column.name, plain, balanced, worst, "; ".join(notes)))
        widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        deviations = (f"leaves the protocol: {text}" for text in self.deviations)
        return "\n".join([head, *lines, *deviations, *(f"! {flag['text']}" for flag in self.flags)])


ResultCard = Card


def card_of(folder: RunFolder) -> Card | None:
    """Return the latest card of a folder about the weights that its run delivers, as `read_card` does; or None."""
    return read_card(folder, folder.card()) if folder.card().exists() else None


def read_card(folder: RunFolder, path: Path, weights: str = DELIVERED) -> Card:
    """Return a card, which in the folder of a run must be about that run, its weights and its test images."""
    try:
        card = Card.load(path)
    except UserError as error:
        raise UserError(f"{error}; remove {path} to measure it again") from None
    if folder.is_run:
        if not card.sealed:
            raise UserError(f"{path} has no SHA-256 of its own; evaluate the run again")
        data, file = folder.record.data, folder.weights(weights)
        held, named = training_settings(folder.record.settings), training_settings(card.run.get("config", {}))
        if not named or any(held[key] != named[key] for key in held.keys() & named.keys()):
            raise UserError(f"{path} belongs to another run than {folder.path}/run.json; evaluate the run again")
        if file.exists() and folder.check_weights(weights).weights_sha256 != card.model["weights_sha256"]:
            raise UserError(f"{path} has other weights than {file.name}; evaluate the run again")
        if tuple(data.class_names) != card.class_names or data.test.sha256 != card.data["test_sha256"]:
            raise UserError(f"{path} was made with other test images than the run; evaluate the run again")
        if file.exists() and card.model.get("file_sha256") not in (None, file_sha256(file)):
            raise UserError(f"{path} was made with another file of weights than {file.name}; evaluate the run again")
    return card


def continued(path: Path, card: Card) -> Card:
    """Return the card with the columns and the probe of an earlier card: the one at `path`, or one that `put` copied.

    It takes the first earlier card of the same model, images, ball, batches, machine and software. Models of equal
    weights are told apart by their outputs on the first images. Other weights or other test images are a `UserError`.
    """
    if not path.exists():
        return card
    known = Card.load(path)
    hashes = ((of.model["weights_sha256"], of.data["test_sha256"]) for of in (known, card))
    for what, old, new in zip(("another model", "other test images"), *hashes, strict=True):
        if old != new:
            got = f"{what} (SHA-256 {old[:12]}, here {new[:12]})"
            raise UserError(f"evaluate: {path} is about {got}; allowed: another folder as out")
    copies = sorted(path.parent.glob(f"{path.stem}-[0-9]*.json"), reverse=True)
    cards = itertools.chain([known], map(Card.load, copies))  # a copy is read only if the card before does not match
    same = next((one for one in cards if _same(one, card)), None)
    return card if same is None else card.changed(columns=same.columns, probe=same.probe)


def _same(known: Card, card: Card) -> bool:
    def about(one: Card) -> tuple[object, ...]:
        hashes = one.model["weights_sha256"], one.model.get("code", ""), one.data["test_sha256"]
        return *hashes, one.threat, one.batch_size, one.environment.get("versions"), one.environment.get("device")

    return about(known) == about(card) and same_answers(known, card)


def same_answers(one: Card, other: Card) -> bool:
    """Return whether the outputs on the first images agree: networks of equal weights may differ in their code.

    Logits are compared relative to the largest of their image, down to `MASKED`, and gradient norms separately.
    """
    outputs = [np.array(card.model.get("answers", ()), np.float64) for card in (one, other)]  # older cards: none
    if outputs[0].shape != outputs[1].shape or outputs[0].ndim < 2:
        return outputs[0].shape == outputs[1].shape
    largest = (rows[:, :-1].max(1, keepdims=True, initial=-np.inf) for rows in outputs)
    logits = [np.maximum(rows[:, :-1] - top, MASKED) for rows, top in zip(outputs, largest, strict=True)]
    for first, second in (logits, [rows[:, -1] for rows in outputs]):
        limit = LOGIT_TOLERANCE * max(float(np.nanmax(np.abs([first, second]), initial=0)), SMALLEST)
        if not np.allclose(first, second, rtol=0, atol=limit, equal_nan=True):
            return False
    return True


def put(path: Path, card: Card) -> None:
    """Save a card at `path`. If the old card has columns that the new one lacks, copy it first, named by its time."""
    if path.exists():
        new, old = {column.identity: column.predictions for column in card.columns}, Card.load(path)
        if not all(np.array_equal(new.get(column.identity, ()), column.predictions) for column in old.columns):
            numbers = itertools.count(int(re.sub("[^0-9]", "", old.created) or 0))
            names = (path.with_name(f"{path.stem}-{number}.json") for number in numbers)
            copy = next(name for name in names if not name.exists() or read_bytes(name) == read_bytes(path))
            write_atomically(copy, read_bytes(path))
            _logger.warning("taet: the card before is kept as %s, which reports do not read", copy)
    card.save(path)


def compare_runs(first: Sequence[Card], second: Sequence[Card], column: str, comparisons: int = 1) -> Difference:
    """Return the difference in balanced accuracy under one attack between two methods, with one card per seed.

    The i-th card of `first` is paired with the i-th of `second`, as runs with the same seed. `comparisons` differences
    share the error of their intervals (see `taet.statistics.difference`). Different numbers of cards, test images, or
    settings of the attack, its random seed aside, are a `UserError`.
    """
    if len(first) != len(second) or not first:
        raise UserError(f"comparison: got {len(first)} and {len(second)} cards; allowed: the same number on both sides")
    cards = [*first, *second]
    columns = [card.column(column) for card in cards]
    images = cards[0].data["test_sha256"]
    for card, measured in zip(cards, columns, strict=True):
        if card.data["test_sha256"] != images:
            got = f"{cut(repr(images))} and {cut(repr(card.data['test_sha256']))}"
            raise UserError(f"comparison: got test images {got}; allowed: the same images")
        for name, (one, two) in columns[0].identity.differences(measured.identity).items():
            got = f"{name} {cut(repr(one))} and {cut(repr(two))}"
            raise UserError(f"comparison: '{column}' was measured with {got}; allowed: the same settings")
    masks = [measured.correct for measured in columns]
    sides = (masks[: len(first)], masks[len(first) :])
    return difference(*sides, cards[0].labels, cards[0].num_classes, comparisons=comparisons)
