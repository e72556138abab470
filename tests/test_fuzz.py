"""Some seconds of the fuzzer; `make fuzz SECONDS=600` goes on from there."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from tests import fuzz


@pytest.mark.full
@pytest.mark.usefixtures("outlined")
def test_whole_inputs_are_right_and_changed_ones_end_well_or_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # restored at the end; the fuzzer changes it
    inputs = tmp_path / "inputs"
    fuzz.make_inputs(inputs)
    calls = [*(call for calls in fuzz.TARGETS.values() for call in calls), *fuzz.CALLS]
    for number, command in enumerate(dict.fromkeys(calls)):
        monkeypatch.chdir(shutil.copytree(inputs, tmp_path / str(number)))
        allowed = (0, 1) if command.startswith("check") else (0,)  # a check may find something
        assert fuzz.run(shlex.split(command))[0] in allowed, command
    (tmp_path / "cases").mkdir()
    codes, findings = fuzz.fuzz(inputs, tmp_path / "cases", lambda done: done < len(fuzz.KINDS))
    assert not findings
    assert codes.count(2) > len(fuzz.KINDS) / 3, "many changes are mistakes"
