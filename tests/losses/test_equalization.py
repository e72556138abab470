"""The hierarchical equalization loss against a naive loop over classes, and its promises."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from taet.errors import UserError
from taet.losses import hierarchical_equalization
from taet.losses.equalization import Absent

MODES: tuple[Absent, ...] = ("zero", "skip", "ema")
FACTORS = (0.3, 0.7, 1.1)  # all different, so that no term can stand in for another


def draw(seed: int, samples: int, classes: int, absent: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (N, C), labels (N,) that leave out `absent` classes drawn at random, running (C,)."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(samples, classes, generator=generator, dtype=torch.float64)
    present = torch.randperm(classes, generator=generator)[absent:]
    labels = present[torch.randint(len(present), (samples,), generator=generator)]
    return logits, labels, 0.1 + torch.rand(classes, generator=generator, dtype=torch.float64)


def naive(logits: Tensor, labels: Tensor, absent: Absent, running: Tensor) -> dict[str, Tensor]:
    """The three terms as they stand in the paper: a Python loop over classes."""
    values = []
    for c in range(logits.shape[1]):
        mine = [
            F.cross_entropy(logits[i : i + 1], labels[i : i + 1])
            for i in range(len(labels))
            if labels[i] == c
        ]
        if mine:
            values.append(sum(mine) / len(mine))
        elif absent == "zero":
            values.append(torch.tensor(0.0, dtype=logits.dtype))
        elif absent == "ema":
            values.append(running[c])
    bcl = sum(values) / len(values)
    hdl = sum((v - bcl) ** 2 for v in values) / len(values)
    rcel = sum((v / (sum(values) + 1e-10)) ** 2 for v in values)  # 1e-10: public code
    return {
        "total": FACTORS[0] * bcl + FACTORS[1] * hdl + FACTORS[2] * rcel,
        "bcl": bcl,
        "hdl": hdl,
        "rcel": rcel,
    }


def hel(logits: Tensor, labels: Tensor, absent: Absent, running: Tensor) -> dict[str, Tensor]:
    loss = hierarchical_equalization(logits, labels, *FACTORS, absent=absent, running=running)
    return {"total": loss.total, **loss.parts}


@pytest.mark.parametrize("absent", MODES)
@given(
    seed=st.integers(0, 2**31),
    samples=st.integers(1, 12),
    classes=st.integers(2, 8),
    data=st.data(),
)
@settings(max_examples=25, derandomize=True)
def test_value_and_gradient_are_those_of_a_loop_over_classes(
    absent: Absent, seed: int, samples: int, classes: int, data: st.DataObject
) -> None:
    missing = data.draw(st.integers(0, classes - 1))
    logits, labels, running = draw(seed, samples, classes, missing)
    for name in ("total", "bcl", "hdl", "rcel"):
        ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        value, expected = (
            hel(ours, labels, absent, running)[name],
            naive(theirs, labels, absent, running)[name],
        )
        torch.testing.assert_close(value, expected, rtol=1e-8, atol=1e-8)
        (gradient,), (wanted,) = (
            torch.autograd.grad(value, ours),
            torch.autograd.grad(expected, theirs),
        )
        torch.testing.assert_close(gradient, wanted, rtol=1e-7, atol=1e-9)


def test_running_means_carry_no_gradient_and_are_required_by_ema() -> None:
    logits, labels, running = draw(5, samples=4, classes=5, absent=2)
    running.requires_grad_()
    hel(logits.requires_grad_(), labels, "ema", running)["total"].backward()
    assert running.grad is None
    assert logits.grad is not None
    with pytest.raises(UserError, match="running"):
        hierarchical_equalization(logits, labels, absent="ema")
