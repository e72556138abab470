"""Who sees the progress of long work."""

import io
import sys

import pytest

from taet.progress import TimeLeft, chosen, shown


class Terminal(io.StringIO):
    """A standard error that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def reported(progress: object) -> None:
    """Report half and all of a piece of work to what the argument stands for."""
    with chosen(progress, "work") as report:
        if report is not None:
            report(1, 2, "half\n")
            report(2, 2, "all")


def test_nothing_is_shown_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    reported(None)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_shows_a_bar_and_keeps_the_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    reported(None)
    shown = terminal.getvalue()
    assert "work: half" in shown
    assert "100%" in shown


def test_a_terminal_shows_nothing_if_the_caller_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    reported(False)
    assert terminal.getvalue() == ""


def test_a_log_gets_lines_if_the_caller_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    reported(True)
    out, lines = capsys.readouterr()
    assert out == ""
    assert [line.partition(",")[0] for line in lines.splitlines()] == ["work: 50 %", "work: 100 %"]


def test_a_notebook_without_widgets_gets_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    reported(None)
    assert "work: 100 %" in capsys.readouterr().err


def test_a_function_gets_the_reports_and_nothing_is_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen: list[tuple[float, float, str]] = []
    reported(lambda *report: seen.append(report))
    assert seen == [(1, 2, "half\n"), (2, 2, "all")]
    assert capsys.readouterr() == ("", "")


def test_a_steady_speed_gives_one_time() -> None:
    time_left = TimeLeft()
    time_left.after(0, 0, 1)
    for second in range(1, 100):
        text = time_left.after(second, second, 200)
    assert text == "0:01:41"


def test_a_first_moment_gives_no_time() -> None:
    time_left = TimeLeft()
    time_left.after(0, 0, 1)
    assert time_left.after(1, 1, 4500) == ""
    assert time_left.after(2, 100, 4500) == "0:01:28"


def test_slow_work_gives_a_time_after_a_minute() -> None:
    time_left = TimeLeft()
    time_left.after(0, 0, 1)
    assert time_left.after(59, 1, 1000) == ""
    assert time_left.after(60, 1, 1000) == "16:39:00"


def test_what_came_before_the_first_report_is_not_part_of_the_speed() -> None:
    """Twelve seconds of preparation, and then a tenth of the work a second."""
    time_left = TimeLeft()
    assert time_left.after(12, 0, 100) == ""
    assert time_left.after(13, 10, 100) == "0:00:09"


def test_a_neighbour_that_starts_gives_a_range() -> None:
    """One unit a second, and after 100 seconds a quarter of it."""
    time_left = TimeLeft()
    time_left.after(0, 0, 1)
    for second in range(1, 101):
        time_left.after(second, second, 300)
    for second in range(101, 221):
        text = time_left.after(second, 100 + (second - 100) / 4, 300)
    low, _, high = text.partition(" to ")
    assert (low, high) == ("0:04:48", "0:11:20")


def test_after_a_while_the_time_is_one_again() -> None:
    """The neighbour works for two minutes, and is gone for forty."""
    time_left, done = TimeLeft(), 0.0
    for second in range(1, 2520):
        done += 0.25 if second < 120 else 1
        text = time_left.after(second, done, 4000)
    assert text == "0:26:39"


def test_a_share_that_was_shown_never_goes_back(capsys: pytest.CaptureFixture[str]) -> None:
    with shown("work") as report:
        report(16, 100, "quick\n")
        report(17, 400, "more than was expected\n")
        report(200, 400, "half\n")
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(",")[0] for line in lines] == [
        "work: 16 %",
        "work: 16 %",
        "work: 50 %",
    ]
