"""Limits of the system on files, memory and sizes end a command in one line, and the run goes on without them."""

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
COMMANDS = (
    "train --resume RUN",
    "evaluate RUN --attacks clean fgsm",
    "export RUN --format safetensors --out RUN/out.st",
)


class Stopped(BaseException):
    """Stands for a kill."""


@pytest.mark.full
@pytest.mark.parametrize(
    "name", ["memory", *(pytest.param(n, marks=pytest.mark.full) for n in LIMITS if n != "memory")]
)
@pytest.mark.parametrize("command", [COMMANDS[0], *(pytest.param(c, marks=pytest.mark.full) for c in COMMANDS[1:])])
def test_a_limit_of_the_system_is_one_line(
    tiny: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, command: str
) -> None:
    run = tiny("at", {"data.test_max_count": 2, "training.save_minutes": 0.0})
    if "--resume" in command:
        with monkeypatch.context() as patch:
            patch.setattr("taet.training.folder.RunFolder.finish", lambda _: (_ for _ in ()).throw(Stopped))
            with pytest.raises(Stopped):
                train(run, out=tmp_path / "run")
    else:
        train(run, out=tmp_path / "run")
    limit, value = LIMITS[name]
    words = command.replace("RUN", str(tmp_path / "run")).split()
    ended = subprocess.run(
        [sys.executable, "-P", "-c", LIMITED.format(limit=limit, value=value), *words], capture_output=True, text=True
    )
    if name == "memory" and ended.returncode in (-signal.SIGSEGV, -signal.SIGABRT):
        # Native code may end the process where an allocation fails. What was finished must still be there.
        assert resume(tmp_path / "run").history
        return
    assert ended.returncode in (0, 1, 2), ended
    assert "Traceback" not in ended.stderr
    if ended.returncode:
        assert ended.stderr.splitlines()[-1].startswith("taet: error: "), ended.stderr
    assert resume(tmp_path / "run").history
