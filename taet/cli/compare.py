"""`taet compare SPEC`: train and attack a grid of methods, data, imbalance ratios and seeds."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from taet.cli import flags
from taet.cli.progress import saved, say
from taet.errors import UserError
from taet.evaluation import StopRule
from taet.experiments import Comparison, Until, compare, merge, what_if
from taet.experiments.comparison import OPEN
from taet.experiments.specification import read as read_spec
from taet.fields import Processes
from taet.files import write_json
from taet.formatting import clock, plural
from taet.models import trusted

EXAMPLES = (
    "taet compare digits.toml",
    "taet compare digits.toml --dry-run",
    "taet compare digits.toml --out runs/digits --jobs 2 --time-budget 2h30m",
    "taet compare digits.toml --out runs/digits --jobs auto --part 3/16",
    "taet compare digits.toml --until decided --baseline at",
    "taet compare digits.toml --what-if",
    "taet compare digits.toml --out runs/digits --merge",
    "taet compare digits.toml --out runs/digits --merge from-a/digits from-b/digits",
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
    """K/N, e.g. 3/16: run only the third of 16 fixed parts of the cells, and write no report."""
    merge: tuple[Path, ...] | None = None
    """Write the report after all parts have ended; nothing is run. Finished runs of this comparison in the given
    folders are copied to OUT first."""
    until: Literal["decided"] | None = None
    """Train every cell, then compare every row with the baseline on the same test images in random order, and stop as
    soon as one of the two is known to be better, instead of attacking every cell on all images."""
    rule: flags.Given = flags.options(StopRule())
    baseline: str | None = None
    """With --until: the row that the others are compared with. Default: the first of methods."""
    what_if: bool = False
    """Repeat the grid on a quarter and on half of the training images of each class, and estimate per class what twice
    the images would gain, compared with another method; SPEC needs two seeds or more."""
    trust_model: tuple[str, ...] = ()
    """Models of SPEC that are custom code, package.module:callable, which this call may import and run."""
    dry_run: bool = False
    """Print every cell with its state and the commands that remain; nothing is run."""
    json: bool = False
    """Print the content of OUT/comparison.json."""


def run(arguments: list[str]) -> int:
    """Run a comparison or a part of it, or merge its parts; return 1 if a cell failed."""
    parsed = read(arguments)
    given = what_if.with_shares(read_spec(parsed.spec)) if parsed.what_if else parsed.spec
    place = parsed.out or Path(parsed.spec.stem)
    with saved(["compare", *arguments], place), trusted(*parsed.trust_model):
        if parsed.merge is not None:
            result = merge(given, place, parsed.merge, say=say)
        else:
            result = compare(
                given,
                place,
                time_budget=seconds(parsed.time_budget),
                jobs=parsed.jobs,
                part=part_numbers(parsed.part),
                until=None if parsed.until is None else Until(StopRule(**parsed.rule), parsed.baseline),
                dry_run=parsed.dry_run,
                say=say,
                command=flags.call_text(["compare", *arguments]),
            )
    if parsed.json:
        print(json.dumps(result.to_json(), indent=1))
    elif parsed.dry_run:
        print(listing(result))
    else:
        print(summary(result, parsed, shlex.join(["taet", "compare", *arguments])))
    if parsed.what_if and not parsed.dry_run and parsed.part is None:
        found = what_if.worth(result)
        write_json(result.out / "what-if.json", [one.to_json() for one in found])
        if not parsed.json:
            print(what_if.table(found))
    return int("failed" in result.counts)


def read(arguments: list[str]) -> CompareOptions:
    """Parse a call; contradictory options are refused."""
    parsed = flags.parse(CompareOptions, arguments, "taet compare", DESCRIPTION, EXAMPLES)
    if parsed.merge is not None and (given := flags.given(parsed, "part", "until", "time_budget", "dry_run")):
        raise UserError(f"--merge runs nothing: got {' and '.join(given)} as well")
    if parsed.until is None and (parsed.rule or parsed.baseline):
        given = [f"--{name.replace('_', '-')}" for name in (*parsed.rule, *(["baseline"] if parsed.baseline else []))]
        raise UserError(f"got {' and '.join(given)}; allowed: with --until decided")
    if parsed.until is not None and parsed.what_if:
        raise UserError("--what-if needs every image attacked: got --until decided as well")
    if parsed.until is not None and parsed.part is not None:
        raise UserError("--until decided compares all cells: got --part as well")
    return parsed


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
    for outcome in result.outcomes:
        said = f": {outcome.reason}" if outcome.reason else ""
        if outcome.state == "done":
            said = f" in {timed(outcome.seconds)}"
        lines.append(f"{outcome.cell.name}: {outcome.state}{said}")
        lines += [f"    {command}" for command in outcome.commands]
    return "\n".join([*lines, counted(result)])


def counted(result: Comparison) -> str:
    """Return how many cells are in each state, and the time used so far."""
    states = ", ".join(f"{n} {state}" for state, n in result.counts.items()) or "none"
    taken = f"; {timed(result.seconds)}" if any(result.seconds.values()) else ""
    return f"{plural(len(result.outcomes), 'cell')}: {states}{taken}"


def timed(taken: dict[str, float]) -> str:
    """Return the times of training and of attacks in words."""
    return f"{clock(taken['training'])} of training and {clock(taken['evaluation'])} of attacks"


def summary(result: Comparison, parsed: CompareOptions, command: str) -> str:
    """Return which cells failed, what remains, and where the report is; `command` is the call."""
    lines = [f"failed: {o.cell.name}: {o.reason}" for o in result.outcomes if o.state == "failed"]
    lines += [one.sentence for one in result.decisions]
    lines.append(counted(result))
    trust = ["--trust-model", *parsed.trust_model] if parsed.trust_model else []
    whole_options = [*trust, *(["--what-if"] if parsed.what_if else [])]
    whole = shlex.join(["taet", "compare", str(parsed.spec), "--out", str(result.out), *whole_options])
    if result.out_of_time:
        lines.append(f"the time budget is used up; continue: {command}")
    elif parsed.part is not None:
        lines.append(f"when every part has ended: {whole} --merge")
    elif parsed.merge is not None and any(state in result.counts for state in OPEN):
        lines.append(f"not all cells are done; continue: {whole}")
    if result.report is not None:
        lines.append(f"open {result.report}")
    return "\n".join(lines)
