"""A file is old or new, never half: whatever fails on the way."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from taet.errors import UserError
from taet.files import (
    LOCK,
    MOST_JSON_BYTES,
    check_seal,
    file_sha256,
    is_leftover,
    lock,
    make_folder,
    parse_json,
    read_bytes,
    read_json,
    remove_leftovers,
    replacing,
    seal,
    write_atomically,
    write_json,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(b"old")
    return path


def only_the_old_file_is_left(path: Path) -> None:
    assert path.read_bytes() == b"old"
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_replaces_a_file_and_leaves_nothing_beside_it(path: Path) -> None:
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_makes_a_new_file(tmp_path: Path) -> None:
    write_atomically(tmp_path / "new", b"content")
    assert (tmp_path / "new").read_bytes() == b"content"


def test_the_file_aside_is_new_has_a_random_name_and_follows_no_link(path: Path) -> None:
    asides = set[str]()
    for _ in range(3):
        write_atomically(path, b"new", check=lambda part: asides.add(part.name))
    assert len(asides) == 3
    assert all(is_leftover(name) for name in asides)
    mode = os.umask(0o027)
    try:
        write_atomically(path.with_name("other"), b"new")
    finally:
        os.umask(mode)
    assert path.with_name("other").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("kind", ["link", "dangling", "fifo", "folder", "socket"])
def test_what_is_no_ordinary_file_is_never_renamed_over(tmp_path: Path, kind: str) -> None:
    path, victim = special(tmp_path, kind)
    with pytest.raises(UserError, match=r"got a \w+; allowed: an ordinary file"):
        write_atomically(path, b"new")
    assert not victim.exists() or victim.read_bytes() == b"victim"
    assert not any(is_leftover(file.name) for file in tmp_path.iterdir())


def test_an_output_that_the_user_named_may_be_a_device_or_a_fifo(tmp_path: Path) -> None:
    before = Path("/dev/null").lstat()
    write_atomically(Path("/dev/null"), b"new", devices=True)
    assert os.path.samestat(before, Path("/dev/null").lstat())
    path, _ = special(tmp_path, "fifo")
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(path, b"new", devices=True)
    assert os.read(reader, 10) == b"new"
    os.close(reader)
    with pytest.raises(UserError, match="no process reads this FIFO"):
        write_atomically(path, b"new", devices=True)
    link, victim = special(tmp_path, "link")
    with pytest.raises(UserError, match="got a link"):
        write_atomically(link, b"new", devices=True)
    assert victim.read_bytes() == b"victim"


def special(folder: Path, kind: str) -> tuple[Path, Path]:
    """A path that is no ordinary file, and the file that a careless writer or reader would reach."""
    path, victim = folder / kind, folder / "victim"
    victim.write_bytes(b"victim")
    if kind == "link":
        path.symlink_to(victim)
    elif kind == "dangling":
        victim.unlink()
        path.symlink_to(victim)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
    return path, victim


def test_the_content_is_on_the_disk_before_the_name_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append("fsync"), fsync(fd)))
    monkeypatch.setattr(Path, "replace", lambda self, target: (events.append("rename"), replace(self, target)))
    write_atomically(path, b"new", check=lambda _: events.append("check"))
    assert events == ["fsync", "check", "fsync", "rename", "fsync"]


def test_a_full_disk_keeps_the_old_file_and_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="no space left on the disk; what was saved before is kept"):
        write_atomically(path, b"new")
    only_the_old_file_is_left(path)


def test_a_failing_write_keeps_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(UserError, match=r"cannot write .*checkpoint\.pt: Input/output error"):
        write_atomically(path, b"new")
    only_the_old_file_is_left(path)


def test_a_missing_folder_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write .*: No such file or directory"):
        write_atomically(tmp_path / "missing" / "file", b"new")


def test_the_check_sees_the_new_content_while_the_old_file_is_there(path: Path) -> None:
    seen = []
    write_atomically(path, b"new", check=lambda part: seen.append((part.read_bytes(), path.read_bytes())))
    assert seen == [(b"new", b"old")]


@pytest.mark.parametrize("error", [UserError("not readable"), RuntimeError("truncated"), KeyboardInterrupt()], ids=repr)
def test_a_failing_check_keeps_the_old_file(path: Path, error: BaseException) -> None:
    def refuse(_: Path) -> None:
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, b"new", check=refuse)
    only_the_old_file_is_left(path)


def test_json_is_indented_with_a_line_per_list_of_numbers(tmp_path: Path) -> None:
    value = {
        "counts": [14, 12, 10],
        "rate": [0.1, -1e-05],
        "names": ["a", "ü"],
        "rows": [{"x": [1]}],
        "empty": [],
        "no": None,
    }
    write_json(tmp_path / "x.json", value)
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert ' "counts": [14, 12, 10],\n' in text
    assert "ü" in text
    assert text.endswith("}\n")


@pytest.mark.parametrize(
    "value", ["[1,\n 2]", "a [ 3 ] b", "[1,  2]"], ids=["list-in-words", "number-in-words", "two-spaces"]
)
def test_json_leaves_strings_alone(tmp_path: Path, value: str) -> None:
    write_json(tmp_path / "x.json", {"note": value})
    assert json.loads((tmp_path / "x.json").read_text()) == {"note": value}


def test_json_refuses_what_json_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["fifo", "folder", "socket"])
@pytest.mark.parametrize("read", [read_bytes, read_json, file_sha256])
def test_only_ordinary_files_are_read_and_nothing_is_waited_for(
    tmp_path: Path, read: Callable[[Path], object], kind: str
) -> None:
    path, _ = special(tmp_path, kind)
    with pytest.raises(UserError, match=r"got a \w+; allowed: an ordinary file|No such device"):
        read(path)


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "/dev/tty"])
def test_a_device_is_not_read(path: str) -> None:
    with pytest.raises(UserError, match=r"got a device|cannot read /dev/tty"):
        read_bytes(Path(path))


def test_links_are_followed_unless_the_folder_is_not_to_be_trusted(tmp_path: Path) -> None:
    path, _ = special(tmp_path, "link")
    assert read_bytes(path) == b"victim"
    with pytest.raises(UserError, match="link: got a link; allowed: an ordinary file"):
        read_bytes(path, links=False)


def test_the_size_is_limited_before_anything_is_read(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(b"12345")
    assert read_bytes(path, most=5) == b"12345"
    with pytest.raises(UserError, match="large: got 5 bytes; allowed: at most 4"):
        read_bytes(path, most=4)
    os.truncate(path, MOST_JSON_BYTES + 1)
    with pytest.raises(UserError, match="got 67,108,865 bytes"):
        read_json(path)


@pytest.mark.parametrize("name", ["missing", "missing/file", "x" * 300, "a\0b", "file/below"])
def test_a_file_that_cannot_be_opened_is_a_mistake_of_the_user(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="cannot read "):
        read_bytes(tmp_path / name)
    with pytest.raises(UserError, match="cannot write "):
        write_atomically(tmp_path / "file" / name, b"")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "truncated or not JSON"),
        (b'{"a": 1', "truncated or not JSON"),
        (b"\xff", "'utf-8' codec can't decode byte 0xff"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"[NaN]", "NaN is not a number"),
        (b"[-Infinity]", "Infinity is not a number"),
        (b"[1e999]", "1e999 is beyond"),
        (b"[18446744073709551616]", "beyond every integer"),
        (b"[-9223372036854775809]", "beyond every integer"),
        (b"[" + b"9" * 5000 + b"]", r"999999999999\.\.\. \(5,000 characters\) is beyond"),
        (rb'["\ud800"]', "surrogates not allowed"),
        (rb'{"\uDFFF": 1}', "surrogates not allowed"),
        (b'{"a": 1, "a": 2}', "the name 'a' is there twice"),
    ],
)
def test_json_that_could_not_be_stored_again_is_refused(content: bytes, reason: str) -> None:
    with pytest.raises(UserError, match=f"x.json: .*{reason}"):
        parse_json(content, "x.json")


def test_json_keeps_every_number_and_text() -> None:
    value = {"a": [0.1, -0.0, 1e-308, 2**64 - 1, -(2**63), True, None, "\U0001f600"]}
    assert repr(parse_json(json.dumps(value).encode(), "")) == repr(value)


def test_a_seal_notices_any_change_of_the_content(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    values = {"b": (1, 0.1, {"1": None, "ü": "x"}), "a": {10: 1, 9: 2}}
    write_json(path, seal(values))
    stored = read_json(path)
    assert check_seal(path, stored)
    assert check_seal(path, dict(reversed(stored.items())))
    assert seal(stored) == stored
    assert not check_seal(path, {name: value for name, value in stored.items() if name != "sha256"})
    for changed in (stored | {"c": 1}, stored | {"b": [1]}, stored | {"sha256": 5}, {"sha256": stored["sha256"]}):
        with pytest.raises(UserError, match=r"x\.json was changed or damaged"):
            check_seal(path, changed)


def test_new_folders_are_made_with_those_above_them(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_bytes(b"")
    for name in ("file", "file/below", "x" * 300, "a\0b"):
        with pytest.raises(UserError, match="cannot make the folder"):
            make_folder(tmp_path / name)


HOLD = """
import sys, time
from pathlib import Path
from taet.files import lock, replacing
with lock(Path(sys.argv[1])), replacing(Path(sys.argv[1]) / "x") as file:
    file.write(b"half")
    file.flush()
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that owns the folder and is writing x in it."""
    arguments = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_one_process_owns_a_folder_until_it_is_killed(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(UserError, match=rf"is in use by process {holder.pid} \(taet .*, since 2.*nothing was changed"):
        lock(tmp_path).__enter__()
    remove_leftovers(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2  # its lock, and what it is writing
    holder.kill()
    holder.wait()
    with lock(tmp_path):
        assert [file.name for file in tmp_path.iterdir()] == [".lock"]
    assert not list(tmp_path.iterdir())


def no_locks(*_: object) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def test_without_locks_a_file_stands_for_one_until_its_process_is_gone(
    tmp_path: Path, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(UserError, match=rf"is in use by process {holder.pid} .*; if that is gone, remove .*\.lock"):
        lock(tmp_path).__enter__()
    holder.kill()
    holder.wait()
    with lock(tmp_path), pytest.raises(UserError, match=f"is in use by process {os.getpid()} "):
        lock(tmp_path).__enter__()
    assert not (tmp_path / ".lock").exists()


def test_a_lock_file_of_another_host_or_without_an_owner_is_left_alone_where_there_are_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", no_locks)
    for content in (b"", b"[]", b'{"host": "elsewhere", "pid": 1}'):
        (tmp_path / ".lock").write_bytes(content)
        with pytest.raises(UserError, match=r"if that is gone, remove"):
            lock(tmp_path).__enter__()


def test_a_lock_belongs_to_its_block_alone_even_in_one_process(tmp_path: Path) -> None:
    with lock(tmp_path):
        with pytest.raises(UserError, match="is in use by process"):
            lock(tmp_path).__enter__()
        child = os.fork()
        if child == 0:  # pragma: no cover - the child keeps no copy of the lock, however long it lives
            time.sleep(5)
            os._exit(0)
    with lock(tmp_path):
        pass
    os.kill(child, 9)
    os.waitpid(child, 0)


def test_a_lock_file_that_another_system_holds_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a file server answers where another machine has a lease on the file."""
    opens = os.open

    def held(path: str | Path, *rest: int) -> int:
        if Path(path).name == LOCK:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return opens(path, *rest)

    monkeypatch.setattr(os, "open", held)
    with pytest.raises(UserError, match=r"cannot lock .*: \.lock: Resource temporarily unavailable"):
        lock(tmp_path).__enter__()


def test_a_folder_that_is_removed_meanwhile_or_missing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(UserError, match=r"cannot lock .*run: .*No such file"):
        lock(folder).__enter__()
    folder.mkdir()
    with lock(folder):
        shutil.rmtree(folder)
    assert not folder.exists()


def test_a_lock_is_no_way_to_reach_another_file(tmp_path: Path) -> None:
    for kind in ("link", "fifo"):
        path, victim = special(tmp_path, kind)
        path.rename(tmp_path / ".lock")
        with pytest.raises(UserError, match=r"cannot lock|got a FIFO"):
            lock(tmp_path).__enter__()
        assert victim.read_bytes() == b"victim"
        (tmp_path / ".lock").unlink()


def test_a_large_file_can_be_written_piece_by_piece(path: Path) -> None:
    with replacing(path) as file:
        file.write(b"new")
        file.seek(0)
        file.write(b"N")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"New"
