"""The commands themselves: help, lists, doctor, exit codes, and what is not imported."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from taet import __version__, methods, registry
from taet.cli import COMMANDS, DEBUG, LEFT, main


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_help_lists_every_command(taet: Any, arguments: list[str]) -> None:
    outcome = taet(*arguments)
    assert (outcome.code, outcome.err) == (0, "")
    assert all(f"  {name} " in outcome.out for name in COMMANDS)


@pytest.mark.parametrize("arguments", [*([command] for command in COMMANDS), ["train", "taet"]])
def test_help_of_every_command_shows_examples(taet: Any, arguments: list[str]) -> None:
    outcome = taet(*arguments, "--help")
    assert (outcome.code, outcome.err) == (0, "")
    examples = outcome.out.split("examples:")[1]
    assert examples.strip().startswith(f"taet {arguments[0]}")


def test_help_of_train_shows_the_knobs_of_the_method_and_the_defaults_of_the_protocol(taet: Any) -> None:
    outcome = taet("train", "taet", "--help", "--protocol", "reat")
    assert "--method.clean-share" in outcome.out
    assert "best-validation" in outcome.out
    assert "--method.clean-share" not in taet("train", "at", "--help").out


def test_help_of_train_names_every_option(taet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    text = taet("train", "--help").out
    for words in ("--protocol", "--resume", "--json", "--data STR, --data.name STR", "--outer {"):
        assert words in text


def test_version(taet: Any) -> None:
    assert taet("--version").out == f"taet {__version__}\n"


@pytest.mark.parametrize("kind", ["methods", "attacks", "data", "models", "protocols"])
def test_list(taet: Any, kind: Any) -> None:
    found = json.loads(taet("list", kind, "--json").out)
    assert all(entry["name"] and entry["title"] for entry in found)
    names = [entry["name"] for entry in found]
    assert names == (["taet", "reat", "official"] if kind == "protocols" else list(registry.entries(kind)))
    lines = taet("list", kind).out.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == names


def test_data_show(taet: Any) -> None:
    found = json.loads(taet("data", "show", "digits-lt", "--max-count", "20", "--json").out)
    assert found["class_counts"]["train"] == [20, 15, 11, 9, 7, 5, 4, 3, 2, 2]
    assert json.loads(taet("data", "show", "--data.name", "digits-lt", "--data.max-count", "20", "--json").out) == found
    assert found["sha256"]["train"] in taet("data", "show", "digits-lt", "--max-count", "20").out


def test_doctor(taet: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("taet.cli.doctor.attack_speed", lambda _, bf16: 100.0 + bf16)
    (tmp_path / "cifar10.npz").touch()
    monkeypatch.setenv("TAET_DATA", str(tmp_path))
    found = json.loads(taet("doctor", "--json").out)
    assert found["pgd_10_images_per_second"] == {"bf16": 101.0, "float32": 100.0}
    assert found["data"] == ["cifar10.npz"]
    text = taet("doctor").out
    assert all(version in text for version in found["versions"].values())
    assert "cifar10.npz" in text
    monkeypatch.setattr("taet.cli.doctor.attack_speed", lambda _, bf16: 100.0 - bf16)
    assert "bf16 is slower than float32" in taet("doctor").out


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=os.environ | environment, check=False
    )


def test_lists_and_help_do_not_import_torch() -> None:
    code = "import sys, taet; from taet.cli import main; main(['list', 'methods']); main(['--help']); "
    done = python("-c", code + "sys.exit('torch' in sys.modules)")
    assert done.returncode == 0, done.stderr


def test_a_mistake_is_one_line_and_exit_status_2_as_a_process() -> None:
    done = python("-m", "taet", "trian")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("taet: error: unknown command 'trian'")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", LEFT)
def test_a_command_that_left_names_its_successor(taet: Any, name: str) -> None:
    outcome = taet(name, "--help")
    assert outcome.code == 2
    assert outcome.err == f"taet: error: the command {name} has left; now: {LEFT[name]}\n"


def test_debug_shows_the_traceback() -> None:
    done = python("-m", "taet", "list", "methds", "--debug")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "did you mean 'methods'?" in done.stderr


def test_an_interruption_is_one_line_and_exit_status_130(taet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("taet.cli.list.run", interrupted)
    outcome = taet("list", "methods")
    assert (outcome.code, outcome.err.strip()) == (130, "taet: interrupted; only finished work is kept")


@pytest.mark.parametrize("command", ["compare"])
def test_help_keeps_the_lines_of_its_example(command: str, taet: Any) -> None:
    """So that it can be copied into a file."""
    description = importlib.import_module(f"taet.cli.{command}").DESCRIPTION
    lines = [line for line in description.splitlines() if line.startswith("  ")]
    printed = [line.strip() for line in taet(command, "--help").out.splitlines()]
    assert [line for line in lines if line.strip() not in printed] == []


def test_a_reader_that_goes_away_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        command = [sys.executable, "-m", "taet", "list", "attacks"]
        done = subprocess.run(command, stdout=gone, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0
    assert done.stderr == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
def test_a_full_disk_under_the_output_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "taet", "list", "attacks"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, "taet: error: output: No space left on device\n")


def test_methods_are_listed_with_their_papers(taet: Any) -> None:
    found = {entry["name"]: entry for entry in json.loads(taet("list", "methods", "--json").out)}
    assert "arXiv:2503.01924" in found["taet"]["reference"]
    assert "arXiv:2503.01924" in taet("list", "methods").out


def test_methods_are_listed_with_where_they_leave_the_protocol(taet: Any) -> None:
    found = {entry["name"]: entry["deviations"] for entry in json.loads(taet("list", "methods", "--json").out)}
    assert found == {name: list(methods.find(name).deviations) for name in registry.entries("methods")}
    assert found["taet"] == []
    assert all(found[name] for name in ("las-at", "robust-lt"))  # without and with a type
    lines = [line.strip() for line in taet("list", "methods").out.splitlines()]
    printed = [line for line in lines if line.startswith("leaves the protocol")]
    assert printed == [f"leaves the protocol: {text}" for texts in found.values() for text in texts]
    assert lines[lines.index(f"leaves the protocol: {found['las-at'][0]}") - 1].startswith("Jia et al.")
    assert "deviations" not in json.loads(taet("list", "attacks", "--json").out)[0]


def test_a_current_directory_that_is_gone_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    words = [sys.executable, "-m", "taet", "list", "protocols"]
    ended = subprocess.run(
        ["sh", "-c", 'cd "$0" && rmdir "$0" && exec "$@"', str(tmp_path / "gone"), *words],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert "Traceback" not in ended.stderr
    assert ended.returncode == 0, ended.stderr


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
