"""Compare the rows of a comparison with its baseline, one pair at a time, until decided."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from taet.errors import UserError, unknown
from taet.evaluation import DecisionCard, StopRule, decide
from taet.evaluation.packing import plain
from taet.experiments.cells import Cell
from taet.training.folder import RunFolder

FOLDER = "decisions"


@dataclass(frozen=True)
class Until:
    """How the pairs of a comparison are decided."""

    rule: StopRule = field(default_factory=StopRule)
    """Its error probability is that of all pairs together: each has an equal part of it."""
    baseline: str | None = None
    """Row that every other row is compared with. Default: the first one."""


@dataclass(frozen=True)
class RowPair:
    """A row and the baseline on the same data, with their cells of equal seeds, and their decision."""

    row: str
    baseline: str
    data: str
    imbalance: float | None
    first: tuple[Cell, ...]
    second: tuple[Cell, ...]
    folder: Path
    decision: DecisionCard | None = None
    reason: str = ""
    """Why there is no decision."""

    @property
    def name(self) -> str:
        """The pair in words."""
        ratio = "" if self.imbalance is None else f", imbalance ratio {self.imbalance:g}"
        return f"{self.row} against {self.baseline} on {self.data}{ratio}"

    @property
    def is_ready(self) -> bool:
        """Whether all its runs are finished."""
        return all(cell.state == "done" for cell in (*self.first, *self.second))

    @property
    def sentence(self) -> str:
        """The outcome in one sentence."""
        return f"{self.name}: {self.decision.sentence if self.decision else f'not decided: {self.reason}'}"

    def to_json(self) -> dict[str, Any]:
        """Return the pair's entry in comparison.json."""
        found = {} if self.decision is None else self.decision.summary()["findings"]
        return {
            "row": self.row,
            "baseline": self.baseline,
            "data": self.data,
            "imbalance": self.imbalance,
            "folder": str(self.folder),
            "sentence": self.sentence,
            "findings": plain(found),
        }


def pairs_of(planned: Sequence[Cell], out: Path, baseline: str | None = None) -> list[RowPair]:
    """Return every row with the baseline of its data; rows without an applicable cell have no pair.

    Raises:
        UserError: a baseline that is not a row, with the nearest match; fewer than two rows.
    """
    rows = list(dict.fromkeys(cell.row for cell in planned if cell.run is not None))
    if baseline is not None and baseline not in rows:
        raise unknown("baseline", baseline, rows)
    if len(rows) < 2:
        raise UserError(f"until decided: got {len(rows)} rows; allowed: two or more, of which one is the baseline")
    base = baseline or rows[0]
    cells: dict[tuple[str, float | None, str], dict[int, Cell]] = {}
    for cell in planned:
        if cell.run is not None:
            cells.setdefault((cell.data, cell.imbalance, cell.row), {})[cell.seed] = cell
    found = []
    for (data, ratio, row), of_row in cells.items():
        against = cells.get((data, ratio, base), {})
        seeds = [seed for seed in of_row if seed in against]
        if row == base or not seeds:
            continue
        first, second = (tuple(of[seed] for seed in seeds) for of in (of_row, against))
        parts = [row, "against", base, data, "" if ratio is None else f"ir{ratio:g}"]
        name = "_".join(re.sub(r"[^\w.+-]+", "-", part).strip("-.") for part in parts if part)
        found.append(RowPair(row, base, data, ratio, first, second, out / FOLDER / name))
    return found


def decide_pairs(
    planned: Sequence[Cell], out: Path, until: Until, deadline: float, say: Callable[[str], None], command: str = ""
) -> list[RowPair]:
    """Decide every pair whose runs are finished, one after another, before `deadline` on `time.monotonic`.

    Results of the baseline in one pair are reused for the next. A pair that cannot be compared, because its rows were
    tested on other images or its decision is damaged, does not affect the others.
    """
    ended: list[RowPair] = []
    every = pairs_of(planned, out, until.baseline)
    known = [card for pair in every if (card := _known(pair)) is not None]
    for number, pair in enumerate(every, 1):
        left = deadline - time.monotonic()
        if not pair.is_ready:
            pair = replace(pair, reason="a run is not finished")
        elif left <= 0:
            pair = replace(pair, reason="the time was up")
        else:
            pair = _decided(pair, len(every), until.rule, left, known, command)
            known += [pair.decision] if pair.decision else []
        ended.append(pair)
        say(f"[{number}/{len(every)}] {pair.sentence}")
    return ended


def _known(pair: RowPair) -> DecisionCard | None:
    try:
        return DecisionCard.load(pair.folder) if RunFolder(pair.folder).decision.exists() else None
    except UserError:  # damaged: its own pair reports it
        return None


def _decided(
    pair: RowPair, comparisons: int, rule: StopRule, left: float, known: Sequence[DecisionCard], command: str
) -> RowPair:
    try:
        decision = decide(
            [cell.folder for cell in pair.first],
            [cell.folder for cell in pair.second],
            settings={"attacks": pair.second[0].run.evaluation.attacks} if pair.second[0].run else {},
            rule=rule,
            comparisons=comparisons,
            names=(pair.row, pair.baseline),
            time_budget=None if math.isinf(left) else left,
            out=pair.folder,
            known=known,
            command=command,
        )
    except UserError as error:
        return replace(pair, reason=str(error))
    return replace(pair, decision=decision)
