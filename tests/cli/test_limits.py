"""A limit of the system on files, sizes or memory ends a command in one line, and the run goes on without it."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from taet.settings import Run
from taet.training import resume, train

LIMITED = """
import resource, sys
from taet.cli import main
import taet.training, taet.evaluation.evaluate
resource.setrlimit({limit}, ({value}, {value}))
sys.exit(main())
"""
LIMITS = {
    "open files": (resource.RLIMIT_NOFILE, 5),
    "size of a file": (resource.RLIMIT_FSIZE, 1000),
    "memory": (resource.RLIMIT_AS, 2**28),
}


class Stopped(BaseException):
    """Stands for a kill."""


@pytest.mark.full
@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("command", ["train --resume RUN", "evaluate RUN --attacks clean fgsm"])
def test_a_limit_of_the_system_is_one_line(
    tiny: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, command: str
) -> None:
    run, folder = tiny("at", {"data.test_max_count": 2, "training.save_minutes": 0.0}), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("taet.training.folder.RunFolder.finish", lambda _: (_ for _ in ()).throw(Stopped))
        with pytest.raises(Stopped):
            train(run, out=folder)
    if command.startswith("evaluate"):
        resume(folder)
    limit, value = LIMITS[name]
    words = [sys.executable, "-P", "-c", LIMITED.format(limit=limit, value=value)]
    ended = subprocess.run([*words, *command.replace("RUN", str(folder)).split()], capture_output=True, text=True)
    if name != "memory" or ended.returncode not in (-signal.SIGSEGV, -signal.SIGABRT):
        # Native code may end the process where an allocation fails. What was finished must still be there.
        assert ended.returncode in (0, 1, 2), ended
        assert "Traceback" not in ended.stderr
        assert not ended.returncode or ended.stderr.splitlines()[-1].startswith("taet: error: "), ended.stderr
    assert resume(folder).history
