"""`taet audit`: a checklist of runs and of models of any origin, kept with its page; mistakes are one line."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from taet.files import seal

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

class Rounded(Brightness):
    def forward(self, x):
        return super().forward((16 * x).round() / 16)

class Pair(Brightness):
    def forward(self, x):
        return super().forward(x), x
"""
SHORT = ("--images", "20", "--batch-size", "20")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with grey.npz, whose four classes differ in brightness, and the module grey_nets."""
    labels = np.arange(40) % 4
    noise = np.random.default_rng(0).normal(0, 10, (40, 8, 8, 3))
    images = np.clip(51 * (labels + 1)[:, None, None, None] + noise, 0, 255).astype(np.uint8)
    arrays = {f"{part}_images": images for part in ("train", "test")}
    np.savez(tmp_path / "grey.npz", **arrays, **{f"{part}_labels": labels for part in ("train", "test")})
    (tmp_path / "grey_nets.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    attacks = ("random-noise:tries=2", "fgsm", "pgd-20", "cw-linf-20", "square:queries=10")
    monkeypatch.setattr(sys.modules["taet.evaluation.audit"], "ATTACKS", attacks)  # the name is also a function
    yield tmp_path
    sys.modules.pop("grey_nets", None)


def test_a_run_keeps_its_audit(taet: Any, finished: Any) -> None:
    outcome = taet("audit", finished.folder, "--eps", "0.02", *SHORT)
    stored = json.loads((finished.folder / "audit.json").read_text())
    assert outcome.code == (0 if stored["ok"] else 1)
    assert outcome.out.splitlines()[0].startswith(f"{finished.folder}: {stored['counts']['pass']} pass")
    assert outcome.out.endswith(f"{finished.folder / 'audit.html'}\n")
    assert stored == seal(stored)
    assert stored["card"]["threat"] == {"norm": "linf", "eps": 0.02}
    page = (finished.folder / "audit.html").read_text()
    assert all(item["question"].replace("'", "&#39;") in page for item in stored["items"])
    assert not list(finished.folder.glob("audit-state*"))
    assert re.search(r"audit\.json +verified", taet("doctor", finished.folder).out)
    (finished.folder / "audit.json").write_text(json.dumps({**stored, "ok": not stored["ok"]}))
    assert "was changed or damaged" in taet("doctor", finished.folder).out
    for kind in ("json", "html"):
        (finished.folder / f"audit.{kind}").unlink()


def test_a_model_of_any_origin_passes_or_fails(taet: Any, place: Path) -> None:
    outcome = taet("audit", "grey_nets:Rounded", "--data", "grey.npz", *SHORT)
    assert outcome.code == 1
    assert "FAIL  Are operations" in outcome.out or "FAIL  Do attacks cover the whole defence" in outcome.out
    written = (place / "runs" / "audit-grey_nets-Rounded").iterdir()
    assert {path.name for path in written} == {"audit.json", "audit.html"}
    sound = taet("audit", "grey_nets:Brightness", "--data", "grey.npz", "--out", "mine", "--json", *SHORT)
    assert (sound.code, json.loads(sound.out)["ok"]) == (0, True)
    assert json.loads(sound.out) == json.loads((place / "mine" / "audit.json").read_text())


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("", "which model? taet audit MODEL [options]"),
        ("--json", "which model? taet audit MODEL [options]"),
        ("runs/x", "runs/x is not a run folder: it holds no run.json"),
        ("grey_nets:Brightness", "--data is missing: grey_nets:Brightness names no test images"),
        ("grey_nets:Brightness --data grey.npz --attacks pdg-20", "unknown attack 'pdg-20'"),
        ("grey_nets:Brightness --data grey.npz --images 0", "images: got 0; allowed: 1 or more"),
        ("grey_nets:Brightness --data grey.npz --eps 8", "eps: got 8"),
        ("grey_nets:Brightness --data grey.npz --surogate runs/x", "did you mean --surrogate?"),
        ("grey_nets:Brightness --data grey.npz --surrogate runs/x", "runs/x is not a run folder"),
        ("grey_nets:Pair --data grey.npz", "model output: got a tuple; allowed: one tensor of logits (N, classes)"),
    ],
)
def test_mistakes_are_one_line(taet: Any, place: Path, words: str, part: str) -> None:
    outcome = taet("audit", *words.split())
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("taet: error: ")
    assert part in outcome.err
    assert not list(place.rglob("audit.json"))


def test_the_folder_of_a_run_is_not_taken_for_another_model(taet: Any, finished: Any) -> None:
    words = ("audit", "grey_nets:Brightness", "--data", "grey.npz", "--out", finished.folder, *SHORT)
    outcome = taet(*words)
    assert outcome.code == 2
    assert "is a run folder, only for the audit of that run" in outcome.err
