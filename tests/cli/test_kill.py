"""SIGKILL and SIGINT on real processes: what is resumed ends as what was never stopped, bit for
bit."""

import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from taet.evaluation import ResultCard
from tests.calls import PATIENCE

KILLS = 3
Fork = Callable[..., BaseProcess]


def finish(process: BaseProcess) -> None:
    process.join(PATIENCE)
    assert process.exitcode == 0


def kill(process: BaseProcess, progress: Callable[[], object], after: float) -> bool:
    """Kill it that many seconds after it has made progress; had it not ended by itself?"""
    deadline, before = time.monotonic() + PATIENCE, progress()
    while process.is_alive() and progress() == before:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.join(after)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


@pytest.mark.full
def test_training_that_is_killed_again_and_again(
    fork: Fork, small: list[str], tmp_path: Path, assert_same: Callable[[Path, Path], None]
) -> None:
    words = ["train", "taet", *small, "--epochs", "10", "--save-minutes", "0.0005"]
    words += ["--data.validation", "0.2", "--selection", "best-validation"]
    finish(fork("taet", *words, "--out", tmp_path / "whole"))
    draw, folder, killed = random.Random(0), tmp_path / "run", 0

    def saved() -> int | None:
        path = folder / "checkpoint.pt"
        return path.stat().st_mtime_ns if path.exists() else None

    for _ in range(KILLS):
        begun = (folder / "run.json").exists()
        process = fork(
            "taet", *(["train", "--resume", folder] if begun else [*words, "--out", folder])
        )
        killed += kill(process, saved, after=draw.uniform(0, 0.2))
    assert killed > 1
    finish(fork("taet", "train", "--resume", folder))
    for part in folder.glob("*.part"):
        part.unlink()
    assert_same(folder, tmp_path / "whole")


@pytest.mark.full
def test_an_evaluation_that_is_killed_again_and_again(
    fork: Fork, small: list[str], tmp_path: Path
) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "run"
    finish(fork("taet", "train", "at", *small, "--epochs", "5", "--out", whole))
    shutil.copytree(whole, folder)
    words = ["--attacks", "pgd-20", "cw-linf-20", "deepfool", "--eps", "0.05", "--batch-size", "2"]
    finish(fork("taet", "evaluate", whole, *words))
    draw, killed = random.Random(1), 0
    for _ in range(KILLS):
        done = len(list(folder.glob("evaluation-state/*/*.npz")))
        process = fork("taet", "evaluate", folder, *words)
        killed += kill(
            process,
            lambda: len(list(folder.glob("evaluation-state/*/*.npz"))),
            after=draw.uniform(0, 0.2),
        )
        assert (
            len(list(folder.glob("evaluation-state/*/*.npz"))) > done
            or (folder / "evaluation.json").exists()
        )
    assert killed > 0
    finish(fork("taet", "evaluate", folder, *words))
    card, expected = (ResultCard.load(place) for place in (folder, whole))
    for column, wanted in zip(card.columns, expected.columns, strict=True):
        assert (column.predictions == wanted.predictions).all()
        assert (column.forwards, column.backwards) == (wanted.forwards, wanted.backwards)


@pytest.mark.full
def test_ctrl_c_is_one_line_and_the_run_goes_on(
    fork: Fork, small: list[str], tmp_path: Path, assert_same: Callable[[Path, Path], None]
) -> None:
    words = ["train", "at", *small, "--epochs", "24"]
    finish(fork("taet", *words, "--out", tmp_path / "whole"))
    folder, deadline = tmp_path / "run", time.monotonic() + PATIENCE
    command = [sys.executable, "-m", "taet", *words, "--out", str(folder), "--evaluate"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    # The first checkpoint would be too early: a shell that starts the tests in the background makes
    # processes ignore SIGINT, until training installs its handler.
    while not ((folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").stat().st_size):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (130, "")
    again = f"taet train --resume {folder} --evaluate"
    assert err.splitlines()[-1] == (
        f"taet: interrupted; progress is saved in {folder}; continue with: {again}"
    )
    finish(fork("taet", "train", "--resume", folder))
    assert_same(folder, tmp_path / "whole")
