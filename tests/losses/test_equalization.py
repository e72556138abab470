"""The hierarchical equalization loss against golden numbers, a naive loop over classes, and its promises."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from taet.errors import UserError
from taet.losses import Loss, hierarchical_equalization
from taet.losses.equalization import Absent, class_losses

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "losses.json").read_text())
MODES: tuple[Absent, ...] = ("zero", "skip", "ema")
FACTORS = (0.3, 0.7, 1.1)  # all different, so that no term can stand in for another

# Training images per class of CIFAR-10-LT (Cui et al., CVPR 2019: floor(5000 IR^(-c/9))).
CIFAR10_LT = {
    50: [5000, 3237, 2096, 1357, 878, 568, 368, 238, 154, 100],
    100: [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50],
}


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
        mine = [F.cross_entropy(logits[i : i + 1], labels[i : i + 1]) for i in range(len(labels)) if labels[i] == c]
        if mine:
            values.append(sum(mine) / len(mine))
        elif absent == "zero":
            values.append(torch.tensor(0.0, dtype=logits.dtype))
        elif absent == "ema":
            values.append(running[c])
    bcl = sum(values) / len(values)
    hdl = sum((v - bcl) ** 2 for v in values) / len(values)
    rcel = sum((v / sum(values)) ** 2 for v in values)
    return {"total": FACTORS[0] * bcl + FACTORS[1] * hdl + FACTORS[2] * rcel, "bcl": bcl, "hdl": hdl, "rcel": rcel}


def hel(logits: Tensor, labels: Tensor, absent: Absent, running: Tensor) -> dict[str, Tensor]:
    loss = hierarchical_equalization(logits, labels, *FACTORS, absent=absent, running=running)
    return {"total": loss.total, **loss.parts}


@pytest.mark.parametrize(
    ("key", "field", "absent"),
    [
        ("harl_all_present", None, "zero"),
        ("harl_all_present", None, "skip"),
        ("harl_absent_class", "loss_official", "zero"),
        ("harl_absent_class", "loss_present_only", "skip"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_golden(key: str, field: str | None, absent: Absent, dtype: torch.dtype) -> None:
    inputs, expected = GOLDEN[key]["inputs"], GOLDEN[key]["expected"]
    logits = torch.tensor(inputs["logits"], dtype=dtype)
    factors = [inputs[name] for name in ("alpha", "beta", "gamma")]
    loss = hierarchical_equalization(logits, torch.tensor(inputs["labels"]), *factors, absent=absent)
    tolerance = {"abs": GOLDEN[key]["tolerance"], "rel": 0} if dtype == torch.float64 else {"rel": 1e-5}
    assert loss.total.dtype == dtype
    assert loss.total.item() == pytest.approx(expected[field] if field else expected, **tolerance)
    assert torch.equal(loss.logits, logits)


def test_golden_class_losses_and_counts() -> None:
    inputs, expected = GOLDEN["harl_absent_class"]["inputs"], GOLDEN["harl_absent_class"]["expected"]
    means, counts = class_losses(torch.tensor(inputs["logits"], dtype=torch.float64), torch.tensor(inputs["labels"]))
    assert means.tolist() == pytest.approx(expected["class_losses_official"], rel=0, abs=1e-7)
    assert counts.tolist() == [2, 2, 0]


@pytest.mark.parametrize("absent", MODES)
@given(seed=st.integers(0, 2**31), samples=st.integers(1, 12), classes=st.integers(2, 8), data=st.data())
@settings(max_examples=25, deadline=None, derandomize=True)
def test_value_and_gradient_are_those_of_a_loop_over_classes(
    absent: Absent, seed: int, samples: int, classes: int, data: st.DataObject
) -> None:
    missing = data.draw(st.integers(0, classes - 1))
    logits, labels, running = draw(seed, samples, classes, missing)
    for name in ("total", "bcl", "hdl", "rcel"):
        ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        value, expected = hel(ours, labels, absent, running)[name], naive(theirs, labels, absent, running)[name]
        torch.testing.assert_close(value, expected, rtol=1e-8, atol=1e-8)
        (gradient,), (wanted,) = torch.autograd.grad(value, ours), torch.autograd.grad(expected, theirs)
        torch.testing.assert_close(gradient, wanted, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("absent", MODES)
def test_gradient_is_that_of_finite_differences(absent: Absent) -> None:
    logits, labels, running = draw(1, samples=5, classes=4, absent=2)
    assert torch.autograd.gradcheck(lambda z: hel(z, labels, absent, running)["total"], (logits.requires_grad_(),))


@pytest.mark.parametrize("absent", MODES)
def test_each_factor_belongs_to_its_part(absent: Absent) -> None:
    logits, labels, running = draw(2, samples=9, classes=5, absent=1)
    for position, name in enumerate(("bcl", "hdl", "rcel")):
        factors = [float(i == position) for i in range(3)]
        loss = hierarchical_equalization(logits, labels, *factors, absent=absent, running=running)
        torch.testing.assert_close(loss.total, loss.parts[name], rtol=1e-14, atol=0)
    assert isinstance(loss, Loss)
    assert list(loss.parts) == ["bcl", "hdl", "rcel"]


@pytest.mark.parametrize("absent", MODES)
def test_parts_lie_in_their_ranges(absent: Absent) -> None:
    classes = 6
    for seed in range(20):
        parts = hel(*draw(seed, 10, classes, seed % classes)[:2], absent, torch.full((classes,), 0.5))
        assert 1 / classes - 1e-9 <= parts["rcel"].item() <= 1 + 1e-9
        assert parts["bcl"] > 0
        assert parts["hdl"] >= 0
    one_class = hel(torch.zeros(3, classes), torch.full((3,), 2), "zero", torch.zeros(classes))
    assert one_class["rcel"].item() == pytest.approx(1)  # all the loss lies in one class
    equal = hel(torch.zeros(classes, classes), torch.arange(classes), "zero", torch.zeros(classes))
    assert equal["rcel"].item() == pytest.approx(1 / classes)
    assert equal["hdl"].item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("absent", MODES)
def test_classes_may_be_renumbered_and_samples_reordered(absent: Absent) -> None:
    logits, labels, running = draw(3, samples=8, classes=5, absent=2)
    order = torch.tensor([2, 4, 1, 0, 3])
    expected = hel(logits, labels, absent, running)
    classes = hel(logits[:, order], order.argsort()[labels], absent, running[order])
    samples = hel(logits.flip(0), labels.flip(0), absent, running)
    for name, value in expected.items():
        torch.testing.assert_close(classes[name], value, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(samples[name], value, rtol=1e-12, atol=1e-12)


def test_modes_agree_where_every_class_is_present_and_differ_where_not() -> None:
    logits, _, running = draw(4, samples=5, classes=5, absent=0)
    zero, skip, ema = (hel(logits, torch.arange(5), absent, running)["total"] for absent in MODES)
    assert torch.equal(zero, skip)
    assert torch.equal(zero, ema)
    zero, skip, ema = (hel(logits, torch.tensor([0, 1, 2, 3, 3]), absent, running)["total"] for absent in MODES)
    assert len({zero.item(), skip.item(), ema.item()}) == 3


def test_running_means_carry_no_gradient_and_are_required_by_ema() -> None:
    logits, labels, running = draw(5, samples=4, classes=5, absent=2)
    running.requires_grad_()
    hel(logits.requires_grad_(), labels, "ema", running)["total"].backward()
    assert running.grad is None
    assert logits.grad is not None
    with pytest.raises(UserError, match="running"):
        hierarchical_equalization(logits, labels, absent="ema")


@pytest.mark.parametrize("absent", MODES)
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_logits_give_the_loss_of_the_same_logits_in_float32(absent: Absent, half: torch.dtype) -> None:
    logits, labels, running = draw(6, samples=40, classes=6, absent=1)
    logits, running = logits.to(half), running.float()
    expected = hel(logits.float(), labels, absent, running)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reduced = hel(logits, labels, absent, running)
    for name, value in reduced.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, expected[name])


def test_a_perfectly_learnt_batch_has_a_finite_gradient() -> None:
    logits = (60 * torch.eye(3)).requires_grad_()
    hierarchical_equalization(logits, torch.arange(3)).total.backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize(("ratio", "expected"), [(50, 0.8), (100, 1.4)])
def test_absent_classes_of_a_long_tailed_batch_pull_the_balanced_loss_towards_zero(ratio: int, expected: float) -> None:
    """The public code counts an absent class as loss 0: at batch 128 that happens in most batches of CIFAR-10-LT."""
    counts = torch.tensor(CIFAR10_LT[ratio])
    labels = torch.arange(10).repeat_interleave(counts)
    generator = torch.Generator().manual_seed(0)
    missing = []
    for _ in range(300):
        batch = labels[torch.randperm(len(labels), generator=generator)[:128]]
        logits = torch.randn(128, 10, generator=generator)
        zero, skip = (hierarchical_equalization(logits, batch, absent=absent) for absent in ("zero", "skip"))
        present = int((class_losses(logits, batch)[1] > 0).sum())
        assert present == len(batch.unique())
        torch.testing.assert_close(zero.parts["bcl"], skip.parts["bcl"] * present / 10, rtol=1e-5, atol=0)
        missing.append(10 - present)
    assert sum(missing) / len(missing) == pytest.approx(expected, abs=0.15)  # 3 standard errors


def test_an_unknown_treatment_of_absent_classes_is_refused() -> None:
    with pytest.raises(UserError, match="unknown absent 'drop'; allowed: ema, skip, zero"):
        hierarchical_equalization(torch.zeros(2, 3), torch.tensor([0, 1]), absent="drop")  # type: ignore[arg-type]
