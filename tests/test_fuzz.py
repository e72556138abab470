"""Some seconds of the fuzzer, and that it notices what is wrong. `make fuzz SECONDS=600` goes on from there."""

from __future__ import annotations

import os
import shlex
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import fuzz


@pytest.fixture(scope="module", autouse=True)
def surroundings() -> Iterator[None]:
    """Restore the current directory and the environment, which the fuzzer changes."""
    here, environment = Path.cwd(), dict(os.environ)
    yield
    os.chdir(here)
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("fuzz") / "inputs"
    os.environ["TAET_CACHE"] = str(place.parent / "cache")
    fuzz.make_inputs(place)
    return place


@pytest.mark.full
def test_changed_inputs_of_every_kind_end_well_or_in_one_line(inputs: Path, tmp_path: Path) -> None:
    found: list[str] = []
    ends = fuzz.fuzz(inputs, tmp_path, lambda done: done < len(fuzz.KINDS), found.append)
    assert not found
    assert ends["refused"] > len(fuzz.KINDS) / 2, "most changes are mistakes"


def late(_: list[str]) -> int:
    time.sleep(5)
    return 0


def broken(_: list[str]) -> int:
    raise KeyError("q")


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("command", "finding"), [(broken, "exit status 1"), (late, "takes longer than"), (lambda _: 3, "exit status 3")]
)
def test_a_fault_is_a_finding_and_its_input_is_kept(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Any, finding: str
) -> None:
    monkeypatch.setattr("taet.cli.compare.run", command)
    monkeypatch.setattr(fuzz, "SECONDS", 0.05)
    found: list[str] = []
    ends = fuzz.fuzz(inputs, tmp_path, lambda done: done < 1, found.append, kinds=("spec.toml",))
    assert ends == {"findings": 1}
    assert finding in found[0]
    assert (tmp_path / "spec.toml-0" / "spec.toml").read_bytes() != (inputs / "spec.toml").read_bytes()


@pytest.mark.full
def test_unchanged_inputs_are_right(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a fuzzer looks at nothing but the first refusal."""
    commands = [(kind, command) for kind, target in fuzz.TARGETS.items() for command in target.commands]
    for number, (kind, command) in enumerate([*commands, *(("command line", call) for call in fuzz.CALLS)]):
        monkeypatch.chdir(shutil.copytree(inputs, tmp_path / str(number)))
        monkeypatch.setenv("TAET_PLUGINS", "plugins" if kind == "plugin.py" else "")
        fuzz.registry.forget("methods", "plugins/methods/fuzzed.py")
        allowed = (0, 1) if command.startswith("check") else (0,)  # a check may find something
        assert fuzz.run(*shlex.split(command)).code in allowed, command
