"""The model as attacks see it: whose gradients they are given, in which arithmetic, and who judges."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import taet
from taet.attacks import catalogue, pgd
from taet.attacks.counted import Counted, arithmetic
from taet.data import Dataset
from taet.errors import UserError
from taet.evaluation import ResultCard
from taet.settings import Evaluation, Run, override
from taet.training.curve import monitor

BF16 = Evaluation(search_precision="bf16")


class Linear(nn.Module):
    """Logits (x . w, 0); the sign of w says which way is up."""

    def __init__(self, sign: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(sign * torch.ones(12))

    def forward(self, x: Tensor) -> Tensor:
        logit = (x - 0.5).flatten(1) @ self.weight
        return torch.stack([logit, torch.zeros_like(logit)], 1)


class Steady(nn.Module):
    """Class 0 for every image."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([1.0, 0.0]).expand(len(x), 2) + 0 * x.flatten(1)[:, :2]


@pytest.mark.full
def test_an_example_that_breaks_the_view_alone_breaks_nothing() -> None:
    """The view falls to every attack, the model to none: what counts is the model."""
    x, y, view = torch.full((3, 3, 2, 2), 0.6), torch.zeros(3, dtype=torch.int64), Linear(1.0)
    x_adv = pgd(view, x, y, eps=0.2, steps=2, step_size=0.2)
    assert (view(x_adv).argmax(1) == 1).all()
    attack = catalogue.parse("autoattack-10:eps=0.2")
    assert attack.run_parts(Counted(Steady(), view), x, y).correct.all()  # type: ignore[attr-defined]
    assert not attack.run_parts(Counted(view), x, y).correct.any()  # type: ignore[attr-defined]


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


def test_only_attacks_that_end_far_from_the_boundary_may_round_and_the_official_suite_only_when_asked() -> None:
    assert catalogue.parse("pgd-20", BF16).precision == "bf16"
    for name in ("clean", "autoattack", "cw-l2", "deepfool:eps=0.5", "square", "random-noise"):
        assert catalogue.parse(name, BF16).precision == "float32"
    with pytest.raises(UserError, match=r"unknown option.* 'precision'"):
        catalogue.parse("deepfool:precision=bf16", BF16)
    asked = catalogue.parse("autoattack:precision=bf16")
    assert asked.precision == "bf16"
    assert catalogue.stored(asked.name, asked.norm, asked.eps, asked.parameters) == asked


def test_the_suite_judges_in_float32_what_it_found_in_bfloat16() -> None:
    x, y = images()
    model, name = Flattered(), "autoattack-fast:precision=bf16"
    assert taet.evaluate(model, x, y, attacks=["clean", name], eps=1e-6).column(name).correct.all()
    assert torch.bfloat16 in model.types


def test_a_card_says_in_which_precision_the_search_was(tmp_path: Path) -> None:
    x, y = images()
    settings = {"attacks": ["pgd-3"], "eps": 0.1, "step_size": 0.05}
    card, plain = (taet.evaluate(Flattered(), x, y, **settings, search_precision=one) for one in ("bf16", "float32"))
    card.save(tmp_path / "card.json")
    again = ResultCard.load(tmp_path / "card.json")
    assert again.column("pgd-3").attack.precision == "bf16"
    assert "searched in bf16" in str(again)
    assert "precision" not in plain.column("pgd-3").parameters
    with pytest.raises(UserError, match="measured with precision"):
        card.compare(plain, "pgd-3")


def test_tf32_is_refused_where_there_is_none() -> None:
    with pytest.raises(UserError, match=r"search precision: got tf32 on cpu; allowed: float32 or bf16"):
        taet.evaluate(Flattered(), *images(), attacks=["pgd-3:precision=tf32"], eps=0.1)
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
