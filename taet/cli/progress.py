"""Progress with the remaining time: a bar on a terminal, otherwise a line every ten seconds."""

from __future__ import annotations

import contextlib
import math
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TextColumn

from taet.formatting import clock
from taet.progress import Progress as Report

LINE_SECONDS = 10.0
SPEED_SECONDS = 3600.0  # estimate the remaining time from this much of the past: one step may take minutes


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
