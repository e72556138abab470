"""What this machine can do now: the cores that other programs leave idle, and the time of a step."""

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from taet.distributed import world_size
from taet.formatting import plural

LOOK_SECONDS, LONG_LOOK_SECONDS = 0.2, 1.0  # the kernel counts in hundredths; for an attack, and for a whole training
ENOUGH_SECONDS, FEWEST, MOST = 1.0, 2, 12  # of the steps that are timed; the first one fills caches


def idle_threads(seconds: float = LOOK_SECONDS) -> tuple[int, str]:
    """Return the number of threads for new work, and the reason where other programs leave fewer than torch would use.

    Every thread gets an equal share of an operation, so a single busy core slows it down. OMP_NUM_THREADS is used as it
    is. On systems without /proc/stat the number is torch's.
    """
    most = torch.get_num_threads()
    with contextlib.suppress(OSError, AttributeError):
        if most > 1 and not threads_given():
            before = _ticks()
            time.sleep(seconds)
            return threads_for(most, len(os.sched_getaffinity(0)), before, _ticks())
    return most, ""


def threads_given() -> bool:
    """Whether OMP_NUM_THREADS sets the number of threads."""
    return os.environ.get("OMP_NUM_THREADS", "").isdecimal()


def threads_for(most: int, cores: int, before: tuple[int, int], after: tuple[int, int]) -> tuple[int, str]:
    """Return what `idle_threads` returns, from two readings of `_ticks`, all and idle, of `cores` cores."""
    total, idle = (end - begin for begin, end in zip(before, after, strict=True))
    free = cores * idle / max(total, 1)
    threads = max(1, min(most, round(free)))
    reason = f"machine busy: others use {cores - free:.1f} of {cores} cores, {plural(threads, 'thread')}"
    return (threads, reason) if total and threads < most else (most, "")


def _ticks() -> tuple[int, int]:
    """Return the clock ticks of our cores since the machine started: all, and those that new work could have had.

    Columns, see man 5 proc_stat: user, nice, system, idle, iowait, irq, softirq, steal.
    """
    ours = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    rows = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    ticks = [[int(word) for word in row[1:9]] for row in rows if row[0] in ours]
    usable = (1, 3, 4) if os.nice(0) <= 0 else (3, 4)  # a nice program gives way, unless we are nice too
    return sum(map(sum, ticks)), sum(row[column] for row in ticks for column in usable)


@contextlib.contextmanager
def using(threads: int) -> Iterator[None]:
    """Let torch use this number of threads within this context."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def seconds_of(step: Callable[[], object], device: torch.device) -> float:
    """Return the expected seconds of a step on `device`: the median of a few steps that are timed now."""
    walls = list[float]()
    enough = ENOUGH_SECONDS if world_size() == 1 else 0.0  # a step sums over all processes: all take as many
    while len(walls) < FEWEST or (sum(walls) < enough and len(walls) < MOST):
        begun = time.monotonic()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        walls.append(time.monotonic() - begun)
    return statistics.median(walls[1:])
