"""Progress with the remaining time: a bar on a terminal, otherwise a line every ten seconds."""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from taet.formatting import clock
from taet.progress import Progress as Report

LINE_SECONDS = 10.0
SPEED_SECONDS = 3600.0  # estimate the remaining time from this much of the past: one step may take minutes


@contextlib.contextmanager
def progress(title: str) -> Iterator[Report]:
    """Yield a function (done, total, text) that shows the progress of `title` on standard error.

    A text that ends in a line break is printed on its own line; after the end of one task another one may begin.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(title)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("elapsed"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, console=console, speed_estimate_period=SPEED_SECONDS) as bar:
        task = bar.add_task(title, total=None, text="")
        spaced = _Spaced()

        def show(done: float, total: float, text: str) -> None:
            if bar.tasks[0].finished and done < total:
                bar.reset(task)  # another task, with its own speed
            bar.update(task, completed=done, total=total, text=text.rstrip())
            if text.endswith("\n") and spaced.due(done >= total):
                console.print(f"{title}: {text.rstrip()}", highlight=False)

        yield show


class _Spaced:
    """Limits the rate of lines: the first is printed at once, the next ones only after some time."""

    def __init__(self) -> None:
        self.last: float | None = None

    def due(self, always: bool = False) -> bool:
        """Return whether a line may be printed now."""
        now = time.monotonic()
        if not always and self.last is not None and now - self.last < LINE_SECONDS:
            return False
        self.last = now
        return True


def _lines(title: str) -> Report:
    began, first = time.monotonic(), 0.0
    ordinary, results = _Spaced(), _Spaced()
    ended = True

    def show(done: float, total: float, text: str) -> None:
        nonlocal began, first, ended
        if ended and done < total:  # the first or another task; a resumed run starts with some of it done
            began, first, ended = time.monotonic(), done, False
        again, ended = ended, done >= total
        worth = text.endswith("\n") and results.due(ended)
        if again or not (worth or ordinary.due(ended)):
            return
        elapsed = time.monotonic() - began
        if ended:
            say(f"{title}: 100 %, done in {clock(elapsed)}, {text.rstrip()}")
            return
        rate = (done - first) / max(elapsed, 1e-9)
        eta = f", ETA {clock((total - done) / rate)}" if rate > 0 else ""
        percent = f"{100 * done / total:.0f} %"
        say(f"{title}: {percent}, elapsed {clock(elapsed)}{eta}, {text.rstrip()}")

    return show


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
