"""Bounded reading, atomic writing, checksums and locks; every error is a UserError that names the
file."""

import codecs
import contextlib
import errno
import hashlib
import io
import json
import os
import re
import secrets
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from taet.errors import UserError, printable, shortened

Json = dict[str, Any]  # an object, as `json.loads` returns it
MOST_BYTES = 2**31  # of a file that is read at once
MOST_JSON_BYTES = 2**26  # nested lists take up to 30 times as much memory as their text
SEAL = "sha256"  # field of a sealed JSON file
LOCK = ".lock"
# in the folder of a run
RUN, METRICS, CHECKPOINT, DONE = "run.json", "metrics.jsonl", "checkpoint.pt", "done"
DIVERGED = "diverged"
_PART = re.compile(r"\.taet-[0-9a-f]{16}\.part")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """Open an ordinary file for reading."""
    try:
        path.stat()
        _check_ordinary(path)  # before it is opened: a FIFO would wait
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from None


def _check_ordinary(path: Path, *, links: bool = True) -> None:
    if not path.is_file() or (path.is_symlink() and not links):
        kind = "a folder" if path.is_dir() else "a link, device, FIFO or socket"
        raise UserError(f"{path}: got {kind}; allowed: an ordinary file")


def read_bytes(path: Path, *, most: int = MOST_BYTES) -> bytes:
    """Return the content of an ordinary file of at most `most` bytes.

    Anything else raises a `UserError`.
    """
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise UserError(f"{path}: got {size:,} bytes; allowed: at most {most:,}")
        return file.read(size)


def read_json(path: Path, *, most: int = MOST_JSON_BYTES) -> Any:
    """Return the value of a JSON file, without NaN and infinities."""
    return parse_json(read_bytes(path, most=most), str(path))


def parse_json(content: bytes, where: str) -> Any:
    """Return the value of JSON text, without NaN and infinities.

    Error messages begin with `where`.
    """
    try:
        value = json.loads(content.decode())
        # refuses halves of surrogate pairs too
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        return value
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where}: truncated or not JSON (line {error.lineno}: {error.msg})"
        ) from None
    # also bytes that are not UTF-8, and numbers of 4,300 digits
    except (RecursionError, ValueError) as error:
        raise UserError(f"{where}: not JSON that taet writes ({error})") from None


def read_toml(path: Path) -> Json:
    """Return the values of a file in TOML, or in JSON, which begins with a brace."""
    content = read_bytes(path).removeprefix(codecs.BOM_UTF8)
    if content.lstrip().startswith(b"{"):
        return dict(parse_json(content, str(path)))
    try:
        return tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:  # also not UTF-8, or nested too deeply
        raise UserError(f"{path}: neither TOML nor JSON: {shortened(str(error))}") from None


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of an ordinary file, in hexadecimal."""
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: object) -> str:
    """Return the SHA-256 of a JSON value, independent of the order of names."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def seal(values: Mapping[str, object]) -> Json:
    """Return the JSON object `values` with the SHA-256 of all its other fields as `sha256`."""
    stored = json.loads(json.dumps({name: value for name, value in values.items() if name != SEAL}))
    return {**stored, SEAL: digest(stored)}


def check_seal(path: Path, values: object) -> None:
    """Refuse `values`, read from `path`, if their seal is missing or differs."""
    if not isinstance(values, Mapping) or SEAL not in values:
        raise UserError(f"{path} was changed, or not written by taet: it has no SHA-256 of its own")
    if values[SEAL] != digest({name: value for name, value in values.items() if name != SEAL}):
        raise UserError(
            f"{path} was changed or damaged: its SHA-256 differs from the one stored in it"
        )


def check_output(path: Path, *owned: str) -> None:
    """Refuse an output inside a run folder, even with --force, unless it is at or below one of the
    names `owned`."""
    place = path.absolute().parent.resolve() / path.name
    for folder in (place, *place.parents):
        if (folder / RUN).is_file() and any(
            (folder / name).exists() for name in (METRICS, CHECKPOINT, DONE)
        ):
            if place.relative_to(folder).parts[:1] not in [(name,) for name in owned]:
                raise UserError(
                    f"{path}: got a place in the run folder {folder}; allowed: a place outside of "
                    "runs"
                )
            return


def write_atomically(
    path: Path, content: bytes, check: Callable[[Path], object] | None = None
) -> None:
    """Replace `path` by a file with this content, which passes `check` and is on the disk before it
    gets its name."""
    with replacing(path) as file:
        file.write(content)
        if check is not None:
            file.flush()
            check(Path(file.name))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a new file that replaces the ordinary file `path` at the end.

    After a failure, `path` is the old file or the complete new one.
    """
    part = path.with_name(f".taet-{secrets.token_hex(8)}.part")
    try:
        if os.path.lexists(path):
            _check_ordinary(path, links=False)
        with contextlib.ExitStack() as removed, part.open("x+b") as file:
            removed.callback(part.unlink, missing_ok=True)
            yield file
            file.flush()
            os.fsync(file.fileno())
            part.replace(path)
        _flush_folder(path.parent)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {reason(error)}; what was saved before is kept"
        ) from error


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, atomically; a list of numbers takes one line."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    # A list of numbers starts on its own line; strings never contain a line break, so none is
    # changed.
    text = re.sub(r"\[\n([-+.eE\d,\s]+)\]", lambda found: f"[{' '.join(found[1].split())}]", text)
    write_atomically(path, (text + "\n").encode())


def reason(error: Exception) -> str:
    """Return the reason of an error in reading or writing, in one short line."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "no space left on the disk"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return printable(shortened(" ".join(str(error).split()))) or type(error).__name__


def _flush_folder(path: Path) -> None:
    # not every file system can, and not every folder may be listed
    with contextlib.suppress(OSError):
        folder = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def make_folder(path: Path) -> None:
    """Make a folder and its missing parents."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        _flush_folder(path.parent)
    except OSError as error:
        raise UserError(f"cannot make the folder {path}: {reason(error)}") from error


def is_leftover(name: str) -> bool:
    """Return whether a file of that name is a lock or a temporary file."""
    return name == LOCK or _PART.fullmatch(name) is not None


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of killed processes in a folder, if it can be listed."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if _PART.fullmatch(path.name):
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Lock a folder within this context; a folder that another process has locked is a UserError.

    The owner first removes leftovers of killed processes. A kill releases the lock; readers need
    none.
    """
    from filelock import FileLock, Timeout  # imported here: commands that lock nothing start sooner

    held = FileLock(folder / LOCK, timeout=0)
    try:
        held.acquire()
    except Timeout:
        raise UserError(
            f"{folder} is in use by another process; nothing was changed; wait for it, or end it"
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):  # a file system without locks
            raise UserError(f"cannot lock {folder}: {LOCK}: {reason(error)}") from None
    try:
        remove_leftovers(folder)
        yield
    finally:
        held.release()
