"""Progress of long work, and how a terminal, a notebook or a log shows it."""

import importlib.util
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

from rich import progress as rich_progress
from rich.console import Console

from taet.formatting import clock

Progress = Callable[[float, float, str], None]
"""Called as progress(done, total, label). Attacks count passes of an image through the model."""
QUIET_SECONDS, TELL_SECONDS = 2.0, 0.5
"""Reading that is faster than QUIET_SECONDS reports nothing; TELL_SECONDS are between two
reports."""
LINE_SECONDS = 10.0  # between two lines of a log
# estimate the remaining time from this much of the past: one step may take minutes
SPEED_SECONDS = 3600.0
T = TypeVar("T")
_report: ContextVar[Progress | None] = ContextVar("reading", default=None)


@dataclass
class Meter:
    """Progress of several pieces of work as one; `begin` starts the next piece, a call reports from
    inside it."""

    report: Progress | None
    later: float = 0
    """Expected size of all pieces to come."""
    before: float = 0  # size of all finished pieces
    here: float = 0  # what is done of the current one
    ended: bool = False

    def begin(self, later: float = 0) -> None:
        """Start the next piece of work; `later` is the expected size of all pieces after it."""
        self.before, self.here, self.later = self.before + self.here, 0, later

    def __call__(self, done: float, total: float, label: str) -> None:
        """Report progress inside the current piece; the end of everything is reported once."""
        self.here = done
        so_far, whole = self.before + done, self.before + total + self.later
        again, self.ended = self.ended and so_far >= whole, so_far >= whole
        if self.report is not None and not again:
            self.report(so_far, whole, label)


@contextmanager
def reporting_to(report: Progress | None) -> Iterator[None]:
    """Within this context, report the files that this thread reads as report(done, total, text)."""
    before = _report.set(report)
    try:
        yield
    finally:
        _report.reset(before)


def counted(items: Iterable[T], total: int, text: str) -> Iterator[T]:
    """Yield the items; if they take longer than a moment, report how many of `total` are done."""
    report, due, shown = _report.get(), time.monotonic() + QUIET_SECONDS, False
    for done, item in enumerate(items, 1):
        yield item
        if report is not None and time.monotonic() >= due:
            report(done, total, text)
            due, shown = time.monotonic() + TELL_SECONDS, True
    if report is not None and shown:
        report(total, total, text)


def is_watched() -> bool:
    """Return whether somebody sees the output as it is written: on a terminal, or in a notebook."""
    return Console(stderr=True).is_jupyter or (sys.stderr is not None and sys.stderr.isatty())


@contextmanager
def chosen(progress: Progress | bool | None, title: str) -> Iterator[Progress | None]:
    """Yield the callback that the argument `progress` of a public function stands for.

    None shows the progress of `title` where somebody watches, True anywhere, False nowhere.
    """
    if callable(progress):
        yield progress
    elif is_watched() if progress is None else progress:
        with shown(title) as report:
            yield report
    else:
        yield None


@contextmanager
def shown(title: str) -> Iterator[Progress]:
    """Yield a function (done, total, text) that shows the progress of `title` on standard error.

    A text that ends in a line break is printed on its own line; after the end of one task another
    one may begin. If standard error is not a terminal, a line is printed for the start, the end,
    every such text, and every ten seconds.
    """
    console, last = Console(stderr=True), -math.inf
    text_column = rich_progress.TextColumn("{task.fields[text]}")
    columns = (*rich_progress.Progress.get_default_columns(), text_column)
    # without ipywidgets a notebook shows no bar
    no_widgets = console.is_jupyter and importlib.util.find_spec("ipywidgets") is None
    plain = not console.is_terminal or no_widgets
    bar = rich_progress.Progress(
        *columns, console=console, speed_estimate_period=SPEED_SECONDS, disable=plain
    )
    # older versions of rich print an empty line at the end of a disabled bar
    with nullcontext() if plain else bar:
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
