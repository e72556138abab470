"""Progress without a terminal: a line at the start, one every ten seconds, and one at the end."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress, ProgressColumn

from taet.cli import progress


def test_short_work_is_two_lines_without_a_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress("evaluate x") as report:
        for done in range(5):
            report(done, 4, "pgd-20")
    assert capsys.readouterr().err.splitlines() == [
        "evaluate x: 0 %, 0:00 gone, pgd-20",
        "evaluate x: 100 %, done in 0:00, pgd-20",
    ]


def test_the_end_is_one_line_though_it_is_reported_twice(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress("at") as report:
        for done in (0, 4, 4):
            report(done, 4, "epoch 2/2")
    assert capsys.readouterr().err.splitlines() == [
        "at: 0 %, 0:00 gone, epoch 2/2",
        "at: 100 %, done in 0:00, epoch 2/2",
    ]


def test_the_time_left_follows_what_was_done_since_the_start(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr("taet.cli.progress.time.monotonic", lambda: clock[0])
    with progress.progress("train") as report:
        report(50, 100, "resumed")
        clock[0] += 20
        report(60, 100, "on")
    assert capsys.readouterr().err.splitlines()[1] == "train: 60 %, 0:20 gone, 1:20 left, on"


def test_a_terminal_keeps_the_time_left_though_updates_are_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[Progress] = []
    clock = [0.0]

    class Bar(Progress):
        def __init__(self, *columns: ProgressColumn, **options: Any) -> None:
            super().__init__(*columns, get_time=lambda: clock[0], **options)
            bars.append(self)

    monkeypatch.setattr(progress, "Progress", Bar)
    terminal = Console(file=io.StringIO(), force_terminal=True)
    monkeypatch.setattr(progress, "Console", lambda **_: terminal)
    with progress.progress("evaluate") as report:
        for done in range(4):
            clock[0] += 200
            report(done, 10, "square")
        assert bars[0].tasks[0].time_remaining == pytest.approx(1400)
