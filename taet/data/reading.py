"""Progress reports while many files are read."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")
Report = Callable[[float, float, str], None]

QUIET_SECONDS = 2.0  # what is read in less needs no progress
TELL_SECONDS = 0.5
_report: ContextVar[Report | None] = ContextVar("reading", default=None)


@contextmanager
def reporting_to(report: Report | None) -> Iterator[None]:
    """Within this context, report the files that this thread reads as report(done, total, text)."""
    before = _report.set(report)
    try:
        yield
    finally:
        _report.reset(before)


def counted(items: Iterable[T], total: int, text: str, each: Callable[[T], int] = lambda _: 1) -> Iterator[T]:
    """Yield the items; if they take longer than a moment, report how many of `total` are done."""
    report, done = _report.get(), 0
    told = time.monotonic() + QUIET_SECONDS
    shown = False
    for item in items:
        yield item
        done += each(item)
        if report is not None and time.monotonic() >= told:
            report(done, total, text)
            told, shown = time.monotonic() + TELL_SECONDS, True
    if report is not None and shown:
        report(total, total, text)
