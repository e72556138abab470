"""The model as attacks see it: whose gradients they are given, in which arithmetic, and who
judges."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import taet
from taet.attacks import catalogue
from taet.attacks.arithmetic import training_arithmetic
from taet.attacks.counting_model import CountingModel
from taet.errors import UserError
from taet.settings import Evaluation

BF16 = Evaluation(search_precision="bf16")


class Flattered(nn.Module):
    """A linear model that answers the opposite in bfloat16, and notes in which type it was
    asked."""

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


def float32_switches() -> tuple[object, ...]:
    """Return how float32 numbers are multiplied and convolved, by the switches of this PyTorch."""
    cudnn, cpu = torch.backends.cudnn, torch.backends.mkldnn
    if not hasattr(cudnn, "conv"):
        return torch.get_float32_matmul_precision(), cudnn.allow_tf32
    return tuple(
        switch.fp32_precision
        for switch in (cudnn.conv, torch.backends.cuda.matmul, cpu.matmul)  # type: ignore[attr-defined]
    )


def test_the_search_alone_is_in_bfloat16_and_leaves_the_switches_as_they_were() -> None:
    model = Flattered()
    counted, x = CountingModel(model), torch.rand(2, 3, 2, 2)
    before = float32_switches()
    with counted.searching("bf16", "cpu"):
        counted(x)
        counted.exact_logits(x)
        assert (x @ x).dtype == torch.float32  # what the attack itself computes
    counted(x)
    assert model.types == [torch.bfloat16, torch.float32, torch.float32]
    assert float32_switches() == before


def test_only_attacks_far_from_the_boundary_may_round_and_the_suite_only_if_asked() -> None:
    assert catalogue.parse("pgd-20", BF16).precision == "bf16"
    for name in ("clean", "autoattack", "cw-l2", "deepfool:eps=0.5", "square"):
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


def test_tf32_is_refused_where_there_is_none() -> None:
    with pytest.raises(
        UserError, match=r"search precision: got tf32 on cpu; allowed: float32 or bf16"
    ):
        taet.evaluate(Flattered(), *images(), attacks=["pgd-3:precision=tf32"], eps=0.1)


def test_training_on_a_gpu_takes_exact_float32_and_its_fastest_algorithms_and_gives_both_back() -> (
    None
):
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, float32_switches()
    with training_arithmetic("cpu"):
        assert cudnn.benchmark is before[0]
    with training_arithmetic("cuda"):
        assert cudnn.benchmark
        assert set(float32_switches()) <= {"ieee", "highest", False}
    assert (cudnn.benchmark, float32_switches()) == before
