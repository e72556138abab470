"""What a command shows while it works, and processes that share its work, of which only the first one prints."""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import Progress, TextColumn

from taet.cli import STARTED_TOGETHER, ended_by
from taet.distributed import claim, joined, leave, rank, started_together
from taet.errors import Done, UserError
from taet.formatting import clock
from taet.progress import Progress as Report
from taet.training.environment import cores, interruption, resolve_device, taet_command

LINE_SECONDS = 10.0
SPEED_SECONDS = 3600.0  # estimate the remaining time from this much of the past: one step may take minutes
REPORTING_SECONDS = 1.0
"""Time for the process that reports the error: torchrun kills it as soon as another one has ended."""
CHECK_SECONDS, ENDING_SECONDS = 0.1, 30.0
"""Between two checks of the started processes, and for all of them to end by themselves."""
WORTH_STARTING = 1e6
"""Passes of an image that take longer than starting another process, also with a network of 78 thousand weights."""


@contextlib.contextmanager
def progress(title: str) -> Iterator[Report]:
    """Yield a function (done, total, text) that shows the progress of `title` on standard error.

    A text that ends in a line break is printed on its own line; after the end of one task another one may begin.
    """
    console, last = Console(stderr=True), -math.inf
    if not console.is_terminal:
        yield _Lines(title)
        return
    columns = (*Progress.get_default_columns(), TextColumn("{task.fields[text]}"))
    with Progress(*columns, console=console, speed_estimate_period=SPEED_SECONDS) as bar:
        task = bar.add_task(title, total=None, text="")

        def show(done: float, total: float, text: str) -> None:
            nonlocal last
            if bar.tasks[0].finished and done < total:
                bar.reset(task)  # another task, with its own speed
            bar.update(task, completed=done, total=total, text=text.rstrip())
            if text.endswith("\n") and (done >= total or time.monotonic() - last >= LINE_SECONDS):
                console.print(f"{title}: {text.rstrip()}", highlight=False)
                last = time.monotonic()

        yield show


class _Lines:
    """Prints a line at the start and the end of each task, and every ten seconds; results apart from other texts."""

    def __init__(self, title: str) -> None:
        self.title, self.ended = title, True
        self.began, self.first = 0.0, 0.0
        self.last = {True: -math.inf, False: -math.inf}
        """When the last result, and the last other text, was printed."""

    def __call__(self, done: float, total: float, text: str) -> None:
        now, result = time.monotonic(), text.endswith("\n")
        if self.ended and done < total:  # the first or another task; a resumed run starts with some of it done
            self.began, self.first, self.ended = now, done, False
        again, self.ended = self.ended, done >= total
        due = self.ended or any(now - self.last[kind] >= LINE_SECONDS for kind in {result, False})
        if again or not due:
            return
        self.last[result] = now
        elapsed = now - self.began
        state = f"100 %, done in {clock(elapsed)}"
        if not self.ended:
            rate = (done - self.first) / max(elapsed, 1e-9)
            eta = f", ETA {clock((total - done) / rate)}" if rate > 0 else ""
            state = f"{100 * done / total:.0f} %, elapsed {clock(elapsed)}{eta}"
        say(f"{self.title}: {state}, {text.rstrip()}")


def say(text: str) -> None:
    """Print a text at once on standard error: standard output is for the result."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def saved(command: Sequence[str], folder: Path | None = None) -> Iterator[None]:
    """Within this context, an interruption reports that progress is saved, in `folder`, and the command to continue."""
    try:
        yield
    except KeyboardInterrupt as error:
        if error.args:
            raise
        place = "" if folder is None else f" in {folder}"
        words = shlex.join(["taet", *command])
        raise KeyboardInterrupt(f"progress is saved{place}; continue with: {words}") from None


@contextlib.contextmanager
def together(device: str) -> Iterator[None]:
    """Join the other processes, if any, on `device`, and discard the output of all but the first."""
    if STARTED_TOGETHER in os.environ:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    with reported_once(), joined(resolve_device(device).type), contextlib.ExitStack() as stack:
        if rank() > 0:
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        yield


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # returns when `run_together` closes it or is killed: nothing is ever written
    os._exit(1)


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
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    given = os.environ.get("OMP_NUM_THREADS", str(max(1, cores() // count))) if threads is None else str(threads)
    common = {STARTED_TOGETHER: "1", "OMP_NUM_THREADS": given, "WORLD_SIZE": str(count)}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    if sys.platform == "linux":  # use the loopback interface; the host name may not resolve
        common["GLOO_SOCKET_IFNAME"] = os.environ.get("GLOO_SOCKET_IFNAME", "lo")
    with interruption() as asked, contextlib.ExitStack() as ended:
        running: list[subprocess.Popen[bytes]] = []
        for number in map(str, range(count)):
            environment = {**os.environ, **common, "RANK": number, "LOCAL_RANK": number}
            # In a session of its own, so that Ctrl-C reaches each process once, through this one.
            command, pipe = taet_command(words), subprocess.PIPE
            process = subprocess.Popen(command, env=environment, stdin=pipe, start_new_session=True)
            running.append(ended.enter_context(process))
            ended.callback(process.kill)  # first of all
        while not asked.is_set() and {process.poll() for process in running} in ({None}, {None, 0}):
            asked.wait(CHECK_SECONDS)
        first_failed = next((process.returncode for process in running if process.poll()), 0)
        for process in running if asked.is_set() else ():
            process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            deadline = time.monotonic() + ENDING_SECONDS
            for process in running:
                process.wait(max(0.0, deadline - time.monotonic()))
    statuses = [process.wait() for process in running]
    if any(statuses) and asked.is_set():
        raise KeyboardInterrupt
    if first_failed < 0 and max(statuses) <= 0:
        raise UserError(f"a process was ended by {signal.Signals(-first_failed).name}; finished batches are kept")
    return max(statuses)
