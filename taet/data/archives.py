"""Safe unpacking of archives: nothing is ever written outside the folder, and nothing is left half unpacked.

shutil.unpack_archive and pooch write members one by one into the folder itself, and accept links.
"""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, NamedTuple

from taet.data.aside import aside
from taet.data.foreign_files import check_unpacked, reason
from taet.errors import UserError
from taet.files import LOCK, opened
from taet.progress import Progress

PLAIN = (0, stat.S_IFREG, stat.S_IFDIR)
"""Accepted kinds of .zip members, by their Unix mode; 0: packed on another system."""


class _Member(NamedTuple):
    """A file or folder of an archive; `open` is None for a folder."""

    name: str
    plain: bool
    """Whether it is a regular file or a folder, not a link or a device."""
    open: Callable[[], IO[bytes] | None] | None


@contextmanager
def _members(archive: Path) -> Iterator[list[_Member]]:
    with opened(archive) as file, ExitStack() as stack:
        try:
            members, size, packed = [], 0, os.fstat(file.fileno()).st_size
            for member, one in _listed(archive, file, stack):
                size += one
                check_unpacked(size, packed)
                members.append(member)
            yield members
        except UserError as error:
            raise UserError(f"'{archive}' is not unpacked: {error}") from error
        except Exception as error:  # readers of damaged archives raise errors of many kinds
            raise UserError(f"cannot unpack '{archive}': {reason(error)}") from error


def _listed(archive: Path, file: IO[bytes], stack: ExitStack) -> Iterator[tuple[_Member, int]]:
    """Yield each member with the size that the archive declares; no more than that is unpacked."""
    if archive.suffix.lower() == ".zip":
        zipped = stack.enter_context(zipfile.ZipFile(file))
        for info in zipped.infolist():
            plain = stat.S_IFMT(info.external_attr >> 16) in PLAIN
            yield _Member(info.filename, plain, None if info.is_dir() else partial(zipped.open, info)), info.file_size
    else:
        tar = stack.enter_context(tarfile.open(fileobj=file))  # noqa: SIM115 - the stack closes it
        for entry in tar:
            content = None if entry.isdir() else partial(tar.extractfile, entry)
            yield _Member(entry.name, entry.isreg() or entry.isdir(), content), entry.size


def _place(member: _Member) -> PurePosixPath:
    """Return the path of a member below the folder; refuse a link, a device, and a path that leaves the folder."""
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
        if child.name == LOCK:
            continue
        if not there.exists():
            child.rename(there)
        elif child.is_dir() and there.is_dir():
            _merge(child, there)


def unpack(archive: Path, folder: Path, progress: Progress | None = None) -> None:
    """Unpack a .zip, .tar or compressed .tar into `folder`.

    Only regular files and folders are made, with the permissions of new files. A name that is absolute or contains
    "..", a link, a device or a damaged archive raises a `UserError`, and nothing is unpacked: files are first written
    into a hidden folder within `folder`, and moved when all are written. Existing files are kept.
    """
    made = folder / f".{archive.name}.unpacking"
    with _members(archive) as members:
        places = [_place(member) for member in members]
        with aside(made):
            for done, (member, place) in enumerate(zip(members, places, strict=True), 1):
                path = made / place
                (path if member.open is None else path.parent).mkdir(parents=True, exist_ok=True)
                if member.open is not None:
                    content = member.open()
                    assert content is not None  # a regular file has content
                    with content, path.open("wb") as file:
                        shutil.copyfileobj(content, file)
                if progress is not None:
                    progress(done, len(members), f"unpacking {archive.name}")
            _merge(made, folder)
