"""The machine and the software of a result, the device of a run, and the signals that ask a program
to stop."""

import contextlib
import ctypes
import datetime
import importlib.metadata
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import torch

import taet
from taet.distributed import world_size
from taet.errors import UserError
from taet.files import Json
from taet.idle_cores import LOOK_SECONDS, read_ticks, threads_for, threads_given

PACKAGES = ("taet", "torch", "torchvision", "numpy", "pyautoattack", "safetensors")

# parameters of mallopt: largest number of mapped blocks, bytes kept when freed
M_MMAP_MAX, M_TRIM_THRESHOLD = -4, -1


def version(package: str) -> str | None:
    """Version of `package`, or None if it is not installed."""
    try:
        return taet.__version__ if package == "taet" else importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """Commit of the checkout that taet is imported from, with `+` if files differ; None outside a
    checkout."""
    package = Path(taet.__file__).parent
    root = package.parents[1]  # of src/taet
    if not (root / ".git").exists():
        return None
    words = ["describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.check_output(
            ["git", "-C", str(root), *words], text=True, stderr=subprocess.DEVNULL
        ).strip()
    return None


def cpuinfo(*names: str) -> str:
    """Return the value of the first line of Linux's /proc/cpuinfo that starts with one of `names`;
    "" without one."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return (
            next((line for line in lines if line.lower().startswith(names)), "")
            .partition(":")[2]
            .strip()
        )
    return ""


def bf16_instructions(device: torch.device) -> str:
    """Return the name of the GPU, or the instructions of the processor, that make bf16 fast; "" if
    there are none."""
    if device.type == "cuda":
        return (
            torch.cuda.get_device_name(device)
            if torch.cuda.is_bf16_supported(including_emulation=False)
            else ""
        )
    limit = (os.environ.get("ONEDNN_MAX_CPU_ISA") or "ALL").upper()  # may exclude the instructions
    allowed = any(name in limit for name in ("ALL", "DEFAULT", "AMX", "BF16", "FP16"))
    found = {"avx512_bf16", "amx_bf16", "bf16"} & {*cpuinfo("flags", "features").split()}
    return ", ".join(sorted(found)) if allowed else ""


def environment(device: torch.device) -> Json:
    """Return versions, commit, device and time, as run.json and result cards record them."""
    processor = cpuinfo("model name") or platform.processor() or platform.machine()
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{processor}, {os.cpu_count()} cores"
    )
    return {
        "versions": {package: version(package) for package in PACKAGES}
        | {"python": platform.python_version()},
        "commit": commit(),
        "device": f"{device.type}: {name}",
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def resolve_device(device: str | torch.device) -> torch.device:
    """Return a device by its name; auto is CUDA if available."""
    name = str(device)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", name):
        raise UserError(f"device: got {name}; allowed: auto, cpu, cuda, cuda:N")
    found = torch.device(name)
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device: got {name}; this machine has {torch.cuda.device_count()} CUDA devices"
        )
    return found


def keep_freed_memory(device: torch.device) -> None:
    """Make the C library reuse the memory of freed CPU tensors until the process ends.

    By default glibc returns every large tensor to the kernel, which clears the pages again for the
    next one; that can take longer than the arithmetic. No effect without glibc, on a GPU, or if
    MALLOC_... or LD_PRELOAD is set.
    """
    configured = any(name.startswith("MALLOC_") or name == "LD_PRELOAD" for name in os.environ)
    if device.type == "cpu" and not configured and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory in 10^6 bytes: allocated on a GPU since the run began, else resident in the
    process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


@contextlib.contextmanager
def interruption(stop: threading.Event | None = None) -> Iterator[threading.Event]:
    """Yield an event that the first SIGINT, SIGTERM or SIGHUP sets; a second SIGINT interrupts at
    once.

    With several processes the second one is ignored: SLURM and torchrun send one each, and a
    process that stops alone would leave the others waiting. Python handles signals in the main
    thread only; in others the event is never set.
    """
    stop = threading.Event() if stop is None else stop

    def request_stop(number: int, _: FrameType | None) -> None:
        if stop.is_set() and number == signal.SIGINT and world_size() == 1:
            raise KeyboardInterrupt
        stop.set()

    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # as under nohup
    numbers = {signal.SIGINT, signal.SIGTERM, *(() if ignored else (signal.SIGHUP,))}
    in_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, request_stop) for number in numbers if in_main}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


LONG_LOOK_SECONDS = 1.0  # for a whole training
ENOUGH_SECONDS, FEWEST, MOST = 1.0, 2, 12  # of the steps that are timed; the first one fills caches


def idle_threads(seconds: float = LOOK_SECONDS) -> tuple[int, str]:
    """Return the number of threads for new work, and the reason where other programs leave fewer
    than torch would use.

    Every thread gets an equal share of an operation, so a single busy core slows it down.
    OMP_NUM_THREADS is used as it is. On systems without /proc/stat the number is torch's.
    """
    most = torch.get_num_threads()
    with contextlib.suppress(OSError, AttributeError):
        if most > 1 and not threads_given():
            before = read_ticks()
            time.sleep(seconds)
            return threads_for(most, len(os.sched_getaffinity(0)), before, read_ticks())
    return most, ""


@contextlib.contextmanager
def using(threads: int) -> Iterator[None]:
    """Let torch use this number of threads within this context."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def float32_by_default() -> Iterator[None]:
    """Let new tensors be float32 within this context, whatever the caller's default is."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def seconds_of(step: Callable[[], object], device: torch.device) -> float:
    """Return the expected seconds of a step on `device`: the median of a few steps that are timed
    now."""
    walls = list[float]()
    # a step sums over all processes: all take as many
    enough = ENOUGH_SECONDS if world_size() == 1 else 0.0
    while len(walls) < FEWEST or (sum(walls) < enough and len(walls) < MOST):
        begun = time.monotonic()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        walls.append(time.monotonic() - begun)
    return statistics.median(walls[1:])
