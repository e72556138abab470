"""The work on a comparison, with stand-ins for its processes: order, failures, budgets, interruptions, locks."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taet.errors import UserError
from taet.experiments import comparison
from taet.experiments.cells import cells
from taet.experiments.comparison import compare, devices, emptiest, merge
from taet.experiments.forecast import rough_seconds
from taet.experiments.specification import parse

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


@pytest.mark.parametrize("name", ["cifar10-lt", "fashion-mnist", "gtsrb", "tiny-imagenet-lt", "dermamnist"])
def test_missing_published_data_are_planned_and_refused_before_the_work_begins(
    small: dict[str, Any], processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TAET_DATA", raising=False)
    wanted = {**small, "data": [name], "seeds": [0], "settings": {"training.epochs": 1}}
    assert states(compare(wanted, tmp_path / "out", dry_run=True)) == ["missing"]
    with pytest.raises(UserError, match=rf"is not in 'data'; run taet data prepare {name}"):
        compare(wanted, tmp_path / "out")
    assert not processes()
    assert not (tmp_path / "out").exists()


@pytest.mark.full
def test_data_in_their_official_place_are_not_read_before_the_work_begins(
    small: dict[str, Any], processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny-imagenet-200").mkdir()
    monkeypatch.setenv("TAET_DATA", str(tmp_path))
    wanted = {**small, "data": ["tiny-imagenet-lt"], "seeds": [0], "settings": {"training.epochs": 1}}
    compare(wanted, tmp_path / "out")
    assert processes()


@pytest.mark.full
def test_a_cell_that_fails_leaves_the_others_alone_and_is_tried_again(
    small: dict[str, Any], processes: Processes, tmp_path: Path
) -> None:
    processes(seed0="fail", seed1="idle")
    said: list[str] = []
    result = compare(small, tmp_path / "out", say=said.append)
    assert states(result) == ["failed", "failed", "done"]
    assert result.outcomes[0].reason == "exit status 1: the loss is not finite"
    assert result.outcomes[1].reason == "the command ended well, but the cell is not complete"
    assert f"[1/3] {NAMES[0]}: failed: exit status 1: the loss is not finite" in said
    processes()
    assert states(compare(small, tmp_path / "out")) == ["done"] * 3
    assert processes()[-3]["words"] == ["train", "--resume", str(tmp_path / "out" / "runs" / NAMES[0])]


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


@pytest.mark.full
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
        assert said.count(f"{NAMES[0]}: another process is working on it") == 1
        threading.Timer(0.5, fcntl.flock, (log, fcntl.LOCK_UN)).start()
        assert states(compare(small, tmp_path / "out")) == ["done"] * 3


def test_the_cores_are_shared_among_the_jobs(
    small: dict[str, Any], processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "cores", lambda: 5)
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


@pytest.mark.parametrize(
    ("visible", "count", "expected"),
    [
        (None, 0, []),
        (None, 3, ["0", "1", "2"]),
        ("", 0, []),
        ("-1", 0, []),
        ("5, 2,7", 3, ["5", "2", "7"]),
        ("1,9,2", 1, ["1"]),  # CUDA stops at the first number that there is not
        ("GPU-8932f937-d72c,GPU-1f1f", 2, ["GPU-8932f937-d72c", "GPU-1f1f"]),
        ("MIG-a,MIG-b", 1, ["MIG-a", "MIG-b"]),  # CUDA sees one of them, whoever sees both
        ("MIG-a,MIG-b", 0, []),
    ],
)
def test_the_gpus_are_those_that_this_process_may_use(visible: str | None, count: int, expected: list[str]) -> None:
    assert devices(visible, count) == expected


def test_a_cell_goes_where_the_fewest_run() -> None:
    taken: list[str | None] = []
    for _ in range(5):
        taken.append(emptiest(["2", "0"], taken))
    assert taken == ["2", "0", "2", "0", "2"]
    assert emptiest(["2", "0"], ["2", None, None]) == "0"
    assert emptiest([], []) is None


@pytest.mark.full
def test_cells_are_spread_over_the_gpus_and_keep_theirs(
    small: dict[str, Any], processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr(comparison, "cores", lambda: 6)
    said: list[str] = []
    compare(small | {"seeds": [0, 1, 2, 3]}, tmp_path / "out", jobs="auto", say=said.append)
    assert "; 2 side by side on GPU GPU-a, GPU-b; logs in " in said[0]
    assert said[1:3] == [f"[0/4] {NAMES[0]}: train on GPU GPU-a", f"[0/4] {NAMES[1]}: train on GPU GPU-b"]
    calls = processes()
    assert {call["threads"] for call in calls} == {"3"}
    used: dict[str, list[str]] = {}
    for call in calls:
        seed = next(word for words in call["words"] if (word := words.rpartition("seed")[2]) and "_seed" in words)
        used.setdefault(seed, []).append(call["gpu"])
    assert len(used) == 4
    assert all(len(gpus) == 2 and len(set(gpus)) == 1 for gpus in used.values()), "train and evaluate on one"
    assert {gpus[0] for gpus in used.values()} == {"GPU-a", "GPU-b"}

    named = {**small["settings"], "training.device": "cuda:1"}
    compare(small | {"seeds": [0], "settings": named}, tmp_path / "named", jobs=1)
    assert [call["gpu"] for call in processes()[len(calls) :]] == ["GPU-a,GPU-b"] * 2, "it chooses among all"


@pytest.fixture(autouse=True)
def _no_threads_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.mark.full
def test_the_time_is_told_before_the_first_cell_begins(
    small: dict[str, Any], processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(comparison, "TOLD_SECONDS", 0.0)
    said: list[str] = []
    compare(small, tmp_path / "out", say=said.append)
    assert re.fullmatch(r"rough estimate: about \d+ \w+ for 3 runs with their attacks", said[0])
    compare(small | {"seeds": [0, 1, 2, 3]}, tmp_path / "out", say=said.append)
    assert any(line.endswith(" for 1 run with their attacks") for line in said)
    assert len(processes()) == 8


def test_a_longer_run_is_foretold_to_be_longer(small: dict[str, Any], tmp_path: Path) -> None:
    def seconds(epochs: int) -> float:
        training = {"training": {**small["settings"]["training"], "epochs": epochs}}
        grid = parse(small | {"settings": small["settings"] | training})
        found = rough_seconds(cells(grid, tmp_path / "x"), 1)
        assert found is not None
        return found

    assert seconds(200) > 5 * seconds(1)


def test_the_user_decides_about_threads(small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "cores", lambda: 6)
    for given, expected in (("3", 3), ("1,2", 1), ("none", 2), ("0", 2)):
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        (planned, *_) = compare(small, tmp_path / "out", jobs=3, dry_run=True).outcomes
        assert f"--threads {expected} " in f"{planned.commands[0]} "


@pytest.mark.full
@pytest.mark.usefixtures("processes")
def test_a_running_cell_says_how_far_it_is_once(
    small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "TELL_SECONDS", 0.0)
    monkeypatch.setattr(comparison, "_last_line", lambda _: "at: 60 %, elapsed 0:20, ETA 1:20, epoch 1/2")
    said: list[str] = []
    compare(small | {"seeds": [0]}, tmp_path / "out", say=said.append)
    told = [line for line in said if line.endswith("at_digits-lt_seed0: at: 60 %, elapsed 0:20, ETA 1:20, epoch 1/2")]
    assert 1 <= len(told) <= 2, "of training, and of the attacks"


@pytest.mark.sample(2)
@pytest.mark.parametrize("where", ["", "0"])
def test_without_a_gpu_nothing_is_hidden_and_auto_is_one(
    small: dict[str, Any], processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", where)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr(comparison, "cores", lambda: 6)
    said: list[str] = []
    compare(small | {"seeds": [0, 1]}, tmp_path / "out", jobs="auto", say=said.append)
    assert {(call["gpu"], call["threads"]) for call in processes()} == {(where, "6")}
    assert [line.partition(": ")[2][:4] for line in said[1:]] == ["trai", "eval", "done"] * 2


@pytest.mark.full
def test_parts_do_all_cells_between_them_and_merge_reports(
    small: dict[str, Any], processes: Processes, tmp_path: Path
) -> None:
    found = [compare(small, tmp_path / "out", part=(part, 2)) for part in (2, 1)]
    assert [[outcome.cell.name for outcome in each.outcomes] for each in found] == [[NAMES[1]], [NAMES[0], NAMES[2]]]
    assert [each.report for each in found] == [None, None]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["logs", "runs"]
    before = len(processes())
    result = merge(small, tmp_path / "out")
    assert (states(result), result.report) == (["done"] * 3, tmp_path / "out" / "report.html")
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["counts"] == {"done": 3}
    assert len(processes()) == before
    assert not compare(small, tmp_path / "out", part=(4, 4)).outcomes


@pytest.mark.full
def test_a_part_that_was_preempted_goes_on(small: dict[str, Any], processes: Processes, tmp_path: Path) -> None:
    processes(seed2="hang")
    folder = tmp_path / "out" / "runs" / NAMES[2]

    def preempt() -> None:
        deadline = time.monotonic() + 30
        while not (folder / "hangs").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=preempt).start()
    with pytest.raises(KeyboardInterrupt):
        compare(small, tmp_path / "out", part=(1, 2))
    assert (folder / "saved").exists()
    assert not (tmp_path / "out" / "comparison.json").exists()
    processes()
    assert states(compare(small, tmp_path / "out", part=(1, 2))) == ["done", "done"]
    assert [call["words"][:2] for call in processes()[-2:]] == [["train", "--resume"], ["evaluate", str(folder)]]


def test_a_file_system_without_locks_is_no_hindrance(
    small: dict[str, Any], processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    number = errno.ENOSYS
    assert states(compare(small | {"seeds": [0]}, tmp_path / "out")) == ["done"]
    number = errno.EIO
    with pytest.raises(OSError, match="Input/output error"):
        compare(small | {"seeds": [1]}, tmp_path / "out")
    assert len(processes()) == 2


def test_mistakes_in_the_call(small: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="jobs: got 0; allowed: 1 or more, or auto"):
        compare(small, tmp_path, jobs=0)
    for part in ((0, 2), (3, 2), (1, 0)):
        with pytest.raises(UserError, match=r"part: got ./.; allowed: K/N with K from 1 to N, e.g. 3/16"):
            compare(small, tmp_path, part=part)
    with pytest.raises(UserError, match=r"merge: .*none holds no runs; allowed: a folder that a comparison was begun"):
        merge(small, tmp_path / "none")
    with pytest.raises(UserError, match="time budget: got 0 seconds"):
        compare(small, tmp_path, time_budget=0)
    with pytest.raises(UserError, match="got no out"):
        compare(small)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot make the folder"):
        compare(small, tmp_path / "file")


@pytest.mark.full
def test_the_precision_is_settled_once_for_all_cells(
    small: dict[str, Any], processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network of he has another head, so that it would be measured anew, with another result."""
    monkeypatch.setenv("TAET_CACHE", str(tmp_path / "cache"))
    times = [{"bf16": 1.0, "float32": 2.0}, {"bf16": 2.0, "float32": 1.0}]
    monkeypatch.setattr("taet.training.speed._fastest", lambda *_: times.pop(0))
    monkeypatch.setattr(comparison, "rough_seconds", lambda *_: None)  # which times the networks for itself
    training = {name: value for name, value in small["settings"]["training"].items() if name != "precision"}
    grid = small | {"methods": ["at", "he"], "seeds": [0, 1], "settings": small["settings"] | {"training": training}}
    said: list[str] = []
    compare(grid, tmp_path / "out", jobs=2, say=said.append)
    words = [call["words"] for call in processes() if call["words"][0] == "train"]
    assert [each[each.index("--precision") + 1] for each in words] == ["bf16"] * 4
    assert len(times) == 1
    assert "precision bf16 for all cells: measured 2.0 times as fast as float32 on this processor" in said
    held = json.loads((tmp_path / "out" / "comparison.json").read_text())["cells"]
    assert {cell["precision"] for cell in held} == {"float32"}, "as the stand-in recorded"
