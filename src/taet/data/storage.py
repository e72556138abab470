"""Reading images in advance, and keeping them in memory or in a file that is written once and
mapped."""

import contextlib
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import IO, TypeAlias, TypeVar

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from rich import filesize

from taet.errors import UserError
from taet.files import make_folder, reason, replacing

Scalar = TypeVar("Scalar", bound=np.generic)
Input = TypeVar("Input")
Output = TypeVar("Output")
PIECE = 1 << 24  # bytes that are read at once
SHARE = 4  # images that need more than 1/SHARE of the memory are kept on disk
Pixels: TypeAlias = NDArray[np.uint8]
"""Images (N,H,W,C), 0 to 255; a `np.memmap` if they are on disk."""
ArrayShape: TypeAlias = tuple[int, int, int, int]


def ahead(
    function: Callable[[Input], Output],
    values: Iterable[Input],
    most: int,
    threads: int | None = None,
) -> Iterator[Output]:
    """Yield `function` of every value in order; threads work on the next `most` values."""
    remaining, pool = iter(values), ThreadPoolExecutor(threads)
    try:
        futures = deque(pool.submit(function, value) for value in islice(remaining, most))
        while futures:
            yield futures.popleft().result()
            futures.extend(pool.submit(function, value) for value in islice(remaining, 1))
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def reading(path: Path, allowed: str) -> Iterator[None]:
    """Turn any error of a reader into a `UserError` about the file `path`."""
    if not path.is_file():
        raise UserError(f"no such file: '{path}'; allowed: {allowed}")
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # readers of damaged files raise errors of many kinds
        raise UserError(f"cannot read '{path}': {reason(error)}; allowed: {allowed}") from error


def file_key(path: Path) -> str:
    """Return path, size and time of a file, which change with its content."""
    about = path.stat()
    return f"{path.resolve()}\t{about.st_size}\t{about.st_mtime_ns}"


def pieces(images: NDArray[Scalar]) -> Iterator[NDArray[Scalar]]:
    """Yield all images in order, in pieces of a few megabytes and at most 65,536 images."""
    step = min(max(1, PIECE * len(images) // max(1, images.nbytes)), 1 << 16)
    return (images[first : first + step] for first in range(0, len(images), step))


def memory() -> int:
    """Return the memory in bytes: that of the machine, or the limit of this container or job."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with contextlib.suppress(OSError, ValueError):  # another system; "max"
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits)


def on_disk(size: int, storage: str) -> bool:
    """Whether `size` bytes of images are kept on disk. storage: memory, disk, or auto (depends on
    the memory)."""
    if storage == "memory" and size > memory():
        needed = f"images of {filesize.decimal(size)} do not fit into memory"
        raise UserError(f"{needed}; allowed: --data.storage disk, or fewer pixels by --data.size")
    return storage == "disk" or (storage == "auto" and size > memory() // SHARE)


def kept(blocks: Iterable[Pixels], shape: ArrayShape, key: str) -> Pixels:
    """Return these images, mapped from a file of the cache: see `mapped`."""

    def write(file: IO[bytes]) -> None:
        npy.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for block in blocks:
            file.write(np.ascontiguousarray(block).data)

    return mapped(f"{key}\t{shape}", write)


def is_kept(shape: ArrayShape, key: str) -> bool:
    """Whether the cache has the images of this shape and key."""
    return _cache_file(f"{key}\t{shape}").is_file()


def cache_folder() -> Path:
    """Return the folder of files that can be made again: TAET_CACHE, or ~/.cache/taet."""
    return Path(os.environ.get("TAET_CACHE") or "~/.cache/taet").expanduser()


def mapped(key: str, write: Callable[[IO[bytes]], object]) -> Pixels:
    """Return the array in the cache's .npy file for `key`, mapped; a missing file is first written
    by `write`."""
    path = _cache_file(key)
    if not path.is_file():
        make_folder(path.parent)
        with replacing(path) as file:  # not mapped: a full disk would end the process
            write(file)
    with reading(path, "delete it, and run the same command again"):
        return npy.open_memmap(path, "r")


def _cache_file(key: str) -> Path:
    return cache_folder() / f"{hashlib.sha256(key.encode()).hexdigest()}.npy"
