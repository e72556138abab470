"""`taet compare SPEC`: train and attack a grid of methods, data, imbalance ratios and seeds."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from taet.cli.options import POSITIONAL, Command, parse
from taet.errors import UserError
from taet.fields import Processes
from taet.formatting import clock, plural

if TYPE_CHECKING:
    from taet.experiments import Comparison, Outcome


class Compare(Command):
    """Train and attack every cell of the grid that SPEC, a TOML file, describes, and write a report. Finished cells are
    kept, and started ones continue. Each cell is a run folder in OUT/runs; its output is in OUT/logs.

    Exit status: 0 all done, or the time budget is used up; 1 a cell failed, the others are done.

    Example of SPEC:

        methods = ["at", "taet", {name = "skip", method = "harl", settings = {absent = "skip"}}]
        data = ["digits-lt"]
        imbalance = [10, 50]        # optional; without it, the data as they are
        seeds = [0, 1, 2]
        settings = {model = "resnet8", threat.eps = "8/255"}   # of every run, as in taet train

        [[variants]]                # the grid again, for methods that accept this
        name = "bsl"
        settings = {outer.name = "balanced-softmax"}
    """

    examples = (
        "taet compare digits.toml",
        "taet compare digits.toml --dry-run",
        "taet compare digits.toml --out runs/digits --jobs 2 --time-budget 2h30m",
        "taet compare digits.toml --out runs/digits --jobs auto --part 3/16",
    )

    spec: Annotated[Path, POSITIONAL]
    """TOML file."""
    out: Path | None = None
    """Folder of the comparison. Default: SPEC without its suffix."""
    time_budget: str | None = None
    """Time after which running cells are saved and stopped, and no others are started, e.g. 2h30m, 90m or 600s."""
    jobs: Processes | Literal["auto"] = 1
    """Cells that run at the same time; they share the cores, and each uses the GPU with the fewest cells. auto: one per
    GPU (of CUDA_VISIBLE_DEVICES, if it is set), or 1 without a GPU."""
    part: str | None = None
    """K/N, e.g. 3/16: run every 16th cell from the third on, and write no report. When all parts have ended, copy
    their folders into one, and call without --part."""
    trust_model: tuple[str, ...] = ()
    """Models of SPEC that are custom code, package.module:callable, which this call may import and run."""
    dry_run: bool = False
    """Print every cell with its state and the commands that remain; nothing is run."""
    as_json: bool = False
    """Print the content of OUT/comparison.json."""


def run(words: list[str]) -> int:
    """Run a comparison or a part of it; return 1 if a cell failed."""
    command = parse(Compare, words, "taet compare").command
    budget = None if command.time_budget is None else seconds(command.time_budget)
    part = None if command.part is None else part_numbers(command.part)

    from taet.cli.processes import saved, say
    from taet.experiments import compare
    from taet.files import check_output
    from taet.models import trusted

    place = command.out or Path(command.spec.stem)
    check_output(place)
    with saved(["compare", *words], place), trusted(*command.trust_model):
        result = compare(
            command.spec,
            place,
            jobs=command.jobs,
            time_budget=budget,
            part=part,
            dry_run=command.dry_run,
            say=say,
        )
    if command.as_json:
        print(json.dumps(result.to_json(), indent=1))
    else:
        print(listing(result) if command.dry_run else summary(result, command, shlex.join(["taet", "compare", *words])))
    return int("failed" in result.counts)


def seconds(text: str) -> float:
    """Return the seconds of a duration such as 2h30m, 90m or 600s."""
    found = re.fullmatch(r"(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s)?", text, re.ASCII)
    if not text or found is None:
        raise UserError(f"time budget: got '{text}'; allowed: hours, minutes and seconds, e.g. 2h30m, 90m or 600s")
    hours, minutes, rest = (int(part or 0) for part in found.groups())
    return 3600.0 * hours + 60.0 * minutes + rest


def part_numbers(text: str) -> tuple[int, int]:
    """Return the numbers K and N of a part K/N."""
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


def summary(result: Comparison, command: Compare, call: str) -> str:
    """Return which cells failed, what remains, and where the report is; `call` is the command."""
    lines = [f"failed: {o.cell.name}: {o.reason}" for o in result.outcomes if o.state == "failed"]
    lines.append(counted(result))
    if result.out_of_time:
        lines.append(f"the time budget is used up; continue: {call}")
    elif command.part is not None:
        trust = ["--trust-model", *command.trust_model] if command.trust_model else []
        whole = shlex.join(["taet", "compare", str(command.spec), "--out", str(result.out), *trust])
        lines.append(f"when every part has ended: {whole}")
    if result.report is not None:
        lines.append(f"open {result.report}")
    return "\n".join(lines)
