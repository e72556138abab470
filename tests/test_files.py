"""A file is old or new, never half: whatever fails on the way."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from taet.errors import UserError
from taet.files import write_atomically, write_json


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


def test_a_part_that_a_kill_left_over_is_replaced(path: Path) -> None:
    path.with_name(path.name + ".part").write_bytes(b"a much longer half-written file")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_content_is_on_the_disk_before_the_name_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append("fsync"), fsync(fd)))
    monkeypatch.setattr(Path, "replace", lambda self, target: (events.append("rename"), replace(self, target)))
    write_atomically(path, b"new", check=lambda _: events.append("check"))
    assert events == ["fsync", "check", "rename", "fsync"]


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
