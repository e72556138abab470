"""Image files: listing, headers, decoding and resizing."""

from __future__ import annotations

import copy
import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from taet.data.ahead import ahead
from taet.data.storage import ArrayShape, Pixels, file_key, reason
from taet.errors import UserError
from taet.progress import counted
from taet.settings import Fit
from taet.statistics import Ints

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Accepted file formats, whatever the file's suffix: some of Pillow's other readers, such as EPS, start programs."""
GREY = ("1", "L", "LA", "La")
"""Pillow's modes of greyscale images; those of more than 8 bits begin with I."""
AHEAD, ROOM = 64, 1 << 27
"""Most images, and about how many pixels, that threads decode in advance."""
SHOWN = 10
"""Most unreadable files that a message names."""
FITTED = {"squeeze": "squeezed", "crop": "cut to the square in the middle", "pad": "made square by black bars"}
"""How an image that is not square is resized, in words."""
Header: TypeAlias = tuple[int, int, bool]
"""Width and height in pixels, upright, and whether an image is greyscale."""


class ImageFile(Protocol):
    """A file, or another object with the bytes of an encoded image; its text names it."""

    def open(self, mode: str, /) -> IO[bytes]:
        """Open it for reading."""


def is_image(file: Path) -> bool:
    """Whether a file has the name of an image."""
    return file.suffix.lower() in SUFFIXES


def files_below(folder: Path) -> list[Path]:
    """Return the files in `folder` and its subfolders, sorted; links are followed, hidden files are left out."""
    found, seen = list[Path](), set[str]()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        # A link to a folder above would not end.
        folders[:] = [] if real in seen else [name for name in folders if name[0] != "."]
        found += [] if real in seen else [Path(place, name) for name in files if name[0] != "."]
        seen.add(real)
    return sorted(found, key=lambda file: file.parts)


@contextmanager
def _settled() -> Iterator[None]:
    """Make Pillow refuse possible decompression bombs, and ignore details such as damaged EXIF tags.

    Warning filters belong to the process: use this around threads, not inside them.
    """
    from PIL.Image import DecompressionBombWarning

    logging.getLogger("PIL").addHandler(logging.NullHandler())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("error", DecompressionBombWarning)
        yield


@contextmanager
def _opened(file: ImageFile) -> Iterator[Image]:
    """Open an image of one of FORMATS and read its header."""
    from PIL import UnidentifiedImageError
    from PIL.Image import open as open_image

    if isinstance(file, Path) and not file.is_file():
        raise ValueError("it is no ordinary file" if file.exists() else "there is no such file")
    # Not by its name: Pillow would map a .tif into memory, and mix up the rows of one that is to be turned.
    with file.open("rb") as stream:
        try:
            with open_image(stream, formats=FORMATS) as image:
                if image.mode == "F":
                    raise ValueError("it holds floating point numbers; allowed: 8 or 16 bits per channel")
                yield image
        except UnidentifiedImageError:
            raise ValueError("it is no image, or a damaged one") from None


def _header(file: ImageFile, decode: bool) -> Header | str:
    """Return the header of an image, or the reason why it cannot be read; `decode`: read the pixels too."""
    from PIL import ExifTags
    from PIL.Image import Image as Pillow

    try:
        with _opened(file) as image:
            # Image.getexif does not decode a .png for a tag behind its pixels. Pillow turns the size of a .tif itself.
            turn = Pillow.getexif(image).get(ExifTags.Base.Orientation, 1)
            across = turn in (5, 6, 7, 8) and image.format != "TIFF"
            size, grey = image.size, image.mode in GREY or image.mode.startswith("I")
            if decode:
                _eight_bit(image)
            return (*(size[::-1] if across else size), grey)
    except Exception as error:  # decoders of damaged files raise errors of many kinds
        return reason(error)


@dataclass(frozen=True)
class Survey:
    """Facts from the headers of images."""

    files: tuple[ImageFile, ...]
    """Those N whose headers can be read."""
    sizes: NDArray[np.int64]
    """(N,2): width and height in pixels, upright."""
    grey: NDArray[np.bool_]
    """(N,): whether the image is greyscale."""
    unreadable: dict[ImageFile, str]
    """Files that cannot be read, and why."""

    @property
    def channels(self) -> int:
        """1 if all images are greyscale, else 3."""
        return 1 if self.grey.all() else 3

    def _ranked(self, place: int) -> tuple[int, int]:
        width, height = self.sizes[self.sizes.prod(1).argsort(kind="stable")[place]].tolist()
        return width, height

    @property
    def median(self) -> tuple[int, int]:
        """Width and height of the image in the middle by number of pixels."""
        return self._ranked(len(self.sizes) // 2)

    @property
    def largest(self) -> tuple[int, int]:
        """Width and height of the image with the most pixels."""
        return self._ranked(-1)

    @property
    def uniform(self) -> bool:
        """Whether all images have one size."""
        return bool((self.sizes == self.sizes[:1]).all())

    def checked(self) -> Survey:
        """Return self; files that cannot be read raise a `UserError`."""
        if self.unreadable:
            raise UserError(f"{self.faults()}; --data.skip-unreadable leaves such files out")
        return self

    def faults(self) -> str:
        """Say how many of the files cannot be read, and name some."""
        named = [f"'{file}' ({why})" for file, why in list(self.unreadable.items())[:SHOWN]]
        more = len(self.unreadable) - len(named)
        rest = f" and {more} more, which taet.data.images.unreadable(files) lists" if more else ""
        total = len(self.files) + len(self.unreadable)
        return f"{len(self.unreadable)} of {total} images cannot be read: {', '.join(named)}{rest}"

    def common_size(self, size: int | None) -> tuple[int, int]:
        """Return the width and height of all images: `size`, or their own, which must be the same."""
        self.checked()
        if size is not None:
            return size, size
        if not self.uniform:
            other = int((self.sizes != self.sizes[0]).any(1).argmax())
            one, another = (f"'{self.files[n]}' is {self.sizes[n][0]}x{self.sizes[n][1]} pixels" for n in (0, other))
            side = self.sizes[0].min()
            raise UserError(
                f"images of different sizes: {one}, {another}; give one size to all with --data.size {side}"
            )
        return self.largest

    def not_square(self, fit: Fit) -> list[str]:
        """Say how many images are not square, and what `fit` does with them."""
        places = np.flatnonzero(self.sizes[:, 0] != self.sizes[:, 1])
        if len(places) == 0:
            return []
        example = Path(str(self.files[places[0]])).name
        return [f"{len(places)} of {len(self.files)} images: not square, {FITTED[fit]} (e.g. '{example}')"]

    def sentences(self, size: int | None, fit: Fit) -> list[str]:
        """Describe the images; `size` is what they will be scaled to, `fit` how."""
        total, grey = len(self.files), int(self.grey.sum())
        smallest, median, largest = ("{}x{}".format(*each) for each in (self._ranked(0), self.median, self.largest))
        spread = smallest if self.uniform else f"{smallest} to {largest}, median {median}"
        colour = "grey" if grey == total else "colour" if grey == 0 else f"{grey} grey, read as colour like the others"
        return [f"{total} image files, {spread} pixels, {colour}", *([] if size is None else self.not_square(fit))]


def survey(files: Sequence[ImageFile], *, decode: bool = False) -> Survey:
    """Read the headers of images; with `decode` the pixels too, since a file may be cut short behind its header."""
    # Many per task: passing on a single file would take as long as reading its header.
    batches = (files[start : start + AHEAD] for start in range(0, len(files), AHEAD))
    with _settled():
        read: Iterator[list[Header | str]] = ahead(
            lambda some: [_header(file, decode) for file in some], batches, AHEAD
        )
        read = counted(read, len(files), "headers of image files", len)
        found = list(zip(files, chain.from_iterable(read), strict=True))
    headers = [(file, header) for file, header in found if not isinstance(header, str)]
    facts = np.array([header for _, header in headers], np.int64).reshape(-1, 3)
    faults = {file: header for file, header in found if isinstance(header, str)}
    return Survey(tuple(file for file, _ in headers), facts[:, :2], facts[:, 2].astype(bool), faults)


def unreadable(files: Sequence[ImageFile]) -> dict[ImageFile, str]:
    """Return the images that cannot be decoded, and why."""
    return survey(files, decode=True).unreadable


def scaled(image: Image, size: tuple[int, int] | None, fit: Fit = "squeeze") -> Image:
    """Return an image of that width and height: bilinear, antialiased; `fit` crop and pad are for squares."""
    if size is None or image.size == size:
        return image
    from PIL.Image import Resampling

    if fit == "crop":
        image = _middle(image, min(image.size))
    longest = max(image.size)
    # Half up, in whole numbers: an exported graph computes the same.
    kept = size if fit != "pad" else tuple(max(1, (2 * n * size[0] + longest) // (2 * longest)) for n in image.size)
    # Pillow's bilinear filter is antialiased: its support grows with the reduction.
    made = image.resize((kept[0], kept[1]), Resampling.BILINEAR)
    return made if fit != "pad" else _middle(made, size[0])


def _middle(image: Image, side: int) -> Image:
    """Return the square in the middle of an image, padded with black."""
    left, top = ((length - side) // 2 for length in image.size)
    return image.crop((left, top, left + side, top + side))


def picture(image: Pixels) -> Image:
    """Return an image (H,W), (H,W,1) or (H,W,3) as a Pillow image."""
    from PIL.Image import fromarray

    return fromarray(image.squeeze(-1) if image.shape[2:] == (1,) else image)


def pillow() -> str:
    """Return the version of Pillow, which determines the pixels of decoded and resized images."""
    from PIL import __version__

    return f"Pillow {__version__}"


def resized(blocks: Iterator[Pixels], size: int, fit: Fit = "squeeze") -> Iterator[Pixels]:
    """Yield each image of blocks uint8 (n,H,W,C), C 1 or 3, as (1,size,size,C): bilinear, antialiased."""

    def scale(image: Pixels) -> Pixels:
        return np.asarray(scaled(picture(image), (size, size), fit)).reshape(1, size, size, -1)

    return ahead(scale, chain.from_iterable(blocks), AHEAD)


def _eight_bit(image: Image) -> Image:
    """Return `image`, upright, as grey ("L") if the file is greyscale, else as "RGB"."""
    from PIL import ImageOps
    from PIL.Image import fromarray

    image = ImageOps.exif_transpose(image)
    if image.mode in GREY:
        return image.convert("L")
    if image.mode.startswith("I"):
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError("it has 32 bits per pixel; allowed: 8 or 16 per channel")
        # 65535 = 257 * 255; the rounded quotient, in whole numbers, which take a third of the memory.
        return fromarray(((levels.astype(np.int32, copy=False) + 128) // 257).astype(np.uint8))
    # A palette may have transparency, which Pillow drops without a warning only through RGBA.
    return (image.convert("RGBA") if image.mode == "P" else image).convert("RGB")


def _decode(file: ImageFile, size: tuple[int, int] | None, fit: Fit) -> Pixels | str:
    """Return the pixels of an image, or why it cannot be read."""
    try:
        with _opened(file) as image:
            return np.asarray(scaled(_eight_bit(image), size, fit))
    except Exception as error:  # decoders of damaged files raise errors of many kinds
        return reason(error)


def decode_where_possible(
    files: Sequence[ImageFile], size: tuple[int, int] | None, most: int = AHEAD, fit: Fit = "squeeze"
) -> Iterator[tuple[ImageFile, Pixels | str]]:
    """Yield each file with its image, uint8 (H,W) if it is greyscale, else (H,W,3), or the reason why it has none.

    It is turned upright by its EXIF tag; 16 bits per channel are scaled to 8, palettes and CMYK become RGB, alpha is
    dropped, the first of several pages is read. With `size`: see `scaled`. Refused are damaged files, 32 bits and
    floating point numbers, and more pixels than Pillow allows (89 million). Threads decode up to `most` in advance.
    """
    threads = min(most, (os.cpu_count() or 1) + 4)
    with _settled():
        yield from zip(files, ahead(lambda file: _decode(file, size, fit), files, most, threads), strict=True)


class Files:
    """Images uint8 (N,H,W,C) in files, C 1 if all are greyscale, else 3, which are decoded when they are chosen."""

    def __init__(self, found: Survey, size: int | None, fit: Fit = "squeeze") -> None:
        """With `size`, images are resized to size x size pixels; else files of different sizes are refused."""
        width, height = found.common_size(size)
        self.files, self.size, self.fit = found.files, size, fit
        self.most = max(1, min(AHEAD, ROOM // (math.prod(found.largest) * 2)))
        self.shape: ArrayShape = (len(found.files), height, width, found.channels)

    def at(self, rows: Ints) -> Files:
        """Return the images at `rows`."""
        chosen = copy.copy(self)
        chosen.files, chosen.shape = tuple(self.files[row] for row in rows), (len(rows), *self.shape[1:])
        return chosen

    @property
    def key(self) -> str:
        """Paths, sizes and times of the files, and how they are read."""
        names = (file_key(file) if isinstance(file, Path) else str(file) for file in self.files)
        return "\n".join([f"size {self.size} by {self.fit}, {self.shape[3]} channels, {pillow()}", *names])

    def read(self, rows: Ints | None) -> Iterator[Pixels]:
        """Yield the images at `rows`, each as (1,H,W,C)."""
        chosen, shape = self.files if rows is None else [self.files[row] for row in rows], self.shape[1:]
        size = None if self.size is None else (self.size, self.size)
        decoded = decode_where_possible(chosen, size, self.most, self.fit)
        for file, image in counted(decoded, len(chosen), "image files"):
            if isinstance(image, str):
                survey(chosen, decode=True).checked()  # names the others as well
                raise UserError(f"cannot read image '{file}': {image}")
            if image.shape[:2] != shape[:2]:  # turned by a tag behind its pixels
                got, allowed = (f"{each[1]}x{each[0]} pixels" for each in (image.shape, shape))
                raise UserError(f"'{file}': got {got}; allowed: {allowed}, as its header says")
            yield np.broadcast_to(image.reshape(*shape[:2], -1), shape)[None]


def decode_all(files: Sequence[ImageFile], size: int | None, *, fit: Fit = "squeeze") -> Pixels:
    """Read images as one array uint8 (N,H,W,C) in memory: see `Files`."""
    return np.concatenate(list(Files(survey(files), size, fit).read(None)))
