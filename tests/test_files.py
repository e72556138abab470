"""A file is old or new, never half, whatever fails on the way; one process owns a folder."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from taet.errors import UserError
from taet.files import (
    check_output,
    check_seal,
    is_leftover,
    lock,
    parse_json,
    read_bytes,
    read_json,
    seal,
    write_atomically,
    write_json,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(b"old")
    return path


def test_the_content_is_on_the_disk_before_it_has_its_name(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append("fsync"), fsync(fd)))
    monkeypatch.setattr(
        Path, "replace", lambda self, target: (events.append("rename"), replace(self, target))
    )

    def check(part: Path) -> None:
        events.append("check")
        assert (part.read_bytes(), path.read_bytes()) == (b"new", b"old")
        assert is_leftover(part.name)

    write_atomically(path, b"new", check=check)
    assert events == ["check", "fsync", "rename", "fsync"]
    assert path.read_bytes() == b"new"
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_what_is_no_ordinary_file_is_never_written_to(path: Path) -> None:
    link, folder = path.with_name("link"), path.with_name("folder")
    link.symlink_to(path)
    folder.mkdir()
    for place in (link, folder):
        with pytest.raises(UserError, match=r"got a .*; allowed: an ordinary file"):
            write_atomically(place, b"new")
    assert link.is_symlink()
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(errno.ENOSPC, ""),
            r"cannot write .*checkpoint\.pt: no space left on the disk; what was saved before",
        ),
        (UserError("not readable"), "not readable"),
        (KeyboardInterrupt(), "^$"),
    ],
    ids=repr,
)
def test_a_failing_write_or_check_keeps_the_old_file(
    path: Path, error: BaseException, message: str
) -> None:
    def fail(_: Path) -> None:
        raise error

    with pytest.raises(UserError if isinstance(error, OSError) else type(error), match=message):
        write_atomically(path, b"new", check=fail)
    assert path.read_bytes() == b"old"
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_outputs_stay_out_of_runs_except_for_what_the_command_owns(tmp_path: Path) -> None:
    run, plain = tmp_path / "run", tmp_path / "plain"
    # the last is a file of settings, perhaps
    for path in (run / "run.json", run / "done", plain / "run.json"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
    (tmp_path / "link").symlink_to(run)
    for place in ("run", "run/x.csv", "run/artifacts/x/y", "link/run.json", "plain/../run/x"):
        with pytest.raises(UserError, match="got a place in the run folder"):
            check_output(tmp_path / place, "evaluation.json")
    check_output(run / "artifacts" / "x.onnx", "artifacts")
    check_output(plain / "x.csv")


def test_the_size_is_limited(path: Path) -> None:
    assert read_bytes(path, most=3) == b"old"
    with pytest.raises(UserError, match=r"checkpoint\.pt: got 3 bytes; allowed: at most 2"):
        read_bytes(path, most=2)
    for call in (read_bytes, lambda below: write_atomically(below, b"")):
        with pytest.raises(UserError, match=r"cannot (read|write) "):
            call(path / "below")


def test_other_text_than_json_is_one_line() -> None:
    for content in (
        b'{"a": 1',
        b"\xff",
        b"[" * 100_000,
        b"[NaN]",
        b"1e400",
        b"9" * 5000,
        b'"\\ud800"',
    ):
        with pytest.raises(
            UserError, match=r"x.json: (truncated or not JSON|not JSON that taet writes)"
        ):
            parse_json(content, "x.json")


def test_a_seal_notices_any_change_of_the_content(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, seal({"b": (1, 0.1, {"1": None, "ü": "x"}), "a": {10: 1, 9: 2}}))
    stored = read_json(path)
    check_seal(path, dict(reversed(stored.items())))
    with pytest.raises(
        UserError, match=r"x\.json was changed, or not written by taet: it has no SHA-256"
    ):
        check_seal(path, {name: value for name, value in stored.items() if name != "sha256"})
    for other in (
        stored | {"c": 1},
        stored | {"b": [1]},
        stored | {"sha256": 5},
        {"sha256": stored["sha256"]},
    ):
        with pytest.raises(UserError, match=r"x\.json was changed or damaged"):
            check_seal(path, other)


HOLD = """
import sys, time
from pathlib import Path
from taet.files import lock, write_atomically
def check(_):
    print("held", flush=True)
    time.sleep(60)
with lock(Path(sys.argv[1])):
    write_atomically(Path(sys.argv[1]) / "x", b"half", check=check)
"""


def test_one_process_owns_a_folder_until_it_is_killed(tmp_path: Path) -> None:
    words = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="is in use by another process; nothing was changed"):
            lock(tmp_path).__enter__()
        assert len(list(tmp_path.iterdir())) == 2  # its lock, and what it is writing
        holder.kill()
    with lock(tmp_path):
        assert [file.name for file in tmp_path.iterdir()] == [".lock"]
        with pytest.raises(UserError, match="is in use by another process"):
            lock(tmp_path).__enter__()
