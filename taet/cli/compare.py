"""`taet compare SPEC`: train and attack a grid of methods, data, imbalance ratios and seeds."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from taet.cli import flags
from taet.cli.progress import saved, say
from taet.errors import UserError
from taet.experiments import Comparison, compare
from taet.experiments.cell import Outcome
from taet.fields import Processes
from taet.formatting import clock, plural
from taet.models import trusted

EXAMPLES = (
    "taet compare digits.toml",
    "taet compare digits.toml --dry-run",
    "taet compare digits.toml --out runs/digits --jobs 2 --time-budget 2h30m",
    "taet compare digits.toml --out runs/digits --jobs auto --part 3/16",
)
DESCRIPTION = """Train and attack every cell of the grid that SPEC, a TOML file, describes, and write a report. Finished
cells are kept, and started ones continue. Each cell is a run folder in OUT/runs; its output is in OUT/logs.

Exit status: 0 all done, or the time budget is used up; 1 a cell failed, the others are done; 2 a mistake in SPEC or in
the call; 130 interrupted, with all finished work saved.

Example of SPEC:

  title = "Three methods on long-tailed digits"
  methods = [                 # or "all"
    "at", "taet",
    {name = "harl-skip", method = "harl", settings = {absent = "skip"}}
  ]
  data = ["digits-lt"]
  imbalance = [10, 50]        # optional; without it, the data as they are
  seeds = [0, 1, 2]
  protocol = "taet"

  [settings]                  # of every run, as the options of taet train
  model = "resnet8"
  epochs = 60
  threat.eps = "8/255"

  [[variants]]                # the grid again, for methods that accept this
  name = "bsl"
  settings = {outer.name = "balanced-softmax"}"""


@dataclass(frozen=True)
class CompareOptions:
    """A comparison and how to run it."""

    spec: Annotated[Path, tyro.conf.Positional]
    """TOML file."""
    out: Path | None = None
    """Folder of the comparison. Default: SPEC without its suffix."""
    time_budget: str | None = None
    """Time after which running cells are saved and stopped, and no others are started, e.g. 2h30m, 90m or 600s."""
    jobs: Processes | Literal["auto"] = 1
    """Cells that run at the same time; they share the cores, and each uses the GPU with the fewest cells. auto: one per
    GPU (of CUDA_VISIBLE_DEVICES, if it is set), or 1 without a GPU."""
    part: str | None = None
    """K/N, e.g. 3/16: run only every 16th cell from the third on, and write no report. When all parts have ended, copy
    their folders together and call the command without --part."""
    trust_model: tuple[str, ...] = ()
    """Models of SPEC that are custom code, package.module:callable, which this call may import and run."""
    dry_run: bool = False
    """Print every cell with its state and the commands that remain; nothing is run."""
    json: bool = False
    """Print the content of OUT/comparison.json."""


def run(arguments: list[str]) -> int:
    """Run a comparison or a part of it; return 1 if a cell failed."""
    parsed = read(arguments)
    place = parsed.out or Path(parsed.spec.stem)
    with saved(["compare", *arguments], place), trusted(*parsed.trust_model):
        result = compare(
            parsed.spec,
            place,
            jobs=parsed.jobs,
            time_budget=seconds(parsed.time_budget),
            part=part_numbers(parsed.part),
            dry_run=parsed.dry_run,
            say=say,
        )
    if parsed.json:
        print(json.dumps(result.to_json(), indent=1))
    else:
        print(listing(result) if parsed.dry_run else summary(result, parsed, ["taet", "compare", *arguments]))
    return int("failed" in result.counts)


def read(arguments: list[str]) -> CompareOptions:
    """Parse a call."""
    return flags.parse(CompareOptions, arguments, "taet compare", DESCRIPTION, EXAMPLES)


def seconds(text: str | None) -> float | None:
    """Return the seconds of a duration such as 2h30m, 90m or 600s; None of none."""
    if text is None:
        return None
    found = re.fullmatch(r"(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s)?", text, re.ASCII)
    if not text or found is None:
        raise UserError(f"time budget: got '{text}'; allowed: hours, minutes and seconds, e.g. 2h30m, 90m or 600s")
    hours, minutes, rest = (int(part or 0) for part in found.groups())
    return 3600.0 * hours + 60.0 * minutes + rest


def part_numbers(text: str | None) -> tuple[int, int] | None:
    """Return the numbers K and N of a part K/N; None of none."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,5})/(\d{1,5})", text, re.ASCII)
    if found is None:
        raise UserError(f"part: got '{text}'; allowed: K/N with K from 1 to N, e.g. 3/16")
    return int(found[1]), int(found[2])


def listing(result: Comparison) -> str:
    """Return a line per cell with its state and time or reason, and the commands that remain."""
    lines = []
    for one in result.outcomes:
        said = f" in {timed([one])}" if one.state == "done" else f": {one.reason}" if one.reason else ""
        lines.append(f"{one.cell.name}: {one.state}{said}")
        lines += [f"    {shlex.join(['taet', *words])}" for words in one.commands]
    return "\n".join([*lines, counted(result)])


def counted(result: Comparison) -> str:
    """Return how many cells are in each state, and the time used so far."""
    states = ", ".join(f"{n} {state}" for state, n in result.counts.items()) or "none"
    spent = any(one.training or one.evaluation for one in result.outcomes)
    return f"{plural(len(result.outcomes), 'cell')}: {states}{f'; {timed(result.outcomes)}' if spent else ''}"


def timed(outcomes: Sequence[Outcome]) -> str:
    """Return the recorded times of training and of attacks in words."""
    training, attacks = (sum(getattr(one, kind) for one in outcomes) for kind in ("training", "evaluation"))
    return f"{clock(training)} of training and {clock(attacks)} of attacks"


def summary(result: Comparison, parsed: CompareOptions, words: list[str]) -> str:
    """Return which cells failed, what remains, and where the report is; `words` are the call."""
    lines = [f"failed: {o.cell.name}: {o.reason}" for o in result.outcomes if o.state == "failed"]
    lines.append(counted(result))
    if result.out_of_time:
        lines.append(f"the time budget is used up; continue: {shlex.join(words)}")
    elif parsed.part is not None:
        trust = ["--trust-model", *parsed.trust_model] if parsed.trust_model else []
        whole = shlex.join(["taet", "compare", str(parsed.spec), "--out", str(result.out), *trust])
        lines.append(f"when every part has ended: {whole}")
    if result.report is not None:
        lines.append(f"open {result.report}")
    return "\n".join(lines)
