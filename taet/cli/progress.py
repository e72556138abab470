"""Progress with the remaining time: a bar on a terminal, otherwise a line every ten seconds."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from taet.attacks.progress import Progress as Report
from taet.formatting import clock

LINE_SECONDS = 10.0
SPEED_SECONDS = 3600.0  # estimate the remaining time from this much of the past: one step may take minutes


@contextlib.contextmanager
def progress(title: str) -> Iterator[Report]:
    """Yield a function (done, total, text) that shows the progress of `title` on standard error."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(title)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, console=console, speed_estimate_period=SPEED_SECONDS) as bar:
        task = bar.add_task(title, total=None, text="")
        yield lambda done, total, text: bar.update(task, completed=done, total=total, text=text)


def _lines(title: str) -> Report:
    began = time.monotonic()
    first: float | None = None
    printed = began - LINE_SECONDS
    ended = False

    def show(done: float, total: float, text: str) -> None:
        nonlocal printed, first, ended
        first = done if first is None else first  # a resumed run starts with some of its work done
        now = time.monotonic()
        again, ended = ended, done >= total
        if (again and ended) or (now - printed < LINE_SECONDS and not ended):
            return
        printed = now
        gone = clock(now - began)
        if ended:
            print(f"{title}: 100 %, done in {gone}, {text}", file=sys.stderr, flush=True)
            return
        rate = (done - first) / max(now - began, 1e-9)
        left = f", {clock((total - done) / rate)} left" if rate > 0 else ""
        print(f"{title}: {100 * done / total:.0f} %, {gone} gone{left}, {text}", file=sys.stderr, flush=True)

    return show
