"""The cells of a comparison at work: the commands of each, one after the other, and several cells side by side."""

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from taet.experiments.grid import Cell, Outcome
from taet.formatting import clock, plural
from taet.training.environment import interruption

OPEN = ("started", "missing")
LOOK_SECONDS, TELL_SECONDS = 0.1, 30.0  # between two polls of a process, and two lines about the running cells

Say = Callable[[str], None]


class CellRun:
    """The commands of a cell that remain, each as a process of the command line with its output in `log`."""

    def __init__(self, cell: Cell, log: Path, threads: int, gpu: str | None = None) -> None:
        self.cell, self.log, self.threads, self.stopped = cell, log, threads, False
        used = (cell.run and cell.run.training.threads) or threads
        seen = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
        self.environment = {**os.environ, "OMP_NUM_THREADS": str(used), **seen}
        self.process: subprocess.Popen[bytes] | None = None
        log.touch()

    def run(self, tell: Callable[[str], None] = lambda _: None) -> str:
        """Run the commands; return why the cell failed, "" if it is complete or was stopped."""
        words: Sequence[str] = ()
        while not self.stopped and (commands := self.cell.look(self.threads).commands):
            if commands[0] == words:
                return "the command ended well, but the cell is not complete"
            words = commands[0]
            tell(" ".join(words[:2] if "--resume" in words else words[:1]))
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
            if self.stopped:  # meanwhile
                self.stop()
            if (status := self.wait()) and not self.stopped:
                ended = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
                return f"{ended}: {self.last_line('taet: error: ') or self.last_line()}".removesuffix(": ")
        return ""

    def wait(self) -> int:
        """Wait for the process by polling, which a signal may interrupt, and return its exit status."""
        while self.process is not None and self.process.poll() is None:
            time.sleep(LOOK_SECONDS)
        return 0 if self.process is None else self.process.returncode

    def stop(self) -> None:
        """Make the process save and end; do not wait for it."""
        self.stopped = True
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)

    def last_line(self, marked: str = "") -> str:
        last = self.log.read_text(encoding="utf-8", errors="replace").rpartition("\n$ taet ")[2]
        lines = [line.strip() for line in last.split("\n")[1:]]  # below the command
        return next((line.removeprefix("taet: error: ") for line in reversed(lines) if line and marked in line), "")


class Work:
    """The cells that are not done, run by `jobs` at a time."""

    def __init__(
        self, found: Sequence[Outcome], logs: Path, jobs: int, threads: int, gpus: Sequence[str], say: Say
    ) -> None:
        self.logs, self.jobs, self.threads, self.gpus, self.say = logs, jobs, threads, gpus, say
        counts = Counter(outcome.state for outcome in found)
        self.waiting = [outcome.cell for outcome in found if outcome.state in OPEN]
        self.done, self.total = counts["done"], len(found) - counts["not applicable"]
        self.running: dict[CellRun, str | None] = {}  # with the GPU of each
        self.choosing = threading.Lock()  # of a GPU
        self.failed: dict[str, str] = {}
        self.begun, self.ended, self.stopping = time.monotonic(), 0, False
        listed = ", ".join(f"{count} {state}" for state, count in counts.items())
        on = f"{jobs} side by side on GPU {', '.join(gpus)}; " if gpus else ""
        say(f"{plural(len(found), 'cell')}: {listed or 'none'}; {on}logs in {logs}")

    def run(self, deadline: float) -> bool:
        """Work until all is done, the time is up, or the user interrupts; return whether the user interrupted."""
        told = time.monotonic()
        with interruption() as asked, ThreadPoolExecutor(self.jobs) as pool:
            cells = [pool.submit(self._run, cell) for cell in self.waiting if time.monotonic() < deadline]
            try:
                while not (all(one.done() for one in cells) or asked.is_set() or time.monotonic() >= deadline):
                    asked.wait(LOOK_SECONDS)
                    if time.monotonic() - told > TELL_SECONDS:
                        told = time.monotonic()
                        for one in [*self.running]:
                            self._tell(one.cell, one.last_line() or "starting")
            finally:
                self.stopping = True
                for future in cells:
                    future.cancel()
                for one in (left := [*self.running]):
                    one.stop()
                if left:
                    self.say(f"stopping {plural(len(left), 'running cell')}, after saving")
            for future in (one for one in cells if not one.cancelled()):
                future.result()
            return asked.is_set()

    def ended_as(self, outcome: Outcome) -> Outcome:
        """Return what was found of a cell, failed if it failed here and is not done."""
        reason = self.failed.get(outcome.cell.name)
        return outcome if reason is None or outcome.state == "done" else outcome._replace(state="failed", reason=reason)

    def _run(self, cell: Cell) -> None:
        with self.choosing:
            # The GPU with the fewest cells; a cell that names its GPU, such as cuda:1, may use all.
            own = cell.run is not None and ":" in cell.run.training.device
            gpu = None if own else min(self.gpus, key=[*self.running.values()].count, default=None)
            one = CellRun(cell, self.logs / f"{cell.name}.txt", self.threads, gpu)
            self.running[one] = gpu
            if self.stopping:  # which may have begun meanwhile
                one.stop()
        begun, on = time.monotonic(), "" if gpu is None else f" on GPU {gpu}"
        try:
            failed = one.run(lambda what: self._tell(cell, what + on))
        finally:
            del self.running[one]
        if one.stopped:
            return
        self.ended += 1
        left = (self.total - self.done - self.ended) * (time.monotonic() - self.begun) / self.ended
        after = f", about {clock(left)} left" if left else ""
        if failed:
            self.failed[cell.name] = failed
        self._tell(cell, f"failed: {failed}" if failed else f"done in {clock(time.monotonic() - begun)}{after}")

    def _tell(self, cell: Cell, what: str) -> None:
        self.say(f"[{self.done + self.ended}/{self.total}] {cell.name}: {what}")
