"""The oracle: no number of the committed files and of small trainings moves; mistakes are refused as before."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ORACLE = Path(__file__).with_name("oracle.py")
COMMITTED = ("cards", "flags", "runs", "grids", "paired", "verdicts", "boards", "tables")


@pytest.mark.parametrize(
    "sections", [COMMITTED, pytest.param(("commands", "training"), marks=pytest.mark.full)], ids=" ".join
)
def test_no_number_moved(sections: tuple[str, ...]) -> None:
    done = subprocess.run([sys.executable, ORACLE, "compare", *sections], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
