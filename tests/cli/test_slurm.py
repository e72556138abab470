"""The batch scripts of examples/slurm, run by bash, with stand-ins for SLURM's commands and for ours."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.calls import configure

FOLDER = Path(__file__).parents[2] / "examples" / "slurm"
SCRIPTS = sorted(FOLDER.glob("*.sbatch"))
SLURM = {
    "SLURM_CPUS_PER_TASK": "8",
    "SLURM_GPUS_ON_NODE": "4",
    "SLURM_JOB_ID": "12345",
    "SLURM_JOB_NODELIST": "node[7-8]",
    "SLURM_NNODES": "2",
}
# Writes down its words, then ends, or, where it is to work, waits until it is told to stop.
PROGRAM = """#!{python}
import json, os, pathlib, signal, sys, time
place = pathlib.Path(__file__).parent
name = os.path.basename(sys.argv[0])
with open(place / "calls", "a") as file:
    file.write(json.dumps([name, *sys.argv[1:]]) + "\\n")
if name == "srun":
    words = sys.argv[1:]
    while words[0].startswith("--"):
        words.pop(0)
    os.execvp(words[0], words)
if name == "scontrol" and sys.argv[1] == "show":
    print("node7\\nnode8")
elif name in ("taet", "torchrun"):
    def stop(*_):
        (place / "saved").touch()
        sys.exit(130)
    signal.signal(signal.SIGTERM, stop)
    (place / "working").touch()
    if (place / "work").exists():
        time.sleep(60)
    sys.exit(int((place / "status").read_text()))
"""

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Start a script with words, as SLURM would."""
    for name in ("srun", "scontrol", "taet", "torchrun"):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(PROGRAM.format(python=sys.executable))
        path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    environment = {**os.environ, **SLURM, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}

    def started(script: str, *words: str, status: int = 0, works: bool = False) -> subprocess.Popen[bytes]:
        (tmp_path / "bin" / "status").write_text(str(status))
        if works:
            (tmp_path / "bin" / "work").touch()
        return subprocess.Popen(["bash", str(FOLDER / script), *words], env=environment)

    return started


@pytest.fixture
def calls(tmp_path: Path) -> Callable[[str], list[list[str]]]:
    """The calls of a program so far, each as its words."""

    def found(name: str) -> list[list[str]]:
        lines = [json.loads(line) for line in (tmp_path / "bin" / "calls").read_text().splitlines()]
        return [words for called, *words in lines if called == name]

    return found


Calls = Callable[[str], list[list[str]]]
TRAIN = ("runs/x", "taet", "--data", "cifar100-lt", "--model", "resnet18")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_bash_can_read_a_script(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text()
    assert text.startswith("#!/bin/bash\n")
    directives = [number for number, line in enumerate(text.splitlines()) if line.startswith("#SBATCH --")]
    commands = [number for number, line in enumerate(text.splitlines()) if line and not line.startswith("#")]
    assert max(directives) < min(commands), "SLURM reads no directive after the first command"


def test_a_run_on_several_machines_starts_and_goes_on(start: Start, calls: Calls, tmp_path: Path) -> None:
    assert start("train.sbatch", *TRAIN).wait() == 0
    (words,) = calls("torchrun")
    place = words.index("-m")
    assert words[place : place + 3] == ["-m", "taet", "train"]
    options = dict(zip(words[:place:2], words[1:place:2], strict=True))
    assert (options["--nnodes"], options["--nproc-per-node"]) == ("2", "4")
    assert options["--rdzv-endpoint"] == "node7:22345"
    run, out = configure(words[place + 3], words[place + 4 :])
    assert (run.method, run.data.name, out) == ("taet", "cifar100-lt", Path("runs/x"))
    (tmp_path / "runs" / "x").mkdir(parents=True)
    (tmp_path / "runs" / "x" / "run.json").touch()
    assert start("train.sbatch", *TRAIN).wait() == 0
    assert calls("torchrun")[1][place + 2 :] == ["train", "--resume", "runs/x"]


def test_a_job_whose_time_is_nearly_up_saves_and_is_queued_again(start: Start, calls: Calls, tmp_path: Path) -> None:
    job, deadline = start("train.sbatch", *TRAIN, works=True), time.monotonic() + 30
    while not (tmp_path / "bin" / "working").exists():
        assert job.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    job.wait(timeout=30)
    assert (tmp_path / "bin" / "saved").exists()
    assert calls("scontrol")[-1] == ["requeue", "12345"]


@pytest.mark.parametrize("status", [1, 130])
def test_a_job_that_fails_or_is_preempted_is_not_queued_by_itself(start: Start, calls: Calls, status: int) -> None:
    assert start("train.sbatch", *TRAIN, status=status).wait() == status
    assert not [call for call in calls("scontrol") if call[0] == "requeue"]
