"""The oracle: no number of the committed files and of small trainings moves; mistakes are refused
as before."""

import subprocess
import sys
from pathlib import Path

import pytest

COMMITTED = ("cards", "flags", "runs", "grids", "paired", "verdicts", "boards", "tables")


@pytest.mark.full
@pytest.mark.parametrize("sections", [COMMITTED, ("commands", "training")], ids=" ".join)
def test_no_number_moved(sections: tuple[str, ...]) -> None:
    words = [sys.executable, Path(__file__).with_name("oracle.py"), "compare", *sections]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
