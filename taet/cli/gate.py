"""`taet gate OLD NEW`: fail only where a new model is known to be worse than the old one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro

from taet.cli import flags
from taet.errors import UserError
from taet.evaluation.card import ResultCard, compare_runs
from taet.evaluation.column import Column
from taet.fields import PartialShare
from taet.formatting import aligned, points
from taet.models import hub
from taet.statistics import LEVEL, Difference

EXAMPLES = (
    "taet gate old.json new.json",
    "taet gate runs/released runs/candidate --columns clean autoattack",
    "taet gate old.json new.json --columns worst-case --margin 0.01 --json",
)
DESCRIPTION = """Compare the result cards of two models on the same test images, column by column, by the paired test of
balanced accuracy of ResultCard.compare and of reports. Each of k columns is tested at the level 5 %/k, so that all
decisions together hold with 95 %.

Exit status: 1 if NEW is significantly worse in any column, by more than the margin; 0 otherwise; 2 if the cards
cannot be compared. "Undecided" does not mean equal: more test images narrow the interval."""


@dataclass(frozen=True)
class GateOptions:
    """Two result cards, and what counts as worse."""

    old: Annotated[Path, tyro.conf.Positional]
    """Result card of the model in use, its run folder, or hf:USER/NAME@COMMIT."""
    new: Annotated[Path, tyro.conf.Positional]
    """Result card of the new model, its run folder, or hf:USER/NAME@COMMIT."""
    columns: tuple[str, ...] = ()
    """Columns to compare, e.g. clean autoattack worst-case. Default: clean and every attack within a ball."""
    margin: PartialShare = 0.0
    """Accepted loss of balanced accuracy, e.g. 0.01: NEW fails only if the whole interval lies below its negative."""
    json: bool = False
    """Print JSON."""


class ColumnVerdict(NamedTuple):
    """Result of the paired test for one column."""

    column: str
    difference: Difference
    """New minus old."""
    margin: float
    level: float
    """Largest p that decides, which the columns share."""

    @property
    def decision(self) -> str:
        """better, worse or undecided."""
        if not self.difference.decided or self.difference.p >= self.level:
            return "undecided"
        return "better" if self.difference.value > 0 else "worse"

    @property
    def fails(self) -> bool:
        """Whether the new model is known to be worse by more than the margin."""
        return self.decision == "worse" and self.difference.high < -self.margin

    @property
    def text(self) -> str:
        """Return the decision in words."""
        return f"{self.decision}, within the margin" if self.decision == "worse" and not self.fails else self.decision

    def to_json(self) -> dict[str, Any]:
        """Return the numbers as plain JSON, differences in [-1, 1]."""
        found = self.difference
        numbers = {"difference": found.value, "low": found.low, "high": found.high, "p": found.p}
        return {"column": self.column, **numbers, "decision": self.decision, "fails": self.fails}


def run(arguments: list[str]) -> int:
    """Compare two cards and print one line per column."""
    parsed = flags.parse(GateOptions, arguments, "taet gate", DESCRIPTION, EXAMPLES)
    verdicts = gate(_card(parsed.old), _card(parsed.new), parsed.columns, parsed.margin)
    failed = [verdict.column for verdict in verdicts if verdict.fails]
    if parsed.json:
        found = {"old": str(parsed.old), "new": str(parsed.new), "margin": parsed.margin, "passed": not failed}
        print(json.dumps({**found, "columns": [verdict.to_json() for verdict in verdicts]}, indent=1))
        return 1 if failed else 0
    rows = [("column", "new - old, points", "interval", "p", "")]
    for name, d, *_ in verdicts:
        rows.append((name, points(d.value), f"[{points(d.low)}, {points(d.high)}]", f"{d.p:.2g}", ""))
    for line, text in zip(aligned(rows), ["decision", *(verdict.text for verdict in verdicts)], strict=True):
        print(f"{line}{text}")
    print(f"FAIL: worse in {', '.join(failed)}" if failed else "pass: in no column is the new model known to be worse")
    return 1 if failed else 0


def _card(path: Path) -> ResultCard:
    return ResultCard.load(hub.local(path))


def gate(old: ResultCard, new: ResultCard, columns: tuple[str, ...] = (), margin: float = 0.0) -> list[ColumnVerdict]:
    """Compare two cards under some attacks, or under all that measure robustness.

    Raises:
        UserError: different test images, an attack that one card lacks or has with other settings, nothing to compare.
    """
    names = columns or _shared(old, new)
    if len(set(names)) < len(names):
        raise UserError(f"columns: got {', '.join(names)}; allowed: each once")
    differences = (compare_runs([new], [old], name, len(names)) for name in names)
    return [
        ColumnVerdict(name, found, margin, LEVEL / len(names)) for name, found in zip(names, differences, strict=True)
    ]


def _shared(old: ResultCard, new: ResultCard) -> tuple[str, ...]:
    """Return the columns of both cards, in order; a column of only one card is refused rather than ignored."""
    left, right = ([column.name for column in card.columns if _counts(column)] for card in (old, new))
    for side, names, others in (("old", left, right), ("new", right, left)):
        if missing := [name for name in others if name not in names]:
            both = " ".join(name for name in left if name in right)
            allowed = f"the same columns, or --columns {both}" if both else "the same columns"
            raise UserError(f"the {side} card has no column {', '.join(missing)}; allowed: {allowed}")
    if not left:
        raise UserError("the cards have no column of clean images or of an attack within a ball; name one: --columns")
    return tuple(left)


def _counts(column: Column) -> bool:
    """Whether accuracy under it is informative: unbounded attacks break nearly every image of any model."""
    return column.ordinary and (column.bounded or column.norm is None)
