"""`taet compare`: one whole comparison that is killed on its way, and what the command prints and
returns."""

import contextlib
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


CELL = "at_digits-lt_seed0"


@pytest.fixture(scope="module")
def resumed(taet: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The folder of a comparison that was killed and started again, and what that printed."""
    folder = tmp_path_factory.mktemp("resumed")
    (folder / "two.toml").write_text(SPECIFICATION)
    words = [sys.executable, "-m", "taet", "compare", "two.toml", "--jobs", "2"]
    quiet = {"stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    killed = subprocess.Popen(words, cwd=folder, **quiet)
    deadline = time.monotonic() + PATIENCE
    while not (folder / "two" / "runs" / CELL / "run.json").exists():
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    with contextlib.chdir(folder):
        return folder, taet("compare", "two.toml", "--jobs", "2")


@pytest.mark.full
def test_a_comparison_that_is_killed_goes_on(resumed: tuple[Path, Any]) -> None:
    _, outcome = resumed
    assert outcome.code == 0
    assert outcome.out == "2 cells: 1 done, 1 not applicable\nopen two/report.html\n"


@pytest.mark.full
def test_run_and_card_of_a_cell_say_the_commands_that_make_them(
    resumed: tuple[Path, Any],
) -> None:
    run = resumed[0] / "two" / "runs" / CELL
    command = json.loads((run / "run.json").read_text())["command"]
    options = "--data digits-lt --outer balanced-softmax --model resnet8 "
    assert command.startswith(f"taet train at {options}")
    assert command.endswith(f"--out two/runs/{CELL}")
    card = ResultCard.load(run / "evaluation.json")
    assert card.command == f"taet evaluate two/runs/{CELL}"


@pytest.mark.full
def test_a_dry_run_lists_what_is_done_and_why_a_cell_is_not_applicable(
    resumed: tuple[Path, Any], taet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(resumed[0])
    done, idle = taet("compare", "two.toml", "--dry-run").out.splitlines()[:2]
    assert done == f"{CELL}: done"
    assert idle.startswith("harl_digits-lt_seed0: not applicable: harl: got the outer loss")


@pytest.mark.full
def test_a_cell_whose_run_has_other_settings_is_refused(
    resumed: tuple[Path, Any], taet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(resumed[0])
    Path("longer.toml").write_text(SPECIFICATION.replace("epochs = 2", "epochs = 3"))
    refused = taet("compare", "longer.toml", "--out", "two")
    assert (refused.code, refused.out) == (2, "")
    assert (
        f"two/runs/{CELL} holds a run with other settings: training.epochs is 2 there"
    ) in refused.err


def test_a_dry_run_prints_commands_and_the_time_and_writes_nothing(taet: Any, place: Path) -> None:
    lines = taet("compare", "two.toml", "--dry-run", "--out", "else").out.splitlines()
    assert lines[0] == f"{CELL}: missing"
    assert lines[1].startswith("    taet train at --data digits-lt")
    assert lines[2] == f"    taet evaluate else/runs/{CELL}"
    assert lines[-2] == "2 cells: 1 missing, 1 not applicable"
    assert re.fullmatch("time: about [0-9]+ seconds on this machine", lines[-1])
    assert [path.name for path in place.iterdir()] == ["two.toml"]


@pytest.mark.usefixtures("place")
def test_a_dry_run_says_what_each_cell_asks_of_slurm(taet: Any) -> None:
    words = ("--dry-run", "--on", "slurm", "--slurm.partition", "fast")
    out = taet("compare", "two.toml", *words).out
    assert out.endswith("each cell asks SLURM for partition fast, time 8h, gpus 0, cpus 1\n")


@pytest.mark.usefixtures("place")
def test_jobs_are_refused_on_slurm(taet: Any) -> None:
    outcome = taet("compare", "two.toml", "--on", "slurm", "--jobs", "2")
    assert "--jobs is for this machine" in outcome.err


@pytest.mark.usefixtures("place")
def test_a_cell_that_failed_is_named_and_the_status_is_1(
    taet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(work: Any, _: float) -> bool:
        work.failed[CELL] = "exit status 2: the disk is full"
        return False

    monkeypatch.setattr(Work, "run", broken)
    outcome = taet("compare", "two.toml")
    assert outcome.code == 1
    assert outcome.out.splitlines() == [
        f"{CELL}: failed: exit status 2: the disk is full",
        "2 cells: 1 failed, 1 not applicable",
    ]


@pytest.mark.usefixtures("place")
def test_a_time_budget_that_is_used_up_is_no_failure(
    taet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Work, "run", lambda *_: False)
    outcome = taet("compare", "two.toml", "--time-budget", "1h")
    assert outcome.code == 0
    assert outcome.out.splitlines()[1] == "the time budget is used up; the same command continues"


@pytest.mark.usefixtures("place")
def test_an_interrupted_comparison_names_the_command_that_continues_it(
    taet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Work, "run", lambda *_: True)
    outcome = taet("compare", "two.toml", "--out", "else where")
    assert outcome.code == 130
    assert outcome.err.splitlines()[-1] == (
        "taet: interrupted; finished work is saved; continue with: taet compare two.toml --out "
        "'else where'"
    )


def test_a_duration_is_hours_minutes_and_seconds() -> None:
    assert [read_duration(text) for text in ("2h30m", "90m", "600s", "1h1s")] == [
        9000,
        5400,
        600,
        3601,
    ]
    assert not [text for text in ("", "2", "30m2h") if DURATION.fullmatch(text)]
