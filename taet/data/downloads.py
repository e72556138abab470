"""Official files of published data sets: where they come from, how they are fetched, and what tells the right ones."""

from __future__ import annotations

import hashlib
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from taet.errors import UserError

Progress = Callable[[float, float, str], None]
"""Told (done, total, a line about where the work is)."""

CHUNK = 1 << 20
TIMEOUT_SECONDS = 30.0  # of silence
AGENT = "taet (https://pypi.org/project/taet)"  # some servers refuse urllib's own


class Download(NamedTuple):
    """One official file."""

    url: str
    """Where it is published."""
    file: str
    """Where it is kept, relative to the data folder; an archive is unpacked into the folder that it lies in."""
    md5: str
    """MD5 of the file, in hexadecimal, as its publishers or torchvision give it."""
    megabytes: float
    """Its size in 10^6 bytes, for people."""
    unpacks_to: str | None = None
    """What exists, relative to the data folder, once the archive is unpacked; None: the file is used as it is."""

    @property
    def size(self) -> str:
        """Its size in words."""
        return size(self.megabytes)

    @property
    def name(self) -> str:
        """Name of the file, without folders."""
        return Path(self.file).name

    def root(self, folders: Iterable[Path]) -> Path | None:
        """Return the first of the data folders that has what the archive unpacks to, else the first with the file."""
        kept = [name for name in (self.unpacks_to, self.file) if name is not None]
        folders = list(folders)
        return next((folder for name in kept for folder in folders if (folder / name).exists()), None)


def size(megabytes: float) -> str:
    """Return 10^6 bytes in words: 248.1 MB, 29.5 kB or 9 bytes."""
    if megabytes >= 1:
        return f"{megabytes:.1f} MB"
    return f"{1e3 * megabytes:.1f} kB" if megabytes >= 1e-3 else f"{1e6 * megabytes:.0f} bytes"


def check_md5(path: Path, expected: str) -> None:
    """Refuse a file whose MD5 is another than `expected`."""
    with path.open("rb") as file:
        got = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if got != expected:
        held = size(path.stat().st_size / 1e6)
        raise UserError(
            f"'{path}' ({held}) has MD5 {got}; expected: {expected}; it is damaged or another version, delete it"
        )


def fetch(download: Download, root: Path, progress: Progress) -> Path:
    """Download a file into the data folder `root`, check its MD5, and return its path.

    It gets its name only once it is whole and right. No network is an `OSError` or `http.client.HTTPException`, a wrong
    MD5 a `UserError`; neither leaves anything behind.
    """
    path = root / download.file
    part = path.with_name(path.name + ".part")
    request = urllib.request.Request(download.url, headers={"User-Agent": AGENT})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
            total = float(answer.headers.get("Content-Length") or 0) / 1e6 or download.megabytes
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                while chunk := answer.read(CHUNK):
                    file.write(chunk)
                    done = file.tell() / 1e6
                    progress(done, max(done, total), download.name)
        check_md5(part, download.md5)
        return part.replace(path)
    finally:
        part.unlink(missing_ok=True)
