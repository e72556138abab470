"""Images of a user as inputs of a model: files, folders or arrays, in the size and colour of its
own."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from taet.data.class_folders import SUFFIXES, files_below, is_image, left_out
from taet.data.dataset import checked_images
from taet.data.image_files import decode_where_possible, picture, scaled
from taet.data.notes import DataNote
from taet.data.storage import Pixels
from taet.errors import UserError, wrapping_user_code
from taet.models.foreign import ImageShape

ImageSource = Pixels | Tensor | str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


class ListedImages(NamedTuple):
    """Images that were found, not read yet."""

    names: tuple[str, ...]
    """The files, or positions in an array."""
    images: Sequence[Path] | Pixels
    notes: list[DataNote]
    """On the folders that were searched through."""


def list_images(given: ImageSource) -> ListedImages:
    """Return the images in files and folders, or in an array (N, H, W, C).

    Folders are searched recursively.
    """
    if isinstance(given, np.ndarray | Tensor):
        if given.ndim == 3:  # one colour picture, or several grey ones
            allowed = "(N, H, W, C): x[None] of one picture, x[..., None] of grey ones"
            raise UserError(f"images: got shape {tuple(given.shape)}; allowed: {allowed}")
        names = tuple(str(number) for number in range(len(given)))
        return ListedImages(names, checked_images("images", given), [])
    with wrapping_user_code("images: no array, file, folder, or list of files and folders"):
        paths = [Path(given)] if isinstance(given, str | os.PathLike) else [*map(Path, given)]
    files: list[Path] = []
    below_folders: list[Path] = []
    for path in paths:
        if path.is_dir():
            below = files_below(path)
            files += [file for file in below if is_image(file)]
            below_folders += below
        else:
            files.append(path)
    if not files:
        places = ", ".join(f"'{path}'" for path in paths[:3]) or "what was given"
        allowed = f"files, or folders with any of {', '.join(sorted(SUFFIXES))}"
        raise UserError(f"no image in {places}; allowed: {allowed}")
    return ListedImages(tuple(map(str, files)), files, left_out(below_folders))


def read_images(
    images: Sequence[Path] | Pixels, shape: ImageShape, background: int | None = None
) -> list[Pixels | str]:
    """Return images (H, W, C) as inputs of a model of images `shape`.

    In place of an image that cannot be read stands the reason.

    `background` is the grey level behind transparent pixels of files.
    """
    if isinstance(images, np.ndarray):
        return [fit_image(image, shape) for image in images]
    found: list[Pixels | str] = []
    for path, image in decode_where_possible(images, shape[:0:-1], background):
        if isinstance(image, str):
            found.append(f"cannot read image '{path}': {image}")
        else:
            found.append(fit_image(image, shape))
    return found


def fit_image(image: Pixels, shape: ImageShape) -> Pixels:
    """Return an image as input of a model of images `shape` (C, H, W).

    It may be (H, W) or (H, W, C), and the result is uint8 (H, W, C).

    It is resized as in training, then converted to grey (ITU-R 601 luma) or colour.
    """
    channels, height, width = shape
    resized = scaled(picture(image), (width, height))
    pixels = np.asarray(resized.convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(height, width, channels)
