"""Who sees the progress of long work."""

import io
import sys

import pytest

from taet.progress import chosen


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
