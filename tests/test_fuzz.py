"""Some seconds of the fuzzer. `make fuzz SECONDS=600` goes on from there."""

import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import fuzz


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Whole inputs; the current directory, which the fuzzer changes, is restored."""
    here, place = Path.cwd(), tmp_path_factory.mktemp("fuzz") / "inputs"
    fuzz.make_inputs(place)
    yield place
    os.chdir(here)


@pytest.mark.full
def test_whole_inputs_are_right_and_changed_ones_end_well_or_in_one_line(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = [*(call for calls in fuzz.TARGETS.values() for call in calls), *fuzz.CALLS]
    for number, command in enumerate(dict.fromkeys(calls)):
        monkeypatch.chdir(shutil.copytree(inputs, tmp_path / str(number)))
        allowed = (0, 1) if command.startswith("check") else (0,)  # a check may find something
        assert fuzz.run(shlex.split(command))[0] in allowed, command
    (tmp_path / "cases").mkdir()
    codes, findings = fuzz.fuzz(inputs, tmp_path / "cases", lambda done: done < len(fuzz.KINDS))
    assert not findings
    assert codes.count(2) > len(fuzz.KINDS) / 3, "many changes are mistakes"
