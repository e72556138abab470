"""Every mistake: exit status 2, one line, and nothing is written or lost. The oracle has another 180 such calls."""

from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from taet.training import fit

TRAIN = "train at --threat.steps 1 --batch-size 64 --data.max-count 20 --epochs 1"
CALLS = r"""
TRAIN --data npz:/dev/zero; TRAIN --data folder:~nouser; TRAIN --data \udcff; TRAIN --data LONG; TRAIN --data ''
TRAIN --out ''; TRAIN --out \udcff; TRAIN --protocol ''; TRAIN --model LONG; TRAIN --model 'a b:c'
TRAIN --model.weights /dev/zero; TRAIN --device cuda:MANY; TRAIN --evaluation.attacks pgd-1:restarts=1_0
TRAIN --evaluation.attacks LONG; TRAIN --threat.eps ٣/255; TRAIN --data digits-lt --data digits-lt; TRAIN --seed MANY
train ''; evaluate ''; report ''; predict '' x; predict . ''; export '' --format pt2; check ''; list ''; demo --out ''
evaluate \udcff; evaluate /dev/null; train --resume /dev/null; compare .; compare /dev/zero; data show ''
compare s.toml --jobs 99999999999; compare s.toml --part 0/0; predict . x --top MANY
evaluate --model resnet8 --data digits-lt --normalize nan/1; evaluate --model resnet8 --data digits-lt --out ''
"""


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


def test_calls_of_every_command(refused: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    text = CALLS.strip().replace("TRAIN", TRAIN).replace("MANY", "9" * 400).replace("LONG", "x" * 5000)
    for words in re.split("[;\n]", text.replace(r"\udcff", "\udcff")):
        refused(shlex.split(words))
        assert not any(tmp_path.iterdir())


# -- run folders -------------------------------------------------------------------------------------------------------


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


def test_runs_that_are_not_finished_or_none(refused: Callable[..., None], damaged: Path, tmp_path: Path) -> None:
    (damaged / "checkpoint.pt").write_bytes(b"PK\x03\x04 truncated")
    (damaged / "done").unlink()
    refused(["train", "--resume", damaged], "checkpoint.pt is not a checkpoint of taet")
    (damaged / "model.safetensors").unlink()
    refused(["evaluate", damaged], "the run is not finished; resume it first")
    (damaged / "run.json").write_text("{}")
    for words in (
        ["evaluate", damaged],
        ["train", "--resume", damaged],
        ["report", damaged, "--out", tmp_path / "x.html"],
    ):
        refused(words, "run.json")
    (tmp_path / "empty").mkdir()
    refused(["evaluate", tmp_path / "empty"], "is not a run folder")


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


# -- while it runs -----------------------------------------------------------------------------------------------------


def test_no_space_left_on_the_disk(
    taet: Any, refused: Callable[..., None], small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        refused(["train", "at", *small, "--epochs", "1", "--out", out], "no space left on the disk")
    assert taet("train", "at", *small, "--epochs", "1", "--out", out).code == 0


def test_a_loss_that_is_not_finite(
    refused: Callable[..., None], small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = fit.training_step

    def broken(*args: Any, **options: Any) -> Any:
        return step(*args, **options)._replace(total=torch.tensor(float("nan")))

    monkeypatch.setattr(fit, "training_step", broken)
    words = ["train", "at", *small, "--epochs", "1", "--out", tmp_path / "run"]
    refused(words, "the loss is not finite in epoch 1", "checkpoint.pt keeps the last good state")
