"""Processes that torchrun started: they share the work, and the first one alone speaks."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import time
from collections.abc import Iterator

from taet.distributed import claim, joined, leave, rank, started_together
from taet.errors import UserError
from taet.training.environment import resolve_device

TELLING_SECONDS = 1.0
"""Time for the process that tells why the job ends: torchrun ends it once another one has ended."""


@contextlib.contextmanager
def together(device: str) -> Iterator[None]:
    """Inside, work with the other processes, if there are any, on `device`; what the others print goes nowhere."""
    with told_once(), joined(resolve_device(device).type), contextlib.ExitStack() as stack:
        if rank() > 0:
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        yield


@contextlib.contextmanager
def told_once() -> Iterator[None]:
    """Let a mistake, or the user's wish to stop, out of the one process that comes first; the others end in silence."""
    try:
        yield
    except (UserError, KeyboardInterrupt) as error:
        if not started_together():
            raise
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        status = 130 if isinstance(error, KeyboardInterrupt) else 2
        atexit.register(leave, status)  # the last one registered is the first one called
        if claim("the last word"):
            raise
        time.sleep(TELLING_SECONDS)
        raise SystemExit(status) from None
