"""Images on disk: written once to a file, from which only the requested images are read."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import math
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from taet.errors import UserError
from taet.files import cache, check_kind, remove_leftovers, replacing
from taet.formatting import data_size

CHUNK = 1 << 24
"""Bytes per read or write."""
AHEAD = 16
"""Images that are requested from the disk at once."""
SUM = np.dtype("<u4")
"""The stored type of an image's checksum."""
SHARE = 4
"""Images that need more than 1/SHARE of the memory are kept on disk."""


class Stored:
    """Images uint8 (N,H,W,C) in a file of the cache; indexing by position reads those images only.

    The file is an .npy file, followed by the CRC-32 of each image, which is compared whenever the image is read.
    """

    ndim = 4
    dtype = np.dtype(np.uint8)

    def __init__(self, path: Path, shape: tuple[int, int, int, int], rows: NDArray[np.int64] | None = None) -> None:
        """Open the images (M,H,W,C) in `path`; `rows` (N,) selects images, by default all."""
        self.path = path
        self._file, self._whole = _CacheFile(path, shape), shape
        self._rows = np.arange(shape[0]) if rows is None else rows

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N,H,W,C)."""
        return (len(self._rows), *self._whole[1:])

    @property
    def nbytes(self) -> int:
        """Size of the images in memory, in bytes."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, positions: int | slice | NDArray[np.integer] | NDArray[np.bool_]) -> NDArray[np.uint8]:
        """Read the images at `positions` into memory; a single number gives one image (H,W,C)."""
        if isinstance(positions, tuple):
            raise TypeError("images on disk are read whole: index them by position, then index the resulting array")
        rows = np.asarray(self._rows[positions])
        images = np.empty((rows.size, *self.shape[1:]), np.uint8)
        self._file.read(rows.ravel().tolist(), images)
        return images.reshape(*rows.shape, *self.shape[1:])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[np.generic]:
        """Read all images."""
        if copy is False:
            raise ValueError("images on disk cannot become an array without a copy")
        return self[:].astype(dtype or np.uint8, copy=False)

    def __reduce__(self) -> tuple[type[Stored], tuple[Path, tuple[int, ...], NDArray[np.int64]]]:
        return Stored, (self.path, self._whole, self._rows)

    def __repr__(self) -> str:
        return f"Stored({' x '.join(map(str, self.shape))}, uint8, '{self.path}')"

    def choose(self, positions: NDArray[np.integer] | NDArray[np.bool_]) -> Stored:
        """Return the images at `positions`, in that order; nothing is read."""
        chosen = object.__new__(Stored)  # of the same open file
        chosen.__dict__ = self.__dict__ | {"_rows": self._rows[positions]}
        return chosen


class _CacheFile:
    """The open file, with positional reads: a memory-mapped file that is cut short would crash the process."""

    def __init__(self, path: Path, shape: tuple[int, int, int, int]) -> None:
        self.path, self.start, self.size = path, len(header(shape)), math.prod(shape[1:])
        self.descriptor = -1
        try:
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            check_kind(path, os.fstat(self.descriptor))
            sums = os.pread(self.descriptor, SUM.itemsize * shape[0], self.start + math.prod(shape))
        except OSError as error:
            raise UserError(f"cannot read '{path}': {error.strerror}; run the same command again") from error
        if len(sums) != SUM.itemsize * shape[0]:
            raise self._damaged()
        self.sums: list[int] = np.frombuffer(sums, SUM).tolist()

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)

    def read(self, rows: list[int], images: NDArray[np.uint8]) -> None:
        """Read the images at `rows` of the file into `images` (N,H,W,C)."""
        view = images.reshape(-1).data
        advise = getattr(os, "posix_fadvise", None)
        try:
            for place, row in enumerate(rows):
                if advise is not None and place % AHEAD == 0:  # so that the disk reads several at once
                    for later in rows[place : place + AHEAD]:
                        advise(self.descriptor, self.start + later * self.size, self.size, os.POSIX_FADV_WILLNEED)
                image = view[place * self.size : (place + 1) * self.size]
                got = os.preadv(self.descriptor, [image], self.start + row * self.size)
                if got != self.size or zlib.crc32(image) != self.sums[row]:
                    raise self._damaged()
        except OSError as error:
            raise UserError(f"cannot read '{self.path}': {error.strerror}") from None

    def _damaged(self) -> UserError:
        with contextlib.suppress(OSError):
            if os.path.samestat(self.path.stat(), os.fstat(self.descriptor)):
                self.path.unlink()
        return UserError(f"'{self.path}' was damaged or cut short, and is deleted; run the same command again")


Images: TypeAlias = NDArray[np.uint8] | Stored
"""uint8 (N,H,W,C), in memory or on disk."""


def pieces(images: NDArray[np.generic] | Stored) -> Iterator[NDArray[np.generic]]:
    """Yield all images in order, in pieces of a few megabytes and at most 65,536 images."""
    step = min(max(1, CHUNK * len(images) // max(1, images.nbytes)), 1 << 16)
    return (images[first : first + step] for first in range(0, len(images), step))


def memory(root: Path = Path("/")) -> int:
    """Return the memory in bytes: that of the machine, or the limit of this process's control group."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return limits[0]
    for _, kinds, path in (line.split(":", 2) for line in groups):
        if "memory" in kinds.split(","):
            top, name = "sys/fs/cgroup/memory", "memory.limit_in_bytes"  # version 1 of control groups
        elif not kinds:
            top, name = "sys/fs/cgroup", "memory.max"  # version 2
        else:
            continue
        group = root / top / path.lstrip("/")
        files = (folder / name for folder in (group, *group.parents))
        texts = (file.read_text().strip() for file in files if file.is_file())
        limits += [int(text) for text in texts if text != "max"]
    return min(limits)


def on_disk(size: int, storage: str) -> bool:
    """Whether `size` bytes of images are kept on disk. storage: memory, disk, or auto (depends on the memory)."""
    return storage == "disk" or (storage == "auto" and size > memory() // SHARE)


def check_memory(size: int) -> None:
    """Refuse `size` bytes of images in memory if the memory is smaller."""
    if size > memory():
        needed = f"images of {data_size(size)} do not fit into memory"
        raise UserError(f"{needed}; allowed: --data.storage disk, or fewer pixels by --data.size")


def gather(images: Iterable[NDArray[np.uint8]], shape: tuple[int, int, int, int], *, key: str, storage: str) -> Images:
    """Return `images`, N arrays uint8 (H,W,C) in order, as one array (N,H,W,C) of that shape, in memory or on disk.

    On disk they are written once, to a file that is named after `key`: a text of everything that determines the pixels,
    such as paths, sizes and times of files. If that file exists, `images` is not read. `storage`: see `on_disk`. A full
    disk, and more images than fit into memory, raise a `UserError`.
    """
    if on_disk(math.prod(shape), storage):
        return keep(images, shape, key)
    check_memory(math.prod(shape))
    together = np.empty(shape, np.uint8)
    for place, image in zip(together, images, strict=True):
        place[:] = image
    return together


def keep(blocks: Iterable[NDArray[np.uint8]], shape: tuple[int, int, int, int], key: str) -> Stored:
    """Return the cache file that is named after `key`; write it first unless it is there and complete.

    The blocks are whole images, one (H,W,C) or several (n,H,W,C).
    """
    path = cache() / f"{hashlib.sha256(key.encode()).hexdigest()}.npy"
    if not _whole(path, shape):
        _build(path, blocks, shape)
    return Stored(path, shape)


def header(shape: tuple[int, ...]) -> bytes:
    """Return the header of an .npy file of uint8 numbers of that shape, in C order."""
    stream = io.BytesIO()
    npy.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def _size(shape: tuple[int, ...]) -> int:
    return len(header(shape)) + math.prod(shape) + SUM.itemsize * shape[0]


def _whole(path: Path, shape: tuple[int, ...]) -> bool:
    """Whether the file exists, with the right header and length."""
    begins = header(shape)
    if not path.is_file() or path.stat().st_size != _size(shape):
        return False
    with path.open("rb") as file:
        return file.read(len(begins)) == begins


def _build(path: Path, blocks: Iterable[NDArray[np.uint8]], shape: tuple[int, int, int, int]) -> None:
    """Write header, images and checksums to a temporary file and rename it: a file with the final name is complete."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _one_builder(path):  # another process that needs the same file waits here, then finds it
            if _whole(path, shape):
                return
            if shutil.disk_usage(path.parent).free < _size(shape):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            with replacing(path) as file:
                _write(file, blocks, shape)
    except (OSError, UserError) as error:
        cause = error.__cause__ if isinstance(error, UserError) else error
        if not isinstance(cause, OSError):  # of the images
            raise
        reason = "no space left on the disk" if cause.errno in (errno.ENOSPC, errno.EDQUOT) else cause.strerror
        raise UserError(
            f"cannot keep {_size(shape) / 1e9:.1f} GB of images in '{path.parent}': {reason}; allowed: another folder, "
            "by TAET_CACHE, or --data.storage memory"
        ) from error


def _write(file: IO[bytes], blocks: Iterable[NDArray[np.uint8]], shape: tuple[int, int, int, int]) -> None:
    file.write(header(shape))
    size, sums = math.prod(shape[1:]), []
    for block in blocks:
        pixels = np.ascontiguousarray(block).reshape(-1).data
        sums += [zlib.crc32(pixels[first : first + size]) for first in range(0, len(pixels), size)]
        file.write(pixels)
    if len(sums) != shape[0] or file.tell() != len(header(shape)) + math.prod(shape):
        raise ValueError(f"got {len(sums)} images for the shape {shape}")
    file.write(np.array(sums, SUM).tobytes())


@contextlib.contextmanager
def _one_builder(path: Path) -> Iterator[None]:
    """Wait until no other process writes `path`; then remove the files that killed processes left in its folder."""
    lock = path.with_suffix(".lock")
    while True:
        with open(os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)) as file:
            with contextlib.suppress(OSError):  # a file system without locks: both write it, one after the other
                fcntl.flock(file, fcntl.LOCK_EX)
            if not (lock.exists() and os.path.samestat(os.fstat(file.fileno()), lock.stat())):
                continue  # the one before has removed it
            try:
                remove_leftovers(path.parent)
                yield
            finally:
                lock.unlink(missing_ok=True)
            return
