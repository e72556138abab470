"""What a result says of the machine and the software that it was made with."""

import subprocess
from pathlib import Path

import pytest

from taet.machine import commit

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="these files are no checkout")
def test_a_result_names_the_commit_of_the_checkout() -> None:
    words = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    expected = subprocess.check_output(words, text=True).strip()
    found = commit()
    assert found is not None
    assert found.removesuffix("+") == expected, "with + where files differ"
