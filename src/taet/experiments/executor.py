"""The cells of a comparison at work: several side by side, each one command after the other."""

import heapq
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from taet.errors import UserError, exception_text
from taet.experiments.grid import Cell, Outcome
from taet.formatting import clock, plural
from taet.machine import interruption

OPEN = ("started", "missing")
LOOK_SECONDS = 0.1  # between two looks at the processes
TELL_SECONDS = 30.0  # between two lines about the running cells
ERROR = "taet: error: "  # before the message of a command that failed

Say = Callable[[str], None]


class CellRun:
    """The remaining commands of a cell, each as a process with its output in `log`."""

    def __init__(self, cell: Cell, log: Path, threads: int, gpu: str | None = None) -> None:
        self.cell = cell
        self.log = log
        self.threads = threads
        self.gpu = gpu
        self.begun = time.monotonic()
        own_threads = (cell.run and cell.run.training.threads) or threads
        visible = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
        self.environment = {**os.environ, "OMP_NUM_THREADS": str(own_threads), **visible}
        self.process: subprocess.Popen[bytes] | None = None
        self.failed = ""
        """Why the cell failed; "" if it is complete."""
        log.touch()

    def steps(self, tell: Say = lambda _: None) -> Iterator[bool]:
        """Run the commands in turn, and yield True while one runs.

        It never waits: the caller chooses when to look again.
        """
        previous: Sequence[str] = ()
        try:
            while commands := self.cell.look(self.threads).commands:
                command = commands[0]
                if command == previous:
                    self.failed = "the command ended well, but the cell is not complete"
                    return
                previous = command
                tell(self._summary(command))
                self.process = self._start(command)
                while (status := self.process.poll()) is None:
                    yield True
                if status:
                    self.failed = self._reason(status)
                    return
        # it cannot start, or its folder is damaged: other cells go on
        except (OSError, UserError) as error:
            self.failed = exception_text(error)

    def _summary(self, command: Sequence[str]) -> str:
        """Return the words of a command that say what it does, and its GPU."""
        words = command[:2] if "--resume" in command else command[:1]
        place = "" if self.gpu is None else f" on GPU {self.gpu}"
        return " ".join(words) + place

    def _start(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start a command whose output is appended to the log."""
        with self.log.open("ab") as log:
            log.write(f"$ {shlex.join(['taet', *command])}\n".encode())
            log.flush()
            # In a session of its own, as Ctrl-C is forwarded once: a second signal would prevent
            # saving.
            return subprocess.Popen(
                # without modules of the current directory
                [sys.executable, "-P", "-m", "taet", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
                start_new_session=True,
            )

    def _reason(self, status: int) -> str:
        """Return why a command failed: how its process ended, and the last line that it wrote."""
        ended = (
            f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        )
        last_line = self.last_line(ERROR) or self.last_line()
        return f"{ended}: {last_line}" if last_line else ended

    def last_line(self, marked: str = "") -> str:
        """Return the last line of the last command's output that has the mark; "" without one."""
        log = self.log.read_text(encoding="utf-8", errors="replace")
        _, _, of_command = log.rpartition("\n$ taet ")
        lines = of_command.split("\n")[1:]  # below the command
        for line in reversed(lines):
            text = line.strip()
            if text and marked in text:
                return text.removeprefix(ERROR)
        return ""


def stop(runs: Sequence[CellRun]) -> None:
    """Make the processes of the runs save and end, and wait for them."""
    processes = [one.process for one in runs if one.process is not None]
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        while process.returncode is None:
            with suppress(KeyboardInterrupt):  # a second Ctrl-C must not interrupt the saving
                process.wait()


def seconds_until_done(
    running: Sequence[float], waiting: Sequence[float], side_by_side: int
) -> float:
    """Return the seconds until all work has ended.

    Args:
        running: the seconds that each running cell still takes.
        waiting: the seconds of each other cell; it begins, in this order, where there is room.
        side_by_side: the number of cells that run at the same time.
    """
    ends = list(running)
    heapq.heapify(ends)
    for seconds in waiting:
        if len(ends) < side_by_side:
            heapq.heappush(ends, seconds)
        else:
            heapq.heapreplace(ends, ends[0] + seconds)
    return max(ends, default=0.0)


class Work:
    """The cells that are not done, run by `jobs` at a time."""

    def __init__(
        self,
        found: Sequence[Outcome],
        logs: Path,
        jobs: int,
        threads: int,
        gpus: Sequence[str],
        say: Say,
    ) -> None:
        self.logs = logs
        self.jobs = jobs
        self.threads = threads
        self.gpus = gpus
        self.say = say
        counts = Counter(outcome.state for outcome in found)
        self.done = counts["done"]
        self.total = len(found) - counts["not applicable"]
        self.waiting = [outcome.cell for outcome in found if outcome.state in OPEN]
        self.running: dict[CellRun, Iterator[bool]] = {}
        self.ended = 0
        self.failed: dict[str, str] = {}
        self.took: list[tuple[str, float]] = []
        """The row and the seconds of each cell that was done here."""
        listed = ", ".join(f"{count} {state}" for state, count in counts.items())
        on = f"{jobs} side by side on GPU {', '.join(gpus)}; " if gpus else ""
        say(f"{plural(len(found), 'cell')}: {listed or 'none'}; {on}logs in {logs}")

    def run(self, deadline: float) -> bool:
        """Work until all is done, the time is up, or the user interrupts.

        Return whether the user interrupted.
        """
        told = time.monotonic()
        with interruption() as interrupted:
            try:
                while self.waiting or self.running:
                    if interrupted.is_set() or time.monotonic() >= deadline:
                        break
                    self._fill()
                    self._look()
                    interrupted.wait(LOOK_SECONDS)
                    if time.monotonic() - told > TELL_SECONDS:
                        told = time.monotonic()
                        for one in self.running:
                            self._tell(one.cell, one.last_line() or "starting")
            finally:
                self._stop()
            return interrupted.is_set()

    def ended_as(self, outcome: Outcome) -> Outcome:
        """Return the outcome of a cell: failed if the cell failed here and is not done."""
        reason = self.failed.get(outcome.cell.name)
        if reason is None or outcome.state == "done":
            return outcome
        return outcome._replace(state="failed", reason=reason)

    def _fill(self) -> None:
        """Begin waiting cells where there is room."""
        while self.waiting and len(self.running) < self.jobs:
            self._begin(self.waiting.pop(0))

    def _begin(self, cell: Cell) -> None:
        one = CellRun(cell, self.logs / f"{cell.name}.txt", self.threads, self._gpu_for(cell))
        self.running[one] = one.steps(partial(self._tell, cell))

    def _gpu_for(self, cell: Cell) -> str | None:
        """Return the GPU with the fewest cells; None for a cell that names its own, as cuda:1."""
        if cell.run is not None and ":" in cell.run.training.device:
            return None
        used = [one.gpu for one in self.running]
        return min(self.gpus, key=used.count, default=None)

    def _look(self) -> None:
        """Continue every running cell, and end those that have no command left."""
        finished = [one for one, steps in self.running.items() if not next(steps, False)]
        for one in finished:
            del self.running[one]
            self._end(one)

    def _stop(self) -> None:
        """Make the running cells save and end."""
        try:
            if self.running:
                self.say(f"stopping {plural(len(self.running), 'running cell')}, after saving")
        finally:  # also if `say` fails, as nobody reads the output
            stop([*self.running])

    def _end(self, one: CellRun) -> None:
        self.ended += 1
        if one.failed:
            self.failed[one.cell.name] = one.failed
            self._tell(one.cell, f"failed: {one.failed}")
            return
        took = time.monotonic() - one.begun
        self.took.append((one.cell.row, took))
        left = self._seconds_left()
        estimate = f", about {clock(left)} left" if left else ""
        self._tell(one.cell, f"done in {clock(took)}{estimate}")

    def _seconds_left(self) -> float:
        """Return the expected seconds until the last cell ends."""
        now = time.monotonic()
        running = [
            max(0.0, self._expected_seconds(one.cell) - (now - one.begun)) for one in self.running
        ]
        waiting = [self._expected_seconds(cell) for cell in self.waiting]
        return seconds_until_done(running, waiting, self.jobs)

    def _expected_seconds(self, cell: Cell) -> float:
        """Return the mean seconds of the cells of its row that are done, else of all."""
        of_row = [seconds for row, seconds in self.took if row == cell.row]
        return statistics.fmean(of_row or [seconds for _, seconds in self.took])

    def _tell(self, cell: Cell, what: str) -> None:
        self.say(f"[{self.done + self.ended}/{self.total}] {cell.name}: {what}")
