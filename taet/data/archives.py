"""Safe unpacking of archives: nothing is ever written outside the folder, and nothing is left half unpacked.

shutil.unpack_archive and pooch write members one by one into the folder itself, and accept links.
"""

from __future__ import annotations

import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from lzma import LZMAError
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, NamedTuple

from taet.data.downloads import Progress
from taet.errors import UserError

DAMAGED = (OSError, EOFError, RuntimeError, ValueError, zipfile.BadZipFile, tarfile.TarError, zlib.error, LZMAError)
"""What the readers raise; RuntimeError for a zip that is encrypted or compressed in an unknown way."""


PLAIN = (0, stat.S_IFREG, stat.S_IFDIR)
"""Kinds of members of a .zip by their mode on Unix, which is 0 if another system packed it."""


class _Member(NamedTuple):
    """A file or folder of an archive; `open` is None for a folder."""

    name: str
    plain: bool
    """Whether it is a regular file or a folder, and no link or device."""
    open: Callable[[], IO[bytes] | None] | None


@contextmanager
def _opened(archive: Path) -> Iterator[list[_Member]]:
    if archive.suffix.lower() == ".zip":
        with zipfile.ZipFile(archive) as packed:
            yield [
                _Member(
                    info.filename,
                    stat.S_IFMT(info.external_attr >> 16) in PLAIN,
                    None if info.is_dir() else partial(packed.open, info),
                )
                for info in packed.infolist()
            ]
    else:
        with tarfile.open(archive) as tar:
            yield [
                _Member(
                    info.name, info.isreg() or info.isdir(), None if info.isdir() else partial(tar.extractfile, info)
                )
                for info in tar.getmembers()
            ]


def _place(member: _Member) -> PurePosixPath:
    """Return the path of a member below the folder; a path out of it, a link and a device are refused."""
    path, windows = PurePosixPath(member.name.replace("\\", "/")), PureWindowsPath(member.name)
    if path.is_absolute() or windows.drive or ".." in path.parts:
        raise UserError(f"its member '{member.name}' leads out of the folder")
    if not member.plain:
        raise UserError(f"its member '{member.name}' is a link or a device; allowed: files and folders")
    return path


def _merge(source: Path, target: Path) -> None:
    """Move the content of the folder `source` into the folder `target`; files that exist there are kept."""
    for child in sorted(source.iterdir()):
        there = target / child.name
        if not there.exists():
            child.rename(there)
        elif child.is_dir() and there.is_dir():
            _merge(child, there)


def unpack(archive: Path, folder: Path, progress: Progress | None = None) -> None:
    """Unpack a .zip, .tar or compressed .tar into `folder`.

    Only regular files and folders are made, with the permissions of new files. A name that is absolute or contains
    "..", a link, a device or a damaged archive is a `UserError` in one line, and nothing is unpacked then: files are
    first written into a hidden folder within `folder`, and moved when all are written. Existing files are kept.
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
                    content = member.open()
                    assert content is not None  # a regular file has content
                    with content, path.open("wb") as file:
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
