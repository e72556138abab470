"""How far the work is, also from inside a unit of it that takes minutes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from taet.attacks.counted import Counted

Progress = Callable[[float, float, str], None]
"""Told (done, total, a line about where the work is), both in passes of an image through the model."""

TICK_SECONDS = 0.5  # often enough to watch, too rare to cost


@contextmanager
def ticking(model: Counted, expected: float, report: Callable[[float], None]) -> Iterator[None]:
    """Inside, report at most twice a second how many passes `model` has made since, and never more than `expected`."""
    began, told = model.passes, time.monotonic()

    def tick() -> None:
        nonlocal told
        if time.monotonic() - told >= TICK_SECONDS:
            report(min(model.passes - began, expected))
            told = time.monotonic()

    model.tick = tick
    try:
        yield
    finally:
        model.tick = None
