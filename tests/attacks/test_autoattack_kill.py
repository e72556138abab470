"""SIGKILL at random moments of AutoAttack: the same flags in the end, and at most one batch repeated per kill."""

from __future__ import annotations

import multiprocessing
import random
import runpy
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from taet.attacks.autoattack import run_parts
from taet.attacks.units import Unit
from taet.evaluation.store import BatchStore

# A server that has imported torch once and forks: a process then starts in milliseconds, so that many can be killed.
CONTEXT = multiprocessing.get_context("forkserver")
KILLS = 12
TIMEOUT = 120
CLASSES, IMAGES, BATCH, EPS = 4, 60, 5, 0.08


class Counting(BatchStore):
    """BatchStore that also note, before each is written, that it was done."""

    def put(self, key: str, arrays: Unit) -> None:
        self.folder.parent.mkdir(exist_ok=True)
        with (self.folder.parent / "done.txt").open("a") as file:
            file.write(f"{key}\n")
        super().put(key, arrays)


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 6, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(54, CLASSES))


def prepare(file: Path) -> None:
    """Train a small network, once, and write it down with the images that it has not seen."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.rand(CLASSES, 1, 8, 8, generator=generator)
    y = torch.arange(4 * IMAGES) % CLASSES
    x = (patterns[y] + 0.3 * torch.randn(len(y), 1, 8, 8, generator=generator)).clamp(0, 1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = network()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[IMAGES:]), y[IMAGES:]).backward()
        optimizer.step()
    torch.save({"weights": model.state_dict(), "x": x[:IMAGES], "y": y[:IMAGES]}, file)


def work(folder: Path) -> None:
    """What is killed: the four attacks on a state on disk, whose outcome is then saved."""
    sys.modules["taet.attacks.autoattack"].QUERIES = 40  # type: ignore[attr-defined]
    torch.set_num_threads(1)
    task = torch.load(folder.parent / "task.pt", weights_only=True)
    model = network()
    model.load_state_dict(task["weights"])
    state = Counting(folder, "autoattack", "")
    outcome = run_parts(model, task["x"], task["y"], eps=EPS, version="10", batch_size=BATCH, state=state)
    assert outcome.x_adv is not None
    kept = {"x_adv": outcome.x_adv, "predictions": outcome.predictions, "correct": outcome.correct, **outcome.parts}
    np.savez(folder / "outcome.npz", **{name: value.numpy() for name, value in kept.items()})


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], BaseProcess]:
    """Start `work` in a folder as a process of its own."""
    CONTEXT.set_forkserver_preload(["taet.attacks", "taet.evaluation.store", "pyautoattack", "pytest"])

    def start(folder: Path) -> BaseProcess:
        monkeypatch.setattr(sys, "argv", [__file__, str(folder)])
        process = CONTEXT.Process(target=runpy.run_path, args=(__file__,), kwargs={"run_name": "__main__"})
        process.start()
        return process

    return start


def done(folder: Path) -> list[str]:
    """The units that were done so far, in the order of their doing."""
    path = folder / "done.txt"
    return path.read_text().split() if path.exists() else []


def wait(process: BaseProcess, folder: Path, count: int) -> float:
    """Wait until so many units are done, and return when that was."""
    deadline = time.monotonic() + TIMEOUT
    while len(done(folder)) < count:
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return time.monotonic()


@pytest.mark.full
def test_a_suite_that_is_killed_again_and_again(launch: Callable[[Path], BaseProcess], tmp_path: Path) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "run"
    prepare(tmp_path / "task.pt")
    process = launch(whole)
    begun = wait(process, whole, 1)
    process.join(TIMEOUT)
    assert process.exitcode == 0
    units = done(whole)
    assert len(set(units)) == len(units) > 3 * KILLS
    usual = (time.monotonic() - begun) / len(units)  # seconds of a unit on this machine
    draw = random.Random(0)
    for _ in range(KILLS):
        before = len(done(folder))
        process = launch(folder)
        wait(process, folder, before + 1)  # so that every life does something
        time.sleep(draw.uniform(0, 1.5 * usual))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not (folder / "outcome.npz").exists()
    process = launch(folder)
    process.join(TIMEOUT)
    assert process.exitcode == 0
    assert set(done(folder)) == set(units)
    assert len(done(folder)) <= len(units) + KILLS
    with np.load(folder / "outcome.npz") as found, np.load(whole / "outcome.npz") as expected:
        assert found.files == expected.files
        assert all((found[name] == expected[name]).all() for name in expected.files)
        assert 0 < expected["correct"].sum() < IMAGES


if __name__ == "__main__":
    work(Path(sys.argv[1]))
