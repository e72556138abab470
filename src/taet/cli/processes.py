"""The progress of a command on standard error, and output from one process only where several share
the work."""

import contextlib
import math
import os
import signal
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import Progress, TextColumn

from taet.cli import ended_by
from taet.distributed import claim, joined, rank, started_together
from taet.errors import Done
from taet.formatting import clock
from taet.machine import resolve_device
from taet.progress import Progress as Report

LINE_SECONDS = 10.0
# estimate the remaining time from this much of the past: one step may take minutes
SPEED_SECONDS = 3600.0
REPORTING_SECONDS = 1.0
"""Time for the process that reports the error: torchrun kills it as soon as another one has
ended."""


@contextlib.contextmanager
def progress(title: str) -> Iterator[Report]:
    """Yield a function (done, total, text) that shows the progress of `title` on standard error.

    A text that ends in a line break is printed on its own line; after the end of one task another
    one may begin. If standard error is not a terminal, a line is printed for the start, the end,
    every such text, and every ten seconds.
    """
    console, last = Console(stderr=True), -math.inf
    columns = (*Progress.get_default_columns(), TextColumn("{task.fields[text]}"))
    plain = not console.is_terminal
    bar = Progress(*columns, console=console, speed_estimate_period=SPEED_SECONDS, disable=plain)
    # older versions of rich print an empty line at the end of a disabled bar
    with contextlib.nullcontext() if plain else bar:
        number = bar.add_task(title, total=None, text="")
        task = bar.tasks[0]

        def show(done: float, total: float, text: str) -> None:
            nonlocal last
            if task.finished and done < total:
                bar.reset(number)  # another task, with its own speed
                last = -math.inf
            before, line, is_result = task.finished, text.rstrip(), text.endswith("\n")
            bar.update(number, completed=done, total=total, text=line)
            if not plain and is_result:
                console.print(f"{title}: {line}", highlight=False)
            if (
                plain
                and not before
                and (task.finished or is_result or time.monotonic() - last >= LINE_SECONDS)
            ):
                last, took, left = time.monotonic(), clock(task.elapsed or 0), task.time_remaining
                eta = "" if left is None else f", ETA {clock(left)}"
                state = f"done in {took}" if task.finished else f"elapsed {took}{eta}"
                say(f"{title}: {task.percentage:.0f} %, {state}, {line}")

        yield show


def say(text: str) -> None:
    """Print a text on standard error at once; standard output is for the result."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def together(device: str) -> Iterator[None]:
    """Join the processes that torchrun started, if any, on `device`; discard the output of all but
    the first."""
    with reported_once(), joined(resolve_device(device).type), contextlib.ExitStack() as stack:
        if rank() > 0:
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        yield


@contextlib.contextmanager
def reported_once() -> Iterator[None]:
    """Report an error or interruption from one process only: the first to claim it; the others exit
    silently."""
    try:
        yield
    except Done:
        raise
    except BaseException as error:
        if not started_together():
            raise
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        if claim("final message"):
            raise
        time.sleep(REPORTING_SECONDS)
        raise Done(ended_by(error)[0]) from None
