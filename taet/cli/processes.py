"""Processes that torchrun or a command of ours started: they share the work, and the first one alone speaks."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
import torch.distributed as dist

from taet.distributed import claim, joined, leave, rank, started_together
from taet.errors import UserError
from taet.training.environment import cores, resolve_device
from taet.training.interruption import interruption

TELLING_SECONDS = 1.0
"""Time for the process that tells why the job ends: torchrun ends it once another one has ended."""
LOOK_SECONDS = 0.1
"""Between two looks at the processes that were started."""
ENDING_SECONDS = 10.0
"""Time for a process to end by itself, after another one failed or the user asked."""


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


def number_of(processes: int | Literal["auto"], device: str) -> int:
    """How many processes to share the work: as many as were asked for, or one per GPU, or per core without one."""
    if processes == "auto":
        return torch.cuda.device_count() if resolve_device(device).type == "cuda" else cores()
    if processes < 1:
        raise UserError(f"processes: got {processes}; allowed: 1 or more, or auto")
    return processes


def side_by_side(count: int, words: Sequence[str]) -> int:
    """Run `taet WORDS` as `count` processes of this machine that share its cores, and return the exit status.

    They meet as under torchrun, whose own report of a failure would bury the one line that says why. When one of them
    fails, or the user interrupts, all end.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is here, none of the processes has to keep it
        "WORLD_SIZE": str(count),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores() // count))),
    }
    if sys.platform == "linux":  # they talk over the loopback interface, also where the host's name leads nowhere
        common["GLOO_SOCKET_IFNAME"] = os.environ.get("GLOO_SOCKET_IFNAME", "lo")
    with interruption() as asked:
        running = [
            subprocess.Popen(
                [sys.executable, "-m", "taet", *words],
                env={**os.environ, **common, "RANK": str(number), "LOCAL_RANK": str(number)},
                start_new_session=True,  # Ctrl-C reaches a process through us, and once
            )
            for number in range(count)
        ]
        # Until all have done their work, or one has failed.
        while not asked.is_set() and {process.poll() for process in running} in ({None}, {None, 0}):
            asked.wait(LOOK_SECONDS)
        if asked.is_set():
            for process in running:
                process.send_signal(signal.SIGINT)
        failed = [status for status in map(_ended, running) if status]
    if asked.is_set():
        return 130
    if failed and max(failed) < 0:
        raise UserError(f"a process was ended by signal {-failed[0]}; what was done so far is saved")
    return max(failed, default=0)


def _ended(process: subprocess.Popen[bytes]) -> int:
    """The exit status of a process that is about to end."""
    try:
        return process.wait(ENDING_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
