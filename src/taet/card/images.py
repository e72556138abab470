"""The images that a card shows: a picture file beside it, whose checksum is on the card."""

import hashlib
import io
import itertools
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from taet.errors import UserError, wrapping_user_code
from taet.files import read_bytes, write_atomically
from taet.settings.types import Count, Record, Sha256, Share, StoredCount

ImagePixels = NDArray[np.uint8]
MOST_BYTES = 200_000  # of the file
NAME_DIGITS = 12  # of the checksum, in the name of the file
GREY, AMPLIFIED = 128, 10  # of a drawn change: no change, and its factor


class CardImage(Record):
    """One of the images: its row in the test set, and how sure the model was of its answers."""

    row: StoredCount
    clean_probability: Share  # of the class predicted without attack
    probability: Share  # of the class predicted for the attacked image
    made_by: str = ""
    """The attack that made the picture, where the strongest leaves an image that it cannot break as
    it is; empty: the strongest."""


class CardImages(Record):
    """The images of a card, in the order of the file, which has the original on the left and the
    attacked one on the right of each line."""

    attack: str
    sha256: Sha256
    every: Count  # the file holds every second, third, ... pixel of images that are too large
    images: Annotated[tuple[CardImage, ...], Field(strict=False, min_length=1)]

    def file(self, folder: Path) -> Path:
        """Return the file of these images in the folder of their card."""
        return folder / f"images-{self.sha256[:NAME_DIGITS]}.png"

    def read(self, folder: Path) -> ImagePixels | None:
        """Return the pixels, uint8 (images, 2, H, W, C): original and attacked; None without the
        file. One that was changed is a `UserError`."""
        path = self.file(folder)
        if not path.exists():
            return None
        content = read_bytes(path, most=MOST_BYTES)
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise UserError(
                f"{path} was changed or damaged: its SHA-256 differs from the one on its card; "
                "remove it, or evaluate again"
            )
        with wrapping_user_code(f"{path} is no picture of taet"):
            sheet = np.asarray(Image.open(io.BytesIO(content)))
            lines, columns = len(self.images), 2
            height, width = sheet.shape[0] // lines, sheet.shape[1] // columns
            tiles = sheet.reshape(lines, height, columns, width, -1)
        return tiles.transpose(0, 2, 1, 3, 4)


class Sheet(NamedTuple):
    """The content of a file of images."""

    content: bytes
    every: int
    """1: with every pixel; 2: with every second pixel of both sides, and so on."""

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


def sheet_of(original: ImagePixels, attacked: ImagePixels) -> Sheet:
    """Return the file of images, (N, H, W, C) each: whole, or the fewest pixels left out that keep
    it within `MOST_BYTES`."""
    pairs = np.stack([original, attacked], 1)  # (N, 2, H, W, C)
    for every in itertools.count(1):
        content = _png(pairs[:, :, ::every, ::every])
        if len(content) <= MOST_BYTES:
            break
    return Sheet(content, every)


def _png(pairs: ImagePixels) -> bytes:
    lines, columns, height, width, channels = pairs.shape
    return png(pairs.transpose(0, 2, 1, 3, 4).reshape(lines * height, columns * width, channels))


def png(pixels: ImagePixels) -> bytes:
    """Return an image (H, W, C) as the content of a PNG file."""
    buffer = io.BytesIO()
    is_grey = pixels.shape[2] == 1
    Image.fromarray(pixels[:, :, 0] if is_grey else pixels).save(buffer, "png", optimize=True)
    return buffer.getvalue()


def drawn_change(original: ImagePixels, attacked: ImagePixels) -> ImagePixels:
    """Return what an attack added to images, amplified around grey."""
    change = attacked.astype(np.int64) - original
    return (GREY + AMPLIFIED * change).clip(0, 255).astype(np.uint8)


def keep_images(folder: Path, images: CardImages, sheet: Sheet) -> None:
    """Write the file of a card's images into its folder."""
    write_atomically(images.file(folder), sheet.content)
