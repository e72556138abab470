"""Reads new images as a model takes them, one batch at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Resampling, fromarray

from taet.data.images import SUFFIXES, decode, decode_each, files_below
from taet.data.store import Stored
from taet.errors import UserError

Pixels = NDArray[np.uint8]
Shape = tuple[int, int, int]
Given = Pixels | Stored | str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


class Images(NamedTuple):
    """Images in order, with their names and a reader of batches for a model of images (C, H, W)."""

    names: tuple[str, ...]
    read: Callable[[slice, Shape], list[Pixels | str]]

    def batches(self, shape: Shape, size: int) -> Iterator[tuple[tuple[str, ...], list[Pixels | str]]]:
        """Yield the names and the images uint8 (H, W, C) of each batch, or the reason why one cannot be read."""
        for start in range(0, len(self.names), size):
            rows = slice(start, start + size)
            yield self.names[rows], self.read(rows, shape)


def find(given: Given) -> Images:
    """Return the images of files and folders (searched through, hidden ones left out), or of an array (N, H, W, C)."""
    if isinstance(given, np.ndarray | Stored):
        return _of_array(given)
    listed = [given] if isinstance(given, str | os.PathLike) else list(given)
    files = [file for path in map(Path, listed) for file in (_images_below(path) if path.is_dir() else [path])]
    if not files:
        places = ", ".join(f"'{os.fspath(path)}'" for path in listed[:3]) or "what was given"
        raise UserError(f"no image in {places}; allowed: files, or folders with any of {', '.join(sorted(SUFFIXES))}")
    return Images(tuple(map(str, files)), lambda rows, shape: _decoded(files[rows], shape))


def _images_below(folder: Path) -> list[Path]:
    return [file for file in files_below(folder) if file.suffix.lower() in SUFFIXES]


def _decoded(paths: Sequence[Path], shape: Shape) -> list[Pixels | str]:
    """Read files in threads, as in training; if one fails, read each by itself to find the reason."""
    _, height, width = shape
    size = height if height == width else None

    def attempt(path: Path) -> Pixels | str:
        try:
            return fitted(decode(path, size), shape)
        except UserError as error:
            return str(error)

    try:
        return [fitted(image, shape) for image in decode_each(paths, size)]
    except UserError:
        return [attempt(path) for path in paths]


def _of_array(images: Any) -> Images:
    if images.dtype != np.uint8 or len(images.shape) != 4 or images.shape[3] not in (1, 3) or 0 in images.shape:
        got = f"{images.dtype} {tuple(images.shape)}"
        raise UserError(f"images: got {got}; allowed: uint8 (N, H, W, C), pixel values 0 to 255, with 1 or 3 channels")
    names = tuple(map(str, range(len(images))))
    return Images(names, lambda rows, shape: [fitted(image, shape) for image in images[rows]])


def fitted(image: Pixels, shape: Shape) -> Pixels:
    """Return an image (H, W) or (H, W, C) as input for a model of images `shape` (C, H, W), uint8 (H, W, C).

    Resized as in training (bilinear, antialiased), then grey (ITU-R 601 luma) or colour as the model's images are.
    """
    channels, height, width = shape
    picture = fromarray(image.squeeze(-1) if image.shape[2:] == (1,) else image)
    if picture.size != (width, height):
        picture = picture.resize((width, height), Resampling.BILINEAR)
    return np.asarray(picture.convert("L" if channels == 1 else "RGB")).reshape(height, width, channels)
