"""The search may compute in any precision; the model decides in exact float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import taet
from taet.attacks import catalogue
from taet.attacks.counted import Counted
from taet.attacks.counted import arithmetic
from taet.data import Dataset
from taet.errors import UserError
from taet.evaluation import ResultCard
from taet.settings import Evaluation, Run, override
from taet.training.curve import monitor

BF16 = Evaluation(search_precision="bf16")


class Flattered(nn.Module):
    """A linear model that answers the opposite in bfloat16, and notes in which type it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 3)
        self.linear.weight.data = torch.eye(3).repeat(1, 4)
        self.linear.bias.data.zero_()
        self.types: list[torch.dtype] = []

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x.flatten(1))
        self.types.append(logits.dtype)
        return -logits if logits.dtype == torch.bfloat16 else logits


def images() -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).uniform(0.3, 0.7, (8, 3, 2, 2)).astype(np.float32)
    with torch.no_grad():
        return x, Flattered()(torch.from_numpy(x)).argmax(1).numpy()


def test_the_search_alone_is_in_bfloat16_and_leaves_the_switches_as_they_were() -> None:
    model = Flattered()
    counted, x = Counted(model), torch.rand(2, 3, 2, 2)
    before = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    with counted.searching("bf16", "cpu"):
        counted(x)
        counted.judge(x)
        assert (x @ x).dtype == torch.float32  # what the attack itself computes
    counted(x)
    assert model.types == [torch.bfloat16, torch.float32, torch.float32]
    assert torch.backends.mkldnn.matmul.fp32_precision == before  # type: ignore[attr-defined]


def test_the_official_suite_stays_float32_unless_asked() -> None:
    assert catalogue.parse("pgd-20", BF16).precision == "bf16"
    assert catalogue.parse("clean", BF16).precision == "float32"
    assert catalogue.parse("autoattack", BF16).precision == "float32"
    for name in (
        "cw-l2",
        "cw-l2:c=search",
        "deepfool",
        "deepfool:eps=0.5",
        "square",
        "random-noise",
    ):  # nearest, or first
        assert catalogue.parse(name, BF16).precision == "float32"
        with pytest.raises(UserError, match=r"unknown option.* 'precision'"):
            catalogue.parse(f"{name.partition(':')[0]}:precision=bf16", BF16)
    asked = catalogue.parse("autoattack:precision=bf16")
    assert asked.precision == "bf16"
    assert catalogue.stored(asked.name, asked.norm, asked.eps, asked.parameters) == asked


def test_the_suite_judges_in_float32_what_it_found_in_bfloat16() -> None:
    x, y = images()
    model = Flattered()
    card = taet.evaluate(model, x, y, attacks=["clean", "autoattack-fast:precision=bf16"], eps=1e-6)
    column = card.column("autoattack-fast:precision=bf16")
    assert column.correct.all()
    assert torch.bfloat16 in model.types


def test_a_card_says_in_which_precision_the_search_was(tmp_path: Path) -> None:
    x, y = images()
    card = taet.evaluate(Flattered(), x, y, attacks=["pgd-3", "fgsm"], eps=0.1, step_size=0.05, search_precision="bf16")
    card.save(tmp_path / "card.json")
    again = ResultCard.load(tmp_path / "card.json")
    assert again.column("pgd-3").attack.precision == "bf16"
    assert "searched in bf16" in str(again)
    plain = taet.evaluate(Flattered(), x, y, attacks=["pgd-3"], eps=0.1, step_size=0.05)
    assert plain.column("pgd-3").identity != card.column("pgd-3").identity
    assert "precision" not in plain.column("pgd-3").parameters
    with pytest.raises(UserError, match="measured with precision"):
        card.compare(plain, "pgd-3")


def test_tf32_is_refused_where_there_is_none() -> None:
    x, y = images()
    with pytest.raises(UserError, match=r"search precision: got tf32 on cpu; allowed: float32 or bf16"):
        taet.evaluate(Flattered(), x, y, attacks=["pgd-3:precision=tf32"], eps=0.1)
    with pytest.raises(UserError, match="tf32 on cpu"), arithmetic("cpu", "tf32"):
        pass


def test_the_curve_of_a_training_searches_in_its_precision_and_judges_in_float32() -> None:
    x, y = images()
    pixels = np.rint(255 * x).astype(np.uint8).transpose(0, 2, 3, 1)
    dataset = Dataset.from_arrays(pixels, y, pixels, y, class_names=["a", "b", "c"], name="noise", mirror=False)
    model = Flattered()
    settings = {"threat.eps": 0.1, "evaluation.step_size": 0.05, "evaluation.batch_size": 8}
    settings |= {"training.monitor_steps": 2, "training.channels_last": False, "training.precision": "bf16"}
    run = override(Run(), settings)
    counts = monitor(model, dataset.test, run, device=torch.device("cpu"), pause=lambda: None)
    assert model.types == [torch.bfloat16] * 2 + [torch.float32] * 2
    assert sum(counts["clean"]["correct"]) == len(y)
