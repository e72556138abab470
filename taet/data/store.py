"""Images on disk: written once to a file, from which only the images that are asked for are read."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import math
import mmap
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from taet.errors import UserError

CHUNK = 1 << 24
"""Bytes that are read or written at once."""
HELD = 16
"""Images that are read before their pages are released: each may map 2 MiB on a system with huge pages."""
SHARE = 4
"""Images larger than this part of the memory, 1/SHARE, are kept on disk."""


class Stored:
    """Images uint8 (N,H,W,C) in an .npy file; indexing by position reads those images only."""

    ndim = 4
    dtype = np.dtype(np.uint8)

    def __init__(self, path: Path, rows: NDArray[np.int64] | None = None) -> None:
        """Open the uint8 array (M,H,W,C) in `path`; `rows` (N,) selects images, by default all."""
        self.path = path
        with path.open("rb") as file:
            npy.read_magic(file)
            shape, _, _ = npy.read_array_header_1_0(file)
            self._start = file.tell()
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._map.madvise(mmap.MADV_RANDOM)
        self._pixels = np.frombuffer(self._map, np.uint8, offset=self._start).reshape(shape)
        self._rows = np.arange(shape[0]) if rows is None else rows

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N,H,W,C)."""
        height, width, channels = self._pixels.shape[1:]
        return len(self._rows), height, width, channels

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
        step = max(1, CHUNK // math.prod(self.shape[1:]))
        for first in range(0, rows.size, step):
            self._read(rows.ravel()[first : first + step], images[first : first + step])
        return images.reshape(*rows.shape, *self.shape[1:])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[np.generic]:
        """Read all images."""
        if copy is False:
            raise ValueError("images on disk cannot become an array without a copy")
        return self[:].astype(dtype or np.uint8, copy=False)

    def __reduce__(self) -> tuple[type[Stored], tuple[Path, NDArray[np.int64]]]:
        return Stored, (self.path, self._rows)

    def __repr__(self) -> str:
        return f"Stored({' x '.join(map(str, self.shape))}, uint8, '{self.path}')"

    def choose(self, positions: NDArray[np.integer] | NDArray[np.bool_]) -> Stored:
        """Return the images at `positions`, in that order; nothing is read."""
        return Stored(self.path, self._rows[positions])

    def _read(self, rows: NDArray[np.int64], images: NDArray[np.uint8]) -> None:
        size = math.prod(self.shape[1:])
        for begin in (self._start + rows * size).tolist():  # so that the disk reads all of them at once
            page = begin // mmap.PAGESIZE * mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, page, begin + size - page)
        for first in range(0, len(rows), HELD):
            part = slice(first, first + HELD)
            self._pixels.take(rows[part], axis=0, out=images[part], mode="clip")  # "raise" would copy twice
            self._map.madvise(mmap.MADV_DONTNEED)  # else each page that was read counts as memory of this process


Images: TypeAlias = NDArray[np.uint8] | Stored
"""uint8 (N,H,W,C), in memory or on disk."""


def pieces(images: NDArray[np.generic] | Stored) -> Iterator[NDArray[np.generic]]:
    """Yield all images in order, in pieces of a few megabytes and at most 65,536 images."""
    step = min(max(1, CHUNK * len(images) // max(1, images.nbytes)), 1 << 16)
    return (images[first : first + step] for first in range(0, len(images), step))


def cache() -> Path:
    """Return the folder of image files that may be deleted at any time: TAET_CACHE, or ~/.cache/taet."""
    return Path(os.environ.get("TAET_CACHE") or "~/.cache/taet").expanduser()


def memory(root: Path = Path("/")) -> int:
    """Return the memory in bytes: the machine's, or the limit of the control group of this process."""
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


def gather(images: Iterable[NDArray[np.uint8]], shape: tuple[int, int, int, int], *, key: str, storage: str) -> Images:
    """Return `images`, N arrays uint8 (H,W,C) in order, as one array (N,H,W,C) of that shape, in memory or on disk.

    On disk they are written once, to a file that is named after `key`: a text of everything that determines the pixels,
    such as paths, sizes and times of files. If that file exists, `images` is not read. `storage`: see `on_disk`. A full
    disk is a `UserError`.
    """
    if on_disk(math.prod(shape), storage):
        return _kept((np.ascontiguousarray(image).data for image in images), shape, key)
    together = np.empty(shape, np.uint8)
    for place, image in zip(together, images, strict=True):
        place[:] = image
    return together


def open_member(path: Path, name: str, storage: str) -> NDArray[np.generic] | Stored:
    """Return the array `name` of an .npz file; images, uint8 (N,H,W) or (N,H,W,C), may be kept on disk as (N,H,W,C).

    They are copied there piece by piece. A pickled array and a damaged file are a `UserError`.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as member:
            shape = _images_inside(member)
            if shape is not None and on_disk(math.prod(shape), storage):
                about = path.stat()
                key = f"{path.resolve()}\n{about.st_size}\n{about.st_mtime_ns}\n{name}"
                return _kept(_contents(member, math.prod(shape)), shape, key)
            member.seek(0)
            return npy.read_array(member, allow_pickle=False)
    except (OSError, EOFError, KeyError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        pickled = isinstance(error, ValueError) and "pickle" in str(error)
        reason = "it holds pickled objects" if pickled else " ".join(str(error).split())
        raise UserError(f"cannot read '{path}': {name}: {reason}; allowed: an .npz file of plain arrays") from error


def shape_of_member(path: Path, name: str) -> tuple[int, int, int, int] | None:
    """Return (N,H,W,C) of the images `name` in an .npz file by their header; None if it holds no uint8 images."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as member:
        return _images_inside(member)


def _images_inside(member: IO[bytes]) -> tuple[int, int, int, int] | None:
    """Read the header of an .npy file; return (N,H,W,C) if images follow whose bytes can be copied."""
    if npy.read_magic(member) != (1, 0):  # later versions are for structured arrays
        return None
    shape, by_columns, dtype = npy.read_array_header_1_0(member)
    if dtype != np.uint8 or by_columns or len(shape) not in (3, 4) or 0 in shape:
        return None
    number, height, width, channels = (*shape, 1)[:4]
    return number, height, width, channels


def _contents(member: IO[bytes], size: int) -> Iterator[bytes]:
    """Yield the remaining `size` bytes of a zip's member, whose checksum is compared at its end."""
    while piece := member.read(CHUNK):
        size -= len(piece)
        yield piece
    if size != 0:
        raise ValueError("it is cut short" if size > 0 else "it is longer than it says")


def _kept(contents: Iterable[Any], shape: tuple[int, int, int, int], key: str) -> Stored:
    """Return the file that is named after `key`; write it first if it is not complete."""
    path = cache() / f"{hashlib.sha256(key.encode()).hexdigest()}.npy"
    start = header(shape)
    if not _whole(path, start, shape):
        _build(path, start, contents, shape)
    return Stored(path)


def header(shape: tuple[int, ...]) -> bytes:
    """Return the beginning of an .npy file of uint8 numbers of that shape, in C order."""
    stream = io.BytesIO()
    npy.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def _whole(path: Path, header: bytes, shape: tuple[int, ...]) -> bool:
    if not path.is_file() or path.stat().st_size != len(header) + math.prod(shape):
        return False
    with path.open("rb") as file:
        return file.read(len(header)) == header


def _build(path: Path, header: bytes, contents: Iterable[Any], shape: tuple[int, ...]) -> None:
    """Write header and contents to a .part file, then rename it: a file with the final name is always complete."""
    part, size = path.with_suffix(".part"), len(header) + math.prod(shape)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # another process that needs the same file waits here, then finds it
            if _whole(path, header, shape):
                return
            file.truncate(0)  # left by a process that was killed
            try:
                if shutil.disk_usage(path.parent).free < size:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                file.write(header)
                for content in contents:
                    file.write(content)
                file.flush()
                os.fsync(file.fileno())
                if file.tell() != size:
                    raise ValueError(f"got {file.tell() - len(header)} bytes of images for the shape {shape}")
                part.replace(path)
            except BaseException:
                os.ftruncate(file.fileno(), 0)  # not unlinked: another process may be waiting to write it
                raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "no space left on the disk" if full else str(error.strerror)
        raise UserError(
            f"cannot keep {size / 1e9:.1f} GB of images in '{path.parent}': {reason}; allowed: another folder, by "
            "TAET_CACHE, or --data.storage memory"
        ) from error
