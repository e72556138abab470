"""Where images are kept: in memory, or in a file of the cache that is written once and mapped into memory."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from taet.errors import UserError, cut, printable
from taet.files import cache, file_sha256
from taet.formatting import data_size

Scalar = TypeVar("Scalar", bound=np.generic)
PIECE = 1 << 24
"""Bytes that are read at once."""
SHARE = 4
"""Images that need more than 1/SHARE of the memory are kept on disk."""
Pixels: TypeAlias = NDArray[np.uint8]
"""Images (N,H,W,C), 0 to 255; a `np.memmap` if they are on disk."""
ArrayShape: TypeAlias = tuple[int, int, int, int]


class Unread(Protocol):
    """Images that are read when they are chosen."""

    @property
    def shape(self) -> ArrayShape:
        """(N,H,W,C)."""

    @property
    def key(self) -> str:
        """A text that determines the pixels, such as paths, sizes and times of files."""

    def read(self, rows: NDArray[np.int64] | None) -> Iterator[Pixels]:
        """Yield blocks (n,H,W,C) of the images at `rows` in that order; None: of all."""


Images: TypeAlias = Pixels | Unread


@contextlib.contextmanager
def reading(path: Path, allowed: str) -> Iterator[None]:
    """Turn any error of a reader into a `UserError` about the ordinary file `path`; a FIFO or a folder is refused."""
    if not path.is_file():
        got = "no ordinary file" if path.exists() else "no such file"
        raise UserError(f"{got}: '{path}'; allowed: {allowed}")
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # readers of damaged files raise errors of many kinds
        raise UserError(f"cannot read '{path}': {reason(error)}; allowed: {allowed}") from error


def reason(error: Exception) -> str:
    """Return why a file cannot be read, in one short line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, UnicodeDecodeError):
        return "it is not in UTF-8"
    return printable(cut(" ".join(str(error).split()))) or type(error).__name__


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
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # another system; "max"
            limits.append(int(Path(file).read_text()))
    return min(limits)


def on_disk(size: int, storage: str) -> bool:
    """Whether `size` bytes of images are kept on disk. storage: memory, disk, or auto (depends on the memory)."""
    return storage == "disk" or (storage == "auto" and size > memory() // SHARE)


def gather(blocks: Iterable[Pixels], shape: ArrayShape, *, key: Callable[[], str], storage: str) -> Pixels:
    """Return blocks of images as one array (N,H,W,C), in memory or mapped from disk: see `on_disk` and `kept`.

    More images than fit into memory raise a `UserError`.
    """
    size = math.prod(shape)
    if on_disk(size, storage):
        return kept(blocks, shape, key())
    if size > memory():
        needed = f"images of {data_size(size)} do not fit into memory"
        raise UserError(f"{needed}; allowed: --data.storage disk, or fewer pixels by --data.size")
    images, done = np.empty(shape, np.uint8), 0
    for block in blocks:
        images[done : done + len(block)] = block
        done += len(block)
    assert done == len(images), f"got {done} images for the shape {shape}"
    return images


def kept(blocks: Iterable[Pixels], shape: ArrayShape, key: str) -> Pixels:
    """Map the .npy file of the cache that is named after `key`; without it, write the blocks to it first.

    It is written under another name, checksummed and renamed, so a file of that name is whole. Its SHA-256 is compared
    at every use: a damaged file is deleted. A full disk raises a `UserError`.
    """
    name = hashlib.sha256(f"{key}\t{shape}".encode()).hexdigest()
    path = cache() / f"{name}.npy"
    seal = path.with_suffix(".sha256")
    if not (path.is_file() and seal.is_file()):
        _write(path, seal, blocks, shape)
    if file_sha256(path) != seal.read_text():
        path.unlink()
        raise UserError(f"'{path}' was damaged, and is deleted; run the same command again")
    images: Pixels = npy.open_memmap(path, "r")
    return images


def _write(path: Path, seal: Path, blocks: Iterable[Pixels], shape: ArrayShape) -> None:
    part = path.with_suffix(f".{os.getpid()}.part")
    done = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:  # not mapped: a full disk would end the process
            npy.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for block in blocks:
                file.write(np.ascontiguousarray(block).data)
                done += len(block)
            file.flush()
            os.fsync(file.fileno())
        assert done == shape[0], f"got {done} images for the shape {shape}"
        seal.write_text(file_sha256(part))
        part.replace(path)
    except OSError as error:
        raise UserError(
            f"cannot keep {data_size(math.prod(shape))} of images in '{path.parent}': {error.strerror}; allowed: "
            "another folder, by TAET_CACHE, or --data.storage memory"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def portions(rows: NDArray[np.int64], shape: ArrayShape) -> Iterator[NDArray[np.int64]]:
    """Yield the numbers of images in portions that take a few megabytes."""
    step = max(1, PIECE // math.prod(shape[1:]))
    return (rows[first : first + step] for first in range(0, len(rows), step))
