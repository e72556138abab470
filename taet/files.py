"""Atomic writes: a kill or a full disk never leaves a half-written file."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from taet.errors import UserError


def write_atomically(path: Path, content: bytes, check: Callable[[Path], object] | None = None) -> None:
    """Write `content` to a temporary file, flush it, `check` it, then rename: `path` is always a complete file."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if check is not None:
            check(part)
        part.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name itself
        finally:
            os.close(folder)
    except OSError as error:
        reason = "no space left on the disk" if error.errno == errno.ENOSPC else str(error.strerror)
        raise UserError(f"cannot write {path}: {reason}; what was saved before is kept") from error
    finally:
        part.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder with those above it, where they are missing."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path}: {error.strerror}") from error


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; a list of numbers takes one line."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    # A list of numbers starts on its own line; strings never contain a line break, so none is changed.
    text = re.sub(r"\[\n([-+.eE\d,\s]+)\]", lambda found: f"[{' '.join(found[1].split())}]", text)
    write_atomically(path, (text + "\n").encode())


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
