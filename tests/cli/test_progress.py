"""Progress without a terminal."""

from __future__ import annotations

import pytest

from taet.cli import processes


def test_a_line_at_the_start_every_ten_seconds_of_every_result_and_at_the_end(
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
