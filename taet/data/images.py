"""Image files and arrays: decoding and resizing."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from taet.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))


def _scaled(image: Image, size: int | None) -> Image:
    if size is None or image.size == (size, size):
        return image
    from PIL.Image import Resampling

    # Pillow's bilinear filter widens with the reduction, which is the antialiasing.
    return image.resize((size, size), Resampling.BILINEAR)


def resize(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Return uint8 images (N,H,W,C), C 1 or 3, as (N,size,size,C): bilinear, antialiased."""
    from PIL.Image import fromarray

    count, height, width, channels = images.shape
    if (height, width) == (size, size):
        return images
    resized = np.empty((count, size, size, channels), np.uint8)
    for i, image in enumerate(images):
        resized[i] = np.asarray(_scaled(fromarray(image.squeeze(-1) if channels == 1 else image), size)).reshape(
            size, size, channels
        )
    return resized


def _eight_bit(image: Image) -> Image:
    """Return `image` as grey ("L") where the file is greyscale, as "RGB" otherwise."""
    from PIL.Image import fromarray

    if image.mode in ("1", "L", "LA"):
        return image.convert("L")
    if image.mode.startswith("I"):
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError("it has 32 bits per pixel; allowed: 8 or 16 per channel")
        return fromarray(np.rint(levels / 257).astype(np.uint8))  # 65535 = 257 * 255
    if image.mode == "F":
        raise ValueError("it holds floating point numbers; allowed: 8 or 16 bits per channel")
    # A palette may carry transparency, which Pillow drops without a warning only by way of RGBA.
    return (image.convert("RGBA") if image.mode == "P" else image).convert("RGB")


def decode(path: Path, size: int | None) -> NDArray[np.uint8]:
    """Read one image file, upright by its EXIF tag: uint8 (H,W) where it is greyscale, (H,W,3) otherwise."""
    from PIL import ImageOps
    from PIL.Image import open as open_image

    try:
        with open_image(path) as image:
            return np.asarray(_scaled(_eight_bit(ImageOps.exif_transpose(image)), size))
    except Exception as error:  # decoders of damaged files raise errors of many kinds
        empty = path.is_file() and path.stat().st_size == 0
        reason = "it is empty" if empty else " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot read image '{path}': {reason}") from error


def decode_all(paths: Sequence[Path], size: int | None) -> NDArray[np.uint8]:
    """Read image files as one array uint8 (N,H,W,C): C 1 where all are greyscale, 3 otherwise.

    Files of different sizes, without `size`, are a `UserError`, as is a file that cannot be read.
    """
    images: list[NDArray[np.uint8]] = []
    with ThreadPoolExecutor() as pool:
        try:
            for path, image in zip(paths, pool.map(decode, paths, repeat(size)), strict=True):
                if images and image.shape[:2] != images[0].shape[:2]:
                    (height, width), (first_height, first_width) = image.shape[:2], images[0].shape[:2]
                    raise UserError(
                        f"images of different sizes: '{paths[0]}' is {first_width}x{first_height} pixels, '{path}' is "
                        f"{width}x{height}; give one size to all with --data.size {min(first_height, first_width)}"
                    )
                images.append(image)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    channels = max(1 if image.ndim == 2 else 3 for image in images)
    stacked = np.empty((len(images), *images[0].shape[:2], channels), np.uint8)
    for i, image in enumerate(images):
        stacked[i] = image.reshape(*image.shape[:2], -1)
    return stacked
