"""Run the missing cells of a comparison in parallel, each as processes of the command line."""

import math
import os
import shlex
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from taet.data.sources import full_name, source
from taet.errors import UserError
from taet.experiments.executor import OPEN, Say, Work
from taet.experiments.grid import Cell, Grid, Outcome, cells_of, parse, read
from taet.experiments.slurm import submit
from taet.files import check_output, lock, make_folder
from taet.formatting import plural
from taet.idle_cores import threads_given
from taet.machine import idle_threads
from taet.progress import is_asked_for, say
from taet.report import write
from taet.report.read_cards import write_title
from taet.run.folder import RunFolder
from taet.settings import Slurm
from taet.settings.arguments import checked_arguments
from taet.settings.types import Processes, check_value

REPORT = "report.html"
Specification = Grid | Mapping[str, object] | str | os.PathLike[str]


@dataclass(frozen=True, repr=False)
class Comparison:
    """The state of every cell, and the report if there is a run.

    Example:
        >>> import taet
        >>> study = {"methods": ["at", "at-bsl"], "data": ["digits-lt"], "seeds": [0]}
        >>> planned = taet.compare(study, "runs/study", dry_run=True)
        >>> planned
        2 cells: 2 missing
    """

    title: str
    out: Path
    outcomes: tuple[Outcome, ...]
    out_of_time: bool = False
    report: Path | None = None

    def __repr__(self) -> str:
        return self.text()

    @property
    def counts(self) -> dict[str, int]:
        return dict(Counter(outcome.state for outcome in self.outcomes))

    def text(self, whole: bool = False) -> str:
        """Return the failed and submitted cells, the number in each state, and the report.

        With `whole` every cell is listed, with its remaining commands.
        """
        lines = []
        for one in self.outcomes:
            if whole or one.state in ("failed", "submitted"):
                reason = f": {one.reason}" if one.reason else ""
                lines.append(f"{one.cell.name}: {one.state}{reason}")
            if whole:
                lines += [f"    {shlex.join(['taet', *words])}" for words in one.commands]
        states = ", ".join(f"{count} {state}" for state, count in self.counts.items()) or "none"
        lines.append(f"{plural(len(self.outcomes), 'cell')}: {states}")
        if self.out_of_time:
            lines.append("the time budget is used up; the same command continues")
        if self.report is not None:
            lines.append(f"open {self.report}")
        return "\n".join(lines)


@checked_arguments
def compare(
    spec: Specification,
    out: str | os.PathLike[str] | None = None,
    *,
    jobs: int | Literal["auto"] = 1,
    time_budget: float | None = None,
    slurm: Slurm | None = None,
    dry_run: bool = False,
    progress: Say | bool | None = None,
) -> Comparison:
    """Run the cells that `out` lacks, and write `out`/report.html.

    A cell is `taet train` and `taet evaluate` in separate processes, with output in `out`/logs; a
    failed cell does not affect others. Called again, it keeps finished cells and continues started
    ones.

    Args:
        spec: a TOML file, or a mapping with the same keys.
        out: folder of the comparison. Default: the name of the file without its suffix.
        jobs: number of cells that run in parallel; they share the processor's cores, and are spread
            evenly over the machine's GPUs, or those in CUDA_VISIBLE_DEVICES. "auto": the number of
            GPUs, or 1 without a GPU.
        time_budget: seconds after which no cell is started and running ones are saved and stopped.
        slurm: submit the cells as one job array of a SLURM cluster instead of running them here; a
            later call shows their states, submits again what ended early, and collects the report.
            `jobs` and `time_budget` have no use.
        dry_run: only plan: read no images, write nothing.
        progress: True prints every event as one line on standard error, False does not, and a
            function is called with every line. Default: printed on a terminal and in a notebook.

    Raises:
        UserError: a mistake in the specification, a folder with a run of other settings, or that
            another call works in, or published data that are not on this machine, except in a dry
            run.
        KeyboardInterrupt: on SIGINT or SIGTERM, after every process has saved and ended.

    Example:
        >>> import taet
        >>> study = {"methods": ["at", "at-bsl"], "data": ["digits-lt"], "seeds": [0, 1]}
        >>> taet.compare(study, "runs/study", dry_run=True).counts
        {'missing': 4}
    """
    check_value("jobs", jobs, Processes | Literal["auto"])
    if time_budget is not None and not time_budget > 0:
        raise UserError(f"time budget: got {time_budget:g} seconds; allowed: above 0")
    deadline = math.inf if time_budget is None else time.monotonic() + time_budget
    grid, place, planned = _planned(spec, out, None if slurm is None else slurm.gpus > 0)
    side_by_side, threads, gpus = share_machine(jobs)
    states = tuple(cell.look(threads) for cell in planned)
    if dry_run:
        return Comparison(grid.title, place, states)
    open_runs = [one.cell.run for one in states if one.cell.run is not None and one.state in OPEN]
    for data in dict.fromkeys(run.data for run in open_runs):
        source(data)  # refuse missing data before any cell begins
    make_folder(place / "logs")
    tell = _listener(progress)
    with lock(place):
        write_title(place, grid.title)
        if slurm is not None:
            outcomes = submit(grid, place, states, slurm, tell)
        else:
            work = Work(states, place / "logs", side_by_side, threads, gpus, tell)
            if work.run(deadline):
                raise KeyboardInterrupt
            outcomes = tuple(work.ended_as(cell.look(threads)) for cell in planned)
        late = any(outcome.state in OPEN for outcome in outcomes)
        report = _report(grid.title, place, outcomes)
    return Comparison(grid.title, place, outcomes, late, report)


def _listener(progress: Say | bool | None) -> Say:
    """Return the function that gets the lines about events."""
    if callable(progress):
        return progress
    return say if is_asked_for(progress) else lambda _: None


def _planned(
    spec: Specification, out: str | os.PathLike[str] | None, accelerated: bool | None
) -> tuple[Grid, Path, list[Cell]]:
    """Return the grid of a comparison, its folder and its cells.

    The cells are for machines with or without a GPU.
    """
    file = ""
    if isinstance(spec, str | os.PathLike):
        file = str(spec)
        grid, place = read(spec), Path(out or Path(spec).stem)
    elif out is None:
        raise UserError(
            "compare: got no out; allowed: a folder, where the specification is not a file"
        )
    else:
        grid = spec if isinstance(spec, Grid) else parse(spec)
        place = Path(out)
    check_output(place)
    for name in map(full_name, grid.data):
        folder, _, images = name.partition(":")
        if folder == "folder" and place.resolve() == Path(images).expanduser().resolve():
            raise UserError(
                f"--out: got {place}, the folder of the images; allowed: another, e.g. "
                f"runs/{place.name}"
            )
    return grid, place, cells_of(grid, place, file, accelerated)


def share_machine(jobs: int | Literal["auto"]) -> tuple[int, int, list[str]]:
    """Return the number of cells that run at the same time, the threads of each, and the GPUs."""
    visible, count = os.environ.get("CUDA_VISIBLE_DEVICES"), torch.cuda.device_count()
    names = map(str, range(count)) if visible is None else visible.split(",")  # numbers or UUIDs
    gpus = [name.strip() for name in names][:count]
    side_by_side = max(1, len(gpus)) if jobs == "auto" else jobs
    # a given number is that of a cell
    threads = idle_threads()[0] // (1 if threads_given() else side_by_side)
    return side_by_side, max(1, threads), gpus


def _report(title: str, place: Path, outcomes: Sequence[Outcome]) -> Path | None:
    """Write the report of all evaluated cells, with the reason why others are missing.

    Without an evaluated cell there is no report.
    """
    folders: list[Path] = []
    missing: list[str] = []
    for cell, state, commands, reason in outcomes:
        folder = RunFolder(cell.folder)
        if folder.card().exists() and (state != "failed" or commands):
            folders.append(folder.path)
        if state != "done":
            ratio = "" if cell.imbalance is None else f", imbalance ratio {cell.imbalance:g}"
            seed = "" if state == "not applicable" else f", seed {cell.seed}"
            missing.append(f"{cell.row} on {cell.data}{ratio}{seed}: {reason or state}.")
    if not folders:
        return None
    each_once = list(dict.fromkeys(missing))
    return write(folders, place / REPORT, title=title, notes=each_once, force=True)
