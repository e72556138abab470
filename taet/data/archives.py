"""Unpacking of archives that nobody need trust: nothing is ever written outside the folder."""

from __future__ import annotations

import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from lzma import LZMAError
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, NamedTuple

from taet.data.downloads import Progress
from taet.errors import UserError

DAMAGED = (OSError, EOFError, RuntimeError, ValueError, zipfile.BadZipFile, tarfile.TarError, zlib.error, LZMAError)
"""What the readers raise; RuntimeError where a zip is encrypted or packed in an unknown way."""


class _Member(NamedTuple):
    """A file or folder of an archive; `open` is None for a folder."""

    name: str
    plain: bool
    """Is it a regular file or a folder, and no link or device?"""
    open: Callable[[], IO[bytes]] | None


def _zip_members(archive: zipfile.ZipFile) -> list[_Member]:
    def member(info: zipfile.ZipInfo) -> _Member:
        kind = stat.S_IFMT(info.external_attr >> 16)  # the mode that Unix gave it; 0 where another system packed it
        plain = kind in (0, stat.S_IFREG, stat.S_IFDIR)
        return _Member(info.filename, plain, None if info.is_dir() else lambda: archive.open(info))

    return [member(info) for info in archive.infolist()]


def _tar_members(archive: tarfile.TarFile) -> list[_Member]:
    def member(info: tarfile.TarInfo) -> _Member:
        def content() -> IO[bytes]:
            stream = archive.extractfile(info)
            assert stream is not None  # a regular file has content
            return stream

        return _Member(info.name, info.isreg() or info.isdir(), None if info.isdir() else content)

    return [member(info) for info in archive.getmembers()]


@contextmanager
def _opened(archive: Path) -> Iterator[list[_Member]]:
    if archive.suffix.lower() == ".zip":
        with zipfile.ZipFile(archive) as packed:
            yield _zip_members(packed)
    else:
        with tarfile.open(archive) as tar:
            yield _tar_members(tar)


def _place(member: _Member) -> PurePosixPath:
    """Return where a member belongs below the folder; one that leads out, or that is no plain file, is refused."""
    path, windows = PurePosixPath(member.name.replace("\\", "/")), PureWindowsPath(member.name)
    if path.is_absolute() or windows.drive or ".." in path.parts:
        raise UserError(f"its member '{member.name}' leads out of the folder")
    if not member.plain:
        raise UserError(f"its member '{member.name}' is a link or a device; allowed: files and folders")
    return path


def _merge(source: Path, target: Path) -> None:
    """Rename what is in the folder `source` into the folder `target`; a file that is there already stays as it is."""
    for child in sorted(source.iterdir()):
        there = target / child.name
        if not there.exists():
            child.rename(there)
        elif child.is_dir() and there.is_dir():
            _merge(child, there)


def unpack(archive: Path, folder: Path, progress: Progress | None = None) -> None:
    """Unpack a .zip, .tar or compressed .tar into `folder`.

    Only regular files and folders are made, with the permissions that new files get here. A name that is absolute or
    holds "..", a link, a device or a damaged archive is a `UserError` in one line, and then nothing is unpacked: all is
    first written aside, in a hidden folder within `folder`, and renamed when it is complete. Files that are there
    already are kept.
    """
    aside = folder / f".{archive.name}.unpacking"
    try:
        with _opened(archive) as members:
            places = [_place(member) for member in members]
            shutil.rmtree(aside, ignore_errors=True)  # left by a process that was killed
            aside.mkdir(parents=True)
            for done, (member, place) in enumerate(zip(members, places, strict=True), 1):
                path = aside / place
                (path if member.open is None else path.parent).mkdir(parents=True, exist_ok=True)
                if member.open is not None:
                    with member.open() as content, path.open("wb") as file:
                        shutil.copyfileobj(content, file)
                if progress is not None:
                    progress(done, len(members), f"unpacking {archive.name}")
        _merge(aside, folder)
    except UserError as error:
        raise UserError(f"'{archive}' is not unpacked: {error}") from error
    except DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot unpack '{archive}': {reason}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
