"""Official files of published data sets: their addresses, their download and their checksums.

pooch does the same as `fetch`, but brings `requests` and five more packages, leaves a file tmpXXXX behind when a
download is killed, and does not resume one either.
"""

from __future__ import annotations

import hashlib
import tomllib
import urllib.request
from collections.abc import Iterator, Sequence
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import NamedTuple

from taet.errors import UserError
from taet.files import make_folder, opened, remove_leftovers, replacing
from taet.formatting import data_size
from taet.progress import Progress

CHUNK = 1 << 20
TIMEOUT_SECONDS = 30.0  # without any data
AGENT = "taet (https://pypi.org/project/taet)"  # some servers refuse that of urllib


class Download(NamedTuple):
    """One official file."""

    url: str
    file: str
    """Path of the file, relative to the data folder; an archive is unpacked into its own folder."""
    md5: str
    """MD5 of the file, in hexadecimal, as its publishers or torchvision give it."""
    megabytes: float
    """Approximate size in 10^6 bytes."""
    unpacks_to: str | None = None
    """What the archive unpacks to, relative to the data folder; None: the file is used as it is."""
    sha256: str | None = None
    """SHA-256 of the file, in hexadecimal; None where its publishers give an MD5 and no project a SHA-256."""

    @property
    def checksum(self) -> str:
        """The stronger of its checksums, with its kind."""
        return f"MD5 {self.md5}" if self.sha256 is None else f"SHA-256 {self.sha256}"

    @property
    def size(self) -> str:
        """Its size in words."""
        return data_size(1e6 * self.megabytes)

    @property
    def name(self) -> str:
        """Name of the file, without folders."""
        return Path(self.file).name

    def root(self, folders: Sequence[Path]) -> Path | None:
        """Return the first data folder with the unpacked archive, else the first one with the file."""
        kept = filter(None, (self.unpacks_to, self.file))
        return next((folder for name in kept for folder in folders if (folder / name).exists()), None)


def official(name: str) -> tuple[Download, ...]:
    """Return the official files of a published set: see downloads.toml."""
    listed = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    return tuple(Download(**entry) for entry in listed[name])


def check(path: Path, download: Download) -> None:
    """Refuse a file whose checksums are not those of `download`."""
    sums = {"SHA-256": hashlib.sha256(), "MD5": hashlib.md5(usedforsecurity=False)}
    with opened(path) as file:
        while chunk := file.read(CHUNK):
            for each in sums.values():
                each.update(chunk)
    for name, expected in (("SHA-256", download.sha256), ("MD5", download.md5)):
        got = sums[name].hexdigest()
        if expected is not None and got != expected:
            held = data_size(path.stat().st_size)
            raise UserError(
                f"'{path}' ({held}) has {name} {got}; expected: {expected}; it is damaged or another version, delete it"
            )


def _chunks(answer: HTTPResponse) -> Iterator[bytes]:
    try:
        while chunk := answer.read(CHUNK):
            yield chunk
    except OSError as error:  # told from a fault of the disk
        raise HTTPException(str(error)) from error


def fetch(download: Download, root: Path, progress: Progress) -> Path:
    """Download a file into the data folder `root`, check its checksums, and return its path.

    The file gets its name only when it is complete and verified. A failed connection raises an `OSError` or
    `http.client.HTTPException`, a file with a wrong checksum a `UserError`; in both cases nothing is left behind. A
    redirect from https to http is refused, and so is a response much longer than the file.
    """
    path = root / download.file
    request = urllib.request.Request(download.url, headers={"User-Agent": AGENT})
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
        if download.url.startswith("https:") and not answer.url.startswith("https:"):
            raise HTTPException(f"{download.url} leads to {answer.url}, which is not encrypted")
        total = float(answer.headers.get("Content-Length") or 0) / 1e6 or download.megabytes
        make_folder(path.parent)
        remove_leftovers(path.parent)
        with replacing(path) as file:
            for chunk in _chunks(answer):
                file.write(chunk)
                done = file.tell() / 1e6
                if done > 2 * download.megabytes + 1:
                    raise HTTPException(f"it is longer than {download.size}")
                progress(done, max(done, total), download.name)
            file.flush()
            check(Path(file.name), download)
    return path
