"""Every hostile file is one line with its name: no code is run, nothing outside is read, no hang, no 2 GB of memory."""

import re
import resource
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from taet.cli import main
from taet.errors import UserError
from taet.files import cache
from tests.data.hostile import CASES, OUTSIDE, Case

SECONDS = 30
MEMORY = 2 << 30
_opened: list[str] = []
_watching = threading.Event()


def _note(event: str, arguments: tuple[object, ...], watching: threading.Event = _watching) -> None:
    # Bound here, since the interpreter clears a module's names before its last events.
    if watching.is_set() and event in ("open", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.system"):
        _opened.append(f"{event} {arguments[0]!s}")


sys.addaudithook(_note)  # it stays, and does nothing outside of `watched`


class TooLateError(BaseException):
    """Raised into whatever hangs, and caught by nobody."""


@contextmanager
def watched(seconds: int) -> Iterator[list[str]]:
    """Limit time and memory of the block, and list the files that it opens and the programs that it starts."""

    def late(*_: object) -> None:
        raise TooLateError(f"it takes more than {seconds} s")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, hard))
    _opened.clear()
    _watching.set()
    try:
        yield _opened
    finally:
        _watching.clear()
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder, beside which lies what must not be read."""
    (tmp_path / OUTSIDE).parent.mkdir()
    Image.new("L", (6, 6)).save(tmp_path / OUTSIDE)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("TAET_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TAET_DATA", raising=False)
    yield tmp_path / "here"
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "here")  # pytest cannot remove a path of more than 4,096 bytes


@pytest.mark.sample(4)
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits are set as Linux knows them")
@pytest.mark.parametrize(
    "hostile", [pytest.param(case, id=case.name, marks=[pytest.mark.full] * case.long) for case in CASES]
)
def test_a_hostile_file_is_one_line(hostile: Case, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = hostile.build(folder)
    with watched(4 * SECONDS if hostile.long else SECONDS) as opened:
        if callable(asked):
            with pytest.raises(UserError) as caught:
                asked()
            line = str(caught.value)
        else:
            status = main(asked)
            out, line = capsys.readouterr()
            assert status == 2, (out, line)
            assert not out
    assert re.search(hostile.message, line), line
    assert "error: unexpected: " not in line
    assert "memory" not in line
    assert len(line.strip().splitlines()) == 1
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", line)
    assert len(line) < 5000
    assert not (folder.parent / "ran").exists()
    assert not [name for name in opened if OUTSIDE in name or not name.startswith("open")]
    assert sorted(path.name for path in folder.parent.iterdir() if path != cache()) == ["here", "outside"]
    assert not cache().exists() or not list(cache().iterdir())


def test_there_are_as_many_cases_as_were_asked_for() -> None:
    assert len(CASES) >= 200
    assert len({case.name for case in CASES}) > 150
