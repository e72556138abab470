"""Progress without a terminal: a line at the start, one every ten seconds, and one at the end."""

from __future__ import annotations

import io
from pathlib import Path
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
        "evaluate x: 0 %, elapsed 0:00, pgd-20",
        "evaluate x: 100 %, done in 0:00, pgd-20",
    ]


def test_the_end_is_one_line_though_it_is_reported_twice(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress("at") as report:
        for done in (0, 4, 4):
            report(done, 4, "epoch 2/2")
    assert capsys.readouterr().err.splitlines() == [
        "at: 0 %, elapsed 0:00, epoch 2/2",
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
    assert capsys.readouterr().err.splitlines()[1] == "train: 60 %, elapsed 0:20, ETA 1:20, on"


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


def test_a_result_has_a_line_of_its_own_at_once_and_then_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("taet.cli.progress.time.monotonic", lambda: clock[0])
    with progress.progress("at") as report:
        for second, text in enumerate(["epoch 1/9", "epoch 1/9 · clean 20 %\n", "epoch 2/9 · clean 30 %\n"]):
            clock[0] = second
            report(second, 100, text)
        clock[0] = 50
        report(50, 100, "epoch 3/9 · clean 40 %\n")
    assert [line.partition(", epoch ")[2] for line in capsys.readouterr().err.splitlines()] == [
        "1/9",
        "1/9 · clean 20 %",
        "3/9 · clean 40 %",
    ]


def test_another_piece_of_work_has_its_own_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("taet.cli.progress.time.monotonic", lambda: clock[0])
    with progress.progress("at") as report:
        for now, done, total in ((0, 0, 39_000), (10, 39_000, 39_000), (20, 0, 500), (30, 100, 500)):
            clock[0] = now
            report(done, total, "files" if total > 500 else "epoch 1/1")
    assert capsys.readouterr().err.splitlines()[1:] == [
        "at: 100 %, done in 0:10, files",
        "at: 0 %, elapsed 0:00, epoch 1/1",
        "at: 20 %, elapsed 0:10, ETA 0:40, epoch 1/1",
    ]


def test_an_interruption_names_the_way_on_once() -> None:
    with pytest.raises(KeyboardInterrupt) as caught, progress.saved(["evaluate", "a b"], Path("a b")):
        raise KeyboardInterrupt
    assert str(caught.value) == "progress is saved in a b; continue with: taet evaluate 'a b'"
    with pytest.raises(KeyboardInterrupt, match=r"^it$"), progress.saved(["evaluate", "x"]):
        raise KeyboardInterrupt("it")
