"""Image files: listing, headers, decoding and resizing."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path
from threading import Condition
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from taet.data.ahead import ahead
from taet.data.foreign_files import MOST_IMAGES, reason
from taet.data.image_store import Images, gather, pieces
from taet.errors import UserError, cut
from taet.files import opened
from taet.progress import counted
from taet.settings import Fit

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
AHEAD = 64
"""Most results that threads compute in advance."""
HEADERS = 64
"""Headers that a thread reads per task: passing on a single file would take as long as reading its header."""
GREY = ("1", "L", "LA", "La")
"""Pillow's modes of greyscale images; those of more than 8 bits begin with I."""
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Accepted file formats, whatever the file's suffix: some of Pillow's other readers, such as EPS, start programs."""
MOST_FILE_BYTES = (1 << 29) + (1 << 20)
"""Largest image file: as many pixels as Pillow allows, with 16 bits, uncompressed."""
ROOM = 1 << 27
"""Pixels that threads decode at once; a pixel takes some ten bytes while it is converted."""
BLOCK = 1 << 26
"""Bytes that Pillow allocates at once for large images."""
KEPT_BYTES = 1 << 28
"""Limit of the decoded images that wait to be used; a single image may be larger."""
UNUSUAL = {
    "deep": "16 bits per channel, scaled to 8",
    "palette": "a palette, read as its colours",
    "cmyk": "CMYK, converted to RGB",
    "alpha": "an alpha channel, dropped: transparent pixels get the colour that is stored with them",
    "frames": "several frames or pages, of which the first is read",
    "turned": "turned upright by their EXIF tag",
}
"""Unusual properties of a file, and what is done with them."""
FITTED = {"squeeze": "squeezed", "crop": "cut to the square in the middle", "pad": "made square by black bars"}
"""How an image that is not square is resized, in words."""


def is_image(file: Path) -> bool:
    """Whether a file has the name of an image."""
    return file.suffix.lower() in SUFFIXES


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads nowhere
        return False


def files_below(folder: Path) -> list[Path]:
    """Return the files in `folder` and its subfolders, sorted; links are followed, hidden files are left out.

    A link to a folder that holds `folder` itself, or a folder that cannot be read, raises a `UserError`.
    """
    above = {(about.st_dev, about.st_ino) for about in (place.stat() for place in folder.resolve().parents)}
    found, seen, left = list[Path](), set[tuple[int, int]](), [os.fspath(folder)]
    while left and len(found) <= MOST_IMAGES:
        place = left.pop()
        try:
            about = os.stat(place)
            one = about.st_dev, about.st_ino
            if one in above:
                raise UserError(f"'{place}' is a link to '{os.path.realpath(place)}', which holds it")
            if one in seen:
                continue
            seen.add(one)
            with os.scandir(place) as entries:
                shown = sorted((entry for entry in entries if entry.name[0] != "."), key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(f"cannot read the folder '{cut(place)}': {error.strerror}") from error
        kinds = [(entry.path, _is_folder(entry)) for entry in shown]
        found += [Path(path) for path, is_folder in kinds if not is_folder]
        left += [path for path, is_folder in reversed(kinds) if is_folder]
    if len(found) > MOST_IMAGES:
        raise UserError(f"'{folder}' holds more than {MOST_IMAGES:,} files")
    return sorted(found, key=lambda file: file.parts)


def are_copies(paths: Sequence[Path]) -> bool:
    """Whether files, or those in folders, differ only in upper and lower case, as in archives that hold them twice."""

    def held(path: Path) -> list[tuple[str, int]]:
        files = {file.relative_to(path): file for file in files_below(path)} if path.is_dir() else {path: path}
        return sorted((os.fspath(name).lower(), file.stat().st_size) for name, file in files.items())

    return len(paths) == 1 or all(held(one) == held(other) for one, other in pairwise(paths))


@contextmanager
def _settled() -> Iterator[None]:
    """Make Pillow refuse possible decompression bombs, and ignore details such as damaged EXIF tags.

    Warning filters belong to the process: use this around threads, not inside them.
    """
    from PIL.Image import DecompressionBombWarning, core  # type: ignore[attr-defined]

    # Blocks of 16 MB, as Pillow takes them, are kept by the C library for each thread when they are freed.
    core.set_block_size(BLOCK)
    logging.getLogger("PIL").addHandler(_SILENT)  # else what it logs about a damaged file would be printed
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("error", DecompressionBombWarning)
        yield


class _Room:
    """Lets threads decode up to ROOM pixels at once, or a single larger image."""

    def __init__(self) -> None:
        self._left, self._changed = ROOM, Condition()

    @contextmanager
    def take(self, pixels: int) -> Iterator[None]:
        """Wait until there is room for `pixels`, and hold it."""
        pixels = min(pixels, ROOM)
        with self._changed:
            self._changed.wait_for(lambda: self._left >= pixels)
            self._left -= pixels
        try:
            yield
        finally:
            with self._changed:
                self._left += pixels
                self._changed.notify_all()


_DECODING = _Room()
_SILENT = logging.NullHandler()


@contextmanager
def _opened(path: Path) -> Iterator[Image]:
    """Open an image file and read its header only; it must be an ordinary file of one of FORMATS."""
    from PIL import UnidentifiedImageError
    from PIL.Image import open as open_image

    # Not by its name: Pillow would map a .tif into memory, and mix up the rows of one that is to be turned.
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if not 0 < size <= MOST_FILE_BYTES:
            raise ValueError(f"it has {size:,} bytes, more than {MOST_FILE_BYTES:,}" if size else "it is empty")
        try:
            with open_image(file, formats=FORMATS) as image:
                yield image
        except UnidentifiedImageError:
            raise ValueError("it is no image, or a damaged one") from None


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error).removeprefix("cannot read ").removeprefix(f"{path}: ")
    return reason(error)


def _refusal(unreadable: dict[Path, str], total: int) -> UserError:
    (path, reason), *others = unreadable.items()
    number = f"; {len(unreadable)} of {total} cannot be read, taet.data.images.unreadable(paths) lists them"
    return UserError(f"cannot read image '{path}': {reason}{number if others else ''}")


class _Header(NamedTuple):
    size: tuple[int, int]
    """Width and height, upright."""
    grey: bool
    unusual: tuple[str, ...]
    """Keys of UNUSUAL."""


def _header(path: Path) -> _Header | str:
    """Return the header of an image file, or the reason why it cannot be read."""
    from PIL import ExifTags
    from PIL.Image import Image as Pillow

    try:
        with _opened(path) as image:
            mode = image.mode
            if mode == "F":
                raise ValueError("it holds floating point numbers; allowed: 8 or 16 bits per channel")
            # Image.getexif does not decode a .png for a tag behind its pixels. Pillow turns the size of a .tif itself.
            turn = Pillow.getexif(image).get(ExifTags.Base.Orientation, 1)
            across = turn in (5, 6, 7, 8) and image.format != "TIFF"
            unusual = {
                "deep": mode.startswith("I"),
                "palette": mode in ("P", "PA"),
                "cmyk": mode == "CMYK",
                "alpha": mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info,
                # The second picture that a phone puts into its .jpg is no other image.
                "frames": getattr(image, "is_animated", False) and image.format != "MPO",
                "turned": turn in range(2, 9),
            }
            return _Header(
                image.size[::-1] if across else image.size,
                mode in GREY or mode.startswith("I"),
                tuple(key for key, holds in unusual.items() if holds),
            )
    except Exception as error:  # decoders of damaged files raise errors of many kinds
        return _reason(path, error)


@dataclass(frozen=True)
class Survey:
    """Facts from the headers of image files."""

    paths: tuple[Path, ...]
    """The N files whose headers can be read."""
    sizes: NDArray[np.int64]
    """(N,2): width and height in pixels, upright."""
    grey: NDArray[np.bool_]
    """(N,): whether the file is greyscale."""
    unusual: dict[str, tuple[Path, ...]]
    """Files with an unusual property, by keys of UNUSUAL."""
    unreadable: dict[Path, str]
    """Files that cannot be read, and why."""

    @property
    def channels(self) -> int:
        """1 if all files are greyscale, else 3."""
        return 1 if self.grey.all() else 3

    @cached_property
    def _smallest_median_largest(self) -> list[tuple[int, int]]:
        order = np.argsort(self.sizes.prod(1), kind="stable")
        return [(width, height) for width, height in self.sizes[order[[0, len(order) // 2, -1]]].tolist()]

    @property
    def median(self) -> tuple[int, int]:
        """Width and height of the image in the middle by number of pixels."""
        return self._smallest_median_largest[1]

    @property
    def largest(self) -> tuple[int, int]:
        """Width and height of the image with the most pixels."""
        return self._smallest_median_largest[-1]

    @property
    def uniform(self) -> bool:
        """Whether all images have one size."""
        return bool((self.sizes == self.sizes[:1]).all())

    def checked(self) -> Survey:
        """Return self; files that cannot be read raise a `UserError`."""
        if self.unreadable:
            raise _refusal(self.unreadable, len(self.paths) + len(self.unreadable))
        return self

    def common_size(self, size: int | None) -> tuple[int, int]:
        """Return the width and height of all images: `size`, or their own, which must be the same."""
        self.checked()
        if size is not None:
            return size, size
        if not self.uniform:
            other = int((self.sizes != self.sizes[0]).any(1).argmax())
            raise _different(self.paths[0], self.sizes[0].tolist(), self.paths[other], self.sizes[other].tolist())
        return self.largest

    def not_square(self, fit: Fit) -> list[str]:
        """Say how many images are not square, and what `fit` does with them."""
        places = np.flatnonzero(self.sizes[:, 0] != self.sizes[:, 1])
        files = [self.paths[i] for i in places]
        return [_example(f"not square, {FITTED[fit]}", files, len(self.paths))] if files else []

    def sentences(self, size: int | None = None, fit: Fit = "squeeze") -> list[str]:
        """Describe the files; `size` is what they will be scaled to, `fit` how."""
        total, grey = len(self.paths), int(self.grey.sum())
        if total == 0:
            return []
        smallest, median, largest = (f"{width}x{height}" for width, height in self._smallest_median_largest)
        spread = smallest if self.uniform else f"{smallest} to {largest}, median {median}"
        colour = "grey" if grey == total else "colour" if grey == 0 else f"{grey} grey, read as colour like the others"
        found = [f"{total} image files, {spread} pixels, {colour}"]
        small = np.flatnonzero((self.sizes < (size or 0)).any(1))
        if len(small):
            found.append(_example(f"smaller than {size} pixels, enlarged", [self.paths[i] for i in small], total))
        found += [] if size is None else self.not_square(fit)
        return [*found, *(_example(UNUSUAL[key], files, total) for key, files in self.unusual.items())]


def _example(what: str, files: Sequence[Path], total: int) -> str:
    return f"{len(files)} of {total} images: {what} (e.g. '{files[0].name}')"


def survey(paths: Sequence[Path]) -> Survey:
    """Read the headers of image files, without decoding any; a file cut short behind its header is not noticed."""
    batches = (paths[start : start + HEADERS] for start in range(0, len(paths), HEADERS))
    with _settled():
        read: Iterator[list[_Header | str]] = ahead(lambda some: list(map(_header, some)), batches, AHEAD)
        read = counted(read, len(paths), "headers of image files", len)
        headers = list(chain.from_iterable(read))
    found = list(zip(paths, headers, strict=True))
    readable = [(path, header) for path, header in found if isinstance(header, _Header)]
    unusual = {key: tuple(path for path, header in readable if key in header.unusual) for key in UNUSUAL}
    return Survey(
        tuple(path for path, _ in readable),
        np.array([header.size for _, header in readable], np.int64).reshape(-1, 2),
        np.array([header.grey for _, header in readable], bool),
        {key: files for key, files in unusual.items() if files},
        {path: header for path, header in found if isinstance(header, str)},
    )


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


def picture(image: NDArray[np.uint8]) -> Image:
    """Return an image (H,W), (H,W,1) or (H,W,3) as a Pillow image."""
    from PIL.Image import fromarray

    return fromarray(image.squeeze(-1) if image.shape[2:] == (1,) else image)


def resized(images: Images, size: int, fit: Fit = "squeeze") -> Iterator[NDArray[np.uint8]]:
    """Yield each of the images uint8 (N,H,W,C), C 1 or 3, as (size,size,C): bilinear, antialiased."""

    def scale(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.asarray(scaled(picture(image), (size, size), fit)).reshape(size, size, -1)

    return ahead(scale, chain.from_iterable(pieces(images)), AHEAD)


def _eight_bit(image: Image) -> Image:
    """Return `image` as grey ("L") if the file is greyscale, else as "RGB"."""
    from PIL.Image import fromarray

    if image.mode in GREY:
        return image.convert("L")
    if image.mode.startswith("I"):
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError("it has 32 bits per pixel; allowed: 8 or 16 per channel")
        # 65535 = 257 * 255; the rounded quotient, in whole numbers, which take a third of the memory.
        return fromarray(((levels.astype(np.int32, copy=False) + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("it holds floating point numbers; allowed: 8 or 16 bits per channel")
    # A palette may have transparency, which Pillow drops without a warning only through RGBA.
    return (image.convert("RGBA") if image.mode == "P" else image).convert("RGB")


def _decode(path: Path, size: tuple[int, int] | None, fit: Fit) -> NDArray[np.uint8] | str:
    """Return the pixels of an image file, or why it cannot be read."""
    from PIL import ImageOps

    try:
        with _opened(path) as image, _DECODING.take(math.prod(image.size)):
            return np.asarray(scaled(_eight_bit(ImageOps.exif_transpose(image)), size, fit))
    except Exception as error:  # decoders of damaged files raise errors of many kinds
        return _reason(path, error)


def decode_where_possible(
    paths: Sequence[Path], size: tuple[int, int] | None, most: int = AHEAD, fit: Fit = "squeeze"
) -> Iterator[tuple[Path, NDArray[np.uint8] | str]]:
    """Yield each file with its image, turned upright by its EXIF tag: uint8 (H,W) if it is greyscale, else (H,W,3).

    16 bits per channel are scaled to 8, palettes and CMYK become RGB, an alpha channel is dropped, and the first of
    several frames or pages is read. With `size`, images are resized to that width and height, see `scaled`. The reason
    why it cannot be read is in the place of an image with 32 bits or floating point numbers per channel or with more
    pixels than Pillow allows (89 million), of a damaged file, and of anything but an ordinary file of one of FORMATS.
    Threads decode up to `most` images in advance; do not call it from a thread.
    """
    with _settled():
        yield from zip(paths, ahead(lambda path: _decode(path, size, fit), paths, most), strict=True)


def unreadable(paths: Sequence[Path]) -> dict[Path, str]:
    """Return the image files that cannot be decoded, and why."""
    return {path: fault for path, fault in decode_where_possible(paths, (1, 1)) if isinstance(fault, str)}


def _different(first: Path, size: Sequence[int], other: Path, other_size: Sequence[int]) -> UserError:
    (width, height), (other_width, other_height) = size, other_size
    return UserError(
        f"images of different sizes: '{first}' is {width}x{height} pixels, '{other}' is "
        f"{other_width}x{other_height}; give one size to all with --data.size {min(width, height)}"
    )


def pillow() -> str:
    """Return the version of Pillow, which determines the pixels of decoded and resized images."""
    from PIL import __version__

    return f"Pillow {__version__}"


def decode_all(
    paths: Sequence[Path], size: int | None, storage: str = "memory", found: Survey | None = None, fit: Fit = "squeeze"
) -> Images:
    """Read image files as one array uint8 (N,H,W,C), C 1 if all are greyscale, else 3: see `decode_where_possible`.

    With `size`, images are resized to size x size pixels. `found` is a survey of these files, if there is one already.
    `taet.data.image_store.gather` decides where the images are kept. Files of different sizes without `size`, and files
    that cannot be read, which are counted, raise a `UserError`.
    """
    found = survey(paths) if found is None else found
    width, height = found.common_size(size)
    most = min(AHEAD, max(1, KEPT_BYTES // (width * height * found.channels)))

    def images() -> Iterator[NDArray[np.uint8]]:
        decoded = decode_where_possible(paths, None if size is None else (size, size), most, fit)
        for path, image in counted(decoded, len(paths), "image files"):
            if isinstance(image, str):
                rest = {other: fault for other, fault in decoded if isinstance(fault, str)}
                raise _refusal({path: image} | rest, len(paths))
            if image.shape[:2] != (height, width):  # turned by a tag behind its pixels
                raise _different(found.paths[0], (width, height), path, image.shape[1::-1])
            yield np.broadcast_to(image.reshape(height, width, -1), (height, width, found.channels))

    shape = (len(paths), height, width, found.channels)
    files = ((os.path.abspath(path), path.stat()) for path in paths)
    lines = [f"{name}\t{about.st_size}\t{about.st_mtime_ns}" for name, about in files]
    how = "" if fit == "squeeze" else f" by {fit}"
    key = "\n".join([f"image files, size {size}{how}, {found.channels} channels, {pillow()}", *lines])
    return gather(images(), shape, key=key, storage=storage)
