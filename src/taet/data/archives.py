"""Archives of images, which are unpacked once into the cache and then read as folders."""

import hashlib
import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import IO, NamedTuple

from filelock import FileLock
from rich import filesize

from taet.data.storage import cache_folder, file_key
from taet.errors import UserError, wrapping_user_code
from taet.files import make_folder
from taet.progress import counted

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
"""Of archives that are unpacked."""
OTHER = {".7z": "7z x", ".rar": "unrar x", ".tar.zst": "tar -xf", ".gz": "gunzip"}
"""Suffixes of archives that are not unpacked, and the command that does it."""
MOST_BYTES = 100 * 10**9
MOST_FILES = 1_000_000
SYSTEM_FOLDER = "__MACOSX"
ENCRYPTED = 1  # the bit of a member's flags in a .zip
COPIED_AT_ONCE = 1 << 20


class Member(NamedTuple):
    """A file in an archive."""

    name: str
    size: int
    open: Callable[[], IO[bytes] | None]


def is_archive(path: Path) -> bool:
    """Whether a path has the suffix of an archive that is unpacked."""
    return path.name.lower().endswith(SUFFIXES)


def command_to_unpack(path: Path) -> str | None:
    """Return the command that unpacks an archive of another kind; None if `path` is none."""
    name = path.name.lower()
    suffix = next((suffix for suffix in OTHER if name.endswith(suffix)), None)
    return None if suffix is None else f"{OTHER[suffix]} '{path}'"


def unpacked(path: Path) -> Path:
    """Return the folder in the cache that holds what `path` unpacks to; it is made once.

    Only files and folders inside the archive's own folder are written. A `UserError` refuses other
    members, more than MOST_BYTES or MOST_FILES, and an archive that is encrypted or damaged.
    """
    key = hashlib.sha256(file_key(path).encode()).hexdigest()[:16]
    folder = cache_folder() / "archives" / key
    make_folder(folder.parent)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            _unpack(path, folder)
    return folder


def _unpack(path: Path, folder: Path) -> None:
    # in a temporary folder, so that nothing is left half unpacked
    with (
        wrapping_user_code(f"cannot unpack '{path}'"),
        TemporaryDirectory(dir=folder.parent, prefix=".unpacking-") as temporary,
    ):
        content = Path(temporary, "content")
        if path.name.lower().endswith(".zip"):
            with zipfile.ZipFile(path) as zipped:
                _write_all(_checked_members(path, _zip_members(path, zipped)), content, path)
        else:
            with tarfile.open(path) as tar:
                _write_all(_checked_members(path, _tar_members(path, tar)), content, path)
        content.rename(folder)


def _checked_members(path: Path, listed: Iterable[Member]) -> list[Member]:
    """Return all files of an archive, refused if they are too many or too large."""
    members = list[Member]()
    total = 0
    for member in listed:
        total += member.size
        members.append(member)
        if len(members) > MOST_FILES or total > MOST_BYTES:
            raise UserError(
                f"'{path}' unpacks to more than {MOST_FILES} files or "
                f"{filesize.decimal(MOST_BYTES)}; allowed: unpack it yourself, and give the folder"
            )
    if not members:
        raise UserError(f"'{path}' holds no files; allowed: an archive of images")
    free = shutil.disk_usage(cache_folder()).free
    if total > free:
        raise UserError(
            f"'{path}' unpacks to {filesize.decimal(total)}, and '{cache_folder()}' has "
            f"{filesize.decimal(free)} left; allowed: another folder by TAET_CACHE"
        )
    return members


def _zip_members(path: Path, archive: zipfile.ZipFile) -> Iterator[Member]:
    for info in archive.infolist():
        if info.is_dir() or _is_of_system(info.filename):
            continue
        kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the archive was made on Windows
        if kind not in (0, stat.S_IFREG):
            raise _not_ordinary(path, info.filename)
        if info.flag_bits & ENCRYPTED:
            raise UserError(
                f"'{path}' is encrypted; allowed: unpack it (unzip '{path}'), and give the folder"
            )
        name = _checked_name(path, info.filename)
        yield Member(name, info.file_size, partial(archive.open, info))


def _tar_members(path: Path, archive: tarfile.TarFile) -> Iterator[Member]:
    for info in archive:
        if info.isdir() or _is_of_system(info.name):
            continue
        if not info.isreg():
            raise _not_ordinary(path, info.name)
        name = _checked_name(path, info.name)
        yield Member(name, info.size, partial(archive.extractfile, info))


def _is_of_system(name: str) -> bool:
    """Whether a member is what macOS adds to archives."""
    return PurePosixPath(name).parts[:1] == (SYSTEM_FOLDER,)


def _not_ordinary(path: Path, name: str) -> UserError:
    return UserError(
        f"'{path}' holds '{name}', a link or device; allowed in archives: files and folders"
    )


def _checked_name(path: Path, name: str) -> str:
    """Return the path of a member, refused if it could lead out of the folder."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or parts[0] == "/" or ".." in parts or ":" in parts[0]:
        raise UserError(
            f"'{path}' holds '{name}', a path outside of it; allowed: paths inside the archive"
        )
    return os.path.join(*parts)


def _write_all(members: Sequence[Member], content: Path, path: Path) -> None:
    for member in counted(members, len(members), f"unpack {path.name}"):
        target = content / member.name
        target.parent.mkdir(parents=True, exist_ok=True)
        source = member.open()
        if source is None:
            raise _not_ordinary(path, member.name)
        try:
            with source, target.open("xb") as file:
                shutil.copyfileobj(source, file, COPIED_AT_ONCE)
        except FileExistsError:
            twice = f"'{path}' holds '{member.name}' twice; allowed: each path once"
            raise UserError(twice) from None
