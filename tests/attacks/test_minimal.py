"""Attacks that look for the smallest perturbation, cw_l2 and deepfool, against loops over single
images."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from taet.attacks import cw_l2, deepfool
from taet.attacks.ball import distance, verify
from taet.attacks.objectives import fooled, margin

CLASSES = 5


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Flatten(), nn.Linear(48, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, CLASSES)
        )
        model[4].weight.data *= 20
        return model.eval().double()


def images(count: int = 8) -> tuple[Tensor, Tensor]:
    """Images with black and white pixels, and labels of which all but the first are those
    predicted."""
    x = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = (1.4 * x - 0.2).clamp(0, 1)
    y = network()(x).argmax(1)
    y[0] = (y[0] + 1) % CLASSES
    return x, y


def naive_cw(
    model: nn.Module,
    x: Tensor,
    y: int,
    c: float | None,
    kappa: float,
    steps: int,
    lr: float,
    rounds: int,
) -> Tensor:
    """One image (1, ...), word for word."""

    def look(x_adv: Tensor) -> tuple[Tensor, bool]:
        logits = model(x_adv)[0]
        gap = logits[y] - max(logits[k] for k in range(CLASSES) if k != y)
        return gap, int(logits.argmax()) != y and float(gap.detach()) <= -kappa

    best, shortest = x, 0.0 if look(x)[1] else math.inf
    low, high, weight = 0.0, math.inf, 1e-3 if c is None else c
    for _ in range(rounds if c is None else 1):
        w = (torch.asin if c is None else torch.atanh)((2 * x - 1) * 0.9999995)
        mean, square, ever = torch.zeros_like(w), torch.zeros_like(w), False
        for step in range(1, steps + 1):
            w.requires_grad_()
            x_adv = (torch.sin if c is None else torch.tanh)(w) / 2 + 0.5
            gap, success = look(x_adv)
            norm = float((x_adv - x).detach().norm())
            loss = (x_adv - x).pow(2).sum() + weight * max(
                gap, torch.tensor(-kappa, dtype=gap.dtype)
            )
            (gradient,) = torch.autograd.grad(loss, w)
            if success and norm < shortest:
                best, shortest = x_adv.detach(), norm
            ever = ever or success
            mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
            w = w.detach() - lr * mean / (1 - 0.9**step) / (
                (square / (1 - 0.999**step)).sqrt() + 1e-8
            )
        low, high = (low, weight) if ever else (weight, high)
        weight = (low + high) / 2 if math.isfinite(high) else 10 * weight
    return best


@pytest.mark.sample(3)
@pytest.mark.parametrize(("c", "kappa"), [(10.0, 0.0), (None, 0.0), (None, 0.5)])
def test_cw_l2_does_to_each_image_of_a_batch_what_a_loop_does_to_one(
    c: float | None, kappa: float
) -> None:
    model, (x, y) = network(), images()
    settings: dict[str, Any] = {"steps": 25, "lr": 0.05}
    x_adv = cw_l2(model, x, y, c=c, kappa=kappa, search_steps=5, **settings)
    for i in range(len(x)):
        expected = naive_cw(model, x[i : i + 1], int(y[i]), c, kappa, **settings, rounds=5)
        torch.testing.assert_close(x_adv[i : i + 1], expected, rtol=0, atol=1e-7)
    moved = (x_adv != x).flatten(1).any(1)
    assert int(moved.sum()) >= 4
    assert fooled(model(x_adv), y)[moved].all()
    verify("cw-l2", x_adv, x, None)


def test_what_fools_already_comes_back_as_it_is_unless_kappa_asks_for_more() -> None:
    model, x = network(), images()[0]
    wrong = (model(x).argmax(1) + 1) % CLASSES
    assert torch.equal(cw_l2(model, x, wrong), x)
    kappa = float(margin(model(x), wrong).detach().max()) + 0.1
    confident = cw_l2(model, x, wrong, kappa=kappa, steps=200, lr=0.05)
    assert not (confident == x).flatten(1).all(1).any()
    assert (margin(model(confident), wrong) >= kappa).all()


def naive_deepfool(
    model: nn.Module, x: Tensor, y: int, steps: int, overshoot: float, candidates: int
) -> Tensor:
    """One image (1, ...), word for word."""
    total, x_adv = torch.zeros_like(x), x
    for _ in range(steps):
        leaf = x_adv.clone().requires_grad_()
        logits = model(leaf)[0]
        if int(logits.argmax()) != y:
            return x_adv
        others = (k for k in range(CLASSES) if k != y)
        moves = []
        for k in sorted(others, key=lambda k: -float(logits.detach()[k]))[: candidates - 1]:
            (w,) = torch.autograd.grad(logits[k] - logits[y], leaf, retain_graph=True)
            far = float((logits[k] - logits[y]).detach().abs() / w.norm())
            moves.append((far, (far + 1e-4) * w / w.norm()))
        total = total + min(moves, key=lambda move: move[0])[1]
        x_adv = (x + (1 + overshoot) * total).clamp(0, 1)
    return x_adv if int(model(x_adv).argmax()) != y else x


@pytest.mark.parametrize(
    ("steps", "overshoot", "candidates"), [(50, 0.02, 10), (3, 0.0, 3), (1, 0.5, 2)]
)
def test_deepfool_does_to_each_image_of_a_batch_what_a_loop_does_to_one(
    steps: int, overshoot: float, candidates: int
) -> None:
    model, (x, y) = network(), images(12)
    x_adv = deepfool(model, x, y, steps=steps, overshoot=overshoot, candidates=candidates)
    for i in range(len(x)):
        expected = naive_deepfool(model, x[i : i + 1], int(y[i]), steps, overshoot, candidates)
        torch.testing.assert_close(x_adv[i : i + 1], expected, rtol=0, atol=1e-9)
    verify("deepfool", x_adv, x, None)
    assert torch.equal(x_adv[0], x[0]), "misclassified already"
    if steps == 50:
        assert fooled(model(x_adv), y).all()
        assert (distance(x_adv, x, "l2")[1:] > 0).all()


@pytest.mark.parametrize("slope", [0.0, 1e-44, 1e-30])
def test_flat_logits_give_no_nan(slope: float) -> None:
    x = torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    first = torch.tensor([2.0, 0.0, 0.0])
    x_adv = deepfool(
        lambda images: first + slope * images.flatten(1)[:, :3], x, torch.zeros(4).long(), steps=5
    )
    assert torch.equal(x_adv, x), "no success, so the clean images"
