"""`taet export`: one path on standard output, nothing else, and nothing overwritten."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from taet.training.finished import load_model


@pytest.mark.full
def test_a_graph_that_answers_without_this_package(finished: Any, tmp_path: Path) -> None:
    path = tmp_path / "digits.pt2"
    call = [sys.executable, "-W", "error", "-m", "taet", "export", str(finished.folder), "--format", "pt2"]
    done = subprocess.run([*call, "--out", str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{path}\n", "")
    images = torch.randint(256, (5, 8, 8, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    _, model, _ = load_model(finished.folder)
    with torch.no_grad():
        expected = model(images.permute(0, 3, 1, 2) / 255)
    torch.testing.assert_close(torch.export.load(path).module()(images), expected, rtol=0, atol=1e-4)


def test_force_replaces(taet: Any, finished: Any, tmp_path: Path) -> None:
    words = ("export", finished.folder, "--format", "safetensors", "--out", tmp_path / "x.safetensors")
    assert taet(*words).out == f"{tmp_path / 'x.safetensors'}\n"
    again = taet(*words)
    assert again.code == 2
    assert "x.safetensors exists already; allowed: another --out, or --force to replace it" in again.err
    assert taet(*words, "--force").code == 0


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("RUN", "--format {pt2,onnx,safetensors} is missing"),
        ("RUN --format onxx", "unknown --format 'onxx'; allowed: onnx, pt2, safetensors; did you mean 'onnx'?"),
        ("no --format pt2", "no is not a run folder: it holds no run.json"),
        ("RUN --format pt2 --weights model-best", "holds no model-best.safetensors: it has "),
    ],
)
def test_mistakes_are_one_line(taet: Any, finished: Any, words: str, part: str) -> None:
    outcome = taet("export", *(finished.folder if word == "RUN" else word for word in words.split()))
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("taet: error: ")
    assert outcome.err.count("\n") == 1
    assert part in outcome.err
