"""Threads by what other programs leave idle, and estimates against what was recorded."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from taet import machine as pace
from taet.idle_cores import Ticks, threads_for
from taet.run.folder import RunFolder
from taet.settings import Run
from taet.training import prepare, resume, train

STEPS = json.loads(Path(__file__).with_name("steps.json").read_text())
"""Seconds of each step of TAET on HAM10000, on idle cores or beside programs."""


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("stage", ["clean", "adversarial"])
def test_a_few_steps_tell_how_long_an_epoch_takes(
    name: str, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    walls, clock = STEPS[name][stage], [0.0]
    steps = iter(walls)

    def step() -> None:
        clock[0] += next(steps)

    monkeypatch.setattr(pace.time, "monotonic", lambda: clock[0])
    allowed = 1.5 if name.startswith("idle") else 3
    assert 1 / allowed < pace.seconds_of(step, pace.torch.device("cpu")) / np.mean(walls) < allowed


@pytest.mark.parametrize(
    ("idle", "expected"),
    [
        (160, (8, "")),
        (156, (8, "")),
        (100, (5, "3.0 of 8 cores, 5 threads")),
        (0, (1, "8.0 of 8 cores, 1 thread")),
    ],
)
def test_new_work_takes_the_cores_that_are_idle(idle: int, expected: tuple[int, str]) -> None:
    threads, why = threads_for(8, 8, Ticks(1000, 500), Ticks(1160, 500 + idle))
    assert (threads, why.removeprefix("machine busy: others use ")) == expected
    # a system that does not count
    assert threads_for(8, 8, Ticks(1000, 500), Ticks(1000, 500)) == (8, "")


@pytest.mark.full
def test_a_run_that_begins_on_a_busy_machine_keeps_its_threads(
    tiny: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = [Ticks(0, 0), Ticks(100, 50)]
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(pace.os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(pace, "read_ticks", lambda: ticks.pop(0))
    run = tiny("at", {"training.threads": None, "training.epochs": 1})
    with pace.using(2):
        plan, _ = prepare.prepare(run)
        assert plan.choices["training.threads"] == (
            1,
            "machine busy: others use 1.0 of 2 cores, 1 thread",
        )
        ticks += [Ticks(0, 0), Ticks(100, 50)]
        train(run, out=tmp_path / "run")
        assert RunFolder(tmp_path / "run").record.threads == 1
        assert resume(tmp_path / "run").run.training.threads == 1


def test_processes_that_share_a_step_time_as_many_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "world_size", lambda: 2)
    steps = list[None]()
    pace.seconds_of(lambda: steps.append(None), pace.torch.device("cpu"))
    assert len(steps) == pace.FEWEST
