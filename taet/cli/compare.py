"""`taet compare SPEC`: methods x data x imbalance ratios x seeds; only what is missing is run."""

from __future__ import annotations

import json
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from taet.cli import flags
from taet.errors import UserError
from taet.experiments import Comparison, compare

EXAMPLES = (
    "taet compare digits.toml",
    "taet compare digits.toml --dry-run",
    "taet compare digits.toml --out runs/digits --jobs 2 --time-budget 2h30m",
)
DESCRIPTION = """Train and attack every cell of the grid that SPEC, a TOML file, describes, and write a report. What is
done is taken as it is, what was started goes on; each cell is a run folder in OUT/runs, its output in OUT/logs.

Exit status: 0 all done, or the time budget used up; 1 a cell failed, the others are done; 2 a mistake in SPEC or in the
call; 130 interrupted, with everything so far saved.

A specification:

  title = "Three methods on long-tailed digits"
  methods = ["at", "taet", {name = "harl-skip", method = "harl", settings = {absent = "skip"}}]     # or "all"
  data = ["digits-lt"]
  imbalance = [10, 50]        # not given: the data as they are
  seeds = [0, 1, 2]
  protocol = "taet"

  [settings]                  # of every run, by the names of the options of taet train
  model = "resnet8"
  epochs = 60
  threat.eps = "8/255"

  [[variants]]                # the grid once more, with settings added, for the methods that can take them
  name = "bsl"
  settings = {outer.name = "balanced-softmax"}"""


@dataclass(frozen=True)
class Flags:
    """A specification, and how it is worked off."""

    spec: Annotated[Path, tyro.conf.Positional]
    """TOML file."""
    out: Path | None = None
    """Folder of the comparison; SPEC without its ending if not given."""
    time_budget: str | None = None
    """Time after which nothing is begun and what runs is saved and stopped, e.g. 2h30m, 90m or 600s."""
    jobs: int = 1
    """Cells side by side; the cores are shared among them."""
    dry_run: bool = False
    """Print every cell with its state and the commands that are left, and run nothing."""
    json: bool = False
    """Print what OUT/comparison.json holds."""


def run(arguments: list[str]) -> int:
    """Work off a comparison; return 1 if a cell failed."""
    parsed = flags.parse(Flags, arguments, prog="taet compare", description=DESCRIPTION, examples=EXAMPLES)
    result = compare(
        parsed.spec,
        parsed.out,
        time_budget=None if parsed.time_budget is None else seconds(parsed.time_budget),
        jobs=parsed.jobs,
        dry_run=parsed.dry_run,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    if parsed.json:
        print(json.dumps(result.to_json(), indent=1))
    elif parsed.dry_run:
        print(listing(result))
    else:
        print(summary(result, shlex.join(["taet", "compare", *arguments])))
    return int("failed" in result.counts)


def seconds(text: str) -> float:
    """Return what 2h30m, 90m or 600s means, in seconds."""
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    if not text or found is None:
        raise UserError(f"time budget: got '{text}'; allowed: hours, minutes and seconds, e.g. 2h30m, 90m or 600s")
    hours, minutes, rest = (int(part or 0) for part in found.groups())
    return 3600.0 * hours + 60.0 * minutes + rest


def listing(result: Comparison) -> str:
    """Every cell with its state, its reason and the commands that are left."""
    lines = []
    for outcome in result.outcomes:
        lines.append(f"{outcome.cell.name}: {outcome.state}" + (f": {outcome.reason}" if outcome.reason else ""))
        lines += [f"    {command}" for command in outcome.commands]
    return "\n".join([*lines, counted(result)])


def counted(result: Comparison) -> str:
    """How many cells are in each state."""
    return f"{len(result.outcomes)} cells: {', '.join(f'{n} {state}' for state, n in result.counts.items())}"


def summary(result: Comparison, command: str) -> str:
    """What came out, what failed, what is left, and where the report is."""
    lines = [f"failed: {o.cell.name}: {o.reason}" for o in result.outcomes if o.state == "failed"]
    lines.append(counted(result))
    if result.out_of_time:
        lines.append(f"the time budget is used up; go on: {command}")
    if result.report is not None:
        lines.append(f"open {result.report}")
    return "\n".join(lines)
