"""`taet compare`: one whole comparison that is killed on its way, and what the command prints and
returns."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from taet.evaluation import ResultCard
from taet.experiments.executor import Work
from taet.formatting import DURATION, read_duration
from tests.calls import PATIENCE

SPECIFICATION = """
title = "Balanced softmax or not"
methods = ["at", "harl"]
data = ["digits-lt"]
[settings]
outer.name = "balanced-softmax"
model.name = "resnet8"
data = {max_count = 20, test_max_count = 2}
training = {epochs = 2, batch_size = 32, precision = "float32", monitor_steps = 1}
threat = {steps = 1, eps = "13/255"}
evaluation.attacks = ["clean", "fgsm"]
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a specification of a cell and of one that is not applicable."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two.toml").write_text(SPECIFICATION)
    return tmp_path


@pytest.mark.full
def test_a_comparison_that_is_killed_goes_on(taet: Any, place: Path) -> None:
    words = [sys.executable, "-m", "taet", "compare", "two.toml", "--jobs", "2"]
    killed = subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    first, deadline = place / "two" / "runs" / "at_digits-lt_seed0", time.monotonic() + PATIENCE
    while not (first / "run.json").exists():
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()

    outcome = taet("compare", "two.toml", "--jobs", "2")
    assert outcome.code == 0
    assert outcome.out == "2 cells: 1 done, 1 not applicable\nopen two/report.html\n"
    record = json.loads((first / "run.json").read_text())
    assert record["command"].startswith(
        "taet train at --data digits-lt --outer balanced-softmax --model resnet8 "
    )
    assert record["command"].endswith("--out two/runs/at_digits-lt_seed0")
    assert (
        ResultCard.load(first / "evaluation.json").command
        == "taet evaluate two/runs/at_digits-lt_seed0"
    )
    listed = taet("compare", "two.toml", "--dry-run")
    assert listed.out.splitlines()[0] == "at_digits-lt_seed0: done"
    assert listed.out.splitlines()[1].startswith(
        "harl_digits-lt_seed0: not applicable: harl: got the outer loss"
    )
    (place / "two.toml").write_text(SPECIFICATION.replace("epochs = 2", "epochs = 3"))
    refused = taet("compare", "two.toml")
    assert (refused.code, refused.out) == (2, "")
    assert (
        "two/runs/at_digits-lt_seed0 holds a run with other settings: training.epochs is 2 there"
    ) in refused.err


def test_a_dry_run_prints_commands(taet: Any, place: Path) -> None:
    lines = taet("compare", "two.toml", "--dry-run", "--out", "else").out.splitlines()
    assert (lines[0], lines[2]) == (
        "at_digits-lt_seed0: missing",
        "    taet evaluate else/runs/at_digits-lt_seed0",
    )
    assert lines[1].startswith("    taet train at --data digits-lt")
    assert (
        "--jobs is for this machine"
        in taet("compare", "two.toml", "--on", "slurm", "--jobs", "2").err
    )
    assert lines[-2] == "2 cells: 1 missing, 1 not applicable"
    assert re.fullmatch("time: about [0-9]+ seconds on this machine", lines[-1])
    asked = taet(
        "compare", "two.toml", "--dry-run", "--on", "slurm", "--slurm.partition", "fast"
    ).out
    assert asked.endswith("each cell asks SLURM for partition fast, time 8h, gpus 0, cpus 1\n")
    assert [path.name for path in place.iterdir()] == ["two.toml"]


@pytest.mark.usefixtures("place")
def test_how_a_comparison_ended_is_said_and_is_its_exit_status(
    taet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(work: Any, _: float) -> bool:
        work.failed["at_digits-lt_seed0"] = "exit status 2: the disk is full"
        return False

    monkeypatch.setattr(Work, "run", broken)
    outcome = taet("compare", "two.toml")
    assert outcome.code == 1
    assert outcome.out.splitlines() == [
        "at_digits-lt_seed0: failed: exit status 2: the disk is full",
        "2 cells: 1 failed, 1 not applicable",
    ]
    monkeypatch.setattr(Work, "run", lambda *_: False)
    outcome = taet("compare", "two.toml", "--time-budget", "1h")
    assert outcome.code == 0
    assert outcome.out.splitlines()[1] == "the time budget is used up; the same command continues"
    monkeypatch.setattr(Work, "run", lambda *_: True)
    outcome = taet("compare", "two.toml", "--out", "else where")
    said = (
        "taet: interrupted; finished work is saved; continue with: taet compare two.toml --out "
        "'else where'"
    )
    assert (outcome.code, outcome.err.splitlines()[-1]) == (130, said)


def test_a_duration_is_hours_minutes_and_seconds() -> None:
    assert [read_duration(text) for text in ("2h30m", "90m", "600s", "1h1s")] == [
        9000,
        5400,
        600,
        3601,
    ]
    assert not [text for text in ("", "2", "30m2h") if DURATION.fullmatch(text)]
