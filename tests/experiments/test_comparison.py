"""The work on a comparison, with stand-ins for its processes: order, failures, budgets, interruptions, locks."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taet.errors import UserError
from taet.experiments import comparison
from taet.experiments.comparison import compare

Processes = Callable[..., list[dict[str, Any]]]
NAMES = [f"at_digits-lt_seed{seed}" for seed in range(3)]


def time_is_up_when(monkeypatch: pytest.MonkeyPatch, condition: Callable[[], bool]) -> None:
    """Let hours pass as soon as the condition holds."""
    monotonic = time.monotonic
    monkeypatch.setattr("taet.experiments.comparison.time.monotonic", lambda: monotonic() + 1e4 * condition())


def states(result: comparison.Comparison) -> list[str]:
    return [outcome.state for outcome in result.outcomes]


def test_what_is_missing_is_run_once(small: dict[str, Any], processes: Processes, tmp_path: Path) -> None:
    said: list[str] = []
    result = compare(small | {"title": "Small"}, tmp_path / "out", say=said.append)
    assert states(result) == ["done"] * 3
    assert (result.report, result.out_of_time) == (tmp_path / "out" / "report.html", False)
    assert [call["words"][0] for call in processes()] == ["train", "evaluate"] * 3
    assert said[0] == f"3 cells: 3 missing; logs in {tmp_path / 'out' / 'logs'}"
    assert said[1:4] == [f"[0/3] {NAMES[0]}: train", f"[0/3] {NAMES[0]}: evaluate", said[3]]
    assert said[3].startswith(f"[1/3] {NAMES[0]}: done in 0:0")
    assert "left" in said[3]
    assert "left" not in said[-1]
    log = (tmp_path / "out" / "logs" / f"{NAMES[0]}.txt").read_text()
    folder = tmp_path / "out" / "runs" / NAMES[0]
    assert log.splitlines()[0].startswith("$ taet train at --data digits-lt ")
    assert log.splitlines()[0].endswith(f"--out {folder}")
    assert log.splitlines()[1] == f"$ taet evaluate {folder}"
    stored = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert (stored["title"], stored["counts"]) == ("Small", {"done": 3})
    assert [cell["name"] for cell in stored["cells"]] == NAMES
    assert all(cell["seconds"]["training"] > 0 for cell in stored["cells"])

    before = len(processes())
    assert states(compare(small, tmp_path / "out")) == ["done"] * 3
    assert len(processes()) == before
    assert states(compare(small | {"seeds": [2, 3]}, tmp_path / "out")) == ["done", "done"]
    assert len(processes()) == before + 2


def test_a_dry_run_touches_nothing(small: dict[str, Any], tmp_path: Path) -> None:
    result = compare(small, tmp_path / "out", dry_run=True)
    assert states(result) == ["missing"] * 3
    assert result.outcomes[1].commands[1] == f"taet evaluate {tmp_path / 'out' / 'runs' / NAMES[1]}"
    assert not any(tmp_path.iterdir())


def test_a_cell_that_fails_leaves_the_others_alone_and_is_tried_again(
    small: dict[str, Any], processes: Processes, tmp_path: Path
) -> None:
    processes(seed0="fail", seed1="idle")
    said: list[str] = []
    result = compare(small, tmp_path / "out", say=said.append)
    assert states(result) == ["failed", "failed", "done"]
    assert result.outcomes[0].reason == "exit status 1: the loss is not finite"
    assert result.outcomes[1].reason == "the command ended well, but left its work undone"
    assert f"[1/3] {NAMES[0]}: failed: exit status 1: the loss is not finite" in said
    processes()
    assert states(compare(small, tmp_path / "out")) == ["done"] * 3
    assert processes()[-3]["words"] == ["train", "--resume", str(tmp_path / "out" / "runs" / NAMES[0])]


def test_the_time_budget_stops_what_runs_and_begins_nothing(
    small: dict[str, Any], processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes(seed1="hang")
    with monkeypatch.context() as patch:
        time_is_up_when(patch, (tmp_path / "out" / "runs" / NAMES[1] / "hangs").exists)
        result = compare(small, tmp_path / "out", time_budget=5e3)
    assert states(result) == ["done", "started", "missing"]
    assert result.out_of_time
    assert (tmp_path / "out" / "runs" / NAMES[1] / "saved").exists()
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["out_of_time"]
    processes()
    result = compare(small, tmp_path / "out", time_budget=5e3)
    assert (states(result), result.out_of_time) == (["done"] * 3, False)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_waits_until_every_process_has_saved(
    small: dict[str, Any], processes: Processes, tmp_path: Path, number: signal.Signals
) -> None:
    processes(seed0="hang", seed1="hang")
    folders = [tmp_path / "out" / "runs" / name for name in NAMES]

    def interrupt() -> None:
        deadline = time.monotonic() + 30
        while not all((folder / "hangs").exists() for folder in folders[:2]) and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        compare(small, tmp_path / "out", jobs=2)
    assert [(folder / "saved").exists() for folder in folders] == [True, True, False]
    stored = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert stored["counts"] == {"started": 2, "missing": 1}
    assert not stored["out_of_time"]


@pytest.mark.usefixtures("processes")
def test_a_cell_that_another_process_works_on_is_left_to_it(
    small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out" / "logs").mkdir(parents=True)
    said: list[str] = []
    with (tmp_path / "out" / "logs" / f"{NAMES[0]}.txt").open("ab") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        last = tmp_path / "out" / "runs" / NAMES[2] / "evaluation.json"
        with monkeypatch.context() as patch:
            time_is_up_when(patch, last.exists)
            result = compare(small, tmp_path / "out", time_budget=5e3, say=said.append)
        assert states(result) == ["missing", "done", "done"]
        assert said.count(f"{NAMES[0]}: another process is at work on it") == 1
        threading.Timer(0.5, fcntl.flock, (log, fcntl.LOCK_UN)).start()
        assert states(compare(small, tmp_path / "out")) == ["done"] * 3


def test_the_cores_are_shared_among_the_jobs(
    small: dict[str, Any], processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "_cores", lambda: 5)
    compare(small | {"seeds": [0]}, tmp_path / "out", jobs=2)
    train, evaluate = processes()
    assert train["words"][train["words"].index("--threads") + 1] == "2"
    assert (train["threads"], evaluate["threads"]) == ("2", "2")
    own = {**small["settings"], "training.threads": 4}
    compare(small | {"seeds": [0], "settings": own}, tmp_path / "own", jobs=2)
    train, evaluate = processes()[2:]
    assert train["words"].count("--threads") == 1
    assert train["words"][train["words"].index("--threads") + 1] == "4"
    assert (train["threads"], evaluate["threads"]) == ("4", "4")


def test_mistakes_in_the_call(small: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="jobs: got 0; allowed: 1 or more"):
        compare(small, tmp_path, jobs=0)
    with pytest.raises(UserError, match="time budget: got 0 seconds"):
        compare(small, tmp_path, time_budget=0)
    with pytest.raises(UserError, match="got no out"):
        compare(small)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot make the folder"):
        compare(small, tmp_path / "file")
