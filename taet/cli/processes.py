"""What a command shows while it works, and processes that share its work, of which only the first one prints."""

from __future__ import annotations

import atexit
import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from taet.cli import STARTED_TOGETHER, ended_by
from taet.distributed import claim, joined, leave, rank, started_together
from taet.errors import Done, UserError
from taet.formatting import clock
from taet.progress import Progress as Report
from taet.training.environment import cores, resolve_device, taet_command
from taet.training.interruption import interruption

LINE_SECONDS = 10.0
"""Between two lines of progress."""
SPEED_SECONDS = 3600.0  # estimate the remaining time from this much of the past: one step may take minutes
REPORTING_SECONDS = 1.0
"""Time for the process that reports the error: torchrun kills it as soon as another one has ended."""
CHECK_SECONDS = 0.1
"""Between two checks of the started processes."""
WORTH_STARTING = 1e6
"""Passes of an image that take longer than starting another process, also with a network of 78 thousand weights."""
ENDING_SECONDS = 30.0
"""Time for all processes to end by themselves, after a failure or an interruption."""


def say(text: str) -> None:
    """Print a text at once on standard error: standard output is for the result."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(title: str) -> Iterator[Report]:
    """Yield a function (done, total, text): a bar on a terminal, otherwise a line every ten seconds on standard error.

    A text that ends in a line break is printed on its own line; after the end of one task another one may begin.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(title)
        return
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f} % elapsed"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
        console=console,
        speed_estimate_period=SPEED_SECONDS,
    )
    with bar:
        task, told = bar.add_task(title, total=None, text=""), [-LINE_SECONDS]

        def show(done: float, total: float, text: str) -> None:
            if bar.tasks[0].finished and done < total:
                bar.reset(task)  # another task, with its own speed
            bar.update(task, completed=done, total=total, text=text.rstrip())
            if text.endswith("\n") and (done >= total or time.monotonic() - told[0] >= LINE_SECONDS):
                told[0] = time.monotonic()
                console.print(f"{title}: {text.rstrip()}", highlight=False)

        yield show


class _Lines:
    """Progress as lines: the first at once, the end always, the others only after some time."""

    def __init__(self, title: str) -> None:
        self.title, self.began, self.first, self.ended = title, 0.0, 0.0, True
        self.told = {False: -LINE_SECONDS, True: -LINE_SECONDS}
        """When an ordinary text, and one with its own line, was last printed."""

    def __call__(self, done: float, total: float, text: str) -> None:
        now = time.monotonic()
        if self.ended and done < total:  # the first or another task; a resumed run starts with some of it done
            self.began, self.first, self.ended = now, done, False
        again, self.ended = self.ended, done >= total
        if again or not (self.ended or now - self.told[text.endswith("\n")] >= LINE_SECONDS):
            return
        self.told[text.endswith("\n")] = now
        elapsed = now - self.began
        if self.ended:
            say(f"{self.title}: 100 %, done in {clock(elapsed)}, {text.rstrip()}")
            return
        rate = (done - self.first) / max(elapsed, 1e-9)
        eta = f", ETA {clock((total - done) / rate)}" if rate > 0 else ""
        say(f"{self.title}: {100 * done / total:.0f} %, elapsed {clock(elapsed)}{eta}, {text.rstrip()}")


@contextlib.contextmanager
def saved(command: Sequence[str], folder: Path | None = None) -> Iterator[None]:
    """Within this context, an interruption reports that progress is saved, in `folder`, and the command to continue."""
    try:
        yield
    except KeyboardInterrupt as error:
        if error.args:
            raise
        place = "" if folder is None else f" in {folder}"
        raise KeyboardInterrupt(f"progress is saved{place}; continue with: {shlex.join(['taet', *command])}") from None


@contextlib.contextmanager
def together(device: str) -> Iterator[None]:
    """Join the other processes, if any, on `device`, and discard the output of all but the first."""
    end_with_parent()
    with reported_once(), joined(resolve_device(device).type), contextlib.ExitStack() as stack:
        if rank() > 0:
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        yield


@contextlib.contextmanager
def reported_once() -> Iterator[None]:
    """Report an error or interruption from one process only: the first to claim it; the others exit silently."""
    try:
        yield
    except Done:
        raise
    except BaseException as error:
        if not started_together():
            raise
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        status = ended_by(error)[0]
        atexit.register(leave, status)  # registered last, so called first
        if claim("final message"):
            raise
        time.sleep(REPORTING_SECONDS)
        raise Done(status) from None


def number_of(processes: int | Literal["auto"], device: str) -> int:
    """Return the number of processes: as asked for, or with auto one per GPU, or per core without a GPU."""
    chosen = resolve_device(device)
    if processes == "auto":
        return 1 if chosen.index is not None else torch.cuda.device_count() if chosen.type == "cuda" else cores()
    if processes > 1 and chosen.index is not None:
        raise UserError(f"processes: got {processes} on {device}, which is one GPU; allowed: with --device cuda or cpu")
    return processes


def allowed() -> int:
    """Return the default number of cores of a command: at most OMP_NUM_THREADS, which users of shared machines set."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores(), int(limit)) if limit.isdecimal() and int(limit) else cores()


def run_together(count: int, words: Sequence[str], threads: int | None = None) -> int:
    """Run `taet WORDS` in `count` processes that share the cores of this machine, and return the exit status.

    They are set up as by torchrun, whose failure report would hide the one-line error. When one process fails, the
    user interrupts, or this process dies, all of them end.
    """
    _store, meeting = meeting_point(count)
    given = os.environ.get("OMP_NUM_THREADS", str(max(1, cores() // count))) if threads is None else str(threads)
    common = {**os.environ, **meeting, STARTED_TOGETHER: "1", "OMP_NUM_THREADS": given}
    running: list[subprocess.Popen[bytes]] = []
    with interruption() as asked:
        try:
            for number in range(count):  # standard input closes with this process: see `end_with_parent`
                place = {"RANK": str(number), "LOCAL_RANK": str(number)}
                session = {
                    "stdin": subprocess.PIPE,
                    "start_new_session": True,
                }  # Ctrl-C reaches each once, through this
                running.append(subprocess.Popen(taet_command(words), env={**common, **place}, **session))  # type: ignore[call-overload]
            while not asked.is_set() and {process.poll() for process in running} in ({None}, {None, 0}):
                asked.wait(CHECK_SECONDS)
            first_failed = next((process.returncode for process in running if process.poll()), 0)
        except BaseException:
            for process in running:
                process.kill()
            raise
        statuses = _ended(running, at_once=asked.is_set())
    if any(statuses) and asked.is_set():
        raise KeyboardInterrupt
    if first_failed < 0 and max(statuses) <= 0:
        raise UserError(f"a process was ended by {signal.Signals(-first_failed).name}; finished batches are kept")
    return max(statuses) if any(statuses) else 0


def meeting_point(count: int) -> tuple[Any, dict[str, str]]:
    """Return a store through which `count` processes find each other while it exists, and their environment."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    found = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": str(count)}
    found["TORCHELASTIC_USE_AGENT_STORE"] = "True"  # the store is in this process, not in one of theirs
    if sys.platform == "linux":  # use the loopback interface; the host name may not resolve
        found["GLOO_SOCKET_IFNAME"] = os.environ.get("GLOO_SOCKET_IFNAME", "lo")
    return store, found


def _ended(running: Sequence[subprocess.Popen[bytes]], at_once: bool) -> list[int]:
    """Wait for all processes to end, and end those that do not; return their exit statuses."""
    if at_once:
        for process in running:
            process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + ENDING_SECONDS
    with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
        for process in running:
            process.wait(max(0.0, deadline - time.monotonic()))
    for process in running:
        process.kill()
        if process.stdin is not None:
            process.stdin.close()
    return [process.wait() for process in running]


def end_with_parent() -> None:
    """End this process when the one that started it by `run_together` ends, even if that is killed."""

    def wait() -> None:
        os.read(sys.stdin.fileno(), 1)  # returns when the parent closes it: nothing is ever written
        os._exit(1)

    if STARTED_TOGETHER in os.environ:
        threading.Thread(target=wait, daemon=True).start()
