"""Work on many image files in several processes.

A small file costs more of Python than of decoding, and in one process Python's threads take turns.
The pools of the standard library would import a user's script anew in each process, or copy a
process whose threads hold locks. These processes import nothing of the user's.
"""

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import PIL.Image
import PIL.ImageFile

import taet
from taet.data.storage import ahead
from taet.errors import UserError

AT_ONCE = 16  # files of one request: also the most that an interruption waits for
SERVE = "from taet.data.reading import serve; serve()"
Answer = TypeVar("Answer")
ReadRequest = tuple[Callable[[Path], Any], Sequence[Path], tuple[int | None, bool]]
"""The work, its files, and Pillow's settings: see `_pillow_settings`."""


def in_processes(
    work: Callable[[Path], Answer], files: Sequence[Path], processes: int
) -> Iterator[Answer]:
    """Yield `work(file)` of every file in order, computed by new processes; `work` can be
    pickled."""
    workers = [_start() for _ in range(processes)]
    idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def ask(some: Sequence[Path]) -> list[Answer]:
        worker = idle.get()
        assert worker.stdin is not None
        assert worker.stdout is not None
        try:
            pickle.dump((work, some, _pillow_settings()), worker.stdin)
            worker.stdin.flush()
            results: list[Answer] = pickle.load(worker.stdout)
        except (EOFError, OSError) as error:
            raise UserError(
                f"a process that reads images has ended with status {worker.wait()}; allowed: "
                "OMP_NUM_THREADS=1, which reads them in one process, or more memory"
            ) from error
        finally:
            idle.put(worker)
        return results

    requests = (files[first : first + AT_ONCE] for first in range(0, len(files), AT_ONCE))
    answers = ahead(ask, requests, 2 * processes, processes)
    try:
        for results in answers:
            yield from results
    finally:
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.communicate()


def _start() -> subprocess.Popen[bytes]:
    """Start a process that answers requests until its standard input ends."""
    root = str(Path(taet.__file__).parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-P", "-c", SERVE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )


def _pillow_settings() -> tuple[int | None, bool]:
    """Return the settings of Pillow that a user's program may have changed."""
    return PIL.Image.MAX_IMAGE_PIXELS, PIL.ImageFile.LOAD_TRUNCATED_IMAGES


def serve() -> None:
    """Answer the requests on standard input, until it ends, on standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asks handles it
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    while True:
        try:
            request: ReadRequest = pickle.load(requests)
        except EOFError:
            return
        work, files, settings = request
        PIL.Image.MAX_IMAGE_PIXELS, PIL.ImageFile.LOAD_TRUNCATED_IMAGES = settings
        pickle.dump([work(file) for file in files], answers, protocol=5)
        answers.flush()
