"""The GitHub action: fails where the new model is known to be worse, and only there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
ACTION = ROOT / ".github" / "actions" / "gate" / "action.yml"
CARDS = ROOT / "results" / "digits-lt-methods"


@pytest.mark.full
@pytest.mark.parametrize(("new", "code"), [("at-seed0", 0), ("harl-seed0", 1), ("none", 2)])
def test_it_runs_the_paired_test_as_github_does(new: str, code: int, tmp_path: Path) -> None:
    shutil.copy(CARDS / "at-seed0.json", tmp_path / "old.json")
    name = "$(touch injected).json"
    if code < 2:
        shutil.copy(CARDS / f"{new}.json", tmp_path / name)
    step = yaml.safe_load(ACTION.read_text())["runs"]["steps"][-1]
    assert set(step["env"]) == {"OLD", "NEW"}
    assert "${{" not in step["run"], "inputs are never part of the script"
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {
        **os.environ,
        "PATH": path,
        "PYTHONPATH": str(ROOT / "src"),
        "OLD": "old.json",
        "NEW": name,
    }
    environment |= {"GITHUB_STEP_SUMMARY": str(tmp_path / "summary")}
    words = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
    done = subprocess.run(
        words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    summary = (tmp_path / "summary").read_text()
    assert ("worse under" if code == 1 else "pass" if code == 0 else "") in summary
    assert not (tmp_path / "injected").exists()
