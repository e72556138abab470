"""Output of a command from one process only, where several share the work."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator

from taet.cli import ended_by
from taet.distributed import claim, joined, rank, started_together
from taet.errors import Done
from taet.machine import resolve_device

REPORTING_SECONDS = 1.0
"""Time for the process that reports the error: torchrun kills it as soon as another one has
ended."""


@contextlib.contextmanager
def together(device: str) -> Iterator[None]:
    """Join the processes that torchrun started, if any, on `device`; discard the output of all but
    the first."""
    with reported_once(), joined(resolve_device(device).type), contextlib.ExitStack() as stack:
        if rank() > 0:
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        yield


@contextlib.contextmanager
def reported_once() -> Iterator[None]:
    """Report an error or interruption from one process only: the first to claim it; the others exit
    silently."""
    try:
        yield
    except Done:
        raise
    except BaseException as error:
        if not started_together():
            raise
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        if claim("final message"):
            raise
        time.sleep(REPORTING_SECONDS)
        raise Done(ended_by(error)[0]) from None
