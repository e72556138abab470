"""How long the cells of a comparison that are not done will take on this machine."""

from typing import Literal, NamedTuple

from taet.evaluation.evaluate import attack_seconds
from taet.experiments.compare import Comparison, share_machine
from taet.experiments.executor import OPEN, seconds_until_done
from taet.experiments.grid import Outcome
from taet.progress import Progress
from taet.run.folder import RunFolder
from taet.settings import Run, override
from taet.training.prepare import expected_seconds, prepare


class CellSeconds(NamedTuple):
    """The expected seconds of a cell that has not begun."""

    training: float
    evaluation: float


def comparison_seconds(
    planned: Comparison, jobs: int | Literal["auto"] = 1, progress: Progress | None = None
) -> float:
    """Return the expected seconds until every cell is done, with `jobs` cells side by side.

    A few steps are timed of each row on each data set; runs that differ in their seed take as long.
    This reads the images, and writes nothing.

    Args:
        planned: what `compare` returned with `dry_run`.
        jobs: as of `compare`.
        progress: called as progress(done, total, row), in rows that are timed.

    Raises:
        UserError: published data that are not on this machine.
    """
    side_by_side, threads, _ = share_machine(jobs)
    unfinished = [outcome for outcome in planned.outcomes if outcome.state in OPEN]
    keys = list(dict.fromkeys(map(_row_and_data, unfinished)))
    timed: dict[object, CellSeconds] = {}
    for outcome in unfinished:
        key, run = _row_and_data(outcome), outcome.cell.run
        if key in timed or run is None:
            continue
        if progress is not None:
            progress(len(timed), len(keys), outcome.cell.row)
        timed[key] = _time(run, threads)
    if progress is not None and keys:
        progress(len(keys), len(keys), "timed")
    seconds = [_seconds_left(outcome, timed[_row_and_data(outcome)]) for outcome in unfinished]
    return seconds_until_done([], seconds, side_by_side)


def _row_and_data(outcome: Outcome) -> tuple[str, str, float | None]:
    return outcome.cell.row, outcome.cell.data, outcome.cell.imbalance


def _time(run: Run, threads: int) -> CellSeconds:
    """Return the expected seconds of a run, from a few steps with the threads of a cell."""
    own_threads = run.training.threads or threads
    plan, state = prepare(override(run, {"training.threads": own_threads}))
    return CellSeconds(expected_seconds(plan, state), attack_seconds(plan, state.model))


def _seconds_left(outcome: Outcome, whole: CellSeconds) -> float:
    """Return what is left of a cell: the epochs that are not in its folder, and the attacks."""
    folder, run = RunFolder(outcome.cell.folder), outcome.cell.run
    if run is None or not folder.is_run:
        return sum(whole)
    if folder.is_done:
        return whole.evaluation
    share_left = 1 - len(folder.metrics) / run.training.epochs
    return share_left * whole.training + whole.evaluation
