"""The batch script of examples/slurm, run by bash, with stand-ins for SLURM's commands and for ours."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.calls import configure

SCRIPT = Path(__file__).parents[2] / "examples" / "slurm" / "train.sbatch"
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
place, (name, *words) = pathlib.Path(__file__).parent, [os.path.basename(sys.argv[0]), *sys.argv[1:]]
with open(place / "calls", "a") as file:
    file.write(json.dumps([name, *words]) + "\\n")
if name == "srun":
    while words[0].startswith("--"):
        words.pop(0)
    os.execvp(words[0], words)
if name == "scontrol" and words[0] == "show":
    print("node7\\nnode8")
elif name == "torchrun":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit((place / "saved").touch() or 130))
    (place / "working").touch()
    time.sleep({seconds})
    sys.exit({status})
"""


def start(place: Path, status: int = 0, seconds: int = 0) -> subprocess.Popen[bytes]:
    """Start the script in a folder as SLURM would, with a training that takes that long and ends so."""
    (place / "bin").mkdir(exist_ok=True)
    for name in ("srun", "scontrol", "torchrun"):
        path = place / "bin" / name
        path.write_text(PROGRAM.format(python=sys.executable, status=status, seconds=seconds))
        path.chmod(0o755)
    words = ("runs/x", "taet", "--data", "cifar100-lt", "--model", "resnet18")
    environment = {**os.environ, **SLURM, "PATH": f"{place / 'bin'}:{os.environ['PATH']}"}
    return subprocess.Popen(["bash", str(SCRIPT), *words], env=environment, cwd=place)


def calls(place: Path, name: str) -> list[list[str]]:
    """The calls of a program so far, each as its words."""
    lines = map(json.loads, (place / "bin" / "calls").read_text().splitlines())
    return [words for called, *words in lines if called == name]


def test_a_run_on_several_machines_starts_and_goes_on(tmp_path: Path) -> None:
    assert start(tmp_path).wait() == 0
    (words,) = calls(tmp_path, "torchrun")
    place = words.index("-m")
    assert words[place : place + 3] == ["-m", "taet", "train"]
    options = dict(zip(words[:place:2], words[1:place:2], strict=True))
    assert (options["--nnodes"], options["--nproc-per-node"]) == ("2", "4")
    assert options["--rdzv-endpoint"] == "node7:22345"
    run, out = configure(words[place + 3], words[place + 4 :])
    assert (run.method, run.data.name, out) == ("taet", "cifar100-lt", Path("runs/x"))
    (tmp_path / "runs" / "x").mkdir(parents=True)
    (tmp_path / "runs" / "x" / "run.json").touch()
    assert start(tmp_path).wait() == 0
    assert calls(tmp_path, "torchrun")[1][place + 2 :] == ["train", "--resume", "runs/x"]


def test_a_job_is_queued_again_when_its_time_is_nearly_up_and_not_when_it_fails(tmp_path: Path) -> None:
    assert start(tmp_path, status=1).wait() == 1
    assert not [words for words in calls(tmp_path, "scontrol") if words[0] == "requeue"]
    (tmp_path / "bin" / "working").unlink()
    job, deadline = start(tmp_path, seconds=60), time.monotonic() + 30
    while not (tmp_path / "bin" / "working").exists():
        assert job.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    job.wait(timeout=30)
    assert (tmp_path / "bin" / "saved").exists()
    assert calls(tmp_path, "scontrol")[-1] == ["requeue", "12345"]
