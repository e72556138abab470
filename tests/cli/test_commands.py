"""The commands themselves: help, lists, exit statuses, and what is not imported."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from taet import __version__, cli, methods, registry
from taet.cli import COMMANDS
from taet.cli.list import ATTACK_SETS
from taet.errors import UserError


def test_help_lists_every_command(taet: Any) -> None:
    outcome = taet("--help")
    assert outcome == taet() == taet("help")
    assert (outcome.code, outcome.err) == (0, "")
    assert all(f"  {name} " in outcome.out for name in COMMANDS)
    assert taet("--version").out == f"taet {__version__}\n"


@pytest.mark.parametrize("command", [*COMMANDS, "train taet"])
def test_help_of_a_command_fits_two_screens_and_has_examples(
    taet: Any, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    outcome = taet(*command.split(), "--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.split("examples:")[1].strip().startswith(f"taet {command.split()[0]}")
    assert len(outcome.out.splitlines()) <= 80


def test_help_of_train_knows_the_method_and_the_protocol(taet: Any) -> None:
    text = " ".join(taet("train", "taet", "--help", "--protocol", "reat").out.split())
    assert "--method.clean-share" in text
    assert "default: 80" in text
    assert "--selection" not in text
    text = " ".join(taet("train", "taet", "--help", "all", "--protocol", "reat").out.split())
    assert "default: best-validation" in text.replace("- ", "-")
    assert "default: 0.0" in text.split("--ema")[1].split(" --")[0]


def test_attacks_lists_whatever_the_option_attacks_takes(taet: Any) -> None:
    from taet.evaluation.attack_sets import CURVES
    from taet.protocols import COLUMNS

    listed = {row["name"] for row in json.loads(taet("list", "attacks", "--json").out)}
    assert {*CURVES, *COLUMNS} <= listed


@pytest.mark.parametrize("kind", [*get_args(registry.Kind), "protocols", "recipes"])
def test_list(taet: Any, kind: Any) -> None:
    found = json.loads(taet("list", kind, "--json").out)
    assert all(entry["name"] and entry["title"] for entry in found)
    names = [entry["name"] for entry in found]
    if kind == "attacks":
        assert names == [*registry.entries(kind), *ATTACK_SETS]
    elif kind not in ("protocols", "recipes"):
        assert names == list(registry.entries(kind))
    if kind == "methods":
        assert [entry["deviations"] for entry in found] == [
            list(methods.find(name).deviations) for name in names
        ]
    lines = taet("list", kind).out.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == names


# -- as a process


def python(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(
        filter(None, [str(Path(cli.__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    )
    options["env"] = {**os.environ, "PYTHONPATH": path}
    given = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
        "check": False,
    } | options
    return subprocess.run([sys.executable, *arguments], **given)


def test_a_reader_that_goes_away_is_no_error_and_a_full_disk_is_one_line() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        done = python("-m", "taet", "list", "attacks", stdout=gone)
    assert (done.returncode, done.stderr) == (0, "")
    if os.path.exists("/dev/full"):
        with open("/dev/full", "w") as full:
            done = python("-m", "taet", "list", "attacks", stdout=full)
        assert (done.returncode, done.stderr) == (
            2,
            "taet: error: output: No space left on device\n",
        )


def test_no_file_of_the_current_directory_is_imported(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(3)\n")
    done = python("-m", "taet", "list", "attacks", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)


# -- the last net


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (MemoryError(), 1, "out of memory: MemoryError"),
        (RuntimeError("could not create a primitive"), 1, "out of memory: RuntimeError"),
        (
            ValueError("a\nb"),
            1,
            "unexpected: ValueError: a b; --debug shows where. Unless your own code is there, "
            "please report",
        ),
        (PermissionError(13, "Permission denied", "a-file"), 2, "a-file: Permission denied"),
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
