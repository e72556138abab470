"""`taet check`: runs and models of any origin; what cannot be evaluated is one line and exit status 2."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SOURCE = """
import torch
from torch import nn

class Brightness(nn.Module):
    # Right on every image: the classes differ in their level of grey.
    def __init__(self):
        super().__init__()
        self.levels = nn.Parameter(torch.tensor([0.2, 0.4, 0.6, 0.8]))

    def forward(self, x):
        return -50 * (x.mean((1, 2, 3))[:, None] - self.levels).square()

class Pair(Brightness):
    def forward(self, x):
        return super().forward(x), x

class Broken(Brightness):
    def forward(self, x):
        return super().forward(x) / 0 * 0

class Picky(Brightness):
    def forward(self, x):
        assert len(x) <= 2, "two at most\\nnot more"
        return super().forward(x)

def narrow(num_classes):
    return nn.Sequential(Brightness(), nn.Linear(4, 3))

def wide():
    return nn.Sequential(Brightness(), nn.Linear(4, 1000))
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with grey.npz, whose four classes differ in brightness, and the module grey_nets."""
    labels = np.arange(80) % 4
    noise = np.random.default_rng(0).normal(0, 10, (80, 32, 32, 3))
    images = np.clip(51 * (labels + 1)[:, None, None, None] + noise, 0, 255).astype(np.uint8)
    arrays = {f"{part}_images": images for part in ("train", "test")}
    np.savez(tmp_path / "grey.npz", **arrays, **{f"{part}_labels": labels for part in ("train", "test")})
    (tmp_path / "grey_nets.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("grey_nets", None)


def test_a_run_has_its_files_verified_and_its_model_tried(taet: Any, finished: Any) -> None:
    outcome = taet("check", finished.folder, "--attacks", "pgd-3")
    assert outcome.err == ""
    for text in ("run.json        verified", "77,754 parameters, 10 logits for images of 1 x 8 x 8", "pgd-3: about"):
        assert text in outcome.out
    found = json.loads(taet("check", finished.folder, "--json").out)
    assert {"what", "text", "ok"} == {*found[0]}
    assert outcome.code == (0 if all(one["ok"] for one in found) else 1)


def test_a_run_on_other_images_than_its_own(taet: Any, finished: Any, place: Path) -> None:
    images = np.arange(12 * 64, dtype=np.uint8).reshape(12, 8, 8)
    labels, names = np.arange(12) % 2, np.array(["7", "3"])  # counted in another order than the run's
    parts = {f"{part}_images": images for part in ("train", "test")}
    parts |= {f"{part}_labels": labels for part in ("train", "test")}
    np.savez(place / "others.npz", **parts, class_names=names)
    outcome = taet("check", finished.folder, "--data", "others.npz", "--attacks", "fgsm")
    assert "10 logits for images of 1 x 8 x 8; tried on 12 test images" in outcome.out
    refused = taet("check", finished.folder, "--data", "others.npz", "--weights", "x.pt")
    assert (refused.code, "it has its own weights and normalisation" in refused.err) == (2, True)


def test_a_model_of_any_origin(taet: Any) -> None:
    outcome = taet("check", "grey_nets:Brightness", "--data", "grey.npz", "--attacks", "clean", "pgd-20")
    assert (outcome.code, outcome.err) == (0, "")
    assert "100.0 % correct as given" in outcome.out
    assert outcome.out.endswith("weights: as grey_nets:Brightness gives them\n")
    wrong = taet("check", "grey_nets:Brightness", "--data", "grey.npz", "--normalize", "imagenet")
    assert wrong.code == 1
    (line,) = (line for line in wrong.out.splitlines() if line.startswith("!  normalisation"))
    assert "100.0 % with --normalize none" in line


def test_this_machine(taet: Any) -> None:
    outcome = taet("check")
    assert (outcome.code, outcome.err) == (0, "")
    assert "ok torch" in outcome.out


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("runs/x", "check: no such folder: 'runs/x'"),
        ("grey_nets:Brightness", "--data is missing: grey_nets:Brightness names no test images"),
        ("grey_nets:Brightness --data gray.npz", "no such file: 'gray.npz'"),
        ("grey_nets:Brightness --data grey.npz --weights w.pt", "weights: got w.pt; allowed: a file that exists"),
        ("grey_nets:Brightness --data grey.npz --attacks pdg-20", "unknown attack 'pdg-20'"),
        ("grey_nets:Brightness --data grey.npz --device gpu", "device: got gpu; allowed: auto, cpu, cuda"),
        ("grey_nets:Brightness --data grey.npz --normalise imagenet", "did you mean --normalize?"),
        ("grey_nets:brightness --data grey.npz", "did you mean 'Brightness'?"),
        ("grey_nets:Pair --data grey.npz", "model output: got a tuple; allowed: one tensor of logits (N, classes)"),
        ("grey_nets:Broken --data grey.npz", "model output: not finite on 80 of 80 clean test images"),
        ("grey_nets:Picky --data grey.npz", "model: fails on a batch of 80 images (two at most)"),
        ("grey_nets:narrow --data grey.npz", "labels: got up to 3; allowed: 0 to 2, one per logit of the model"),
        ("grey_nets:wide --data grey.npz", "model output: got 1000 logits; allowed: 4, one per class"),
        ("torchvision:resnet-18 --data grey.npz", "did you mean 'resnet18'?"),
        ("resnet18 --data digits-lt --normalize cifar10", "got 3 channels; allowed: 1, as the images have"),
    ],
)
def test_mistakes_are_one_line(taet: Any, words: str, part: str) -> None:
    outcome = taet("check", *words.split())
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("taet: error: ")
    assert outcome.err.count("\n") == 1
    assert part in outcome.err
