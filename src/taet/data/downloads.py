"""Official files: the folders in which they are looked for, and how they are downloaded, checked
and unpacked."""

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from taet.errors import UserError, wrapping_user_code
from taet.progress import Progress
from taet.settings import Data


class Missing(UserError):
    """Official files that are in none of the folders."""


class Download(NamedTuple):
    """One official file: see published.toml; paths are relative to the data folder, an archive
    unpacks to a folder."""

    url: str
    file: str
    checksum: str
    """sha256:DIGITS; of MedMNIST, which publishes no other, md5:DIGITS."""
    unpacks_to: str | None = None
    instead: Sequence[str] = ()
    """Other files and folders that serve as well."""

    def __str__(self) -> str:
        return f"{Path(self.file).name} ({self.checksum}) from {self.url}"


def roots(data: Data) -> list[Path]:
    """Return the folders that may hold data, in the order of search: --data.root, TAET_DATA,
    ./data."""
    given = [data.root, os.environ.get("TAET_DATA"), "data"]
    return list(dict.fromkeys(Path(os.path.expanduser(root)) for root in given if root))


def find(data: Data, *names: str | Path) -> Path | None:
    """Return the first of these files and folders that is in a folder of `roots`; None if none
    is."""
    places = (root / name for root in roots(data) for name in names)
    return next((place for place in places if place.exists()), None)


def places(what: str, data: Data, wanted: Sequence[Download]) -> list[Path]:
    """Return the path of each official file or its unpacked folder; `Missing` says where to put one
    that is missing."""
    paths = [
        find(data, download.unpacks_to or download.file, *download.instead) for download in wanted
    ]
    found = [path for path in paths if path is not None]
    if len(found) == len(wanted):
        return found
    searched = ", ".join(f"'{root}'" for root in roots(data))
    names = ", ".join(Path(download.file).name for download in wanted)
    size = f" --size {data.size}" if data.size else ""
    put = "unpack" if wanted[0].unpacks_to else "put"
    url = wanted[0].url if len(wanted) == 1 else wanted[0].url.rpartition("/")[0]
    raise Missing(
        f"{what} is not in {searched}; run taet data prepare {data.name}{size}, or {put} {names} "
        f"from {url} into {Path('DATA', wanted[0].file).parent}, and name DATA with TAET_DATA, or "
        "for one run with --data.root"
    )


def locate(data: Data) -> Path:
    """Return the path in a name such as npz:PATH: unchanged or, if it is relative, in one of the
    folders."""
    path = Path(os.path.expanduser(data.name.partition(":")[2]))
    return path if path.exists() else find(data, path) or path


def ready(download: Download, data: Data, progress: Progress) -> str:
    """Download a file unless a folder has it, compare its checksum, and unpack it; return what was
    done."""
    if download.unpacks_to and (folder := find(data, download.unpacks_to, *download.instead)):
        return f"'{folder}' was there"
    path = find(data, download.file) or roots(data)[0] / download.file
    progress(0, 1, path.name)
    if not path.is_file():
        from torch.hub import download_url_to_file

        put = f"put {download} at '{path}', then run the same command again"
        with wrapping_user_code(f"cannot download {path.name}; {put}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            download_url_to_file(download.url, str(path), progress=False)
    kind, _, digits = download.checksum.partition(":")
    with path.open("rb") as file:
        intact = hashlib.file_digest(file, kind).hexdigest() == digits
    if not intact:
        raise UserError(f"'{path}' is damaged or another version; delete it; expected: {download}")
    if download.unpacks_to is None:
        return f"'{path}': its checksum is right"
    target = path.parents[len(Path(download.file).parts) - 1] / download.unpacks_to
    # In a temporary folder, so that nothing is left half unpacked.
    with (
        wrapping_user_code(f"cannot unpack '{path}'"),
        TemporaryDirectory(dir=path.parent, prefix=".unpacking-") as temporary,
    ):
        shutil.unpack_archive(path, temporary, filter=None if path.suffix == ".zip" else "data")
        target.parent.mkdir(parents=True, exist_ok=True)
        (Path(temporary) / target.relative_to(path.parent)).rename(target)
    return f"'{path.parent}' holds what {path.name} unpacks to; its checksum is right"
