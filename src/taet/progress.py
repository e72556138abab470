"""Progress of long work, and how a terminal, a notebook or a log shows it."""

import importlib.util
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

from rich import progress as rich_progress
from rich.console import Console

from taet.formatting import clock, duration

Progress = Callable[[float, float, str], None]
"""Called as progress(done, total, label). Attacks count passes of an image through the model."""
QUIET_SECONDS, TELL_SECONDS = 2.0, 0.5
"""Reading that is faster than QUIET_SECONDS reports nothing; TELL_SECONDS are between two
reports."""
LINE_SECONDS = 10.0  # between two lines of a log
# the speed of late is that of the last minute, or of the last quarter of longer work
RECENT_SECONDS, RECENT_SHARE = 60.0, 0.25
# sooner, and with less done, no speed is known
FIRST_SECONDS, FIRST_SHARE = 60.0, 0.01
ALIKE = 1.5  # two estimates of a time with at most this factor between them are printed as one
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
    """Yield the items; if they take longer than a moment, report how many of `total` are done, and
    first how long all of them will take, from those that are done."""
    begun = time.monotonic()
    report, due, shown = _report.get(), begun + QUIET_SECONDS, False
    for done, item in enumerate(items, 1):
        yield item
        if report is not None and time.monotonic() >= due:
            if not shown:
                expected = duration((time.monotonic() - begun) * total / done)
                report(done, total, f"{total:,} {text}: {expected}\n")
            report(done, total, text)
            due, shown = time.monotonic() + TELL_SECONDS, True
    if report is not None and shown:
        report(total, total, text)


def is_watched() -> bool:
    """Return whether somebody sees the output as it is written: on a terminal, or in a notebook."""
    return Console(stderr=True).is_jupyter or (sys.stderr is not None and sys.stderr.isatty())


def is_asked_for(progress: bool | None) -> bool:
    """Return whether progress is shown: None shows it where somebody watches, True anywhere, False
    nowhere."""
    return is_watched() if progress is None else progress


@contextmanager
def chosen(progress: Progress | bool | None, title: str) -> Iterator[Progress | None]:
    """Yield the callback that the argument `progress` of a public function stands for: itself, or
    one that shows the progress of `title` if that `is_asked_for`."""
    if callable(progress):
        yield progress
    elif is_asked_for(progress):
        with shown(title) as report:
            yield report
    else:
        yield None


class TimeLeft:
    """The time that work still takes, by its speed on average and by that of late.

    They differ where something else on the machine has begun or ended. The time is then a range.
    The speed counts from the first call, because what came before it only prepared the work.
    """

    def __init__(self) -> None:
        self.samples = deque[tuple[float, float]]()
        self.begun: tuple[float, float] | None = None

    def after(self, now: float, done: float, total: float) -> str:
        """Return the time that is left when `done` of `total` is reached; "" if it is unknown."""
        self.samples.append((now, done))
        self.begun = self.begun or (now, done)
        seconds, progress = now - self.begun[0], done - self.begun[1]
        if seconds < FIRST_SECONDS and progress < FIRST_SHARE * total:
            return ""
        recent = max(RECENT_SECONDS, RECENT_SHARE * seconds)
        while len(self.samples) > 2 and self.samples[1][0] <= now - recent:
            self.samples.popleft()
        estimates = []
        for then, done_then in (self.begun, self.samples[0]):
            if done > done_then:
                estimates.append((total - done) * (now - then) / (done - done_then))
        if not estimates:
            return ""
        low, high = min(estimates), max(estimates)
        if high <= ALIKE * low:
            return clock(math.sqrt(low * high))
        return f"{clock(low)} to {clock(high)}"


@contextmanager
def shown(title: str) -> Iterator[Progress]:
    """Yield a function (done, total, text) that shows the progress of `title` on standard error.

    A text that ends in a line break is printed on its own line; after the end of one task another
    one may begin. If standard error is not a terminal, a line is printed for the start, the end,
    every such text, and every ten seconds.
    """
    console, last = Console(stderr=True), -math.inf
    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.TaskProgressColumn(),
        rich_progress.TextColumn("{task.fields[left]}"),
        rich_progress.TextColumn("{task.fields[text]}"),
    )
    # without ipywidgets a notebook shows no bar
    no_widgets = console.is_jupyter and importlib.util.find_spec("ipywidgets") is None
    plain = not console.is_terminal or no_widgets
    bar = rich_progress.Progress(*columns, console=console, disable=plain)
    # older versions of rich print an empty line at the end of a disabled bar
    with nullcontext() if plain else bar:
        number = bar.add_task(title, total=None, text="", left="")
        task = bar.tasks[0]
        time_left = TimeLeft()

        def show(done: float, total: float, text: str) -> None:
            nonlocal last, time_left
            if task.finished and done < total:
                bar.reset(number)  # another task, with its own speed
                last, time_left = -math.inf, TimeLeft()
            before, line, is_result = task.finished, text.rstrip(), text.endswith("\n")
            left = time_left.after(time.monotonic(), done, total)
            # a share that was shown stays, also where there is more to do than was expected
            share = max(task.completed, done / total if total else 1.0)
            bar.update(number, completed=share, total=1.0, text=line, left=left)
            if not plain and is_result:
                console.print(f"{title}: {line}", highlight=False)
            if (
                plain
                and not before
                and (task.finished or is_result or time.monotonic() - last >= LINE_SECONDS)
            ):
                last, took = time.monotonic(), clock(task.elapsed or 0)
                eta = f", ETA {left}" if left else ""
                state = f"done in {took}" if task.finished else f"elapsed {took}{eta}"
                say(f"{title}: {task.percentage:.0f} %, {state}, {line}")

        yield show


def say(text: str) -> None:
    """Print a text on standard error at once; standard output is for the result."""
    print(text, file=sys.stderr, flush=True)
