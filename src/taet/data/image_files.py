"""Image files: their headers, decoding to 8 bits, and resizing."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, NamedTuple, Protocol, TypeVar

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps
from rich import filesize

from taet.data.notes import DataNote
from taet.data.reading import in_processes
from taet.data.storage import ArrayShape, Pixels, ahead, file_key
from taet.errors import UserError
from taet.files import reason
from taet.formatting import join_words
from taet.idle_cores import idle_cores
from taet.metrics.accuracies import Ints
from taet.progress import counted

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Accepted file formats, whatever the file's suffix: some of Pillow's other readers, such as EPS,
start programs."""
OTHER_FORMATS = {
    b"ftypavif": "AVIF",
    b"ftypavis": "AVIF",
    b"ftypheic": "HEIC",
    b"ftypheix": "HEIC",
    b"ftypmif1": "HEIC or AVIF",
    b"%PDF": "PDF",
    b"<svg": "SVG",
    b"<html": "an HTML page",
    b"<!DOCTYPE html": "an HTML page",
    b"DICM": "DICOM",
    b"\x93NUMPY": "a NumPy array",
    b"\x89HDF": "HDF5",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\x0cjP  ": "JPEG 2000",
    b"version https://git-lfs": "a pointer of Git LFS: run git lfs pull",
}
"""Bytes near the beginning of files that are often found among images, and what such a file is."""
GREY = ("1", "L", "LA", "La")
"""Pillow's modes of greyscale images; those of more than 8 bits begin with I."""
BACKGROUNDS = {"white": 255, "grey": 128, "black": 0}
"""Level of all channels behind transparent pixels, by the values of --data.transparent."""
AHEAD = 32  # most images that threads decode in advance
# a process takes half a second and 60 MB to start, and works on 5,000 small files a second
FILES_OF_A_PROCESS, MOST_PROCESSES = 2000, 8
PILLOW = f"Pillow {PIL.__version__}"  # it determines the pixels of decoded and resized images
TIFF_PHOTOMETRIC, TIFF_SAMPLE_FORMAT = 262, 339
TIFF_WHITE_IS_ZERO, TIFF_SIGNED = 0, 2
QUARTER_TURNS = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""
Result = TypeVar("Result")


class ImageFile(Protocol):
    """A file, or another object with the bytes of an encoded image; its text names it, its repr
    also its content."""

    def open(self, mode: str, /) -> IO[bytes]:
        """Open it for reading."""


def _map_images(
    files: Sequence[ImageFile], work: Callable[[Image.Image], Result]
) -> Iterator[Result | str]:
    """Yield `work(image)` for each file, or the reason why it cannot be read.

    Threads work ahead; for many files, as many processes as cores are idle. See FORMATS.
    """
    work_on = partial(_work_on, work)
    paths = [file for file in files if isinstance(file, Path)]
    most = min(MOST_PROCESSES, len(files) // FILES_OF_A_PROCESS)
    processes = min(most, idle_cores()) if most > 1 and len(paths) == len(files) else 1
    if processes > 1:
        return in_processes(work_on, paths, processes)
    return ahead(work_on, files, AHEAD)


def _work_on(work: Callable[[Image.Image], Result], file: ImageFile) -> Result | str:
    """Return `work(image)` of a file, or the reason why it cannot be read."""
    if isinstance(file, Path) and file.exists() and not file.is_file():
        return "not an ordinary file"  # a pipe or a device may give bytes never, or for ever
    try:
        # Not opened by name: Pillow would map a .tif into memory, and mix up the rows of one
        # with a rotation tag.
        with file.open("rb") as stream, Image.open(stream, formats=FORMATS) as image:
            return work(image)
    except PIL.UnidentifiedImageError:
        return _unidentified(file)
    except Exception as error:  # decoders of damaged files raise errors of many kinds
        return reason(error)


def _unidentified(file: ImageFile) -> str:
    """Return what a file is that has none of FORMATS, as far as its first bytes tell."""
    with file.open("rb") as stream:
        beginning = stream.read(512)
    if not beginning:
        return "an empty file"
    for mark, format_name in OTHER_FORMATS.items():
        if mark in beginning:
            return f"its format is {format_name}; allowed: {', '.join(FORMATS)}"
    return "not an image, or damaged"


def _has_transparency(image: Image.Image) -> bool:
    return image.mode.upper().endswith("A") or "transparency" in image.info


def _on_background(image: Image.Image, level: int) -> Image.Image:
    """Return an image with transparency on a background of this level, as L if it is grey, else as
    RGB."""
    mode = "L" if image.mode in GREY else "RGB"
    layer = image.convert("RGBA")
    background = Image.new("RGBA", layer.size, (level, level, level, 255))
    return Image.alpha_composite(background, layer).convert(mode)


def _eight_bit(image: Image.Image, background: int | None = None) -> Image.Image:
    """Return `image`, upright, as grey ("L") if the file is greyscale, else as "RGB".

    `background`: level behind transparent pixels; None: their stored colours.
    """
    tags = getattr(image, "tag_v2", {})
    # Pillow reads signed samples of a TIFF as unsigned.
    signed = TIFF_SIGNED in np.atleast_1d(tags.get(TIFF_SAMPLE_FORMAT, 1))
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF") or signed:
        raise ValueError(
            "it holds 32-bit, signed or floating point numbers; allowed: 8 or 16 bits per channel"
        )
    # Pillow inverts such images in 8 bits only.
    inverted = tags.get(TIFF_PHOTOMETRIC) == TIFF_WHITE_IS_ZERO
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return _from_sixteen_bit(image, inverted)
    if background is not None and _has_transparency(image):
        return _on_background(image, background)
    if image.mode in GREY:
        return image.convert("L")
    # A palette may have transparency, which Pillow drops without a warning only through RGBA.
    return (image.convert("RGBA") if image.mode == "P" else image).convert("RGB")


def _from_sixteen_bit(image: Image.Image, inverted: bool) -> Image.Image:
    """Return an image of levels 0 to 65535 with levels 0 to 255, rounded."""
    levels = 65535 - np.asarray(image, np.int32) if inverted else np.asarray(image)
    # 65535 = 257 * 255; the rounded quotient, in whole numbers, which take a third of the memory.
    rounded = (levels.astype(np.int32, copy=False) + 128) // 257
    return Image.fromarray(rounded.astype(np.uint8))


def scaled(image: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    """Return an image of that width and height; None: as it is.

    The filter is bilinear and antialiased, since it grows with the reduction.
    """
    if size is None or image.size == size:
        return image
    return image.resize(size, Image.Resampling.BILINEAR)


def picture(image: Pixels) -> Image.Image:
    """Return an image (H,W), (H,W,1) or (H,W,3) as a Pillow image."""
    return Image.fromarray(image.squeeze(-1) if image.shape[2:] == (1,) else image)


def as_grey(images: Pixels) -> Pixels:
    """Return images (N,H,W,3) as grey ones (N,H,W,1), by the luma of ITU-R 601."""
    made = np.empty((*images.shape[:3], 1), np.uint8)
    for number, image in enumerate(images):
        made[number, ..., 0] = picture(image).convert("L")
    return made


def resized(blocks: Iterator[Pixels], size: int) -> Iterator[Pixels]:
    """Yield each image of blocks uint8 (n,H,W,C), C 1 or 3, as (1,size,size,C): see `scaled`."""

    def scale(image: Pixels) -> Pixels:
        return np.asarray(scaled(picture(image), (size, size))).reshape(1, size, size, -1)

    return ahead(scale, chain.from_iterable(blocks), AHEAD)


def decode_where_possible(
    files: Sequence[ImageFile], size: tuple[int, int] | None, background: int | None = None
) -> Iterator[tuple[ImageFile, Pixels | str]]:
    """Yield each file with its image, uint8 (H,W) if it is greyscale, else (H,W,3), or the reason
    why it has none.

    It is turned upright by its EXIF tag; 16 bits per channel are scaled to 8, palettes and CMYK
    become RGB, the first of several pages is read. Transparent pixels lie on `background` or, with
    None, keep their stored colours. With `size`: see `scaled`. Refused are damaged files, 32 bits,
    signed and floating point numbers, and more pixels than Pillow allows (179 million).
    """
    decode = partial(_decoded, size=size, background=background)
    return zip(files, _map_images(files, decode), strict=True)


def _decoded(image: Image.Image, *, size: tuple[int, int] | None, background: int | None) -> Pixels:
    return np.asarray(scaled(_eight_bit(image, background), size))


@dataclass(frozen=True)
class ImageFiles:
    """Images uint8 (N,H,W,C) in files, C 1 if all are greyscale, else 3, known by their headers;
    decoded when read."""

    files: tuple[ImageFile, ...]
    """Those N whose headers can be read."""
    sizes: NDArray[np.int64]
    """(N,2): width and height in pixels, upright."""
    grey: NDArray[np.bool_]
    """(N,): whether the image is greyscale."""
    transparent: NDArray[np.bool_]
    """(N,): whether the file can hold transparent pixels."""
    size: int | None = None
    """With it, images are resized to size x size pixels."""
    background: str | None = None
    """One of BACKGROUNDS, behind transparent pixels; None: their stored colours."""
    unreadable: tuple[DataNote, ...] = ()
    """On files that were left out."""

    @property
    def uniform(self) -> bool:
        """Whether all images have one size."""
        return bool((self.sizes == self.sizes[:1]).all())

    def ranked(self, quantile: float) -> tuple[int, int]:
        """Return width and height of the image at this quantile of the number of pixels: 0.5 is the
        median."""
        position = min(int(quantile * len(self.sizes)), len(self.sizes) - 1)
        by_pixels = self.sizes.prod(1).argsort(kind="stable")
        width, height = self.sizes[by_pixels[position]].tolist()
        return width, height

    @property
    def shape(self) -> ArrayShape:
        """(N,H,W,C); without a size, files of different sizes are refused."""
        if self.size is None and not self.uniform:
            other = int((self.sizes != self.sizes[0]).any(1).argmax())
            first, second = (
                f"'{self.files[n]}' is {self.sizes[n][0]}x{self.sizes[n][1]} pixels"
                for n in (0, other)
            )
            allowed = (
                "give one size to all with --data.size, for a trained network that of its training"
            )
            raise UserError(f"images of different sizes: {first}, {second}; {allowed}")
        width, height = self.ranked(1) if self.size is None else (self.size, self.size)
        return len(self.files), height, width, 1 if self.grey.all() else 3

    @property
    def key(self) -> str:
        """Paths, sizes and times of the files, and how they are read."""
        names = [file_key(file) if isinstance(file, Path) else repr(file) for file in self.files]
        how = f"size {self.size}, {self.shape[3]} channels, {PILLOW}"
        if self.background is not None:
            how += f", on {self.background}"
        return "\n".join([how, *names])

    def read(self, rows: Ints | None) -> Iterator[Pixels]:
        """Yield the images at `rows`, each as (1,H,W,C)."""
        chosen = self.files if rows is None else [self.files[row] for row in rows]
        height, width, channels = self.shape[1:]
        size = None if self.size is None else (self.size, self.size)
        background = None if self.background is None else BACKGROUNDS[self.background]
        decoded = decode_where_possible(chosen, size, background)
        pixels = filesize.decimal(len(chosen) * height * width * channels)
        for file, image in counted(decoded, len(chosen), f"image files, {pixels} of pixels"):
            if isinstance(image, str):
                survey(self.files, decode=True)  # names the others as well
                raise UserError(f"cannot read image '{file}': {image}")
            if image.shape[:2] != (height, width):  # turned by a tag behind its pixels
                got = f"got {image.shape[:2]} pixels"
                raise UserError(f"'{file}': {got}; allowed: {(height, width)}, as its header says")
            with_channels = image.reshape(height, width, -1)
            yield np.broadcast_to(with_channels, (height, width, channels))[None]

    def notes(self) -> list[DataNote]:
        """Describe the images, and what is done to them when they are read."""
        notes = [*self.unreadable, self._summary()]
        if (transparent := int(self.transparent.sum())) > 0:
            notes.append(self._on_transparency(transparent))
        if self.size is not None and bool((self.sizes != self.size).any()):
            oblong = int((self.sizes[:, 0] != self.sizes[:, 1]).sum())
            text = f"resized to {self.size}x{self.size}"
            if oblong:
                text += f"; {oblong} of {len(self.files)} are not square: squeezed"
            notes.append(DataNote(text, "resized", size=self.size, squeezed=oblong))
        return notes

    def _summary(self) -> DataNote:
        smallest, median, largest = ("{}x{}".format(*self.ranked(share)) for share in (0, 0.5, 1))
        sizes = smallest if self.uniform else f"{smallest} to {largest}, median {median}"
        grey = int(self.grey.sum())
        if grey == len(self.files):
            colours = "grey"
        elif grey:
            colours = f"{grey} grey, read as colour like the others"
        else:
            colours = "colour"
        text = f"{len(self.files)} image files, {sizes} pixels, {colours}"
        return DataNote(text, "files", count=len(self.files), grey=grey)

    def _on_transparency(self, transparent: int) -> DataNote:
        text = f"{transparent} of {len(self.files)} image files have a channel of transparency: "
        if self.background is None:
            text += (
                "it is dropped, and transparent pixels have the colour that is stored under them; "
                "--data.transparent white, black or grey gives them one"
            )
        else:
            text += f"transparent pixels are {self.background}"
        return DataNote(text, "transparent", count=transparent, background=self.background)


class Header(NamedTuple):
    """What the header of an image file says."""

    width: int
    height: int
    grey: bool
    transparent: bool


def _header(image: Image.Image) -> Header:
    """Return what the header says; width and height are those of the upright image."""
    # Image.getexif does not decode a .png for a tag behind its pixels.
    orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    width, height = image.size
    # Pillow turns the size of a .tif itself.
    if orientation in QUARTER_TURNS and image.format != "TIFF":
        width, height = height, width
    grey = image.mode in GREY or image.mode.startswith("I")
    return Header(width, height, grey, _has_transparency(image))


def _looked_at(image: Image.Image, *, decode: bool) -> Header:
    header = _header(image)
    if decode:
        _eight_bit(image)
    return header


def survey(
    files: Sequence[ImageFile],
    size: int | None = None,
    *,
    decode: bool = False,
    skip: bool = False,
    background: str | None = None,
) -> ImageFiles:
    """Read the headers of images; with `decode` the pixels too, since a file may be shortened short
    behind its header.

    Files that cannot be read raise a `UserError`, or with `skip` are left out, and a note names
    some. `size`, `background`: see `ImageFiles`.
    """
    look = partial(_looked_at, decode=decode)
    results = counted(_map_images(files, look), len(files), "headers of image files")
    headers = dict[ImageFile, Header]()
    damaged, faults = list[str](), list[str]()
    for file, result in zip(files, results, strict=True):
        if isinstance(result, str):
            damaged.append(str(file))
            faults.append(f"'{file}' ({result})")
        else:
            headers[file] = result
    notes = []
    if faults:
        by = "" if decode else " by their headers"  # behind which other files may be damaged
        count = f"{len(faults)} of {len(files)} images cannot be read{by}"
        fault = f"{count}: {join_words(faults, most=10)}"
        if not skip:
            raise UserError(f"{fault}; --data.skip-unreadable leaves such files out")
        numbers = {"count": len(faults), "files": tuple(damaged[:10])}
        notes = [DataNote(f"{fault}; they are left out", "unreadable", **numbers)]
    facts = np.array([*headers.values()], np.int64).reshape(-1, len(Header._fields))
    return ImageFiles(
        files=tuple(headers),
        sizes=facts[:, :2],
        grey=facts[:, 2].astype(bool),
        transparent=facts[:, 3].astype(bool),
        size=size,
        background=background,
        unreadable=tuple(notes),
    )
