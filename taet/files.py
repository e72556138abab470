"""Atomic, checksummed reading and writing of every file that affects or holds a number.

Reading: ordinary files only, of bounded size; each fault raises a UserError that names the file. Writing: a file is
old or new, never partial. A seal is a checksum inside a JSON file; a lock lets one process work in a folder.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import secrets
import shlex
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from taet.errors import UserError, cut

MOST_BYTES = 2**31
"""Default size limit of a file that is read at once."""
MOST_JSON_BYTES = 2**26
"""Limit of a JSON file: nested lists take up to 30 times as much memory as their text."""
SEAL = "sha256"
"""Field of a sealed JSON file."""
LOCK = ".lock"
_PART = re.compile(r"\.taet-[0-9a-f]{16}\.part")
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFLNK: "a link",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


# Reading


@contextlib.contextmanager
def opened(path: Path, *, links: bool = True) -> Iterator[io.BufferedReader]:
    """Open an ordinary file for reading; a FIFO, a device or a folder raises a UserError without blocking.

    So does an error while the file is read. With `links=False`, as in a run folder, links are refused too.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | (0 if links else os.O_NOFOLLOW)
    try:
        with contextlib.ExitStack() as closed:
            descriptor = os.open(path, flags)
            closed.callback(os.close, descriptor)
            check_kind(path, os.fstat(descriptor))
            yield closed.enter_context(open(descriptor, "rb", closefd=False))
    except OSError as error:
        if error.errno == errno.ELOOP and os.path.islink(path):
            raise _wrong_kind(path, stat.S_IFLNK) from None
        raise UserError(f"cannot read {path}: {_reason(error)}") from None
    except ValueError:
        if "\0" not in str(path):
            raise
        raise UserError(f"cannot read {path!s}: a file name cannot hold a zero byte") from None


def read_bytes(path: Path, *, most: int = MOST_BYTES, links: bool = True) -> bytes:
    """Return the content of an ordinary file of at most `most` bytes; anything else raises a UserError."""
    with opened(path, links=links) as file:
        size = os.fstat(file.fileno()).st_size
        content = b"" if size > most else file.read(size + 1)  # read(most) would allocate that much memory
        if len(content) > size:  # the file grew while it was read
            content += file.read(most)
    if max(size, len(content)) > most:
        raise UserError(f"{path}: got {max(size, len(content)):,} bytes; allowed: at most {most:,}")
    return content


def read_json(path: Path, *, most: int = MOST_JSON_BYTES, links: bool = True) -> Any:
    """Return the value of a JSON file; `parse_json` lists what is refused."""
    return parse_json(read_bytes(path, most=most, links=links), str(path))


def parse_json(content: bytes, where: str) -> Any:
    """Return the value of JSON text; error messages begin with `where`.

    A UserError is raised for other text, NaN and infinities, integers beyond 64 bits, lone surrogates, duplicate names
    in an object, and too deeply nested lists. Accepted values can be printed, compared and stored again.
    """
    try:
        text = content.decode()
        value = json.loads(
            text, parse_constant=_no_number, parse_float=_finite, parse_int=_integer, object_pairs_hook=_unique
        )
        if "\\u" in text:  # an escape may stand for half a character
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: truncated or not JSON (line {error.lineno}: {error.msg})") from None
    except RecursionError:
        raise UserError(f"{where}: not JSON that taet writes (lists are nested too deeply)") from None
    except ValueError as error:  # also for bytes that are not UTF-8, and for half a character
        raise UserError(f"{where}: not JSON that taet writes ({error})") from None
    return value


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _finite(text: str) -> float:
    value = float(text)
    if abs(value) == float("inf"):
        raise ValueError(f"{cut(text, 24)} is beyond every number of 64 bits")
    return value


def _integer(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= (value := int(text)) < 2**64:
        raise ValueError(f"{cut(text, 24)} is beyond every integer of 64 bits")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name '{next(name for name in names if names.count(name) > 1)}' is there twice")
    return values


def check_kind(path: Path, found: os.stat_result) -> None:
    """Refuse anything but an ordinary file, judged by its `stat`."""
    if not stat.S_ISREG(found.st_mode):
        raise _wrong_kind(path, stat.S_IFMT(found.st_mode))


def _wrong_kind(path: Path, kind: int) -> UserError:
    return UserError(f"{path}: got {_KINDS.get(kind, 'no file')}; allowed: an ordinary file")


def file_sha256(path: Path, *, links: bool = True) -> str:
    """SHA-256 of an ordinary file, in hexadecimal."""
    with opened(path, links=links) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Sealed JSON


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, independent of the order of names."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def seal(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON object `values` with the SHA-256 of all its other fields as `sha256`."""
    stored = json.loads(json.dumps({name: value for name, value in values.items() if name != SEAL}))
    return {**stored, SEAL: digest(stored)}


def check_seal(path: Path, values: Mapping[str, Any]) -> bool:
    """Return whether `values`, read from `path`, are sealed; a wrong seal raises a UserError.

    Files of older versions have no seal.
    """
    if SEAL not in values:
        return False
    if values[SEAL] != digest({name: value for name, value in values.items() if name != SEAL}):
        raise UserError(f"{path} was changed or damaged: its SHA-256 differs from the one stored in it")
    return True


# Writing


RUN, MARKS = "run.json", ("done", "checkpoint.pt", "metrics.jsonl")


def check_output(path: Path, *owned: str) -> None:
    """Refuse an output in a run folder, also with --force, except below the names in it that the command owns."""
    place = path.absolute().parent.resolve() / path.name
    for folder in (place, *place.parents):
        if (folder / RUN).is_file() and any((folder / mark).exists() for mark in MARKS):
            if not {*place.relative_to(folder).parts[:1]} & {*owned}:
                raise UserError(f"{path}: got a place in the run folder {folder}; allowed: a place outside of runs")
            return


def write_atomically(
    path: Path, content: bytes, check: Callable[[Path], object] | None = None, *, devices: bool = False
) -> None:
    """Write `content` to a temporary file, flush it, `check` it, then rename it: `path` is old or new, whatever fails.

    A folder or a link at `path` is refused. A device or a FIFO is refused too unless `devices` is set, for an output
    that the user named.
    """
    if devices and _written_into(path, content):
        return
    with replacing(path) as file:
        file.write(content)
        if check is not None:
            file.flush()
            os.fsync(file.fileno())
            check(Path(file.name))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a new file, for writing and reading, that replaces `path` at the end; after an exception it is removed.

    Its name is random and it must not exist, so that no prepared file is written to. It is locked while it is written,
    so that `remove_leftovers` recognises a file of a killed process.
    """
    _check_target(path)
    part = path.with_name(f".taet-{secrets.token_hex(8)}.part")
    replaced = False
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(part, "w+b", opener=lambda name, _: os.open(name, flags, 0o666)) as file:
            with contextlib.suppress(OSError):  # a file system without locks
                flock(file)
            yield file
            file.flush()
            os.fsync(file.fileno())
            part.replace(path)
            replaced = True
        _flush_folder(path.parent)
    except OSError as error:
        kept = "its new content may not outlast a power failure" if replaced else "what was saved before is kept"
        raise _unwritten(path, error, kept) from error
    finally:
        if not replaced:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)


@contextlib.contextmanager
def changed(path: Path) -> Iterator[io.BufferedRandom]:
    """Open an ordinary file for reading and changing in place, created if missing, and flush it at the end."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        new = not path.exists()
        with contextlib.ExitStack() as closed:
            descriptor = os.open(path, flags, 0o666)
            closed.callback(os.close, descriptor)
            check_kind(path, os.fstat(descriptor))
            file = closed.enter_context(open(descriptor, "r+b", closefd=False))
            yield file
            file.flush()
            os.fsync(descriptor)
        if new:
            _flush_folder(path.parent)
    except OSError as error:
        raise _unwritten(path, error, "what is missing in it is made up for when the work goes on") from error


def _unwritten(path: Path, error: Exception, kept: str = "") -> UserError:
    return UserError("; ".join(filter(None, (f"cannot write {path}: {_reason(error)}", kept))))


def _reason(error: Exception) -> str:
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return "no space left on the disk" if full else getattr(error, "strerror", None) or str(error)


def _check_target(path: Path) -> None:
    try:
        check_kind(path, path.lstat())
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:
        raise _unwritten(path, error) from error


def _written_into(path: Path, content: bytes) -> bool:
    """Write into a device, or into a FIFO that a process reads; return False for anything else."""
    try:
        kind = path.stat().st_mode  # follows links, such as /dev/stdout
        if not (stat.S_ISCHR(kind) or stat.S_ISFIFO(kind)):
            return False
        flags = os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC | os.O_NONBLOCK  # without a reader, open would block for ever
        with open(path, "wb", opener=lambda name, _: os.open(name, flags)) as file:
            os.set_blocking(file.fileno(), True)
            file.write(content)
        return True
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENXIO, errno.EPIPE):
            raise UserError(f"cannot write {path}: no process reads this FIFO") from None
        raise _unwritten(path, error) from error


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; a list of numbers takes one line."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    # A list of numbers starts on its own line; strings never contain a line break, so none is changed.
    text = re.sub(r"\[\n([-+.eE\d,\s]+)\]", lambda found: f"[{' '.join(found[1].split())}]", text)
    write_atomically(path, (text + "\n").encode())


def _flush_folder(path: Path) -> None:
    """Flush the names in a folder, if the file system supports it."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(folder)


def flock(file: int | IO[Any], *, wait: bool = False) -> None:
    """Lock an open file for this process, or raise OSError; `wait`: until no other process holds it."""
    import fcntl  # here, so that the package can be imported without it

    fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def cache() -> Path:
    """Return the folder for files that can be recreated: TAET_CACHE, or ~/.cache/taet."""
    return Path(os.path.expanduser(os.environ.get("TAET_CACHE") or "~/.cache/taet"))


def make_folder(path: Path) -> None:
    """Make a folder and its missing parents, and flush their names."""
    try:
        missing = [one for one in (path, *path.parents) if not one.exists()]
        path.mkdir(parents=True, exist_ok=True)
        for one in missing:
            _flush_folder(one.parent)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot make the folder {path}: {_reason(error)}") from error


def remove_leftovers(folder: Path) -> None:
    """Remove the files that a killed `replacing` left in a folder; those being written are kept."""
    with contextlib.suppress(OSError):
        for path in [folder / entry.name for entry in os.scandir(folder) if is_leftover(entry.name)]:
            with contextlib.suppress(OSError), open(os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)) as file:
                flock(file)
                path.unlink()


def is_leftover(name: str) -> bool:
    """Whether a file of that name belongs to `taet.files`: a lock or a temporary file."""
    return name == LOCK or _PART.fullmatch(name) is not None


# One process at a time


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Lock an existing folder within this context; if another process holds the lock, a UserError names it.

    The owner first removes leftovers of killed processes. A kill releases the lock. On file systems without locks, a
    file with the process number replaces the lock; it is void once that process is gone. Readers need no lock.
    """
    path = folder / LOCK
    descriptor: int | None = None
    while descriptor is None:  # an owner that ended in between has removed the file
        descriptor = _acquire(path)
    try:
        _held.add(descriptor)
        remove_leftovers(folder)
        yield
    finally:
        _held.discard(descriptor)
        try:
            with contextlib.suppress(OSError):  # the folder may be gone
                if os.path.samestat(os.fstat(descriptor), path.lstat()):
                    path.unlink()  # while it is locked, so that a process that opened it notices the removal
        finally:
            os.close(descriptor)


_held: set[int] = set()


def _not_for_children() -> None:
    """Close the copies of a forked child, which would keep a lock after its owner was killed."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_not_for_children)


def _acquire(path: Path) -> int | None:
    """Return a descriptor of the lock file, locked; None if its last owner removed it meanwhile."""
    created, descriptor = True, None
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with contextlib.ExitStack() as failed:
        try:
            try:
                descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
            except FileExistsError:
                created, descriptor = False, os.open(path, flags)
            failed.callback(os.close, descriptor)
            check_kind(path, os.fstat(descriptor))
            if not locked(descriptor) and not created:  # no locks here: the file itself is the lock
                _check_void(path, descriptor)
                path.unlink()
                return None
            if not os.path.samestat(os.fstat(descriptor), path.lstat()):
                return None
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(_myself()).encode(), 0)
        except OSError as error:
            if isinstance(error, BlockingIOError) and descriptor is not None:
                raise _owned(path, descriptor) from None
            if isinstance(error, FileNotFoundError) and path.parent.is_dir():  # the file alone is gone
                return None
            raise UserError(f"cannot lock {path.parent}: {path.name}: {error.strerror or error}") from None
        failed.pop_all()
    return descriptor


def locked(file: int | IO[Any]) -> bool:
    """Lock an open file; False if the file system has no locks. BlockingIOError if another process holds it."""
    try:
        flock(file)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise
        return False
    return True


def _myself() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "born": _born(os.getpid()),
        "host": socket.gethostname(),
        "command": shlex.join(["taet", *sys.argv[1:]]),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _owner(descriptor: int) -> dict[str, Any]:
    """The content of a lock file; empty if its owner has not written it yet."""
    with contextlib.suppress(UserError):
        owner = parse_json(os.pread(descriptor, 2**16, 0), "")
        return owner if isinstance(owner, dict) else {}
    return {}


def _check_void(path: Path, descriptor: int) -> None:
    """Refuse a lock file whose process may still run, e.g. on another host."""
    owner = _owner(descriptor)
    if owner.get("host") != socket.gethostname() or _born(owner.get("pid")) == owner.get("born"):
        raise _owned(path, descriptor, f"; if that is gone, remove {path}")


def _born(pid: object) -> str:
    """Start time of a process of this machine, which distinguishes reused process numbers; '' if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        pass
    try:
        os.kill(int(str(pid)), 0)
    except PermissionError:
        return "?"
    except (OSError, ValueError, OverflowError):
        return ""
    return "?"


def _owned(path: Path, descriptor: int, otherwise: str = "") -> UserError:
    owner, who = _owner(descriptor), "another process"
    if owner:
        where = "" if owner.get("host") == socket.gethostname() else f" on {owner.get('host')}"
        who = f"process {owner.get('pid')}{where} ({owner.get('command')}, since {owner.get('since')})"
    return UserError(f"{path.parent} is in use by {who}; nothing was changed; wait for it, or end it{otherwise}")
