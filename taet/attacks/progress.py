"""Progress of long work, also inside a unit of it that takes minutes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from taet.attacks.counted import Counted

Progress = Callable[[float, float, str], None]
"""Called as progress(done, total, label), `done` and `total` in passes of an image through the model."""

TICK_SECONDS = 0.5  # often enough to watch, too rare to cost


@dataclass
class Meter:
    """Progress of several pieces of work as one; `begin` starts the next piece, a call reports from inside it."""

    report: Progress | None
    later: float = 0
    """Expected size of all pieces to come."""
    alike: int = 0
    """Number of pieces to come that are expected to be as large as the current one."""
    before: float = 0
    here: float = 0
    ended: bool = False

    def begin(self, later: float = 0, alike: int = 0) -> None:
        """Start the next piece of work; the arguments say what comes after it."""
        self.before, self.here = self.before + self.here, 0
        self.later, self.alike = later, alike

    def __call__(self, done: float, total: float, label: str) -> None:
        """Report progress inside the current piece; the end of everything is reported once."""
        self.here = done
        so_far, whole = self.before + done, self.before + total * (1 + self.alike) + self.later
        again, self.ended = self.ended and so_far >= whole, so_far >= whole
        if self.report is not None and not again:
            self.report(so_far, whole, label)


@contextmanager
def ticking(model: Counted, expected: float, report: Callable[[float], None]) -> Iterator[None]:
    """Inside, report at most twice a second how many passes `model` has made, never more than `expected`."""
    began, reported = model.passes, time.monotonic()

    def tick() -> None:
        nonlocal reported
        if time.monotonic() - reported >= TICK_SECONDS:
            report(min(model.passes - began, expected))
            reported = time.monotonic()

    model.tick = tick
    try:
        yield
    finally:
        model.tick = None
