"""Download, check and unpack the official files of a data set."""

from __future__ import annotations

import hashlib
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from http.client import HTTPException
from pathlib import Path

from taet import registry
from taet.data.dataset import Dataset
from taet.data.places import Download, Missing, roots
from taet.data.sources import load, source
from taet.data.storage import reason
from taet.errors import UserError
from taet.files import file_sha256
from taet.progress import Progress
from taet.settings import Data


def prepare(data: Data, progress: Progress) -> tuple[Dataset, list[str]]:
    """Download, check and unpack the missing files of a data set; return the set, and lines about what was done.

    Official files are downloaded to the first data folder (--data.root, TAET_DATA, ./data), their checksums are
    compared, archives are unpacked beside them, and the set is read, which checks its counts. Existing files are kept.
    Without a network, a `UserError` says which file to put where.
    """
    offered: Callable[[Data], Sequence[Download]] | None = None
    if (entry := registry.entries("data").get(data.name.partition(":")[0])) is not None:
        offered = getattr(entry.load(), "downloads", None)
    wanted = () if offered is None else offered(data)
    try:
        source(data)
    except Missing:
        done = [_ready(one, wanted[number:], roots(data), progress) for number, one in enumerate(wanted)]
        return load(data), done
    return load(data), ["all is there" if wanted else "nothing to download"]


def _ready(download: Download, left: Sequence[Download], folders: Sequence[Path], progress: Progress) -> str:
    """Download a file unless a folder has it, compare its checksum, and unpack it; return what was done."""
    if download.unpacks_to is not None:
        for folder in folders:
            if (folder / download.unpacks_to).exists():
                return f"'{folder / download.unpacks_to}' was there"
    root = next((folder for folder in folders if (folder / download.file).is_file()), folders[0])
    path = root / download.file
    progress(0, 1, path.name)
    if not path.is_file():
        _fetch(download, path, [f"{one} at '{folders[0] / one.file}'" for one in left])
    elif not _is_right(path, download):
        raise UserError(f"'{path}' is damaged or another version; delete it; expected: {download}")
    if download.unpacks_to is None:
        return f"'{path}': its checksum is right"
    _unpack(path, root / download.unpacks_to)
    return f"'{root / download.unpacks_to}' is unpacked from {path.name}; its checksum is right"


def _fetch(download: Download, path: Path, orders: Sequence[str]) -> None:
    from torch.hub import download_url_to_file

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        download_url_to_file(download.url, str(path), hash_prefix=download.sha256, progress=False)
        if not _is_right(path, download):
            path.unlink()
            raise ValueError("its MD5 is another one")
    except (OSError, RuntimeError, ValueError, HTTPException) as error:
        why = reason(error).removeprefix("<urlopen error ").removesuffix(">")
        put = f"put {', and '.join(orders)}, then run the same command again"
        raise UserError(f"cannot download {path.name} ({why}); {put}") from error


def _is_right(path: Path, download: Download) -> bool:
    if download.sha256 is not None:
        return file_sha256(path) == download.sha256
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest() == download.md5


def _unpack(archive: Path, target: Path) -> None:
    """Unpack an archive aside, and move what is wanted of it to `target`: nothing is left half unpacked."""
    try:
        with tempfile.TemporaryDirectory(dir=archive.parent, prefix=".unpacking-") as made:
            if archive.suffix == ".zip":
                with zipfile.ZipFile(archive) as zipped:
                    zipped.extractall(made)  # which keeps every member inside, and makes no links
            else:
                with tarfile.open(archive) as packed:
                    packed.extractall(made, filter="data")
            target.parent.mkdir(parents=True, exist_ok=True)
            (Path(made) / target.relative_to(archive.parent)).rename(target)
    except (OSError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise UserError(f"cannot unpack '{archive}': {reason(error)}") from error
