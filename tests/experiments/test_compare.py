"""The work on a comparison, with stand-ins for its processes: order, failures, budgets,
interruptions, locks."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from taet.errors import UserError
from taet.experiments import expected_time
from taet.experiments.compare import Comparison, compare
from taet.experiments.executor import Work, seconds_until_done
from taet.experiments.expected_time import CellSeconds, comparison_seconds
from taet.experiments.grid import cells_of, parse
from taet.files import lock
from tests.calls import PATIENCE

Processes = Callable[..., list[dict[str, Any]]]
NAMES = [f"at_digits-lt_seed{seed}" for seed in range(3)]


@pytest.fixture(autouse=True)
def _no_threads_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def time_is_up_when(monkeypatch: pytest.MonkeyPatch, condition: Callable[[], bool]) -> None:
    """Let hours pass as soon as the condition holds."""
    monotonic = time.monotonic
    monkeypatch.setattr(
        "taet.experiments.executor.time.monotonic", lambda: monotonic() + 1e4 * condition()
    )


def when_there(path: Path, do: Callable[[], object]) -> None:
    """Do something in another thread as soon as a file exists."""

    def watch() -> None:
        deadline = time.monotonic() + PATIENCE
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        do()

    threading.Thread(target=watch).start()


def states(result: Comparison) -> list[str]:
    return [outcome.state for outcome in result.outcomes]


def test_what_is_missing_is_run_once(
    small: dict[str, Any], processes: Processes, tmp_path: Path
) -> None:
    said: list[str] = []
    result = compare(small | {"title": "Small"}, tmp_path / "out", progress=said.append)
    assert states(result) == ["done"] * 3
    assert (result.report, result.out_of_time) == (tmp_path / "out" / "report.html", False)
    assert [call["words"][0] for call in processes()] == ["train", "evaluate"] * 3
    assert said[0] == f"3 cells: 3 missing; logs in {tmp_path / 'out' / 'logs'}"
    assert said[3].startswith(f"[1/3] {NAMES[0]}: done in 0:0")
    assert "left" in said[3]
    assert "left" not in said[-1]
    log = (tmp_path / "out" / "logs" / f"{NAMES[0]}.txt").read_text()
    folder = tmp_path / "out" / "runs" / NAMES[0]
    assert log.splitlines()[0].startswith("$ taet train at --data digits-lt ")
    assert log.splitlines()[1] == f"$ taet evaluate {folder}"
    assert (result.title, result.counts) == ("Small", {"done": 3})
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == {"title": "Small"}
    assert [outcome.cell.name for outcome in result.outcomes] == NAMES

    before = len(processes())
    assert states(compare(small | {"seeds": [2, 3]}, tmp_path / "out")) == ["done", "done"]
    assert len(processes()) == before + 2


@pytest.mark.full
@pytest.mark.usefixtures("processes")
def test_a_comparison_prints_its_events_where_somebody_watches(
    small: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    one = small | {"seeds": [0]}
    compare(one, tmp_path / "log")
    monkeypatch.setattr("taet.progress.is_watched", lambda: True)
    compare(one, tmp_path / "quiet", progress=False)
    assert capsys.readouterr().err == ""
    compare(one, tmp_path / "out")
    assert f"[1/1] {NAMES[0]}: done in" in capsys.readouterr().err


def test_a_dry_run_touches_nothing_and_missing_data_are_refused_before_the_work_begins(
    small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TAET_DATA", raising=False)
    result = compare(small, tmp_path / "out", dry_run=True)
    assert states(result) == ["missing"] * 3
    assert result.outcomes[1].commands[1] == ["evaluate", str(tmp_path / "out" / "runs" / NAMES[1])]
    wanted = {**small, "data": ["cifar10-lt"], "seeds": [0], "settings": {"training.epochs": 1}}
    assert states(compare(wanted, tmp_path / "out", dry_run=True)) == ["missing"]
    with pytest.raises(UserError, match="is not in 'data'; run taet data prepare cifar10-lt"):
        compare(wanted, tmp_path / "out")
    assert not any(tmp_path.iterdir())


@pytest.mark.full
def test_a_cell_that_fails_leaves_the_others_alone_and_is_tried_again(
    small: dict[str, Any], processes: Processes, tmp_path: Path
) -> None:
    processes(seed0="fail", seed1="idle")
    said: list[str] = []
    result = compare(small, tmp_path / "out", progress=said.append)
    assert states(result) == ["failed", "failed", "done"]
    assert result.outcomes[0].reason == "exit status 1: the loss is not finite"
    assert result.outcomes[1].reason == "the command ended well, but the cell is not complete"
    assert f"[1/3] {NAMES[0]}: failed: exit status 1: the loss is not finite" in said
    processes(seed0="killed", seed1="idle")
    assert compare(small, tmp_path / "out").outcomes[0].reason == "killed by SIGKILL"
    processes()
    assert states(compare(small, tmp_path / "out")) == ["done"] * 3
    assert processes()[-3]["words"] == [
        "train",
        "--resume",
        str(tmp_path / "out" / "runs" / NAMES[0]),
    ]


@pytest.mark.full
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
    processes()
    result = compare(small, tmp_path / "out", time_budget=5e3)
    assert (states(result), result.out_of_time) == (["done"] * 3, False)


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_waits_until_every_process_has_saved(
    small: dict[str, Any], processes: Processes, tmp_path: Path, number: signal.Signals
) -> None:
    processes(seed0="hang", seed1="hang")
    folders = [tmp_path / "out" / "runs" / name for name in NAMES]
    second = folders[1] / "hangs"
    when_there(
        folders[0] / "hangs", lambda: when_there(second, lambda: os.kill(os.getpid(), number))
    )

    def say(text: str) -> None:
        if number == signal.SIGTERM and text.startswith("stopping"):
            raise BrokenPipeError  # who read it has ended

    with pytest.raises(BrokenPipeError if number == signal.SIGTERM else KeyboardInterrupt):
        compare(small, tmp_path / "out", jobs=2, progress=say)
    assert [(folder / "saved").exists() for folder in folders] == [True, True, False]
    assert states(compare(small, tmp_path / "out", dry_run=True)) == [
        "started",
        "started",
        "missing",
    ]


@pytest.mark.parametrize(
    ("running", "waiting", "side_by_side", "seconds"),
    [
        ([3.0, 5.0], [], 2, 5.0),  # that of the slowest, not the sum
        ([3.0, 5.0], [4.0], 2, 7.0),  # it begins when the first one ends
        ([], [2.0, 2.0, 2.0], 1, 6.0),
        ([], [], 4, 0.0),
    ],
)
def test_the_time_left_is_that_until_the_last_cell_ends(
    running: list[float], waiting: list[float], side_by_side: int, seconds: float
) -> None:
    assert seconds_until_done(running, waiting, side_by_side) == seconds


def test_the_expected_time_is_that_of_the_cells_that_are_not_done(
    small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = compare(small, tmp_path / "out", dry_run=True)
    steady = CellSeconds(training=6.0, evaluation=2.0)
    monkeypatch.setattr(expected_time, "_time", lambda *_: steady)
    assert comparison_seconds(planned) == 3 * 8.0
    assert comparison_seconds(planned, 3) == 8.0
    done = tuple(outcome._replace(state="done") for outcome in planned.outcomes)
    assert comparison_seconds(replace(planned, outcomes=done)) == 0


def test_the_time_of_a_cell_is_measured_and_nothing_is_written(
    small: dict[str, Any], tmp_path: Path
) -> None:
    planned = compare(small, tmp_path / "out", dry_run=True)
    assert comparison_seconds(planned) > 0
    assert not (tmp_path / "out").exists()


def test_no_cell_begins_after_the_deadline(
    small: dict[str, Any], processes: Processes, tmp_path: Path
) -> None:
    found = [cell.look() for cell in cells_of(parse(small | {"seeds": [*range(8)]}), tmp_path)]
    assert not Work(found, tmp_path, 8, 1, (), lambda _: None).run(deadline=0.0)
    assert not processes()


def test_a_folder_that_another_call_works_in_is_left_to_it(
    small: dict[str, Any], tmp_path: Path
) -> None:
    with lock(tmp_path), pytest.raises(UserError, match="is in use by another process"):
        compare(small, tmp_path)
    assert not (tmp_path / "runs").exists()


@pytest.mark.full
@pytest.mark.usefixtures("processes")
def test_a_cell_whose_process_cannot_begin_fails_alone(
    small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = subprocess.Popen

    def begins(words: list[str], **settings: Any) -> Any:
        if NAMES[0] in words[-1]:
            raise OSError("no memory")
        return begin(words, **settings)

    monkeypatch.setattr("taet.experiments.executor.subprocess.Popen", begins)
    result = compare(small | {"seeds": [0, 1]}, tmp_path / "out")
    assert [(one.state, one.reason) for one in result.outcomes] == [
        ("failed", "OSError: no memory"),
        ("done", ""),
    ]


@pytest.mark.full
def test_the_cores_are_shared_among_the_jobs(
    small: dict[str, Any], processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["taet.experiments.compare"], "idle_threads", lambda: (6, ""))
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    for expected in (6, 2):  # as OMP_NUM_THREADS says, and without it shared
        (planned, *_) = compare(small, tmp_path / "out", jobs=3, dry_run=True).outcomes
        assert planned.commands[0][planned.commands[0].index("--threads") + 1] == str(expected)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    own = {**small["settings"], "training": {**small["settings"]["training"], "threads": 4}}
    compare(small | {"seeds": [0], "settings": own}, tmp_path / "own", jobs=2)
    train, evaluate = processes()
    assert train["words"].count("--threads") == 1
    assert train["words"][train["words"].index("--threads") + 1] == "4"
    assert (train["threads"], evaluate["threads"]) == ("4", "4")


@pytest.mark.full
def test_cells_are_spread_over_the_gpus_and_keep_theirs(
    small: dict[str, Any], processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr(sys.modules["taet.experiments.compare"], "idle_threads", lambda: (6, ""))
    said: list[str] = []
    compare(small | {"seeds": [0, 1, 2, 3]}, tmp_path / "out", jobs="auto", progress=said.append)
    assert "; 2 side by side on GPU GPU-a, GPU-b; logs in " in said[0]
    calls = processes()
    assert {call["threads"] for call in calls} == {"3"}
    used: dict[str, list[str]] = {}
    for call in calls:
        seed = next(
            word
            for words in call["words"]
            if (word := words.rpartition("seed")[2]) and "_seed" in words
        )
        used.setdefault(seed, []).append(call["gpu"])
    assert all(len(gpus) == 2 and len(set(gpus)) == 1 for gpus in used.values()), (
        "train and evaluate on one"
    )
    assert {gpus[0] for gpus in used.values()} == {"GPU-a", "GPU-b"}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"jobs": 0}, "jobs: got 0; allowed: a whole number, 1 to 1024, or auto"),
        ({"time_budget": 0}, "time budget: got 0 seconds; allowed: above 0"),
        ({"out": None}, "got no out"),
    ],
)
def test_mistakes_in_the_call(
    small: dict[str, Any], wrong: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words):
        compare(small, **{"out": tmp_path, **wrong})


def test_the_folder_of_the_images_is_none_for_the_runs(
    small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lesions").mkdir()
    with pytest.raises(
        UserError, match=r"lesions, the folder of the images; allowed: another, e\.g\. runs/lesions"
    ):
        compare({**small, "data": ["digits-lt", "./lesions"]}, tmp_path / "lesions")
