"""Ctrl-C, SIGTERM and SIGHUP take effect at the end of a batch, so that the saved state is complete."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from taet.distributed import world_size


@contextlib.contextmanager
def interruption(asked: threading.Event | None = None) -> Iterator[threading.Event]:
    """Yield an event that the first SIGINT, SIGTERM or SIGHUP sets; a second SIGINT interrupts at once.

    With several processes a second SIGINT has no effect either, because SLURM and torchrun send one each, and a process
    that stops alone would leave the others waiting. Python handles signals in the main thread only; in other threads
    the event is never set. Handlers are restored.
    """
    asked = threading.Event() if asked is None else asked
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(number: int, _: FrameType | None) -> None:
        if asked.is_set() and number == signal.SIGINT and world_size() == 1:
            raise KeyboardInterrupt
        asked.set()

    hangup = getattr(signal, "SIGHUP", signal.SIGTERM)  # not on Windows
    ignored = signal.getsignal(hangup) == signal.SIG_IGN  # as under nohup
    numbers = {signal.SIGINT, signal.SIGTERM, *(() if ignored else (hangup,))}
    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
