"""SIGKILL and SIGINT on real processes: what is resumed ends as what was never stopped, bit for bit."""

from __future__ import annotations

import functools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest

from taet.data import load
from taet.evaluation import ResultCard

KILLS = 3
TIMEOUT = 120


@pytest.fixture
def launch(fork: Callable[..., BaseProcess]) -> Callable[..., BaseProcess]:
    """Start `python -m taet ARGUMENTS` as a process that begins at once, so that many can be killed."""
    return functools.partial(fork, "taet")


def finish(process: BaseProcess) -> float:
    """Wait until it has ended well, and return how long that took."""
    begun = time.monotonic()
    process.join(TIMEOUT)
    assert process.exitcode == 0
    return time.monotonic() - begun


def kill(process: BaseProcess, progress: Callable[[], object], after: float) -> bool:
    """Kill it that many seconds after it has made progress; had it not ended by itself?"""
    deadline, before = time.monotonic() + TIMEOUT, progress()
    while process.is_alive() and progress() == before:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.join(after)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def written(path: Path) -> int | None:
    """When the file was written last."""
    return path.stat().st_mtime_ns if path.exists() else None


def written_bytes(path: Path) -> int:
    """The size of the file, 0 while there is none."""
    return path.stat().st_size if path.exists() else 0


@pytest.mark.full
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("at", ""),
        ("taet", ""),  # the stage changes after four of ten epochs
        ("at-bsl", "--data.validation 0.2 --selection best-validation --precision bf16"),
    ],
)
def test_training_that_is_killed_again_and_again(
    launch: Callable[..., BaseProcess],
    small: list[str],
    tmp_path: Path,
    assert_same: Callable[[Path, Path], None],
    method: str,
    options: str,
) -> None:
    words = ["train", method, *small, "--epochs", "10", "--save-minutes", "0.0005"]
    words += options.split()
    finish(launch(*words, "--out", tmp_path / "whole"))
    draw, folder, killed = random.Random(method), tmp_path / "run", 0
    for _ in range(KILLS):
        begun = (folder / "run.json").exists()
        process = launch("train", "--resume", folder) if begun else launch(*words, "--out", folder)
        killed += kill(process, lambda: written(folder / "checkpoint.pt"), after=draw.uniform(0, 0.2))
    assert killed > 1
    finish(launch("train", "--resume", folder))
    for part in folder.glob("*.part"):
        part.unlink()
    assert_same(folder, tmp_path / "whole")


@pytest.mark.full
def test_an_evaluation_that_is_killed_again_and_again(
    launch: Callable[..., BaseProcess], small: list[str], tmp_path: Path
) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "run"
    digits = load(name="digits-lt", max_count=60, test_max_count=40)
    few = {part: split.labels < 4 for part, split in digits.splits.items()}  # four classes: a suite of seconds
    arrays = {f"{part}_images": split.images[few[part]] for part, split in digits.splits.items()}
    arrays |= {f"{part}_labels": split.labels[few[part]] for part, split in digits.splits.items()}
    np.savez(tmp_path / "four.npz", **arrays)
    finish(launch("train", "at", *small, "--data", f"npz:{tmp_path / 'four.npz'}", "--epochs", "10", "--out", whole))
    shutil.copytree(whole, folder)
    words = ["--attacks", "pgd-5", "autoattack-10", "--eps", "0.05", "--batch-size", "16"]
    finish(launch("evaluate", whole, *words))

    def units() -> int:
        return len(list(folder.glob("evaluation-state/*/*.npz")))

    draw, killed = random.Random(1), 0
    for _ in range(KILLS):
        before = units()
        killed += kill(launch("evaluate", folder, *words), units, after=draw.uniform(0, 0.3))
        assert units() > before or (folder / "evaluation.json").exists()  # what was done is kept
    assert killed > 1
    finish(launch("evaluate", folder, *words))
    card, expected = (ResultCard.load(place / "evaluation.json") for place in (folder, whole))
    for column, wanted in zip(card.columns, expected.columns, strict=True):
        assert (column.correct == wanted.correct).all()
        assert (column.predictions == wanted.predictions).all()
        assert column.parts.keys() == wanted.parts.keys()
        assert all((column.parts[name] == mask).all() for name, mask in wanted.parts.items())
        assert (column.forwards, column.backwards) == (wanted.forwards, wanted.backwards)
    assert 0 < card.column("autoattack-10").correct.sum() < card.column("clean").correct.sum()
    assert len(card.column("autoattack-10").parts) == 4
    examples, wanted_examples = (np.load(place / "artifacts" / "examples.npz") for place in (folder, whole))
    with examples, wanted_examples:
        assert all((examples[name] == wanted_examples[name]).all() for name in wanted_examples.files)


@pytest.mark.full
def test_ctrl_c_is_one_line_and_the_run_goes_on(
    launch: Callable[..., BaseProcess], small: list[str], tmp_path: Path, assert_same: Callable[[Path, Path], None]
) -> None:
    words = ["train", "at", *small, "--epochs", "24"]
    finish(launch(*words, "--out", tmp_path / "whole"))
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "taet", *words, "--out", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    )
    deadline = time.monotonic() + TIMEOUT
    # The first checkpoint would be too early: a shell that starts the tests in the background makes processes ignore
    # SIGINT, until training installs its handler.
    while not written_bytes(folder / "metrics.jsonl"):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, out) == (130, "")
    last = err.splitlines()[-1]
    assert last == f"taet: interrupted; progress is saved in {folder}; continue with: taet train --resume {folder}"
    assert "Traceback" not in err
    assert not (folder / "done").exists()
    finish(launch("train", "--resume", folder))
    assert_same(folder, tmp_path / "whole")
