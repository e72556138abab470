"""`--until decided` of `taet evaluate` and `taet compare`, through the command line."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from taet.evaluation import DecisionCard
from taet.experiments import cells_of, parse
from taet.training import train

SPECIFICATION = """
methods = ["at", "standard", "trades"]
data = ["digits-lt"]
[settings]
model.name = "resnet8"
data = {max_count = 20}
training = {epochs = 1, batch_size = 32, precision = "float32", monitor_every = 0, threads = 1}
threat = {steps = 1, eps = 0.05, step_size = 0.05}
evaluation = {attacks = ["clean", "pgd-2", "fgsm"], batch_size = 40}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison whose three runs are trained."""
    place = tmp_path_factory.mktemp("trained")
    (place / "three.toml").write_text(SPECIFICATION)
    for cell in cells_of(parse(tomllib.loads(SPECIFICATION)), place / "three"):
        assert cell.run is not None
        train(cell.run, out=cell.folder)
    return place


@pytest.mark.full
@pytest.mark.usefixtures("outlined")
def test_two_runs_until_decided(taet: Any, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    runs = [f"three/runs/{name}_digits-lt_seed0" for name in ("at", "trades")]
    assert taet("evaluate", runs[0], "--attacks", "pgd-2").code == 0
    done = taet("evaluate", *runs, "--until", "decided", "--attacks", "pgd-2", "--alpha", "0.2", "--out", "both")
    assert done.code == 0
    found = DecisionCard.load("both")
    assert (found.rule.alpha, found.cost["known"]) == (0.2, found.rows.size)  # the first run has a card of all images
    assert f"after {found.rows.size} of {found.total} images" in done.out
    assert json.loads(
        taet("evaluate", *runs, "--until", "decided", "--out", "both", "--attacks", "pgd-2", "--json").out
    )
    assert taet("report", "both", runs[0], "--out", "r.html").code == 0
    assert "Stopped when decided" in (trained / "r.html").read_text()
    for words, message in (
        ([*runs, "--attacks", "pgd-2"], "got two models"),
        ([runs[0], runs[0], "--until", "decided"], "the same weights on both sides"),
        ([*runs, "--until", "decided", "--out", runs[0]], "holds a run or a result card"),
        ([*runs, "--until", "decided", "--normalize", "cifar10"], "--normalize goes with --data"),
        ([*runs, "--until", "decided", "--within", "3"], r"within: got 3; allowed: above 0, below 0.25"),
    ):
        refused = taet("evaluate", *words)
        assert refused.code == 2
        assert message in refused.err
        assert refused.err.count("\n") == 1


NETS = """
import torch
from torch import nn


def linear(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def first(): return linear(0)
def second(): return linear(1)
"""


def test_models_of_any_origin_until_decided(taet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "undecided_nets.py").write_text(NETS)
    words = ["undecided_nets:first", "undecided_nets:second", "--until", "decided", "--data", "digits-lt"]
    late = taet("evaluate", *words, "--attacks", "fgsm", "--batch-size", "40", "--time-budget", "1s", "--out", "x")
    assert late.code == 0
    ended = taet("evaluate", *words, "--attacks", "fgsm", "--batch-size", "40", "--out", "x")
    found = DecisionCard.load("x")
    assert (found.first["label"], found.second["label"]) == tuple(words[:2])
    assert found.data["train_class_counts"] is not None
    assert ended.out.startswith(f"{words[0]} against {words[1]} under fgsm on digits-lt: undecided")
    assert ended.out.rstrip().endswith("next: taet report x")
