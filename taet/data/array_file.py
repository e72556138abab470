"""Arrays in .npy and .npz files: their headers are compared with the size of the file before anything is read."""

from __future__ import annotations

import contextlib
import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from taet.data.foreign_files import MOST_BYTES, MOST_IMAGES, check_unpacked, reading
from taet.data.image_store import CHUNK, Stored, check_memory, keep, on_disk
from taet.errors import UserError, cut

NPY, NPZ = "an .npy file of a plain array", "an .npz file of plain arrays"


@dataclass(frozen=True)
class ArrayFile:
    """An array with a header that was read and checked; its values are not read yet."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    by_columns: bool
    key: str
    """A text that determines the numbers: path, size and time of the file."""
    stream: IO[bytes]

    @property
    def nbytes(self) -> int:
        """Size of the array in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def image_shape(self) -> tuple[int, int, int, int] | None:
        """Shape (N,H,W,C) of images that can be copied byte by byte; None for other arrays."""
        if self.dtype != np.uint8 or self.by_columns or len(self.shape) not in (3, 4) or 0 in self.shape:
            return None
        number, height, width, channels = (*self.shape, 1)[:4]
        return number, height, width, channels

    def read(self) -> NDArray[np.generic]:
        """Read the whole array; only images may be larger than MOST_BYTES."""
        if self.dtype == np.uint8:
            check_memory(self.nbytes)
        elif self.nbytes > MOST_BYTES:
            raise ValueError(f"{self.dtype} of shape {self.shape} takes more than {MOST_BYTES:,} bytes")
        array = np.empty(math.prod(self.shape), self.dtype)
        self._fill(array.view(np.uint8))
        self._check_end()
        if self.dtype.kind == "U":
            _check_text(array)
        return array.reshape(self.shape[::-1]).T if self.by_columns else array.reshape(self.shape)

    def blocks(self) -> Iterator[NDArray[np.uint8]]:
        """Yield the rows of bytes (N, ...) in order, in blocks (n, ...) of a few megabytes."""
        if self.by_columns:
            yield self.read().astype(np.uint8, copy=False)
            return
        number, *rest = self.shape
        step = max(1, CHUNK // max(1, math.prod(rest)))
        for first in range(0, number, step):
            block = np.empty((min(step, number - first), *rest), np.uint8)
            self._fill(block.reshape(-1))
            yield block
        self._check_end()

    def _fill(self, room: NDArray[np.uint8]) -> None:
        view, done = room.data, 0
        while done < len(view):
            piece = self.stream.read(min(CHUNK, len(view) - done))
            if not piece:
                raise ValueError("it is cut short")
            view[done : done + len(piece)] = piece
            done += len(piece)

    def _check_end(self) -> None:
        """Read to the end, where the checksum of a zip member is compared."""
        if self.stream.read(1):
            raise ValueError("it is longer than it says")


def _check_text(array: NDArray[np.generic]) -> None:
    codes = array.view(np.dtype(np.uint32).newbyteorder(array.dtype.byteorder))
    if ((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))).any():
        raise ValueError("its text holds numbers that are no characters")


def _header(stream: IO[bytes], room: int, key: str) -> ArrayFile:
    """Read the header of an .npy file of `room` bytes in total."""
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"it is of version {version[0]}.{version[1]}; later ones than 2.0 are for records")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, by_columns, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("it holds pickled objects")
    if dtype.kind not in "biufcSU" or dtype.subdtype is not None or dtype.itemsize == 0:
        raise ValueError(f"it holds {dtype.name[:40]}, neither numbers nor text")
    if any(not 0 <= length < 2**63 for length in shape) or (shape and shape[0] > MOST_IMAGES):
        raise ValueError(f"it has the shape {shape}; more than {MOST_IMAGES:,} rows are not read")
    found = ArrayFile(shape, dtype, by_columns, key, stream)
    left = room - stream.tell()
    if found.nbytes != left:
        raise ValueError("it is cut short" if found.nbytes > left else "it is longer than it says")
    return found


@contextlib.contextmanager
def open_array(path: Path, name: str | None = None) -> Iterator[ArrayFile]:
    """Open an .npy file or, with its `name`, an array of an .npz file; pickled objects are refused unread."""
    with reading(path, NPY if name is None else NPZ, name or "") as file:
        about = path.stat()
        key = f"{path.resolve()}\n{about.st_size}\n{about.st_mtime_ns}" + ("" if name is None else f"\n{name}")
        if name is None:
            yield _header(file, about.st_size, key)
            return
        with zipfile.ZipFile(file) as archive:
            _names(path, archive)
            info = archive.getinfo(f"{name}.npy")
            check_unpacked(info.file_size, min(info.compress_size, about.st_size))
            with archive.open(info) as member:
                yield _header(member, info.file_size, key)


def array_names(path: Path) -> list[str]:
    """Return the names of the arrays in an .npz file."""
    with reading(path, NPZ) as file:
        if file.read(len(npy.MAGIC_PREFIX)) == npy.MAGIC_PREFIX:
            raise UserError(f"'{path}' holds a single array; allowed: an .npz file")
        with zipfile.ZipFile(file) as archive:
            return _names(path, archive)


def _names(path: Path, archive: zipfile.ZipFile) -> list[str]:
    names = [name.removesuffix(".npy") for name in archive.namelist()]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"'{path}' holds the array '{cut(twice)}' twice; allowed: an .npz file with every name once")
    return names


def read_array(path: Path, name: str | None = None, storage: str = "memory") -> NDArray[np.generic] | Stored:
    """Return an array: see `open_array`; images, uint8 (N,H,W) or (N,H,W,C), may be kept on disk as (N,H,W,C)."""
    with open_array(path, name) as found:
        shape = found.image_shape
        if shape is not None and on_disk(found.nbytes, storage):
            return keep(found.blocks(), shape, found.key)
        return found.read()
