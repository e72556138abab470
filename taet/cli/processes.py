"""Processes that torchrun started: they share the work, and the first one alone speaks."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from taet.distributed import joined, rank
from taet.training.environment import resolve_device


@contextlib.contextmanager
def together(device: str) -> Iterator[None]:
    """Inside, work with the other processes, if there are any, on `device`; what the others print goes nowhere.

    A mistake is still told by each of them, since it ends the block.
    """
    with joined(resolve_device(device).type), contextlib.ExitStack() as stack:
        if rank() > 0:
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        yield
