"""The open cells of a comparison as one job array of SLURM, submitted through submitit."""

import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taet.errors import needed, wrapping_user_code
from taet.experiments.executor import LOOK_SECONDS, OPEN, CellRun, Say, stop
from taet.experiments.grid import Cell, Grid, Outcome, cells_of
from taet.files import read_json, write_json
from taet.formatting import plural, read_duration
from taet.models import trusted
from taet.settings import Slurm

JOBS = "slurm.json"  # number of each cell's job, in the folder of the comparison
SIDE_BY_SIDE = 100  # most jobs that run at the same time
LIMITS = 1000  # most times that a job is continued
# before its time limit, or a quarter of it: a job then saves and is submitted again
SAVE_SECONDS = 300.0


@dataclass
class CellJob:
    """A cell as a picklable job."""

    grid: Grid
    place: Path
    name: str
    asked: Slurm
    trust: tuple[str, ...]
    work: CellRun | None = None

    def __call__(self) -> None:
        """Run the cell; RuntimeError if a command fails."""
        with trusted(*self.trust):
            cells = cells_of(self.grid, self.place, accelerated=self.asked.gpus > 0)
        cell = next(one for one in cells if one.name == self.name)
        work = self.work = CellRun(cell, self.place / "logs" / f"{self.name}.txt", self.asked.cpus)
        for _ in work.steps():
            time.sleep(LOOK_SECONDS)
        if work.failed:
            raise RuntimeError(work.failed)

    def checkpoint(self) -> object:
        """Make the command save and end, and ask submitit to submit the job again: it is near its
        time limit."""
        stop([] if self.work is None else [self.work])
        self.work = None
        return needed("submitit", "--on slurm", "slurm").helpers.DelayedSubmission(self)


def queue() -> dict[str, str]:
    """Return the state of each job of this user that waits or runs, by its number."""
    with wrapping_user_code("slurm: squeue"):
        words = ["squeue", "--me", "--array", "--noheader", "--format", "%i %T"]
        lines = subprocess.run(
            words, capture_output=True, text=True, check=True
        ).stdout.splitlines()
    return {number: state.lower() for number, state in map(str.split, lines)}


def submit(
    grid: Grid, place: Path, outcomes: Sequence[Outcome], slurm: Slurm, say: Say
) -> tuple[Outcome, ...]:
    """Submit every open cell that no job works on, and return all outcomes.

    Open cells are `submitted`, with the number and state of their job.
    """
    library, path = needed("submitit", "--on slurm", "slurm"), place / JOBS
    jobs = dict(read_json(path)) if path.exists() else {}
    states = queue()
    unfinished = [one.cell for one in outcomes if one.state in OPEN]
    new = [cell for cell in unfinished if jobs.get(cell.name) not in states]
    lost = [cell.name for cell in new if cell.name in jobs]
    if lost:
        say(
            f"{plural(len(lost), 'job')} ended before the cell was done, see the logs: "
            f"{', '.join(lost)}"
        )
    if new:
        numbers = _array(library, grid, place, new, slurm)
        jobs |= {cell.name: number for cell, number in zip(new, numbers, strict=True)}
        write_json(path, jobs)
        say(
            f"{plural(len(new), 'cell')} submitted, the last as job {jobs[new[-1].name]}; logs in "
            f"{place / 'logs'}"
        )
    submitted = []
    for one in outcomes:
        if one.state in OPEN:
            job = jobs[one.cell.name]
            reason = f"job {job}, {states.get(job, 'submitted')}"
            submitted.append(one._replace(state="submitted", reason=reason))
        else:
            submitted.append(one)
    return tuple(submitted)


def _array(library: Any, grid: Grid, place: Path, cells: Sequence[Cell], slurm: Slurm) -> list[str]:
    """Submit cells as one array and return the numbers of their jobs."""
    limit = max(60.0, read_duration(slurm.time))
    options = {
        "timeout_min": round(limit / 60),
        "cpus_per_task": slurm.cpus,
        "gpus_per_node": slurm.gpus or None,
        "mem_gb": slurm.memory_gb,
        "slurm_partition": slurm.partition,
        "slurm_account": slurm.account,
        "slurm_array_parallelism": SIDE_BY_SIDE,
        "slurm_signal_delay_s": round(min(SAVE_SECONDS, limit / 4)),
    }
    trust = tuple({cell.run.model.name for cell in cells if cell.run is not None})
    with wrapping_user_code("slurm"):
        executor = library.AutoExecutor(
            folder=place / "slurm", cluster="slurm", slurm_max_num_timeout=LIMITS
        )
        executor.update_parameters(
            name="taet", **{name: value for name, value in options.items() if value is not None}
        )
        with executor.batch():
            jobs = [CellJob(grid, place, cell.name, slurm, trust) for cell in cells]
            submitted = [executor.submit(job) for job in jobs]
        return [job.job_id for job in submitted]
