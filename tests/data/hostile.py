"""Files that mean harm, each made in an empty folder: what is asked of taet about them, and what its one line says.

A case is a function of the folder. It returns the words of a `taet` command, or a function to call instead. Beside the
folder lies `outside`, of which nothing may be read, and `ran`, which appears if code of a file was run.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import socket
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from taet.data.archives import unpack
from taet.deployment.predict import find

HUGE = 10**12
OUTSIDE = "outside/secret.png"


class Case(NamedTuple):
    """One hostile input."""

    name: str
    build: Callable[[Path], list[str] | Callable[[], object]]
    message: str
    """What the line has to match."""
    long: bool = False


CASES: list[Case] = []


def case(message: str, *arguments: Any, long: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add a case, which is called with the folder and `arguments`."""

    def add(build: Callable[..., Any]) -> Callable[..., Any]:
        # A function's text holds an address, and every process that collects the tests has to find the same names.
        words = " ".join(message if callable(argument) else str(argument) for argument in arguments)
        name = f"{build.__name__.replace('_', ' ')} {words}".strip()
        CASES.append(Case(name[:80], lambda folder: build(folder, *arguments), message, long))
        return build

    return add


class Payload:
    """Its pickle makes the file `ran` when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.marker = folder.parent / "ran"

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def show(kind: str, path: Path, *options: str) -> list[str]:
    return ["data", "show", f"{kind}:{path}", *options]


def good(counts: tuple[int, ...] = (3, 3)) -> dict[str, np.ndarray]:
    labels = np.repeat(np.arange(len(counts)), counts)
    images = np.arange(len(labels) * 48, dtype=np.uint8).reshape(-1, 4, 4, 3)
    return {
        f"{part}_{what}": array
        for part in ("train", "test")
        for what, array in (("images", images), ("labels", labels))
    }


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def raw_npy(text: str, body: bytes = bytes(64), version: bytes = b"\x01\x00") -> bytes:
    return (
        b"\x93NUMPY"
        + version
        + struct.pack("<H" if version == b"\x01\x00" else "<I", len(text))
        + text.encode("latin-1")
        + body
    )


def described(descr: str = "'|u1'", order: str = "False", shape: str = "(6,)") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


def npz(folder: Path, members: dict[str, bytes], compress: int = zipfile.ZIP_STORED) -> Path:
    path = folder / "x.npz"
    whole = {name: npy(array) for name, array in good().items()} | members
    with zipfile.ZipFile(path, "w", compress) as archive:
        for name, content in whole.items():
            archive.writestr(f"{name}.npy", content)
    return path


def sparse(path: Path, size: int = 10**10, begins: bytes = b"") -> Path:
    with path.open("wb") as file:
        file.write(begins)
        file.truncate(size)
    return path


def link(path: Path, target: str | Path) -> Path:
    path.symlink_to(target)
    return path


def fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


# --- .npz and .npy ----------------------------------------------------------------------------------------------------


@case("train_labels: it holds pickled objects", "train_labels")
@case("train_images: it holds pickled objects", "train_images")
@case("class_names: it holds pickled objects", "class_names")
def a_pickle_in_an_npz(folder: Path, name: str) -> list[str]:
    return show("npz", npz(folder, {name: npy(np.array([Payload(folder)], object))}))


HEADERS = {
    "a billion billion labels": (described(shape=f"({HUGE},)"), "cut short|rows are not read"),
    "more images than memory": (described(shape=f"({HUGE}, 32, 32, 3)"), "cut short|rows are not read"),
    "a negative length": (described(shape="(-6,)"), "has the shape"),
    "two negative lengths": (described(shape="(-2, -32)"), "has the shape"),
    "a length of 400 digits": (described(shape=f"({'9' * 400},)"), "train_labels: "),
    "a length of 9,000 digits": (described(shape=f"({'9' * 9000},)"), "train_labels: "),
    "a length that is no number": (described(shape="('6',)"), "train_labels: "),
    "a program": ("__import__('pathlib').Path('../ran').touch()", "train_labels: "),
    "a program as the shape": (described(shape="(__import__('os').getpid(),)"), "train_labels: "),
    "a deep nest": ("(" * 5000, "train_labels: "),
    "a nest of lists": (described(descr="[" * 500 + "]" * 500), "train_labels: "),
    "no such type": (described(descr="'|z9'"), "train_labels: "),
    "text of two gigabytes each": (described(descr="'<U500000000'"), "cut short"),
    "text of no characters": (described(descr="'<U0'"), "neither numbers nor text"),
    "records": (described(descr="[('a', '|u1'), ('b', '|O')]"), "pickled objects"),
    "dates": (described(descr="'<M8[s]'", shape="(8,)"), "neither numbers nor text"),
    "raw bytes": (described(descr="'|V8'", shape="(8,)"), "neither numbers nor text"),
    "a set for a header": ("{1, 2}\n", "train_labels: "),
    "a missing key": ("{'descr': '|u1'}\n", "train_labels: "),
    "bytes that are no text": ("\x00\xff" * 50, "train_labels: "),
    "an order that is no truth value": (described(order="5"), "train_labels: "),
}
for _what, (_text, _message) in HEADERS.items():

    @case(_message, _what)
    def a_header_of(folder: Path, what: str) -> list[str]:
        return show("npz", npz(folder, {"train_labels": raw_npy(HEADERS[what][0])}))


@case("it is of version 9.9")
def a_version_that_nobody_knows(folder: Path) -> list[str]:
    return show("npz", npz(folder, {"train_labels": raw_npy(described(), version=b"\x09\x09")}))


@case("train_labels: ")
def a_header_length_that_lies(folder: Path) -> list[str]:
    return show("npz", npz(folder, {"train_labels": b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + bytes(64)}))


@case("longer than it says")
def a_tail_behind_the_numbers(folder: Path) -> list[str]:
    return show("npz", npz(folder, {"train_labels": npy(np.arange(6)) + b"tail"}))


@case("characters", 0x7FFFFFFF)
@case("characters", 0xD800)
@case("class names: got", 0x1B)
def class_names_of_odd_characters(folder: Path, code: int) -> list[str]:
    names = np.array([[code], [65]], np.uint32).view("<U1").ravel()
    return show("npz", npz(folder, {"class_names": npy(names)}))


@case("allowed: numbers of classes")
def labels_that_wrap_around(folder: Path) -> list[str]:
    return show("npz", npz(folder, {"test_labels": npy(np.array([0, 1, 2**64 - 1] * 2, np.uint64))}))


@case("class '1' has no training image")
def a_label_beyond_all_classes(folder: Path) -> list[str]:
    return show("npz", npz(folder, {"train_labels": npy(np.array([0, 2**62] * 3))}))


def zeros_deflated(size: int) -> bytes:
    """A stream of deflate that unpacks to `size` zeros, made of copies of one block."""
    step = 1 << 24
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(step)) + packer.flush(zlib.Z_FULL_FLUSH)
    return block * (size // step) + b"\x03\x00"


def packed(path: Path, name: str, content: bytes, size: int, method: int = 8, flags: int = 0) -> Path:
    """Write a .zip of one member by hand, whose directory says that it unpacks to `size` bytes."""
    size = min(size, 2**32 - 2)
    about = struct.pack("<HHHHHIIIHH", 20, flags, method, 0, 0, 0, len(content), size, len(name), 0)
    local = b"PK\x03\x04" + about + name.encode()
    central = b"PK\x01\x02" + struct.pack("<H", 20) + about + struct.pack("<HHHII", 0, 0, 0, 0, 0) + name.encode()
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local) + len(content), 0)
    path.write_bytes(local + content + central + end)
    return path


@case("unpacks from .* to .* bytes, more than 200 times")
def a_bomb_in_an_npz(folder: Path) -> list[str]:
    with zipfile.ZipFile(npz(folder, {}), "r") as whole, zipfile.ZipFile(folder / "y.npz", "w") as other:
        for name in whole.namelist():
            if name != "train_images.npy":
                other.writestr(name, whole.read(name))
    bomb = packed(folder / "b.zip", "train_images.npy", zeros_deflated(2**31), 2**31).read_bytes()
    # One directory over both: the bomb first, then the rest.
    return show("npz", _joined(folder / "x.npz", bomb, (folder / "y.npz").read_bytes()))


def _joined(path: Path, first: bytes, second: bytes) -> Path:
    def parts(content: bytes) -> tuple[bytes, bytes, int]:
        end = content.rindex(b"PK\x05\x06")
        size, start = struct.unpack("<II", content[end + 12 : end + 20])
        return content[:start], content[start : start + size], struct.unpack("<H", content[end + 10 : end + 12])[0]

    (bodies, listed, number), (more, also, others) = parts(first), parts(second)
    moved, place = b"", 0
    while place < len(also):
        name, extra, comment = struct.unpack("<HHH", also[place + 28 : place + 34])
        offset = struct.unpack("<I", also[place + 42 : place + 46])[0] + len(bodies)
        length = 46 + name + extra + comment
        moved += also[place : place + 42] + struct.pack("<I", offset) + also[place + 46 : place + length]
        place += length
    directory = listed + moved
    count = number + others
    end = struct.pack("<HHHHIIH", 0, 0, count, count, len(directory), len(bodies) + len(more), 0)
    path.write_bytes(bodies + more + directory + b"PK\x05\x06" + end)
    return path


@case("cannot read|has no", 8, 0, 2**32)
@case("encrypted|password|cannot read|has no", 0, 1, 128)
@case("compression|cannot read|has no", 99, 0, 128)
def a_member_that_lies(folder: Path, method: int, flags: int, size: int) -> list[str]:
    lying = packed(folder / "b.zip", "train_labels.npy", npy(np.arange(6)), size, method, flags).read_bytes()
    with zipfile.ZipFile(npz(folder, {}), "r") as whole, zipfile.ZipFile(folder / "y.npz", "w") as other:
        for name in whole.namelist():
            if name != "train_labels.npy":
                other.writestr(name, whole.read(name))
    return show("npz", _joined(folder / "x.npz", lying, (folder / "y.npz").read_bytes()))


@case("has no train_images.*it has: ../../outside/secret")
def member_names_that_lead_out(folder: Path) -> list[str]:
    with zipfile.ZipFile(folder / "x.npz", "w") as archive:
        archive.writestr("../../outside/secret.npy", npy(np.arange(3)))
    return show("npz", folder / "x.npz")


@case("cannot read", "npz")
@case("cannot read image .* bytes, more than", "folder")
@case("has .* bytes, more than|characters or more", "csv")
def ten_gigabytes_of_nothing(folder: Path, kind: str) -> list[str]:
    place = folder / "f" / "a"
    place.mkdir(parents=True)
    (folder / "f" / "b").mkdir()
    if kind == "folder":
        sparse(place / "a.png")
        Image.new("L", (4, 4)).save(folder / "f" / "b" / "b.png")
        return show("folder", folder / "f")
    return show(kind, sparse(folder / f"x.{kind}"))


@case("it is cut short")
def a_damaged_npz(folder: Path) -> list[str]:
    return show("npz", npz(folder, {"test_images": npy(good()["test_images"])[:-7]}))


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))


SPECIAL: dict[str, Callable[[Path], Any]] = {
    "fifo": fifo,
    "zero": lambda path: link(path, "/dev/zero"),
    "tty": lambda path: link(path, "/dev/tty"),
    "random": lambda path: link(path, "/dev/random"),
    "full": lambda path: link(path, "/dev/full"),
    "loop": lambda path: link(path, path.name),
    "folder": Path.mkdir,
    "socket": bind,
}
for _kind in SPECIAL:

    @case("an ordinary file|no such file|No such device", "x.npz", _kind)
    @case("an ordinary file|no such file|No such device", "x.csv", _kind)
    @case("an ordinary file|no such file|No such device", "x.json", _kind)
    def no_ordinary(folder: Path, name: str, kind: str) -> list[str]:
        SPECIAL[kind](folder / name)
        return show(name[2:].replace("json", "csv"), folder / name)

    @case("cannot read image|holds no image", _kind)
    def no_ordinary_image(folder: Path, kind: str) -> list[str]:
        SPECIAL[kind](image_folder(folder, 0) / "cat" / "x.png")
        return show("folder", folder / "f")

    @case("an ordinary file|cannot read|has no|no such file", _kind)
    def no_ordinary_array(folder: Path, kind: str) -> list[str]:
        place = taet_npy(folder)
        (place / "train_labels.npy").unlink()
        SPECIAL[kind](place / "train_labels.npy")
        return show("taet-npy", place)


# --- TAET's folders ---------------------------------------------------------------------------------------------------


def taet_npy(folder: Path, **files: bytes) -> Path:
    place = folder / "t"
    place.mkdir()
    arrays = good()
    for name, array in arrays.items():
        rows = array.transpose(0, 3, 1, 2).reshape(6, -1) if name.endswith("images") else array
        (place / f"{name}.npy").write_bytes(files.get(name) or npy(rows))
    return place


@case("it holds pickled objects", "train_labels")
@case("it holds pickled objects", "train_images")
def a_pickle_in_an_npy(folder: Path, name: str) -> list[str]:
    return show("taet-npy", taet_npy(folder, **{name: npy(np.array([Payload(folder)], object))}))


@case("it is cut short", "(50, 48)")
@case("rows are not read|cut short", f"({HUGE}, 48)")
@case("rows are not read|cut short", f"({2**62}, {2**62})")
def rows_that_are_not_there(folder: Path, shape: str) -> list[str]:
    return show("taet-npy", taet_npy(folder, train_images=raw_npy(described(shape=shape), bytes(6 * 48))))


@case("rows are not read", "'<i8'", 100_000_000 * 8)
@case("rows are not read", "'|u1'", 10**9)
@case("takes more than", "'<U40'", 10_000_000 * 160)
def labels_in_a_file_with_a_hole(folder: Path, descr: str, size: int) -> list[str]:
    place = taet_npy(folder)
    begins = raw_npy(described(descr, shape=f"({size // np.dtype(descr[1:-1]).itemsize},)"), b"")
    sparse(place / "train_labels.npy", len(begins) + size, begins)
    return show("taet-npy", place)


# --- tables -----------------------------------------------------------------------------------------------------------


def images(folder: Path, number: int = 12) -> None:
    for place in range(number):
        Image.new("L", (6, 6), place * 9).save(folder / f"{place}.png")


def table(folder: Path, text: str | bytes, name: str = "t.csv") -> list[str]:
    images(folder)
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode(errors="surrogatepass"))
    return show("csv", folder / name)


ROWS = "".join(f"{place}.png,{'ab'[place % 2]}\n" for place in range(11))


@case("of at most 4,096 characters", "7" * 5000)
@case("control characters", "\x1b[2J")
@case("control characters", "a\x00b")
@case("control characters", '"a\nb"')
@case("of at most 4,096 characters", "x" * 100_000)
def a_label(folder: Path, label: str) -> list[str]:
    return table(folder, f"path,label\n{ROWS}11.png,{label}\n")


@case("files are missing|control characters", "../outside/gone.png")
@case("control characters", "a\x00.png")
@case("an ordinary file|files are missing", "/dev/zero")
@case("an ordinary file|files are missing", "f.png")
@case("files are missing|name too long|File name", "x" * 4000)
@case("an ordinary file|files are missing|holds", ".")
@case("it is no image|files are missing", "/etc/passwd")
def a_path(folder: Path, path: str) -> list[str]:
    fifo(folder / "f.png")
    return table(folder, f"path,label\n{ROWS}{path},a\n")


@case("not in UTF-8", "path,label\n".encode("utf-16"))
@case("not in UTF-8", b"path,label\n\xff\xfe.png,a\n")
@case("cannot read", gzip.compress(b"path,label\n", mtime=0))
@case("unexpected end", b'path,label\n"a,b\n')
@case("characters or more", b"x" * 2_000_000)
@case("characters or more", b"path,label\n" + b"x," * 1_000_000)
@case("has no column|lists no image", b"\x00" * 100)
@case("field|cannot read", b'path,label\n"' + b"x" * 200_000 + b'",a\n')
def a_table_of(folder: Path, content: bytes) -> list[str]:
    return table(folder, content)


def coco(**changes: Any) -> dict[str, Any]:
    listed = [{"id": place, "file_name": f"{place}.png"} for place in range(12)]
    labelled = [{"image_id": place, "category_id": place % 2} for place in range(12)]
    return {"images": listed, "annotations": labelled} | changes


@case("another structure", coco(images=5))
@case("another structure", coco(images={"id": 1}))
@case("another structure", coco(annotations=[5]))
@case("another structure", coco(images=[{"id": [1], "file_name": "a"}]))
@case("another structure", coco(images=[{"id": True, "file_name": "a"}]))
@case("another structure", coco(images=[{"id": 1.5, "file_name": "a"}]))
@case("another structure", coco(images=[{"id": 1, "file_name": ["0.png"]}]))
@case("another structure", coco(annotations=[{"image_id": 1, "category_id": None}]))
@case("two images have the id 0", coco(images=[{"id": 0, "file_name": name} for name in ("0.png", "1.png")]))
@case(
    "control characters",
    coco(images=[{"id": 0, "file_name": "\ud800.png"}], annotations=[{"image_id": 0, "category_id": 1}]),
)
@case("is missing", {})
@case("another structure", [])
@case("another structure", "text")
def an_annotation(folder: Path, value: Any) -> list[str]:
    return table(folder, json.dumps(value), "t.json")


@case("another structure", '{"images": [{"id": %s}]}' % ("9" * 5000))
@case("another structure", '{"images": [{"id": NaN, "file_name": "0.png"}]}')
@case("a name is there twice", json.dumps(coco())[:-1] + ', "annotations": []}')
@case("nested too deeply", "[" * 200_000)
@case("nested too deeply", '{"images":' * 100_000)
@case("not in UTF-8", b"\xff\xfe{}")
@case("cannot read", "{" + "\x00" * 100)
def json_of(folder: Path, text: str | bytes) -> list[str]:
    return table(folder, text, "t.json")


@case("has .* bytes, more than", 10**10)
@case("it holds zero bytes", 2**31 - 1)
def json_with_a_hole(folder: Path, size: int) -> list[str]:
    sparse(folder / "t.json", size, begins=b"{")
    return show("csv", folder / "t.json")


# --- folders of images ------------------------------------------------------------------------------------------------


def image_folder(folder: Path, cats: int = 3) -> Path:
    for name, number in (("cat", cats), ("dog", 3)):
        (folder / "f" / name).mkdir(parents=True)
        for place in range(number):
            Image.new("RGB", (6, 6), (place * 40, 9, 9)).save(folder / "f" / name / f"{place}.png")
    return folder / "f"


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *more: bytes, body: bytes = zlib.compress(bytes(1000))) -> bytes:
    about = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", about) + b"".join(more) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def tiff(entries: list[tuple[int, int, int, int]], following: int = 0) -> bytes:
    """A little-endian TIFF of one directory."""
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return b"II*\x00" + struct.pack("<I", 8) + directory + struct.pack("<I", following) + bytes(256)


SIDES = [
    *((256, 4, 1, 16), (257, 4, 1, 16), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)),
    *((273, 4, 1, 200), (277, 3, 1, 1), (278, 4, 1, 16), (279, 4, 1, 256)),
]
EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 6 6
%%EndComments
(../ran) (w) file closefile
showpage
%%EOF
"""
ICO = b"\x00\x00\x01\x00\x01\x00\x10\x10\x00\x00\x01\x00\x20\x00" + struct.pack("<II", 40, 22) + bytes(60)
GIF = b"GIF89a\xff\xff\xff\xff\x80\x00\x00" + bytes(6) + b",\x00\x00\x00\x00\xff\xff\xff\xff\x00\x02\x02D\x01\x00;"
BMP = b"BM" + struct.pack("<IIIIiiHHIIIIII", 10**6, 0, 54, 40, 2**30, 2**30, 1, 24, 0, 0, 0, 0, 0, 0)
JPEG = (
    b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xff\xff\xff\x03\x01\x11\x00\x02\x11\x00\x03\x11\x00"
    b"\xff\xda\x00\x0c\x03\x01\x00\x02\x11\x03\x11\x00?\x00\x00\xff\xd9"
)
WEBP = b"RIFF\xff\xff\xff\x7fWEBPVP8X\x0a\x00\x00\x00\x10\x00\x00\x00" + b"\xff\xff\xff" * 2 + bytes(40)
CONTENTS: dict[str, bytes] = {
    "900 million pixels": png(30_000, 30_000),
    "more pixels than a file can hold": png(2**31 - 1, 2**31 - 1),
    "no pixels": png(0, 0),
    "a text of two gigabytes that is not there": b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 2**31 - 1) + b"tEXt",
    "a text that unpacks to 100 megabytes": png(6, 6, chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(10**8), 9))),
    "a profile that unpacks to 100 megabytes": png(6, 6, chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(10**8), 9))),
    "a cut file": png(600, 600)[:60],
    "PostScript": EPS,
    "PDF": b"%PDF-1.4\n1 0 obj<</JS(app.alert(1))>>endobj\n%%EOF\n",
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
    "a pickle": pickle.dumps(print),
    "a program": b"#!/bin/sh\ntouch ../ran\n",
    "an icon": ICO,
    "a huge GIF": GIF,
    "a huge BMP": BMP,
    "a huge JPEG": JPEG,
    "a huge WebP": WEBP,
    "a huge PPM": b"P6 1000000000 1000000000 255\n" + bytes(100),
    "a PPM without a number": b"P6 " + b"9" * 100_000 + b" 6 255\n",
    "a PPM of comments": b"P6 " + b"#\n" * 200_000,
    "a TIFF of nothing": tiff([]),
    "a TIFF with a tag of 4 billion values": tiff([*SIDES, (700, 1, 2**32 - 1, 8)])[:120],
    "a TIFF with strips elsewhere": tiff([(*entry[:3], 2**31) if entry[0] == 273 else entry for entry in SIDES]),
    "a TIFF of 60,000 samples": tiff([(277, 3, 1, 60_000) if entry[0] == 277 else entry for entry in SIDES]),
    "a TIFF of 64 bits": tiff([(258, 3, 1, 64) if entry[0] == 258 else entry for entry in SIDES]),
    "a TIFF of 4 billion rows": tiff([(257, 4, 1, 2**32 - 1) if entry[0] == 257 else entry for entry in SIDES]),
    "an empty file": b"",
    "a .zip": b"PK\x05\x06" + bytes(18),
}
for _what in CONTENTS:

    @case("cannot read image '.*x.png'", _what)
    def an_image_of(folder: Path, what: str) -> list[str]:
        (image_folder(folder) / "cat" / "x.png").write_bytes(CONTENTS[what])
        return show("folder", folder / "f", "--size", "6")


@case("cannot read image '.*x.webp': it has 10,000,000,000 bytes")
def an_image_with_a_hole(folder: Path) -> list[str]:
    sparse(image_folder(folder) / "cat" / "x.webp", begins=WEBP)
    return show("folder", folder / "f")


@case("cannot read image '.*z.png': it is empty", long=True)
def images_as_large_as_is_allowed(folder: Path) -> Callable[[], object]:
    place = image_folder(folder) / "cat"
    level = np.zeros((9400, 9400), np.uint16)
    for name, image in (("a", level), ("b", level), ("c", np.zeros((9400, 9400, 3), np.uint8))):
        Image.fromarray(image).save(place / f"{name}.png", compress_level=1)
    Image.fromarray(np.zeros((9400, 9400, 3), np.uint8)).save(place / "d.jpg")
    (place / "z.png").touch()
    return lambda: [raise_if_told(fault) for fault in find([place]).read(slice(0, 250), (3, 32, 32), "squeeze")]


@case("is a link to .*, which holds it", "..")
@case("is a link to .*, which holds it", "/")
@case("is a link to .*, which holds it", "/proc/self/root")
def a_link_upwards(folder: Path, target: str) -> list[str]:
    link(image_folder(folder) / "cat" / "deeper", target if target.startswith("/") else "../..")
    return show("folder", folder / "f")


@case("names that can be printed", b"caf\xe9")
@case("names that can be printed", b"\x1b[2J")
@case("names that can be printed", b"two\nlines")
@case("names that can be printed", b"\xed\xa0\x80")
def a_class_folder(folder: Path, name: bytes) -> list[str]:
    image_folder(folder)
    os.rename(folder / "f" / "dog", os.fsencode(folder / "f") + b"/" + name)
    return show("folder", folder / "f")


@case("no such folder|an ordinary|cannot read|class folders", "fifo")
@case("no such folder|an ordinary|cannot read|class folders", "zero")
@case("no such folder|an ordinary|cannot read|class folders", "loop")
def no_folder(folder: Path, kind: str) -> list[str]:
    SPECIAL[kind](folder / "f")
    return show("folder", folder / "f")


@case("File name too long|cannot read")
def paths_of_more_than_4096_bytes(folder: Path) -> list[str]:
    deep, before = image_folder(folder) / "cat", Path.cwd()
    try:
        os.chdir(deep)
        for _ in range(25):
            os.mkdir("d" * 200)
            os.chdir("d" * 200)
    finally:
        os.chdir(before)
    return show("folder", folder / "f")


@case("size: got 20000; allowed: 4 to 2048 pixels", 20_000)
def a_size(folder: Path, size: int) -> list[str]:
    return show("folder", image_folder(folder), "--size", str(size))


@case("cannot read image .*: got a FIFO", fifo)
@case("cannot read image .*: got a device", lambda path: link(path, "/dev/zero"))
@case("cannot read image .*: ", lambda path: path.write_bytes(png(30_000, 30_000)))
@case("cannot read image .*: it is no image", lambda path: path.write_bytes(EPS))
def an_image_to_predict(folder: Path, make: Callable[[Path], object]) -> Callable[[], object]:
    make(folder / "x.png")

    def read() -> None:
        (fault,) = find([folder]).read(slice(0, 250), (3, 32, 32), "squeeze")
        raise_if_told(fault)

    return read


def raise_if_told(fault: object) -> None:
    from taet.errors import UserError

    if isinstance(fault, str):
        raise UserError(fault)


# --- published sets ---------------------------------------------------------------------------------------------------


@case("is missing or damaged")
def a_pickle_as_a_batch_of_cifar(folder: Path) -> list[str]:
    place = folder / "cifar-10-batches-py"
    place.mkdir()
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"):
        (place / name).write_bytes(pickle.dumps(Payload(folder)))
    return ["data", "show", "cifar10", "--root", str(folder)]


@case("it holds pickled objects")
def a_pickle_as_medmnist(folder: Path) -> list[str]:
    npz(
        folder,
        {
            "train_labels": npy(np.array([Payload(folder)], object)),
            **{f"val_{what}": npy(good()[f"test_{what}"]) for what in ("images", "labels")},
        },
    )
    (folder / "x.npz").rename(folder / "bloodmnist.npz")
    return ["data", "show", "bloodmnist", "--root", str(folder)]


@case("unpacks from", b"\x00\x00\x08\x03" + b"\x7f\xff\xff\xff" * 3)
@case("header or its length", b"\x00\x00\x08\x01" + b"\x00\x00\x00\x06" + bytes(60))
@case("header or its length|cannot read", b"\x00\x00\x08\xff" + bytes(8))
@case("header or its length|cannot read", b"")
@case("header or its length|cannot read", b"\x80\x04\x95pickle")
def an_idx_file(folder: Path, content: bytes) -> list[str]:
    place = folder / "FashionMNIST" / "raw"
    place.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (place / f"{name}-ubyte.gz").write_bytes(gzip.compress(content))
    return ["data", "show", "fashion-mnist", "--root", str(folder)]


@case("header or its length")
def an_idx_file_that_unpacks_to_gigabytes(folder: Path) -> list[str]:
    head = zlib.compressobj(9, zlib.DEFLATED, 31)
    begins = head.compress(b"\x00\x00\x08\x01\x00\x00\x00\x06") + head.flush(zlib.Z_FULL_FLUSH)
    place = folder / "FashionMNIST" / "raw"
    place.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (place / f"{name}-ubyte.gz").write_bytes(begins + zeros_deflated(2**32))
    return ["data", "show", "fashion-mnist", "--root", str(folder)]


# --- archives ---------------------------------------------------------------------------------------------------------


def unpacked(archive: Path) -> Callable[[], object]:
    return lambda: unpack(archive, archive.parent / "out")


@case("leads out of the folder", "../../outside/new")
@case("leads out of the folder", "/tmp/outside-new")
@case("leads out of the folder", "C:\\new")
@case("leads out of the folder", "a/../../../new")
def a_zip_with(folder: Path, name: str) -> Callable[[], object]:
    with zipfile.ZipFile(folder / "x.zip", "w") as archive:
        archive.writestr(name, b"bad")
    return unpacked(folder / "x.zip")


@case("is a link or a device", tarfile.SYMTYPE)
@case("is a link or a device", tarfile.LNKTYPE)
@case("is a link or a device", tarfile.FIFOTYPE)
@case("is a link or a device", tarfile.CHRTYPE)
def a_tar_with(folder: Path, kind: bytes) -> Callable[[], object]:
    with tarfile.open(folder / "x.tar", "w") as archive:
        member = tarfile.TarInfo("link")
        member.type, member.linkname = kind, "../../outside"
        archive.addfile(member)
    return unpacked(folder / "x.tar")


@case("is a link or a device")
def a_zip_with_a_link(folder: Path) -> Callable[[], object]:
    member = zipfile.ZipInfo("link")
    member.create_system, member.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(folder / "x.zip", "w") as archive:
        archive.writestr(member, b"../../outside")
    return unpacked(folder / "x.zip")


@case("unpacks from .* to .* bytes, more than 200 times")
def a_bomb_in_a_zip(folder: Path) -> Callable[[], object]:
    return unpacked(packed(folder / "x.zip", "zeros", zeros_deflated(2**31), 2**31))


@case("unpacks from .* to .* bytes, more than 200 times")
def a_tar_that_says_to_be_huge(folder: Path) -> Callable[[], object]:
    member = tarfile.TarInfo("zeros")
    member.size = 10**12
    (folder / "x.tar.gz").write_bytes(gzip.compress(member.tobuf() + bytes(2048)))
    return unpacked(folder / "x.tar.gz")


@case("cannot unpack", b"")
@case("cannot unpack", b"PK\x03\x04" + bytes(100))
@case("cannot unpack", b"PK\x05\x06" + b"\xff" * 18)
def a_damaged_zip(folder: Path, content: bytes) -> Callable[[], object]:
    (folder / "x.zip").write_bytes(content)
    return unpacked(folder / "x.zip")


@case("cannot unpack", b"\x1f\x8b\x08\x00" + bytes(100))
@case("cannot unpack", b"BZh9" + bytes(100))
@case("cannot unpack", b"\xfd7zXZ\x00" + bytes(100))
@case("cannot unpack", b"x" * 10_000)
def a_damaged_tar(folder: Path, content: bytes) -> Callable[[], object]:
    (folder / "x.tar").write_bytes(content)
    return unpacked(folder / "x.tar")


@case("an ordinary file", "fifo")
@case("an ordinary file", "zero")
def no_ordinary_archive(folder: Path, kind: str) -> Callable[[], object]:
    return unpacked(SPECIAL[kind](folder / "x.zip"))
