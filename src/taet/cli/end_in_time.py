"""A command ends within seconds of Ctrl-C or SIGTERM, whatever it computes.

Python handles a signal between two of its own instructions. A call of a library, such as the
backward pass of a large network, lets none pass for as long as it takes, and at its end Python
waits for threads that read images. All files are written aside and renamed, so the process can end
at any time.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from typing import NoReturn

from taet.errors import printable

GRACE_SECONDS = 4.0  # to save and end in order
WAITING_SECONDS = 20.0  # the same for commands that wait for others, which have four seconds
WAITING = ("compare", "demo")
INTERRUPTED = 130  # the exit status
_advice = [""]


def advise(text: str) -> None:
    """Set what `advice` returns."""
    _advice[0] = text


def advice() -> str:
    """Return what an interrupted command says of its work and of how to go on."""
    return _advice[0]


def is_one_of_several() -> bool:
    """Whether torchrun started this process beside others; `taet.distributed`, which imports torch,
    says whether they can work together."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def end_in_time(command: str) -> None:
    """Start a thread that ends this process some seconds after a signal that asks it to end.

    It has no effect on one of several processes, which all finish their batch.
    """
    if is_one_of_several():
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    seconds = WAITING_SECONDS if command in WAITING else GRACE_SECONDS
    threading.Thread(
        target=_watch, args=(reader, writer, seconds), name="taet end in time", daemon=True
    ).start()


def _watch(reader: socket.socket, _writer: socket.socket, seconds: float) -> None:
    """End the process some seconds after a signal; `_writer` is open as long as this thread."""
    ending = {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}
    while reader.recv(1)[0] not in ending:
        pass
    time.sleep(seconds)
    sys.stderr.write(f"\ntaet: interrupted; {printable(advice())}\n")
    leave(INTERRUPTED)


def leave(status: int) -> NoReturn:
    """End this process at once, without Python's shutdown.

    In it, Python would wait for threads, a process group's thread that frees a tensor would abort
    the process (pytorch/pytorch#179291), and a sum that another process never joins would not end.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # the reader may be gone
            stream.flush()
    os._exit(status)
