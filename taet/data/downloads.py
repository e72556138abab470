"""Official files of published data sets: their addresses, their download and their checksums.

pooch does the same as `fetch`, but brings `requests` and five more packages, leaves a file tmpXXXX behind when a
download is killed, and does not resume one either.
"""

from __future__ import annotations

import hashlib
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from taet.errors import UserError
from taet.formatting import data_size

Progress = Callable[[float, float, str], None]
"""Called with (done, total, a line that says what is being done)."""

CHUNK = 1 << 20
TIMEOUT_SECONDS = 30.0  # without any data
AGENT = "taet (https://pypi.org/project/taet)"  # some servers refuse that of urllib


class Download(NamedTuple):
    """One official file."""

    url: str
    file: str
    """Its place, relative to the data folder; an archive is unpacked into the folder that it lies in."""
    md5: str
    """MD5 of the file, in hexadecimal, as its publishers or torchvision give it."""
    megabytes: float
    """Its size in 10^6 bytes, about."""
    unpacks_to: str | None = None
    """What the archive unpacks to, relative to the data folder; None: the file is used as it is."""

    @property
    def size(self) -> str:
        """Its size in words."""
        return data_size(1e6 * self.megabytes)

    @property
    def name(self) -> str:
        """Name of the file, without folders."""
        return Path(self.file).name

    def root(self, folders: Iterable[Path]) -> Path | None:
        """Return the first data folder that has what the archive unpacks to, else the first that has the file."""
        kept = [name for name in (self.unpacks_to, self.file) if name is not None]
        folders = list(folders)
        return next((folder for name in kept for folder in folders if (folder / name).exists()), None)


def check_md5(path: Path, expected: str) -> None:
    """Refuse a file whose MD5 is not `expected`."""
    with path.open("rb") as file:
        got = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if got != expected:
        held = data_size(path.stat().st_size)
        raise UserError(
            f"'{path}' ({held}) has MD5 {got}; expected: {expected}; it is damaged or another version, delete it"
        )


def fetch(download: Download, root: Path, progress: Progress) -> Path:
    """Download a file into the data folder `root`, check its MD5, and return its path.

    The file gets its name only when it is complete and its MD5 is right. A failed connection is an `OSError` or
    `http.client.HTTPException`, a wrong MD5 a `UserError`; nothing is left behind then.
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
