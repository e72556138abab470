"""Progress of long work."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

Progress = Callable[[float, float, str], None]
"""Called as progress(done, total, label). Attacks count passes of an image through the model."""
QUIET_SECONDS, TELL_SECONDS = 2.0, 0.5
"""Reading that is faster than QUIET_SECONDS reports nothing; TELL_SECONDS are between two
reports."""
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
