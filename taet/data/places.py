"""Where the files of a data set are: the folders in which they are looked for, and the addresses of official ones."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import NamedTuple

from taet.errors import UserError
from taet.formatting import data_size
from taet.settings import Data


class Missing(UserError):
    """Official files that are in none of the folders."""


class Download(NamedTuple):
    """One official file: see downloads.toml."""

    url: str
    file: str
    """Path of the file, relative to the data folder; an archive is unpacked into its own folder."""
    md5: str
    megabytes: float
    """Approximate size in 10^6 bytes."""
    unpacks_to: str | None = None
    """What the archive unpacks to, relative to the data folder; None: the file is used as it is."""
    sha256: str | None = None
    """None where its publishers give an MD5 and no project a SHA-256."""

    def __str__(self) -> str:
        checksum = f"MD5 {self.md5}" if self.sha256 is None else f"SHA-256 {self.sha256}"
        return f"{Path(self.file).name} ({data_size(1e6 * self.megabytes)}, {checksum}) from {self.url}"


def official(name: str) -> tuple[Download, ...]:
    """Return the official files of a published set."""
    listed = tomllib.loads(Path(__file__).with_name("downloads.toml").read_text(encoding="utf-8"))
    return tuple(Download(**entry) for entry in listed[name])


def roots(data: Data) -> list[Path]:
    """Return the folders that may hold data, in the order of search: --data.root, TAET_DATA, ./data."""
    given = [data.root, os.environ.get("TAET_DATA"), "data"]
    return list(dict.fromkeys(Path(os.path.expanduser(root)) for root in given if root))


def find(data: Data, *names: str | Path) -> Path | None:
    """Return the first of these files and folders that is in a folder of `roots`; None if none is."""
    places = (root / name for root in roots(data) for name in names)
    return next((place for place in places if place.exists()), None)


def not_found(what: str, data: Data, put: str, options: str = "") -> Missing:
    """Return the error for official files that no folder has; `put` says which file to put where by hand."""
    looked = ", ".join(f"'{root}'" for root in roots(data))
    own = f"; the folder '{data.name}' here is read by folder:{data.name}" if Path(data.name).is_dir() else ""
    return Missing(
        f"{what} is not in {looked}; run taet data prepare {data.name}{options}, or {put} into a folder and name that "
        f"with TAET_DATA, or for one run with --data.root{own}"
    )


def locate(data: Data) -> Path:
    """Return the path in a name such as npz:PATH: unchanged or, if it is relative, in one of the folders."""
    path = Path(os.path.expanduser(data.name.partition(":")[2]))
    return path if path.exists() else find(data, path) or path
