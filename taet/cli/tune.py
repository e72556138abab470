"""`taet tune SPEC`: choose settings on validation images, with the same number of trials for every method."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from taet.cli import flags
from taet.cli.compare import counted, seconds
from taet.cli.progress import saved, say
from taet.experiments.tune import BEST, Tuned, tune
from taet.fields import Processes
from taet.formatting import aligned, percent, words
from taet.models import trusted

EXAMPLES = (
    "taet tune digits.toml",
    "taet tune digits.toml --out runs/digits --jobs 2 --time-budget 2h30m",
)
DESCRIPTION = """Tune every method on the validation images, with the same number of trials for each (Optuna; pip
install 'taet[tune]'). Then train with the best settings and all seeds, attack, and write a report that says "tuned: 40
trials". The test images are not used before that. Trials are kept in OUT: the same call continues, and several calls
share the work.

SPEC is a TOML file as for taet compare, with one data set and one imbalance ratio, and the table [tune]:

  methods = ["at", "trades"]
  data = ["digits-lt"]
  seeds = [0, 1, 2]           # of the comparison; trials train on the first
  [settings]
  "model.name" = "resnet8"
  "data.validation" = 0.2     # the default
  [tune]
  trials = 40
  [tune.space]                # of every method
  lr = {low = 0.01, high = 0.5, log = true}
  "weight-decay" = [1e-4, 5e-4, 1e-3]
  [tune.methods.trades]       # of this one as well
  beta = {low = 1.0, high = 10.0}

Exit status: 0 all done, or the time budget is used up; 1 a cell of the comparison failed; 2 a mistake; 130 interrupted,
with all finished work saved."""


@dataclass(frozen=True)
class TuneOptions:
    """A search, and how it is run."""

    spec: Annotated[Path, tyro.conf.Positional]
    """TOML file with a table [tune]."""
    out: Path | None = None
    """Folder of the trials and of the comparison. Default: SPEC without its suffix."""
    jobs: Processes | Literal["auto"] = 1
    """Trials that run at the same time, as in taet compare."""
    time_budget: str | None = None
    """Time after which running trials are saved and stopped, and no others are started, e.g. 2h30m."""
    trust_model: tuple[str, ...] = ()
    """Models of SPEC that are custom code, package.module:callable, which this call may import and run."""
    json: bool = False
    """Print the best trials as JSON."""


def run(arguments: list[str]) -> int:
    """Run a search and print the best trial of every method."""
    parsed = flags.parse(TuneOptions, arguments, "taet tune", DESCRIPTION, EXAMPLES)
    place = parsed.out or Path(parsed.spec.stem)
    with saved(["tune", *arguments], place), trusted(*parsed.trust_model):
        found = tune(
            parsed.spec,
            place,
            jobs=parsed.jobs,
            time_budget=seconds(parsed.time_budget),
            say=say,
        )
    print(json.dumps(_to_json(found), indent=1) if parsed.json else "\n".join(_lines(found, arguments)))
    return int(found.comparison is not None and "failed" in found.comparison.counts)


def _to_json(found: Tuned) -> dict[str, Any]:
    report = found.comparison and found.comparison.report
    return {"trials": found.search.trials, "methods": found.best, "report": None if report is None else str(report)}


def _lines(found: Tuned, arguments: list[str]) -> list[str]:
    """Return a table of the best trials, and what comes next."""
    lines = []
    if found.best:
        rows = [("method", "validation, robust balanced %", "trials", "failed", "")]
        rows += [(row, percent(b["value"]), str(b["trials"]), str(b["failed"]), "") for row, b in found.best.items()]
        said = ["settings", *(words(best["settings"]) for best in found.best.values())]
        lines = [f"{line}{text}" for line, text in zip(aligned(rows), said, strict=True)]
        lines.append(f"settings in {found.out / BEST}")
    if found.comparison is None or found.comparison.out_of_time:
        return [*lines, f"the time budget is used up; continue: {shlex.join(['taet', 'tune', *arguments])}"]
    lines.append(counted(found.comparison))
    return [*lines, f"open {found.comparison.report}"] if found.comparison.report else lines
