"""The commands themselves: help, lists, exit statuses, what left, and what is not imported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from taet import __version__, cli, methods, registry
from taet.cli import COMMANDS, DEBUG, LEFT, main
from taet.errors import UserError


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"], ["help"]])
def test_help_lists_every_command(taet: Any, words: list[str]) -> None:
    outcome = taet(*words)
    assert (outcome.code, outcome.err) == (0, "")
    assert all(f"  {name} " in outcome.out for name in COMMANDS)
    assert len(COMMANDS) == 11


@pytest.mark.parametrize("command", [*COMMANDS, "train taet"])
def test_help_of_a_command_fits_two_screens_and_has_examples(
    taet: Any, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    outcome = taet(*command.split(), "--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.split("examples:")[1].strip().startswith(f"taet {command.split()[0]}")
    lines = outcome.out.splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) <= 100


def test_help_of_train_knows_the_method_and_the_protocol(taet: Any) -> None:
    text = " ".join(taet("train", "taet", "--help", "--protocol", "reat").out.split())
    assert "--method.clean-share" in text
    assert "default: 80" in text
    assert "--selection" not in text
    text = " ".join(taet("train", "taet", "--help", "all", "--protocol", "reat").out.split())
    assert "default: best-validation" in text.replace("- ", "-")


@pytest.mark.parametrize("left", LEFT)
def test_what_left_names_its_successor_in_one_line(taet: Any, left: str) -> None:
    outcome = taet(*left.split(), "x")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == f"taet: error: taet {left} was removed; instead: {LEFT[left]}\n"


def test_version(taet: Any) -> None:
    assert taet("--version").out == f"taet {__version__}\n"


@pytest.mark.parametrize("kind", ["methods", "attacks", "data", "models", "protocols", "recipes"])
def test_list(taet: Any, kind: Any) -> None:
    found = json.loads(taet("list", kind, "--json").out)
    assert all(entry["name"] and entry["title"] for entry in found)
    names = [entry["name"] for entry in found]
    if kind not in ("protocols", "recipes"):
        assert names == list(registry.entries(kind))
    lines = taet("list", kind).out.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == names


def test_methods_are_listed_with_their_papers_and_where_they_leave_the_protocol(taet: Any) -> None:
    found = {entry["name"]: entry for entry in json.loads(taet("list", "methods", "--json").out)}
    assert "arXiv:2503.01924" in found["taet"]["reference"]
    assert {name: entry["deviations"] for name, entry in found.items()} == {
        name: list(methods.find(name).deviations) for name in found
    }
    assert f"leaves the protocol: {found['las-at']['deviations'][0]}" in taet("list", "methods").out


# -- as a process ------------------------------------------------------------------------------------------------------


def python(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(Path(cli.__file__).parents[2]), os.environ.get("PYTHONPATH", "")]))
    options["env"] = {**os.environ, "PYTHONPATH": path}
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "check": False} | options
    return subprocess.run([sys.executable, *arguments], **given)


@pytest.mark.parametrize(
    "words",
    [["--help"], *([command, "--help"] for command in COMMANDS), ["train", "--help", "all"], ["list", "attacks"]],
)
def test_help_and_lists_import_no_torch(words: list[str]) -> None:
    code = f"import sys; from taet.cli import main; status = main({words}); sys.exit(status or 'torch' in sys.modules)"
    done = python("-W", "error", "-c", code)
    assert done.returncode == 0, done.stderr


def test_a_mistake_is_one_line_and_exit_status_2_and_debug_shows_the_traceback() -> None:
    done = python("-m", "taet", "trian")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("taet: error: unknown command 'trian'; allowed: check, compare, data, demo")
    assert done.stderr.count("\n") == 1
    done = python("-m", "taet", "list", "methds", "--debug")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "did you mean 'methods'?" in done.stderr


def test_a_reader_that_goes_away_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        done = python("-m", "taet", "list", "attacks", stdout=gone)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
def test_a_full_disk_under_the_output_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = python("-m", "taet", "list", "attacks", stdout=full)
    assert (done.returncode, done.stderr) == (2, "taet: error: output: No space left on device\n")


def test_no_file_of_the_current_directory_is_imported(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(3)\n")
    done = python("-m", "taet", "list", "attacks", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)


def test_debug_reaches_the_processes_that_a_command_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (DEBUG, "PYTHONSAFEPATH"):  # what the command sets does not outlast this test
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert main(["list", "protocols", "--debug"]) == 0
    assert DEBUG not in os.environ  # a call from Python leaves the environment as it is
    monkeypatch.setattr(sys, "argv", ["taet", "list", "protocols", "--debug"])
    assert main() == 0
    assert os.environ[DEBUG] == "1"


# -- the last net ------------------------------------------------------------------------------------------------------

MEMORY = (
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("could not create a primitive"),
    RuntimeError("unable to mmap 4096 bytes from file <x>: Cannot allocate memory (12)"),
    RuntimeError("can't start new thread"),
    ImportError("libfoo.so: failed to map segment from shared object"),
    OSError(12, "Cannot allocate memory"),
    OSError(12, "Cannot allocate memory", "a-file"),
)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        *((error, 1, f"out of memory: {type(error).__name__}") for error in MEMORY),
        (ValueError("a\nb"), 1, "unexpected: ValueError: a b. Please report this to the authors of taet"),
        (RecursionError("maximum recursion depth exceeded"), 1, "unexpected: RecursionError: maximum"),
        (SystemExit(0), 1, "unexpected: SystemExit: 0"),
        (OSError("no number"), 1, "unexpected: OSError: no number"),
        (PermissionError(13, "Permission denied", "a-file"), 2, "a-file: Permission denied"),
        (OSError(28, "No space left on device", b"a-file"), 2, "a-file: No space left on device"),
        (UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed"), 1, "unexpected: UnicodeEncodeError"),
        (UserError("got \u202e\x1b[1m"), 2, "got \\u202e\\x1b[1m"),
    ],
)
def test_whatever_ends_a_command_is_one_line(
    taet: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    def fail(_: list[str]) -> None:
        raise error

    monkeypatch.setattr("taet.cli.list.run", fail)
    outcome = taet("list", "methods")
    assert (outcome.code, outcome.err.count("\n")) == (code, 1)
    assert outcome.err.startswith(f"taet: error: {message}")
    debug = taet("list", "methods", "--debug")
    assert "Traceback" in debug.err
    assert debug.err.endswith(outcome.err)


def test_an_interruption_is_one_line_and_exit_status_130(taet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("taet.cli.list.run", interrupted)
    outcome = taet("list", "methods")
    assert (outcome.code, outcome.err.strip()) == (130, "taet: interrupted; only finished work is kept")
