"""Every mistake: exit status 2, one line, and nothing is written or lost. The oracle has another 180 such calls."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def refused(taet: Any) -> Callable[..., None]:
    """Run a command that must fail in one line holding every one of `parts`."""

    def check(arguments: list[Any], *parts: str) -> None:
        outcome = taet(*arguments)
        assert (outcome.code, outcome.out) == (2, ""), arguments
        *before, last = outcome.err.splitlines()  # before it: what a run said of its data, and its progress
        assert last.startswith("taet: error: ")
        assert not any(line.startswith(("taet: error", "Traceback")) for line in before)
        for part in parts:
            assert part in last

    return check


@pytest.fixture
def damaged(finished: Any, tmp_path: Path) -> Path:
    """A copy of a finished run."""
    return Path(shutil.copytree(finished.folder, tmp_path / "damaged"))


def test_a_run_folder_that_exists(refused: Callable[..., None], small: list[str], finished: Any) -> None:
    before = (finished.folder / "run.json").read_bytes()
    words = ["train", "at", *small, "--epochs", "10", "--out", finished.folder]
    refused(words, f"{finished.folder} exists: it is finished, see taet evaluate {finished.folder}")
    refused([*words, "--outer.drw"], f"{finished.folder} exists and is not this run; choose another --out")
    assert (finished.folder / "run.json").read_bytes() == before


@pytest.mark.parametrize(
    "words",
    [
        "predict RUN RUN/artifacts --out RUN/run.json --force",
        "export RUN --format safetensors --out RUN/model.safetensors --force",
        "report RUN --out RUN/other.html",
        "compare s.toml --out RUN/inside",
        "evaluate --model resnet8 --data digits-lt --out RUN",
        "demo --out RUN/demo",
        "train at --out RUN/inside",
    ],
)
def test_no_output_goes_into_the_folder_of_a_run(
    refused: Callable[..., None], damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s.toml").write_text('methods = ["at"]\ndata = ["digits-lt"]\n')
    before = {path: path.is_file() and path.read_bytes() for path in damaged.rglob("*")}
    refused(words.replace("RUN", str(damaged)).split())
    assert {path: path.is_file() and path.read_bytes() for path in damaged.rglob("*")} == before
