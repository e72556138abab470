"""The result card: the outcome of each attack on each test image, and the numbers computed from it.

A card is one JSON file. It is read only if its numbers agree with its masks.
"""

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from pydantic import BeforeValidator, Field, ValidationError, model_validator
from typing_extensions import TypedDict  # that of typing is known to pydantic from Python 3.12 on

from taet.attacks.ball import Norm
from taet.card import text
from taet.card.column import CardPart, Column, PackedLabels, Stored
from taet.card.consistency import check_classes, check_columns, check_images
from taet.card.description import DESCRIPTIONS, check_description, with_notes
from taet.card.facts import ModelFacts, facts_of_probe
from taet.card.images import CardImages
from taet.card.retired import LAST_SCHEMA, with_retired_numbers
from taet.card.summary import Summary, disagreements
from taet.card.worst_case import WORST_CASE, worst_case_column
from taet.data.notes import note_to_json
from taet.errors import UserError, exception_text, prefix_errors, shortened, unknown
from taet.files import SEAL, Json, check_seal, read_json, seal, write_json
from taet.formatting import format_radius
from taet.metrics.intervals import Ints
from taet.run.folder import RunFolder
from taet.settings.types import ModelName, refused

KIND, SCHEMA = "taet result card", 4
MOST_BYTES = 2**29  # of the largest card file: with 1,000 classes a column takes 6 MB
# computed differently before schema 3, so not compared
CHANGED_3 = ("balanced_interval", "group_intervals")


class CardFlag(TypedDict):
    """A warning about a card: its name and its sentence."""

    flag: str
    text: str


class Ball(TypedDict):
    """The set of perturbed images around an image."""

    norm: Norm
    eps: float


class Card(CardPart):
    """A model, the images that it was tested on, and one column per attack.

    It is the only source of any table.

    Example:
        >>> import taet
        >>> card = taet.Card.load("runs/example/evaluation.json")
        >>> card.method, card.seed, card.num_classes
        ('at', 0, 10)
        >>> card.worst_case().name
        'worst-case'
    """

    method: str
    title: str
    protocol: str
    threat: Ball  # the ball that the card is about
    # of the training run; None for a model that was trained elsewhere, whose `run` is empty
    seed: int | None
    model: Stored
    """Name, SHA-256 of weights and file, parameters, selection, epoch, whether that was a leak of
    the test set, notes; and `answers`, logits and gradient norms of the first images."""
    data: Annotated[Stored, BeforeValidator(with_notes)]
    """Name, class names, SHA-256 of the test images, training images of each class, imbalance
    ratio, notes; and `extra` training images: source, counts, and whether they were `compared` with
    the test images."""
    batch_size: int
    created: str = ""
    command: str = ""
    # config, hash, command and deviations of the training, as stored
    run: Stored = Field(default_factory=dict)
    environment: Stored = Field(default_factory=dict)  # versions, commit, device
    flags: Annotated[tuple[CardFlag, ...], Field(strict=False)] = ()
    # `ModelFacts` of a sample of images; empty if nothing was attacked
    probe: Stored = Field(default_factory=dict)
    columns: Annotated[tuple[Column, ...], Field(strict=False)]
    labels: PackedLabels  # (N,): true classes in test order
    # what its user calls the model in tables; None: by its method and settings
    name: ModelName | None = Field(None, exclude_if=lambda value: value is None)
    # kept beside the card; None: none are, as on cards of earlier versions
    images: CardImages | None = Field(None, exclude_if=lambda value: value is None)
    # of a file of older versions
    examples_sha256: str | None = Field(None, exclude_if=lambda value: value is None)
    # read from a file with a checksum; those of older versions have none
    sealed: bool = Field(True, exclude=True)
    # of the file that it was read from; cards before 4 keep numbers that have left
    schema_version: int = Field(SCHEMA, exclude=True, alias="schema")

    @model_validator(mode="after")
    def _check(self) -> Self:
        """Refuse a card that contradicts itself."""
        for part in DESCRIPTIONS:
            check_description(part, getattr(self, part))
        _ = self.facts  # refuses a wrong type
        check_classes(self.labels, self.num_classes, self.data.get("train_class_counts"))
        check_columns(self.columns, self.labels)
        if self.images is not None:
            check_images(self.images, self.columns, len(self.labels))
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
        return facts_of_probe(self.probe, self.batch_size)

    @property
    def deviations(self) -> tuple[str, ...]:
        """How the training deviated from the protocol, in words; empty if the card does not say."""
        return tuple(self.run.get("deviations", ()))

    @property
    def clean(self) -> Column | None:
        """The column of the clean images; None if it was not measured."""
        return next((column for column in self.columns if column.norm is None), None)

    def column(self, name: str) -> Column:
        """Return the column of an attack.

        `worst-case` and `worst-case-l2` are computed if they were not measured.
        """
        known = {column.name: column for column in self.columns}
        if name in known:
            return known[name]
        norms = {worst: norm for norm, worst in WORST_CASE.items()}
        if name in norms:
            return self.worst_case(norms[name])
        raise unknown("column", name, [*known, *norms])

    def worst_case(self, norm: Norm = "linf") -> Column:
        """Return the exact worst case over the card's attacks within one ball, as a column.

        An image is correct if it is correct without attack and under every attack within this ball.
        Columns measured only for a curve, and examples made on another model, are left out. A
        broken image has the prediction of the first column that broke it; `parts` tells which one.
        The radius is that of the card's threat or, in the other norm, the only one on the card; no
        bounded attack, or several radii, are a `UserError`.
        """
        eps = self.threat["eps"] if self.threat["norm"] == norm else None
        return worst_case_column(self.columns, self.clean, norm, eps)

    def summary(self, name: str) -> Summary:
        """Compute the numbers of an attack from the masks of its column."""
        return self.summary_of(self.column(name))

    def summary_of(self, column: Column) -> Summary:
        """Compute the numbers of a column on the card's images from its masks."""
        return Summary(
            column, self.clean, self.labels, self.num_classes, self.data.get("train_class_counts")
        )

    def _numbers(self, column: Column) -> Json:
        """Return the numbers of a column as a file of this card's schema stores them."""
        summary = self.summary_of(column)
        if self.schema_version > LAST_SCHEMA:
            return summary.to_json()
        return with_retired_numbers(summary, column, self.clean)

    def to_json(self) -> Json:
        """Return the card as plain JSON.

        Masks are bits packed in base64, the first image in the highest bit.
        """
        stored = self.model_dump()
        for column, fields in zip(self.columns, stored["columns"], strict=True):
            computed = self._numbers(column)
            differs = any(disagreements("", column.stored, computed))
            # a summary that differs by rounding alone stays as it was read
            fields["summary"] = computed if differs else column.stored
            if self.schema_version > LAST_SCHEMA:
                del fields["roc_auc"]
        if self.schema_version > LAST_SCHEMA and "notes" in self.data:
            stored["data"]["notes"] = [note_to_json(note) for note in self.data["notes"]]
        return {
            "kind": KIND,
            "schema": max(self.schema_version, LAST_SCHEMA),
            **stored,
            "flags": list(stored["flags"]),
            "columns": list(stored["columns"]),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the card as JSON with its checksum.

        If writing fails, the old file stays as it was.
        """
        write_json(Path(path), seal(self.to_json()))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a card from a file or a run folder, and recompute every number in it from the masks.

        A newer schema, a wrong checksum and a number that does not agree with the masks are a
        `UserError`.
        """
        file = Path(path)
        if file.is_dir():
            file = RunFolder(file).card()
        stored = read_json(file, most=MOST_BYTES)
        sealed = isinstance(stored, dict) and SEAL in stored
        if sealed:
            check_seal(file, stored)
        with prefix_errors(f"result card {file}"):
            return cls.from_json(stored, sealed=sealed)

    @classmethod
    def from_json(cls, stored: Any, *, sealed: bool = True) -> Self:
        """Rebuild a card from the output of `to_json`, in this schema or an older one."""
        _check_schema(stored)
        fields = {name: value for name, value in stored.items() if name != "sealed"}
        try:
            card = cls(**fields, sealed=sealed)
            if not card.columns:
                raise UserError("columns: got none; allowed: at least one")
            for column in card.columns:
                card._verify(column)
        except ValidationError as error:
            raise refused(error, cls) from None
        # what no card of taet holds
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise UserError(f"is damaged: {exception_text(error)}") from None
        return card

    def _verify(self, column: Column) -> None:
        """Refuse settings that the attack cannot have, and numbers that do not follow from the
        masks."""
        _ = column.attack  # raises an error for such settings
        computed = self._numbers(column)
        compared = column.stored.keys() & computed.keys()
        if self.schema_version < 3:
            compared -= {*CHANGED_3}
        for name in compared:
            where = f"column '{column.name}' summary {name}"
            for message in disagreements(where, column.stored[name], computed[name]):
                raise UserError(message)

    def __repr__(self) -> str:
        norm = self.threat["norm"]
        subject = f"{self.name or self.title or self.method} on {self.data['name']}"
        ball = f"{norm} ball of {format_radius(self.threat['eps'])}"
        rows = [text.HEADINGS]
        # the points of curves come last
        for column in sorted(self.columns, key=lambda column: bool(column.curve)):
            summary = self.summary_of(column)
            rows.append(text.attack_row(column, summary, self.class_names, norm))
        lines = [f"{subject}: {len(self.labels)} test images, {ball}", *text.aligned(rows)]
        lines += [f"leaves the protocol: {deviation}" for deviation in self.deviations]
        lines += [f"! {flag['text']}" for flag in self.flags]
        return "\n".join(lines)


def _check_schema(stored: Any) -> None:
    """Refuse JSON of something else, or of a schema that this version does not know."""
    if not isinstance(stored, Mapping) or stored.get("kind") != KIND:
        raise UserError("not a result card")
    schema = stored.get("schema")
    if type(schema) is not int or not 1 <= schema <= SCHEMA:
        hint = "; update taet" if type(schema) is int and schema > SCHEMA else ""
        raise UserError(f"schema: got {shortened(repr(schema), 60)}; allowed: 1 to {SCHEMA}{hint}")


ResultCard = Card
