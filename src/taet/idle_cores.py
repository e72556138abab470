"""How many of the processor's cores other programs leave to new work."""

import contextlib
import os
import time
from pathlib import Path
from typing import NamedTuple

from taet.formatting import plural

LOOK_SECONDS = 0.2  # the kernel counts in hundredths


class Ticks(NamedTuple):
    """Clock ticks of cores: all, and those that new work could have had."""

    total: int
    free: int


def idle_cores() -> int:
    """Return how many of our cores are idle, at least 1.

    OMP_NUM_THREADS is used as it is. On systems without /proc/stat the number is 1.
    """
    if threads_given():
        return max(1, int(os.environ["OMP_NUM_THREADS"]))
    with contextlib.suppress(OSError, AttributeError):
        cores = len(os.sched_getaffinity(0))
        before = read_ticks()
        time.sleep(LOOK_SECONDS)
        return threads_for(cores, cores, before, read_ticks())[0]
    return 1


def threads_given() -> bool:
    """Whether OMP_NUM_THREADS sets the number of threads."""
    return os.environ.get("OMP_NUM_THREADS", "").isdecimal()


def threads_for(most: int, cores: int, before: Ticks, after: Ticks) -> tuple[int, str]:
    """Return the number of threads for new work, from two readings of the ticks of `cores` cores,
    and the reason where that is less than `most`."""
    total = after.total - before.total
    free_cores = cores * (after.free - before.free) / max(total, 1)
    threads = max(1, min(most, round(free_cores)))
    if not total or threads >= most:
        return most, ""
    busy = f"others use {cores - free_cores:.1f} of {cores} cores"
    return threads, f"machine busy: {busy}, {plural(threads, 'thread')}"


def read_ticks() -> Ticks:
    """Return the clock ticks of our cores since the machine started."""
    ours = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    # Columns, see man 5 proc_stat: user, nice, system, idle, iowait, irq, softirq, steal.
    nice, idle, waiting = 1, 3, 4
    usable = [idle, waiting]
    if os.nice(0) <= 0:  # a nice program gives way, unless we are nice too
        usable.append(nice)
    total, free = 0, 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *columns = line.split()
        if name in ours:
            ticks = [int(column) for column in columns[:8]]
            total += sum(ticks)
            free += sum(ticks[column] for column in usable)
    return Ticks(total, free)
