"""The card of a sequential paired evaluation: two sides, the images on which both were attacked, and the result.

It is not a result card, because it covers only some of the test images: no table can mistake it for a full evaluation.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypedDict

import numpy as np
from pydantic import Field

from taet import statistics
from taet.attacks.ball import Norm
from taet.errors import UserError, located
from taet.evaluation.column import check_classes
from taet.evaluation.packing import Json, PackedBits, pack_mask, plain, unpack_mask
from taet.evaluation.sequential import (
    BETS,
    REACH,
    DecidingAccuracy,
    Reason,
    StopRule,
    estimate,
    evidence,
    interval,
    stop,
    weights,
)
from taet.evaluation.summary import disagreements
from taet.fields import Count, Name, NonNegative, Sha256, StoredCount, check_radius, hints
from taet.files import check_seal, read_json, seal, write_json
from taet.formatting import count, points, short
from taet.shapes import check_shape
from taet.statistics import Floats, Ints, Mask
from taet.training.folder import RunFolder

SCHEMA, DECISION = 1, "taet decision"
MOST_BYTES = 2**28
ACCURACY: dict[DecidingAccuracy, str] = {"balanced": "balanced accuracy", "tail": "accuracy of the tail"}
COVERS = (
    "An interval covers the choice of the test images, at every look at once; it does not cover other training seeds. "
    "An estimate at a stop leans away from 0."
)


class Ball(TypedDict):
    """The ball that a decision is about."""

    norm: Norm
    eps: Annotated[float, Field(gt=0)]


class Machine(TypedDict, total=False):
    """The machine and the software of a decision."""

    versions: dict[str, str | None]
    commit: str | None
    device: str


class ModelOf(TypedDict):
    """A model of a side."""

    name: str
    weights_sha256: Sha256
    seed: int | None
    answers: list[list[float | None]]
    """Logits and gradient norms of the first images, as on a result card."""


class SideAbout(TypedDict):
    """One of the two sides: a model, or several models of one method, one per seed."""

    label: Name
    models: list[ModelOf]


class TestedOn(TypedDict):
    """The test images from which the rounds are drawn."""

    name: str
    class_names: list[str]
    test_sha256: Sha256
    test_class_counts: list[StoredCount]
    train_class_counts: list[StoredCount] | None


class Cost(TypedDict):
    """The cost of the decision, for both sides together."""

    seconds: NonNegative
    forwards: StoredCount
    backwards: StoredCount
    known: StoredCount
    """Number of flags that were taken from earlier cards."""


class StoredDecision(TypedDict):
    """The arrays of a decision in its file; the other fields are stored as they are."""

    rows: list[list[StoredCount]]
    classes: list[StoredCount]
    correct: list[list[PackedBits]]
    bets: list[NonNegative]
    summary: dict[str, Any]


@dataclass(frozen=True)
class PairedFinding:
    """The result so far for one accuracy, as the difference first minus second side, in [-1, 1]."""

    estimate: float
    low: float | None
    """Lower end of the interval; None: more than 25 points below 0."""
    high: float | None
    for_first: float
    """ln E+, the evidence that the first side is better; ln(2/alpha) decides."""
    for_second: float
    images: int
    classes: int

    def verdict(self, needed: float) -> str:
        """Return which side is better, first or second, or undecided."""
        return "first" if self.for_first >= needed else "second" if self.for_second >= needed else "undecided"

    @property
    def ends(self) -> str:
        """The interval in words, in points."""
        low, high = (None if end is None else points(end) for end in (self.low, self.high))
        if low and high:
            return f"{low} to {high} points"
        far = f"{100 * REACH:g}"
        return f"above {low} points" if low else f"below {high} points" if high else f"not known within {far} points"


@dataclass(frozen=True, eq=False, repr=False)
class DecisionCard:
    """Two sides on the same images in the same order, and the test that is updated after each round of them."""

    first: SideAbout
    second: SideAbout
    attack: Name
    """Name of the attack that decides; worst-case: several, one after another."""
    attacks: list[dict[str, Any]]
    """The attacks with their settings, in the order in which they ran."""
    threat: Ball
    batch_size: Count
    data: TestedOn
    rule: StopRule
    comparisons: Count
    """Comparisons that share an error probability, alpha of the rule times their number."""
    reason: Reason
    cost: Cost
    rows: Ints
    """(T, M): places in the test set of the images of T rounds, in the order in which they were met."""
    classes: Ints
    """(M,): class of each image of a round."""
    correct: tuple[Mask, Mask]
    """Flags of the two sides, (R, T, M) each: still correct under the attack, for R pairs of models."""
    environment: Machine = field(default_factory=Machine)
    created: str = ""
    command: str = ""

    def __post_init__(self) -> None:
        shapes = hints(DecisionCard)
        for name in FIELDS:
            check_shape(name, plain(getattr(self, name)), shapes[name])
        check_radius("threat eps", self.threat["eps"], self.threat["norm"])
        self._check_images()
        found = ended(self.gains, self.total_rounds, self.rule)
        if found != (len(self.rows), self.reason) and (found is not None or self.reason != "time"):
            by_flags = "none" if found is None else f"after round {found[0]}, {found[1]}"
            got = f"a stop after round {len(self.rows)}, {self.reason}"
            raise UserError(f"decision: got {got}; by its flags: {by_flags}")

    def _check_images(self) -> None:
        names, counts = self.data["class_names"], np.asarray(self.data["test_class_counts"])
        train = self.data["train_class_counts"]
        if not 2 <= len(names) == len(counts) == len(counts if train is None else train) or not counts.any():
            raise UserError(f"data: the counts do not fit {len(names)} classes; allowed: one count per class")
        if self.rows.ndim != 2 or not 1 <= len(self.rows) <= self.total_rounds:
            raise UserError(f"rows: got {self.rows.shape}; allowed: 1 to {self.total_rounds} rounds of images")
        check_classes("classes", self.classes, self.rows.shape[1], len(counts))
        if (np.bincount(self.classes, minlength=len(counts)) != counts // self.total_rounds).any():
            raise UserError("classes: a round does not fit the number of test images of each class")
        if len(np.unique(self.rows)) < self.rows.size or self.rows.min() < 0 or self.rows.max() >= self.total:
            raise UserError("rows: an image is there twice, or is none of the test images")
        sides = ((self.first, self.correct[0]), (self.second, self.correct[1]))
        runs = len(self.first["models"])
        if any(len(about["models"]) != runs or flags.shape != (runs, *self.rows.shape) for about, flags in sides):
            raise UserError("correct: does not fit the images and the models of the two sides")

    @property
    def total(self) -> int:
        """Number of test images."""
        return sum(self.data["test_class_counts"])

    @property
    def total_rounds(self) -> int:
        """Largest possible number of rounds: the size of the smallest class."""
        return min(size for size in self.data["test_class_counts"] if size)

    @cached_property
    def gains(self) -> dict[DecidingAccuracy, Gains]:
        """What the test bets on, by accuracy."""
        return gains(self.correct, self.classes, self.data["train_class_counts"])

    @cached_property
    def looks(self) -> dict[DecidingAccuracy, tuple[Floats, Floats]]:
        """By accuracy: ln E+ and ln E- after each round, (T,) each."""
        return {of: evidence(gain.differences, gain.weights) for of, gain in self.gains.items()}

    @cached_property
    def findings(self) -> dict[DecidingAccuracy, PairedFinding]:
        """The findings at the stop, by accuracy, each with its own error probability alpha."""
        found: dict[DecidingAccuracy, PairedFinding] = {}
        for of, (values, weight, classes) in self.gains.items():
            first, second = (float(side[-1]) for side in self.looks[of])
            ends = interval(values, weight, self.rule.alpha)
            found[of] = PairedFinding(estimate(values, weight), *ends, first, second, values.size, classes)
        return found

    def better(self, of: DecidingAccuracy) -> str:
        """Return the label of the side with the better accuracy; empty if undecided."""
        verdict = self.findings[of].verdict(self.rule.needed)
        return {"first": self.first["label"], "second": self.second["label"]}.get(verdict, "")

    def summary(self) -> Json:
        """Return the numbers computed from the flags, as stored in the file so that others can recompute them."""
        met = len(self.rows) * np.bincount(self.classes, minlength=len(self.data["class_names"]))
        needed = self.rule.needed
        return {
            "images": int(self.rows.size),
            "images_by_class": met.tolist(),
            "findings": {of: {**asdict(one), "verdict": one.verdict(needed)} for of, one in self.findings.items()},
            "looks": {of: [side.tolist() for side in sides] for of, sides in self.looks.items()},
        }

    def to_json(self) -> Json:
        """Return the decision as plain JSON."""
        return {
            "kind": DECISION,
            "schema": SCHEMA,
            **{name: plain(getattr(self, name)) for name in FIELDS},
            "bets": [*BETS],
            "rows": self.rows.tolist(),
            "classes": self.classes.tolist(),
            "correct": [[pack_mask(run.ravel()) for run in flags] for flags in self.correct],
            "summary": self.summary(),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the decision as JSON with its checksum, atomically."""
        write_json(Path(path), seal(self.to_json()))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> DecisionCard:
        """Read a decision from a file or its folder, and recompute everything in it from its flags.

        Raises:
            UserError: the file is not a decision, a newer version wrote it, or a number contradicts the flags.
        """
        path = Path(path)
        path = RunFolder(path).decision if path.is_dir() else path
        stored = read_json(path, most=MOST_BYTES)
        with located(f"decision {path}"):
            if not isinstance(stored, dict) or stored.get("kind") != DECISION:
                raise UserError("not a decision")
            if stored.get("schema") != SCHEMA:
                raise UserError(f"schema: got {short(stored.get('schema'))}; allowed: {SCHEMA}; update taet")
        check_seal(path, stored)
        with located(f"decision {path}"):
            return cls.from_json(stored)

    @classmethod
    def from_json(cls, stored: Any) -> DecisionCard:
        """Rebuild a decision from what `to_json` returned."""
        shapes = hints(cls)
        for name in FIELDS:
            if name not in stored:
                raise UserError(f"the field '{name}' is missing")
            check_shape(name, stored[name], shapes[name])
        check_shape("", stored, StoredDecision)
        if stored["bets"] != [*BETS]:
            raise UserError(f"bets: got {short(stored['bets'])}; allowed: {short([*BETS])}")
        try:
            rows = np.array(stored["rows"], dtype=np.int64)
            flags = [
                np.array([unpack_mask(run) for run in side], dtype=bool).reshape(len(side), *rows.shape)
                for side in stored["correct"]
            ]
        except ValueError as error:  # rounds of different lengths, or masks of another length
            raise UserError(f"a field has the wrong form ({error})") from error
        if len(flags) != 2:
            raise UserError(f"correct: got {len(flags)} sides; allowed: 2")
        rule = StopRule(
            **{one.name: stored["rule"][one.name] for one in fields(StopRule) if one.name in stored["rule"]}
        )
        plain_fields = {name: stored[name] for name in FIELDS} | {"rule": rule}
        classes = np.array(stored["classes"], dtype=np.int64)
        decision = cls(**plain_fields, rows=rows, classes=classes, correct=(flags[0], flags[1]))
        for message in disagreements("summary", stored["summary"], decision.summary()):
            raise UserError(message)
        return decision

    @property
    def sentence(self) -> str:
        """The outcome in one sentence."""
        after = f"after {count(self.rows.size)} of {count(self.total)} images"
        accuracy = ACCURACY[self.rule.of]
        if self.reason == "decided":
            return f"decided for {self.better(self.rule.of)} by {accuracy}, {after}"
        if self.reason == "within":
            return f"{accuracy} within {points(self.rule.within or 0)[1:]} points of each other, {after}"
        why = {
            "exhausted": "no image is left that the order can use",
            "hopeless": "the images that are left could not decide",
            "time": "the time was up",
        }[self.reason]
        return f"undecided by {accuracy} {after}: {why}"

    @property
    def roles(self) -> str:
        """A sentence that says which accuracy decides and what role the other one has."""
        others = [ACCURACY[of] for of in self.gains if of != self.rule.of]
        own = [f"{name} is a second test with {self.rule.alpha:.3g} of its own" for name in others]
        return ", ".join([f"{ACCURACY[self.rule.of]} decides", *own])

    def __repr__(self) -> str:
        pairs = len(self.first["models"])
        each = f" ({pairs} pairs of models)" if pairs > 1 else ""
        sides = (self.first["label"], self.second["label"])
        title = f"{sides[0]} against {sides[1]} under {self.attack} on {self.data['name']}{each}"
        lines = [f"{title}: {self.sentence}"]
        for of, one in self.findings.items():
            verdict = f"{self.better(of)} is better" if self.better(of) else "undecided"
            found = f"{one.ends} ({verdict}; estimate {points(one.estimate)} from {count(one.images)} images)"
            lines.append(f"  {ACCURACY[of]}, {sides[0]} minus {sides[1]}: {found}")
        alpha = f"error probability {self.rule.alpha:.3g}"
        if self.comparisons > 1:
            alpha += f", {self.rule.alpha * self.comparisons:.3g} for {count(self.comparisons)} comparisons together"
        lines += [f"  {alpha}; {self.roles}", f"  {COVERS}"]
        return "\n".join(lines)


class Gains(NamedTuple):
    """For the m images of a round that count: d = mean over the pairs of models of a - b, (T, m), and weights (m,)."""

    differences: Floats
    weights: Floats
    classes: int
    """Number of their classes."""


def gains(
    correct: tuple[Mask, Mask], classes: Ints, train_counts: Sequence[int] | None
) -> dict[DecidingAccuracy, Gains]:
    """Return the differences of two sides by accuracy: balanced and, if the training counts are known, of the tail.

    `correct` holds the flags of both sides, (R, T, M) each, `classes` the class of each image of a round, (M,).
    """
    first, second = (flags.mean(0) for flags in correct)
    tail = np.isin(classes, [] if train_counts is None else statistics.class_groups(train_counts)["tail"])
    every: dict[DecidingAccuracy, Mask] = {"balanced": np.ones_like(tail), "tail": tail}
    return {
        of: Gains((first - second)[:, there], weights(classes[there]), len(np.unique(classes[there])))
        for of, there in every.items()
        if there.any()
    }


def ended(found: Mapping[DecidingAccuracy, Gains], total: int, rule: StopRule) -> tuple[int, Reason] | None:
    """Return after which round of at most `total` the rule stops, and why; None if it goes on."""
    if rule.of not in found:
        raise UserError("decide: got the tail; allowed: on data whose training counts are known")
    return stop(found[rule.of].differences, found[rule.of].weights, total, rule)


FIELDS = (
    *("first", "second", "attack", "attacks", "threat", "batch_size", "data", "rule", "comparisons", "reason", "cost"),
    *("environment", "created", "command"),
)
"""The fields that are stored unchanged."""
