"""Download, check and unpack the official files of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path

from taet import registry
from taet.data.archives import unpack
from taet.data.dataset import Dataset
from taet.data.downloads import Download, check, fetch
from taet.data.places import find, roots
from taet.data.sources import load
from taet.errors import UserError
from taet.progress import Progress
from taet.settings import Data


def _downloads(data: Data) -> tuple[Download, ...]:
    """Return the official files of a data set; none for a bundled set or the user's own images."""
    entry = registry.entries("data").get(data.name.partition(":")[0])
    offered = getattr(entry.load(), "downloads", None) if entry is not None else None
    return () if offered is None else tuple(offered(data))


def _is_there(data: Data) -> bool:
    """Whether the set can be read, ignoring the options that cut it."""
    try:
        load(Data(name=data.name, root=data.root, storage=data.storage))
    except UserError:
        return False
    return True


def check_there(data: Data) -> None:
    """Refuse a published data set that `load` would not find; images are read only if official files are missing."""
    places = [download.unpacks_to or download.file for download in _downloads(data)]
    if not all(find(data, place) for place in places):
        load(data)


def _fetch_all(missing: Sequence[Download], root: Path, progress: Progress) -> None:
    """Download missing files; if that fails, a `UserError` says which file to put where."""
    for position, download in enumerate(missing):
        try:
            fetch(download, root, progress)
        except (OSError, HTTPException) as error:
            reason = " ".join(str(error).strip("<>").split()).removeprefix("urlopen error ") or type(error).__name__
            orders = ", and ".join(
                f"{left.name} ({left.size}, {left.checksum}) from {left.url} at '{root / left.file}'"
                for left in missing[position:]
            )
            raise UserError(
                f"cannot download {download.name} ({reason}); put {orders}, then run the same command again"
            ) from error


def _ready(download: Download, folders: Sequence[Path], progress: Progress) -> str:
    """Check an existing file, and unpack it if necessary; return what was done."""
    root = download.root(folders)
    assert root is not None
    archive, checked = root / download.file, "the archive is gone, so its checksum is not compared"
    if archive.is_file():
        progress(0, 1, f"checking {download.name}")
        check(archive, download)
        checked = f"{download.checksum} is right"
    if download.unpacks_to is None:
        return f"'{archive}': {checked}"
    target = root / download.unpacks_to
    if target.exists():
        return f"'{target}' was there; {checked}"
    unpack(archive, archive.parent, progress)
    if not target.exists():
        raise UserError(f"'{archive}' holds no {target.name}; expected: the archive that is at {download.url}")
    return f"'{target}' is unpacked from {archive.name}; {checked}"


def prepare(data: Data, progress: Progress) -> tuple[Dataset, list[str]]:
    """Download, check and unpack the missing files of a data set; return the set, and lines about what was done.

    Official files are downloaded to the first data folder (--data.root, TAET_DATA, ./data), their checksums are
    compared, archives are unpacked beside them, and the set is read, which checks its counts. Existing files are kept.
    Without a network, a `UserError` says which file to put where.
    """
    folders = roots(data)
    wanted = _downloads(data)
    missing = [download for download in wanted if download.root(folders) is None]
    if missing:
        if _is_there(data):
            return load(data), ["all is there, in other files than the official archives"]
        _fetch_all(missing, folders[0], progress)
    done = [_ready(download, folders, progress) for download in wanted]
    return load(data), done or ["nothing to download"]
