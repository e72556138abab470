"""Rules of class budgets beside the same base method without a rule, found by the settings of the runs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from taet.errors import UserError
from taet.formatting import words
from taet.methods.wrapper import base_settings
from taet.report.differences import Pairs
from taet.report.measured import AttackKey, Measured
from taet.report.series import Series
from taet.report.tables import ScoreCell, balanced_cell
from taet.settings import to_json
from taet.statistics import Difference

METHOD = "class-budget"
RuleSettings = tuple[tuple[str, object], ...]
"""The settings of `class-budget` without its base; empty for no rule."""


class RuleCell(NamedTuple):
    """Balanced accuracy under a rule, and the paired difference to no rule; None in the row without a rule."""

    score: ScoreCell
    gain: Difference | None


@dataclass(frozen=True)
class RuleTable:
    """Rules (rows) by base methods (columns) under one attack; a cell is None if there is no such run."""

    attack: AttackKey
    heads: tuple[tuple[Series, int], ...]
    """The runs of each base alone, and the number of seeds of the column."""
    rows: tuple[tuple[str, tuple[RuleCell | None, ...]], ...]


def rule_table(runs: Sequence[Measured], attack: AttackKey) -> RuleTable | None:
    """Return rules of `class-budget` by base method; None if no run with a rule has its base alone beside it.

    A column is a base alone and the rules around it, with all other settings equal, over the seeds that they share; it
    has only dashes if there are none. A base with other options (`knobs`) or settings is a column of its own, and is
    left out if it was not trained alone. A rule with other constants is a row of its own. Of series with equal settings
    the first is shown.
    """
    if not any(run.series.method == METHOD for run in runs):
        return None
    by_settings: dict[str, dict[RuleSettings, Measured]] = {}
    for run in sorted(runs, key=lambda run: run.series.index):
        if attack in run.summaries and (place := _place(run.series)) is not None:
            column, rule = place
            by_settings.setdefault(column, {}).setdefault(rule, run)
    columns = [column for column in by_settings.values() if () in column and len(column) > 1]
    if not columns:
        return None
    rules: dict[RuleSettings, None] = dict.fromkeys([(), *(rule for column in columns for rule in column)])
    seeds = [_shared_seeds(column.values(), attack) for column in columns]
    cells = [_cells(column, attack, shared) for column, shared in zip(columns, seeds, strict=True)]
    return RuleTable(
        attack,
        tuple((column[()].series, len(shared)) for column, shared in zip(columns, seeds, strict=True)),
        tuple((_label(rule, rules), tuple(column.get(rule) for column in cells)) for rule in rules),
    )


def _place(series: Series) -> tuple[str, RuleSettings] | None:
    """Return the column of a series, its base and all other settings as text, and its rule; None if not readable."""
    settings = series.runs[0].settings
    if not settings:
        return None
    own = {name.removeprefix("settings."): value for name, value in settings.items() if name.startswith("settings.")}
    others = {name: settings[name] for name in settings if name != "method" and not name.startswith("settings.")}
    base, rule = settings["method"], RuleSettings()
    if base == METHOD:
        try:
            base, knobs = own.pop("base"), own.pop("knobs")
            own, rule = to_json(base_settings(base, knobs, METHOD)), tuple(own.items())
        except (KeyError, UserError):  # no settings stored, or a base that is not installed
            return None
    text = json.dumps([base, own, others], sort_keys=True)
    return json.dumps(json.loads(text, parse_int=float)), rule  # 3 and 3.0 are one value


def _shared_seeds(column: Iterable[Measured], attack: AttackKey) -> set[int | None]:
    """Return the seeds that all runs of a column have under the attack."""
    return set.intersection(*({card.seed for card, _ in run.columns[attack]} for run in column))


def _cells(
    column: Mapping[RuleSettings, Measured], attack: AttackKey, seeds: set[int | None]
) -> dict[RuleSettings, RuleCell]:
    """Return the cell of each rule of a column over these seeds."""
    if not seeds:
        return {}
    runs, pairs = {rule: _of_seeds(run, attack, seeds) for rule, run in column.items()}, Pairs()
    return {
        rule: RuleCell(balanced_cell(run.summaries[attack]), pairs.difference(run, runs[()], attack) if rule else None)
        for rule, run in runs.items()
    }


def _of_seeds(run: Measured, attack: AttackKey, seeds: set[int | None]) -> Measured:
    """Return the measurements of some seeds under one attack."""
    there = list(zip(run.columns[attack], run.summaries[attack], strict=True))
    kept = [(pair, summary) for pair, summary in there if pair[0].seed in seeds]
    columns, summaries = [pair for pair, _ in kept], [summary for _, summary in kept]
    return dataclasses.replace(run, columns={attack: columns}, summaries={attack: summaries})


def _label(rule: RuleSettings, rules: Iterable[RuleSettings]) -> str:
    """Return the name of a rule, with the constants in which others of that name differ."""
    own = dict(rule)
    same = [other for other in map(dict, rules) if other.get("rule") == own.get("rule")]
    apart = [f"{name} {words(value)}" for name, value in rule if any(other[name] != value for other in same)]
    name = str(own.get("rule", "none"))
    return f"{name} ({', '.join(apart)})" if apart else name
