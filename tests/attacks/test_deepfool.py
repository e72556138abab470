"""DeepFool against a loop over single images, its cost, and its edges."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from taet.attacks import deepfool
from taet.attacks.ball import distance, verify
from taet.attacks.objectives import fooled
from taet.errors import UserError


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 6))
        model[1].weight.data *= 5
        return model.eval().double()


def images(count: int = 12) -> tuple[Tensor, Tensor]:
    """Images with black and white pixels, and labels of which all but the first are those predicted."""
    x = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = (1.4 * x - 0.2).clamp(0, 1)
    y = network()(x).argmax(1)
    y[0] = (y[0] + 1) % 6
    return x, y


def naive(model: nn.Module, x: Tensor, y: int, steps: int, overshoot: float, candidates: int) -> Tensor:
    """One image (1, ...), word for word."""
    total, x_adv = torch.zeros_like(x), x
    for _ in range(steps):
        leaf = x_adv.clone().requires_grad_()
        logits = model(leaf)[0]
        if int(logits.argmax()) != y:
            return x_adv
        rivals = sorted((k for k in range(6) if k != y), key=lambda k: -float(logits.detach()[k]))[: candidates - 1]
        moves = []
        for k in rivals:
            (w,) = torch.autograd.grad(logits[k] - logits[y], leaf, retain_graph=True)
            far = float((logits[k] - logits[y]).detach().abs() / w.norm())
            moves.append((far, (far + 1e-4) * w / w.norm()))
        total = total + min(moves, key=lambda move: move[0])[1]
        x_adv = (x + (1 + overshoot) * total).clamp(0, 1)
    return x_adv if int(model(x_adv).argmax()) != y else x


@pytest.mark.parametrize(("steps", "overshoot", "candidates"), [(50, 0.02, 10), (3, 0.0, 3), (1, 0.5, 2)])
def test_it_does_to_each_image_of_a_batch_what_a_loop_does_to_one(
    steps: int, overshoot: float, candidates: int
) -> None:
    model, (x, y) = network(), images()
    x_adv = deepfool(model, x, y, steps=steps, overshoot=overshoot, candidates=candidates)
    for i in range(len(x)):
        expected = naive(model, x[i : i + 1], int(y[i]), steps, overshoot, candidates)
        torch.testing.assert_close(x_adv[i : i + 1], expected, rtol=0, atol=1e-9)
    verify("deepfool", x_adv, x, None)
    assert torch.equal(x_adv[0], x[0]), "misclassified already"
    if steps == 50:
        assert fooled(model(x_adv), y).all()
        assert (distance(x_adv, x, "l2")[1:] > 0).all()


@pytest.mark.parametrize("slope", [0.0, 1e-44, 1e-30])
def test_flat_logits_give_no_nan(slope: float) -> None:
    x = torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    y = torch.zeros(4, dtype=torch.int64)
    first = torch.tensor([2.0, 0.0, 0.0])
    x_adv = deepfool(lambda images: first + slope * images.flatten(1)[:, :3], x, y, steps=5)
    assert torch.equal(x_adv, x), "no success, so the clean images"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps: got 0; allowed: 1 or more"),
        ({"candidates": 1}, "candidates: got 1; allowed: 2 or more"),
        ({"overshoot": -0.1}, "overshoot: got -0.1; allowed: 0 or more"),
        ({"overshoot": float("nan")}, "overshoot: got nan"),
        ({"eps": -1.0}, "eps: got -1; allowed: 0 or more"),
        ({"x": torch.zeros(2, 3, 4, 4, dtype=torch.uint8)}, "images: got torch.uint8"),
        ({"x": torch.full((2, 3, 4, 4), 1.01)}, "images: got values from 1.01 to 1.01; allowed: 0 to 1, without NaN"),
        ({"x": torch.full((2, 3, 4, 4), torch.nan)}, "images: got values from nan to nan"),
        ({"eps": torch.ones(3)}, r"eps: got a tensor of shape \(3,\); allowed: a number or one per image, \(2,\)"),
        (
            {"model": lambda x: x.flatten(1)[:, :1]},
            r"got logits of shape \(2, 1\); allowed: \(N, C\) with C of 2 or more",
        ),
    ],
)
def test_bad_input_is_one_line(change: dict[str, Any], message: str) -> None:
    arguments = {"model": network().float(), "x": torch.zeros(2, 3, 4, 4), "y": torch.zeros(2).long(), **change}
    with pytest.raises(UserError, match=message) as error:
        deepfool(**arguments)
    assert "\n" not in str(error.value)
