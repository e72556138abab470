"""`taet evaluate --processes`: they share the batches, speak as one, and end together."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from taet.cli import evaluate, main, processes
from taet.errors import UserError
from taet.evaluation import ResultCard

TIMEOUT = 120
SMALL = ("--eps", "0.02", "--batch-size", "16")
WORDS = ("--attacks", "fgsm", "pgd-3", "cw-linf-5", *SMALL)
LONG = ("--attacks", "autoattack", *SMALL)


@pytest.fixture
def folder(finished: Any, tmp_path: Path) -> Path:
    """A copy of a finished run that nobody has attacked."""
    return Path(shutil.copytree(finished.folder, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation*")))


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `taet evaluate ... --processes 2`; what still runs after the test is ended."""
    started: list[subprocess.Popen[str]] = []

    def run(*words: str | Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "taet", "evaluate", *map(str, words), "--processes", "2"]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        started.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
        return started[-1]

    yield run
    for process in started:
        process.kill()  # the others end with it
        process.communicate()


def children(process: subprocess.Popen[str]) -> list[int]:
    """Numbers of the processes that share the work."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(found) == 2
    return list(map(int, found))


linux = pytest.mark.skipif(sys.platform != "linux", reason="children are found in /proc")


def at_work(process: subprocess.Popen[str], folder: Path) -> None:
    """Wait until some batches are done."""
    deadline = time.monotonic() + TIMEOUT
    while not any(folder.glob("evaluation-state/autoattack-*/*.npz")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.full
def test_two_processes_give_the_card_of_one_and_print_it_once(
    folder: Path, taet: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    alone = Path(shutil.copytree(folder, tmp_path / "alone"))
    code = main(["evaluate", str(folder), *WORDS, "--processes", "2"])
    out, err = capfd.readouterr()
    assert code == 0, err
    assert "Traceback" not in err
    outcome = taet("evaluate", alone, *WORDS)
    assert out == outcome.out.replace(str(alone), str(folder))
    card, expected = (ResultCard.load(place) for place in (folder, alone))
    assert card.command == expected.command.replace(str(alone), str(folder))
    for column, wanted in zip(card.columns, expected.columns, strict=True):
        assert (column.predictions == wanted.predictions).all()
        assert (column.forwards, column.backwards) == (wanted.forwards, wanted.backwards)


@pytest.mark.full
def test_a_mistake_is_one_line_and_exit_status_2(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "model.safetensors").write_bytes(b"x" * 100)
    code = main(["evaluate", str(folder), *WORDS, "--processes", "2"])
    out, err = capfd.readouterr()
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("taet: error: ")
    assert "model.safetensors" in line


@pytest.mark.full
def test_ctrl_c_ends_all_with_one_line_and_what_was_done_is_kept(
    folder: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    process = start(folder, *LONG)
    at_work(process, folder)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, out) == (130, "")
    (line,) = [line for line in err.splitlines() if "taet: " in line]
    assert line.startswith(f"taet: interrupted; progress is saved in {folder}; continue with: taet evaluate {folder} ")
    assert "Traceback" not in err
    assert any(folder.glob("evaluation-state/autoattack-*/*.npz"))
    assert not (folder / "evaluation.json").exists()


@linux
@pytest.mark.full
def test_processes_whose_parent_is_killed_do_not_go_on(
    folder: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    process = start(folder, *LONG)
    at_work(process, folder)
    left = children(process)
    process.kill()
    process.communicate(timeout=TIMEOUT)  # ends when nobody holds its output any more
    deadline = time.monotonic() + TIMEOUT
    while any(Path(f"/proc/{number}").exists() for number in left):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not (folder / "evaluation.json").exists()


@linux
@pytest.mark.full
def test_a_process_that_dies_ends_the_others_with_one_line(
    folder: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    process = start(folder, *LONG)
    at_work(process, folder)
    os.kill(children(process)[1], signal.SIGKILL)
    _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 2
    (line,) = [line for line in err.splitlines() if line.startswith("taet: ")]
    assert line.startswith("taet: error: another process of this job has ended (")
    assert line.endswith("); finished batches are kept")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("device", "gpus", "count"), [("cpu", 0, 5), ("cuda", 3, 3), ("cuda:1", 3, 1), ("auto", 0, 5), ("auto", 3, 3)]
)
def test_one_process_per_gpu_or_core(device: str, gpus: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "cores", lambda: 5)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    assert processes.number_of("auto", device) == count


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (("--attacks", "autoattack", "--batch-size", "1"), 2),
        (("--attacks", "autoattack", "--batch-size", "1000"), 1),
        (("--attacks", "clean", "pgd-3", "--batch-size", "1"), 1),
        (("--attacks", "autoattack", "--batch-size", "1", "--processes", "1"), 1),
    ],
)
def test_a_run_with_enough_work_is_shared_unasked(
    words: tuple[str, ...], count: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "cores", lambda: 2)
    monkeypatch.setattr(processes, "WORTH_STARTING", 5e4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    started: list[tuple[int, int | None]] = []
    monkeypatch.setattr(processes, "run_together", lambda count, _, threads: started.append((count, threads)) or 0)
    monkeypatch.setattr(evaluate, "_attack", lambda *_: (folder / "run.json", ""))
    assert main(["evaluate", str(folder), "--device", "cpu", *words]) == 0
    assert started == ([(2, 1)] if count == 2 else [])


def test_one_gpu_is_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert processes.number_of(1, "cuda:1") == 1
    with pytest.raises(UserError, match="processes: got 2 on cuda:1, which is one GPU"):
        processes.number_of(2, "cuda:1")


def test_one_of_several_processes_starts_no_others(taet: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    outcome = taet("evaluate", folder, "--processes", "2")
    assert (outcome.code, outcome.err) == (
        2,
        "taet: error: processes: got 2 in one of several processes; allowed: without torchrun\n",
    )


# -- progress without a terminal ---------------------------------------------------------------------------------------


def test_progress_is_a_line_at_the_start_every_ten_seconds_and_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr("taet.cli.processes.time.monotonic", lambda: clock[0])
    steps = [(50, "resumed"), (51, "soon"), (60, "on"), (61, "a result\n"), (100, "end"), (100, "again"), (0, "other")]
    with processes.progress("train") as report:
        for now, (done, text) in zip((0, 5, 20, 21, 40, 41, 60), steps, strict=True):
            clock[0] = 100.0 + now
            report(done, 100, text)
    assert capsys.readouterr().err.splitlines() == [
        "train: 50 %, elapsed 0:00, resumed",
        "train: 60 %, elapsed 0:20, ETA 1:20, on",
        "train: 61 %, elapsed 0:21, ETA 1:14, a result",
        "train: 100 %, done in 0:40, end",
        "train: 0 %, elapsed 0:00, other",
    ]


def test_an_interruption_names_the_way_on_once() -> None:
    with pytest.raises(KeyboardInterrupt) as caught, processes.saved(["evaluate", "a b"], Path("a b")):
        raise KeyboardInterrupt
    assert str(caught.value) == "progress is saved in a b; continue with: taet evaluate 'a b'"
    with pytest.raises(KeyboardInterrupt, match=r"^it$"), processes.saved(["evaluate", "x"]):
        raise KeyboardInterrupt("it")
