"""Image files: listing, headers, decoding and resizing."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Protocol, TypeVar

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from taet.data.storage import ArrayShape, Pixels, ahead, file_key
from taet.errors import UserError
from taet.files import reason
from taet.formatting import listed, plural
from taet.progress import counted
from taet.statistics import Ints

SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Accepted file formats, whatever the file's suffix: some of Pillow's other readers, such as EPS, start programs."""
MASK = re.compile(r"(?<=.)[ _-](mask|segmentation)s?(_\d+)?$", re.IGNORECASE)  # after a name, as in BUSI and ISIC
MASKS = re.compile(r"(mask|segmentation|annotation|ground.?truth)s?", re.IGNORECASE)  # a folder beside that of images
GREY = ("1", "L", "LA", "La")  # Pillow's modes of greyscale images; those of more than 8 bits begin with I
AHEAD = 32  # most images that threads decode in advance
PILLOW = f"Pillow {PIL.__version__}"  # it determines the pixels of decoded and resized images
Result = TypeVar("Result")


class ImageFile(Protocol):
    """A file, or another object with the bytes of an encoded image; its text names it, its repr also its content."""

    def open(self, mode: str, /) -> IO[bytes]:
        """Open it for reading."""


def masks_of(folder: Path, images: Sequence[Path]) -> set[Path]:
    """Return which images in `folder` are masks of others: in a subfolder of masks, or by their names."""
    known = {file.with_suffix("") for file in images}
    inside = {file for file in images if any(map(MASKS.fullmatch, file.relative_to(folder).parts[:-1]))}
    named = (file for file in images if MASK.search(file.stem))
    return inside | {file for file in named if file.with_name(MASK.sub("", file.stem)) in known}


def is_image(file: Path) -> bool:
    """Whether a file has the name of an image, and is not hidden, as a Mac's notes on an image are."""
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".")


def left_out(files: Sequence[Path]) -> list[str]:
    """Return a note that counts the files that are no images by their kinds, if there are any."""
    others = Counter(file.suffix.lower() or "no suffix" for file in files if not is_image(file))
    kinds = listed([f"{count} {kind}" for kind, count in others.most_common()], 5)
    return [f"left out: {plural(others.total(), 'other file')} ({kinds})"] if others else []


def files_below(folder: Path) -> list[Path]:
    """Return the files in `folder` and its subfolders, sorted; hidden files are left out, links are followed once."""
    found, seen = list[Path](), set[str]()
    for place, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if name[0] != ".")
        found += [Path(place, name) for name in files if name[0] != "."]
    return sorted(found, key=lambda file: file.parts)


def _map_images(files: Sequence[ImageFile], work: Callable[[Image.Image], Result]) -> Iterator[Result | str]:
    """Yield `work(image)` for each file, or the reason why it cannot be read; threads work ahead. See FORMATS."""

    def work_on(file: ImageFile) -> Result | str:
        try:
            # Not opened by name: Pillow would map a .tif into memory, and mix up the rows of one with a rotation tag.
            with file.open("rb") as stream, Image.open(stream, formats=FORMATS) as image:
                return work(image)
        except PIL.UnidentifiedImageError:
            return "not an image, or damaged"
        except Exception as error:  # decoders of damaged files raise errors of many kinds
            return reason(error)

    return ahead(work_on, files, AHEAD)


def _eight_bit(image: Image.Image) -> Image.Image:
    """Return `image`, upright, as grey ("L") if the file is greyscale, else as "RGB"."""
    tags = getattr(image, "tag_v2", {})
    signed = 2 in np.atleast_1d(tags.get(339, 1))  # the format of samples in a TIFF, which Pillow reads as unsigned
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF") or signed:
        raise ValueError("it holds 32-bit, signed or floating point numbers; allowed: 8 or 16 bits per channel")
    inverted = tags.get(262) == 0  # of a TIFF: 0 is white, which Pillow inverts in 8 bits only
    image = ImageOps.exif_transpose(image)
    if image.mode in GREY:
        return image.convert("L")
    if image.mode.startswith("I"):
        levels = 65535 - np.asarray(image, np.int32) if inverted else np.asarray(image)
        # 65535 = 257 * 255; the rounded quotient, in whole numbers, which take a third of the memory.
        return Image.fromarray(((levels.astype(np.int32, copy=False) + 128) // 257).astype(np.uint8))
    # A palette may have transparency, which Pillow drops without a warning only through RGBA.
    return (image.convert("RGBA") if image.mode == "P" else image).convert("RGB")


def scaled(image: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    """Return an image of that width and height: bilinear, antialiased, since the filter grows with the reduction."""
    return image if size is None or image.size == size else image.resize(size, Image.Resampling.BILINEAR)


def picture(image: Pixels) -> Image.Image:
    """Return an image (H,W), (H,W,1) or (H,W,3) as a Pillow image."""
    return Image.fromarray(image.squeeze(-1) if image.shape[2:] == (1,) else image)


def resized(blocks: Iterator[Pixels], size: int) -> Iterator[Pixels]:
    """Yield each image of blocks uint8 (n,H,W,C), C 1 or 3, as (1,size,size,C): see `scaled`."""

    def scale(image: Pixels) -> Pixels:
        return np.asarray(scaled(picture(image), (size, size))).reshape(1, size, size, -1)

    return ahead(scale, chain.from_iterable(blocks), AHEAD)


def decode_where_possible(
    files: Sequence[ImageFile], size: tuple[int, int] | None
) -> Iterator[tuple[ImageFile, Pixels | str]]:
    """Yield each file with its image, uint8 (H,W) if it is greyscale, else (H,W,3), or the reason why it has none.

    It is turned upright by its EXIF tag; 16 bits per channel are scaled to 8, palettes and CMYK become RGB, alpha is
    dropped, the first of several pages is read. With `size`: see `scaled`. Refused are damaged files, 32 bits, signed
    and floating point numbers, and more pixels than Pillow allows (179 million).
    """
    decoded = _map_images(files, lambda image: np.asarray(scaled(_eight_bit(image), size)))
    return zip(files, decoded, strict=True)


@dataclass(frozen=True)
class Files:
    """Images uint8 (N,H,W,C) in files, C 1 if all are greyscale, else 3, known by their headers; decoded when read."""

    files: tuple[ImageFile, ...]
    """Those N whose headers can be read."""
    sizes: NDArray[np.int64]
    """(N,2): width and height in pixels, upright."""
    grey: NDArray[np.bool_]
    """(N,): whether the image is greyscale."""
    size: int | None = None
    """With it, images are resized to size x size pixels."""
    notes: tuple[str, ...] = ()
    """On files that were left out."""

    @property
    def uniform(self) -> bool:
        return bool((self.sizes == self.sizes[:1]).all())

    def ranked(self, quantile: float) -> tuple[int, int]:
        """Return width and height of the image at this quantile of the number of pixels: 0.5 is the median."""
        position = min(int(quantile * len(self.sizes)), len(self.sizes) - 1)
        width, height = self.sizes[self.sizes.prod(1).argsort(kind="stable")[position]].tolist()
        return width, height

    @property
    def shape(self) -> ArrayShape:
        """(N,H,W,C); without a size, files of different sizes are refused."""
        if self.size is None and not self.uniform:
            other = int((self.sizes != self.sizes[0]).any(1).argmax())
            one, another = (f"'{self.files[n]}' is {self.sizes[n][0]}x{self.sizes[n][1]} pixels" for n in (0, other))
            allowed = "give one size to all with --data.size, for a trained network that of its training"
            raise UserError(f"images of different sizes: {one}, {another}; {allowed}")
        width, height = self.ranked(1) if self.size is None else (self.size, self.size)
        return len(self.files), height, width, 1 if self.grey.all() else 3

    @property
    def key(self) -> str:
        """Paths, sizes and times of the files, and how they are read."""
        names = (file_key(file) if isinstance(file, Path) else repr(file) for file in self.files)
        return "\n".join([f"size {self.size}, {self.shape[3]} channels, {PILLOW}", *names])

    def read(self, rows: Ints | None) -> Iterator[Pixels]:
        """Yield the images at `rows`, each as (1,H,W,C)."""
        chosen, shape = self.files if rows is None else [self.files[row] for row in rows], self.shape[1:]
        decoded = decode_where_possible(chosen, None if self.size is None else (self.size, self.size))
        for file, image in counted(decoded, len(chosen), "image files"):
            if isinstance(image, str):
                survey(self.files, decode=True)  # names the others as well
                raise UserError(f"cannot read image '{file}': {image}")
            if image.shape[:2] != shape[:2]:  # turned by a tag behind its pixels
                raise UserError(f"'{file}': got {image.shape[:2]} pixels; allowed: {shape[:2]}, as its header says")
            yield np.broadcast_to(image.reshape(*shape[:2], -1), shape)[None]

    def sentences(self) -> list[str]:
        """Describe the images, and how they are resized."""
        smallest, median, largest = ("{}x{}".format(*self.ranked(share)) for share in (0, 0.5, 1))
        spread = smallest if self.uniform else f"{smallest} to {largest}, median {median}"
        mixed = f"{self.grey.sum()} grey, read as colour like the others" if self.grey.any() else "colour"
        summary = f"{len(self.files)} image files, {spread} pixels, {'grey' if self.grey.all() else mixed}"
        oblong = (self.sizes[:, 0] != self.sizes[:, 1]).sum()
        squeezed = f"; {oblong} of {len(self.files)} are not square: squeezed" if oblong else ""
        to_size = self.size is not None and bool((self.sizes != self.size).any())
        return [*self.notes, summary, *([f"resized to {self.size}x{self.size}{squeezed}"] if to_size else [])]


def survey(files: Sequence[ImageFile], size: int | None = None, *, decode: bool = False, skip: bool = False) -> Files:
    """Read the headers of images; with `decode` the pixels too, since a file may be cut short behind its header.

    Files that cannot be read raise a `UserError`, or with `skip` are left out, and a note names some.
    """

    def look(image: Image.Image) -> tuple[int, int, bool]:
        # Image.getexif does not decode a .png for a tag behind its pixels. Pillow turns the size of a .tif itself.
        turn = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
        width, height = image.size[::-1] if turn in (5, 6, 7, 8) and image.format != "TIFF" else image.size
        grey = image.mode in GREY or image.mode.startswith("I")
        if decode:
            _eight_bit(image)
        return width, height, grey

    results = dict(zip(files, counted(_map_images(files, look), len(files), "headers of image files"), strict=True))
    headers = {file: header for file, header in results.items() if not isinstance(header, str)}
    notes = []
    if faults := [f"'{file}' ({why})" for file, why in results.items() if isinstance(why, str)]:
        by = "" if decode else " by their headers"  # behind which other files may be damaged
        fault = f"{len(faults)} of {len(results)} images cannot be read{by}: {listed(faults, most=10)}"
        if not skip:
            raise UserError(f"{fault}; --data.skip-unreadable leaves such files out")
        notes = [f"{fault}; they are left out"]
    facts = np.array([*headers.values()], np.int64).reshape(-1, 3)
    return Files(tuple(headers), facts[:, :2], facts[:, 2].astype(bool), size, tuple(notes))
