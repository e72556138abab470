"""Reads new images as inputs of a model, one batch at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from taet.data.images import SUFFIXES, decode_where_possible, files_below, is_image, picture, scaled, survey
from taet.errors import UserError
from taet.settings import Fit

Pixels = NDArray[np.uint8]
Shape = tuple[int, int, int]
ImageSource = Pixels | str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


class NamedImages(NamedTuple):
    """Images in order, with their names, and a function that reads some of them as inputs (C, H, W) of a model."""

    names: tuple[str, ...]
    read: Callable[[slice, Shape, Fit], list[Pixels | str]]
    """Returns images uint8 (H, W, C), or the reason why one cannot be read."""


def find(given: ImageSource) -> NamedImages:
    """Return the images of files and folders (searched through, hidden ones left out), or of an array (N, H, W, C)."""
    if isinstance(given, np.ndarray):
        return _of_array(given)
    listed = [given] if isinstance(given, str | os.PathLike) else list(given)
    found = (filter(is_image, files_below(path)) if path.is_dir() else [path] for path in map(Path, listed))
    files = list(chain.from_iterable(found))
    if not files:
        places = ", ".join(f"'{os.fspath(path)}'" for path in listed[:3]) or "what was given"
        raise UserError(f"no image in {places}; allowed: files, or folders with any of {', '.join(sorted(SUFFIXES))}")
    return NamedImages(tuple(map(str, files)), lambda rows, shape, fit: _decoded(files[rows], shape, fit))


def changes(given: ImageSource, shape: Shape, fit: Fit) -> list[str]:
    """Describe how image files are changed to fit a model of images `shape` (C, H, W), judged by their headers."""
    found = survey([Path(name) for name in find(given).names])
    channels, height, width = shape
    other = np.flatnonzero((found.sizes != (width, height)).any(1))
    notes, total = list[str](), len(found.files)
    if len(other):
        first = "{}x{}".format(*found.sizes[other[0]])
        example = f"e.g. '{found.files[other[0]]}' of {first}"
        notes.append(f"{len(other)} of {total} images are resized to {width}x{height} pixels as in training, {example}")
        notes += found.not_square(fit) if height == width else []
    wrong = int((found.grey if channels == 3 else ~found.grey).sum())
    if wrong:
        kinds = ("grey", "colour") if channels == 3 else ("colour", "grey")
        notes.append(f"{wrong} of {total} images are {kinds[0]} and read as {kinds[1]}, as the run's are")
    return notes


def _decoded(paths: Sequence[Path], shape: Shape, fit: Fit) -> list[Pixels | str]:
    """Read files in threads, as in training."""
    _, height, width = shape
    return [
        f"cannot read image '{path}': {image}" if isinstance(image, str) else fitted(image, shape, fit)
        for path, image in decode_where_possible(paths, (width, height), fit=fit)
    ]


def _of_array(images: Any) -> NamedImages:
    if images.dtype != np.uint8 or len(images.shape) != 4 or images.shape[3] not in (1, 3) or 0 in images.shape:
        got = f"{images.dtype} {tuple(images.shape)}"
        raise UserError(f"images: got {got}; allowed: uint8 (N, H, W, C), pixel values 0 to 255, with 1 or 3 channels")
    names = tuple(map(str, range(len(images))))
    return NamedImages(names, lambda rows, shape, fit: [fitted(image, shape, fit) for image in images[rows]])


def fitted(image: Pixels, shape: Shape, fit: Fit) -> Pixels:
    """Return an image (H, W) or (H, W, C) as input for a model of images `shape` (C, H, W), uint8 (H, W, C).

    It is resized as in training (bilinear, antialiased, by `fit`), then converted to grey (ITU-R 601 luma) or colour as
    the model requires.
    """
    channels, height, width = shape
    fitting = scaled(picture(image), (width, height), fit)
    return np.asarray(fitting.convert("L" if channels == 1 else "RGB")).reshape(height, width, channels)
