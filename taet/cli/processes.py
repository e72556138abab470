"""Processes that torchrun or a command of ours started: they share the work, and the first one alone speaks."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist

from taet.cli import STARTED_TOGETHER
from taet.distributed import claim, joined, leave, rank, started_together
from taet.errors import UserError
from taet.training.environment import cores, resolve_device
from taet.training.interruption import interruption

TELLING_SECONDS = 1.0
"""Time for the process that tells why the job ends: torchrun ends it once another one has ended."""
LOOK_SECONDS = 0.1
"""Between two looks at the processes that were started."""
ENDING_SECONDS = 30.0
"""Time for all processes to end by themselves, after one failed or the user asked."""


@contextlib.contextmanager
def together(device: str) -> Iterator[None]:
    """Inside, work with the other processes, if there are any, on `device`; what the others print goes nowhere."""
    end_with_parent()
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
    chosen = resolve_device(device)
    if processes == "auto":
        return 1 if chosen.index is not None else torch.cuda.device_count() if chosen.type == "cuda" else cores()
    if processes < 1:
        raise UserError(f"processes: got {processes}; allowed: 1 or more, or auto")
    if processes > 1 and chosen.index is not None:
        raise UserError(f"processes: got {processes} on {device}, which is one GPU; allowed: with --device cuda or cpu")
    return processes


def run_together(count: int, words: Sequence[str]) -> int:
    """Run `taet WORDS` as `count` processes of this machine that share its cores, and return the exit status.

    They meet as under torchrun, whose own report of a failure would bury the one line that says why. When one of them
    fails, or the user interrupts, or this process dies, all end.
    """
    _store, meeting = meeting_point(count)
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cores() // count)))
    common = {**meeting, STARTED_TOGETHER: "1", "OMP_NUM_THREADS": threads}
    running: list[subprocess.Popen[bytes]] = []
    with interruption() as asked:
        try:
            for number in range(count):
                place = {"RANK": str(number), "LOCAL_RANK": str(number)}
                running.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "taet", *words],
                        env={**os.environ, **common, **place},
                        stdin=subprocess.PIPE,  # ends with this process: see `end_with_parent`
                        start_new_session=True,  # Ctrl-C reaches a process through us, and once
                    )
                )
            # Until all have done their work, or one has failed.
            while not asked.is_set() and {process.poll() for process in running} in ({None}, {None, 0}):
                asked.wait(LOOK_SECONDS)
            first_failed = next((process.returncode for process in running if process.poll()), 0)
        except BaseException:
            for process in running:
                process.kill()
            raise
        statuses = _ended(running, at_once=asked.is_set())
    if not any(statuses):
        return 0
    if asked.is_set():
        raise KeyboardInterrupt
    if first_failed < 0 and max(statuses) <= 0:
        raise UserError(f"a process was ended by {signal.Signals(-first_failed).name}; finished batches are kept")
    return max(statuses)


def meeting_point(count: int) -> tuple[Any, dict[str, str]]:
    """A store where `count` processes of this machine meet while it is held, and the environment that leads there."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    found = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is here, none of the processes has to keep it
        "WORLD_SIZE": str(count),
    }
    if sys.platform == "linux":  # they talk over the loopback interface, also where the host's name leads nowhere
        found["GLOO_SOCKET_IFNAME"] = os.environ.get("GLOO_SOCKET_IFNAME", "lo")
    return store, found


def _ended(running: Sequence[subprocess.Popen[bytes]], at_once: bool) -> list[int]:
    """The exit statuses of processes of which one has ended, or all are to end."""
    if at_once:
        for process in running:
            process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + ENDING_SECONDS
    try:
        for process in running:
            process.wait(max(0.0, deadline - time.monotonic()))
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        pass
    for process in running:
        process.kill()
    return [process.wait() for process in running]


def end_with_parent() -> None:
    """End this process, if `run_together` started it, when that one does: killed, it tells nobody."""
    if STARTED_TOGETHER in os.environ:
        threading.Thread(target=_exit_after_parent, daemon=True).start()


def _exit_after_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # nothing is written there: this is its end
    os._exit(1)
