"""The cells of a comparison at work: the commands of each, one after the other, and several cells side by side."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from taet.errors import UserError, said
from taet.experiments.grid import Cell, Outcome
from taet.formatting import clock, plural
from taet.training.environment import interruption

OPEN = ("started", "missing")
LOOK_SECONDS, TELL_SECONDS = 0.1, 30.0  # between two looks at the processes, and two lines about the running cells

Say = Callable[[str], None]


class CellRun:
    """The commands of a cell that remain, each as a process of the command line with its output in `log`."""

    def __init__(self, cell: Cell, log: Path, threads: int, gpu: str | None = None) -> None:
        self.cell, self.log, self.threads, self.gpu, self.begun = cell, log, threads, gpu, time.monotonic()
        own_threads = (cell.run and cell.run.training.threads) or threads
        visible = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
        self.environment = {**os.environ, "OMP_NUM_THREADS": str(own_threads), **visible}
        self.process: subprocess.Popen[bytes] | None = None
        self.failed = ""
        """Why the cell failed; "" if it is complete."""
        log.touch()

    def steps(self, tell: Say = lambda _: None) -> Iterator[bool]:
        """Run the commands in turn, and yield True while one runs; it never waits: the caller chooses when to poll."""
        words: Sequence[str] = ()
        try:
            while commands := self.cell.look(self.threads).commands:
                if commands[0] == words:
                    self.failed = "the command ended well, but the cell is not complete"
                    return
                words = commands[0]
                on = "" if self.gpu is None else f" on GPU {self.gpu}"
                tell(" ".join(words[:2] if "--resume" in words else words[:1]) + on)
                with self.log.open("ab") as log:
                    log.write(f"$ {shlex.join(['taet', *words])}\n".encode())
                    log.flush()
                    # In a session of its own, as Ctrl-C is forwarded once: a second signal would prevent saving.
                    self.process = subprocess.Popen(
                        [sys.executable, "-P", "-m", "taet", *words],  # without modules of the current directory
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        env=self.environment,
                        start_new_session=True,
                    )
                while (status := self.process.poll()) is None:
                    yield True
                if status:
                    ended = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
                    self.failed = f"{ended}: {self.last_line('taet: error: ') or self.last_line()}".removesuffix(": ")
                    return
        except (OSError, UserError) as error:  # it cannot start, or its folder is damaged: other cells go on
            self.failed = said(error)

    def last_line(self, marked: str = "") -> str:
        last = self.log.read_text(encoding="utf-8", errors="replace").rpartition("\n$ taet ")[2]
        lines = [line.strip() for line in last.split("\n")[1:]]  # below the command
        return next((line.removeprefix("taet: error: ") for line in reversed(lines) if line and marked in line), "")


def stop(runs: Sequence[CellRun]) -> None:
    """Make the processes of the runs save and end, and wait for them."""
    processes = [one.process for one in runs if one.process is not None]
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        while process.returncode is None:
            with suppress(KeyboardInterrupt):  # a second Ctrl-C must not interrupt the saving
                process.wait()


class Work:
    """The cells that are not done, run by `jobs` at a time."""

    def __init__(
        self, found: Sequence[Outcome], logs: Path, jobs: int, threads: int, gpus: Sequence[str], say: Say
    ) -> None:
        self.logs, self.jobs, self.threads, self.gpus, self.say = logs, jobs, threads, gpus, say
        counts = Counter(outcome.state for outcome in found)
        self.waiting = [outcome.cell for outcome in found if outcome.state in OPEN]
        self.done, self.total = counts["done"], len(found) - counts["not applicable"]
        self.running: dict[CellRun, Iterator[bool]] = {}
        self.failed: dict[str, str] = {}
        self.begun, self.ended = time.monotonic(), 0
        listed = ", ".join(f"{count} {state}" for state, count in counts.items())
        on = f"{jobs} side by side on GPU {', '.join(gpus)}; " if gpus else ""
        say(f"{plural(len(found), 'cell')}: {listed or 'none'}; {on}logs in {logs}")

    def run(self, deadline: float) -> bool:
        """Work until all is done, the time is up, or the user interrupts; return whether the user interrupted."""
        told = time.monotonic()
        with interruption() as interrupted:
            try:
                while (self.waiting or self.running) and not interrupted.is_set() and time.monotonic() < deadline:
                    while self.waiting and len(self.running) < self.jobs:
                        self._begin(self.waiting.pop(0))
                    for one in [one for one, steps in self.running.items() if not next(steps, False)]:
                        del self.running[one]
                        self._end(one)
                    interrupted.wait(LOOK_SECONDS)
                    if time.monotonic() - told > TELL_SECONDS:
                        told = time.monotonic()
                        for one in self.running:
                            self._tell(one.cell, one.last_line() or "starting")
            finally:
                try:
                    if self.running:
                        self.say(f"stopping {plural(len(self.running), 'running cell')}, after saving")
                finally:  # also if `say` fails, as nobody reads the output
                    stop([*self.running])
            return interrupted.is_set()

    def ended_as(self, outcome: Outcome) -> Outcome:
        """Return the outcome of a cell, marked as failed if the cell failed here and is not done."""
        reason = self.failed.get(outcome.cell.name)
        return outcome if reason is None or outcome.state == "done" else outcome._replace(state="failed", reason=reason)

    def _begin(self, cell: Cell) -> None:
        # The GPU with the fewest cells; a cell that names its GPU, such as cuda:1, may use all.
        own, used = cell.run is not None and ":" in cell.run.training.device, [one.gpu for one in self.running]
        gpu = None if own else min(self.gpus, key=used.count, default=None)
        one = CellRun(cell, self.logs / f"{cell.name}.txt", self.threads, gpu)
        self.running[one] = one.steps(partial(self._tell, cell))

    def _end(self, one: CellRun) -> None:
        self.ended += 1
        remaining = (self.total - self.done - self.ended) * (time.monotonic() - self.begun) / self.ended
        estimate = f", about {clock(remaining)} left" if remaining else ""
        if one.failed:
            self.failed[one.cell.name] = one.failed
        result = f"done in {clock(time.monotonic() - one.begun)}{estimate}"
        self._tell(one.cell, f"failed: {one.failed}" if one.failed else result)

    def _tell(self, cell: Cell, what: str) -> None:
        self.say(f"[{self.done + self.ended}/{self.total}] {cell.name}: {what}")
