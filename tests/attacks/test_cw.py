"""The L2 attack of Carlini and Wagner against a loop over single images, and its edges."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from taet.attacks import catalogue, cw_l2
from taet.attacks.ball import verify
from taet.attacks.objectives import fooled, margin
from taet.errors import UserError


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 5))
        model[4].weight.data *= 20
        return model.eval().double()


def images(count: int = 8) -> tuple[Tensor, Tensor]:
    """Images with black and white pixels, and labels of which most are those predicted."""
    x = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = (1.4 * x - 0.2).clamp(0, 1)
    y = network()(x).argmax(1)
    y[0] = (y[0] + 1) % 5
    return x, y


def naive(
    model: nn.Module, x: Tensor, y: int, c: float | None, kappa: float, steps: int, lr: float, rounds: int, sign: int
) -> Tensor:
    """One image (1, ...), word for word; sign is 1 away from y and -1 towards it."""

    def look(x_adv: Tensor) -> tuple[Tensor, bool]:
        logits = model(x_adv)[0]
        gap = sign * (logits[y] - max(logits[k] for k in range(5) if k != y))
        return gap, (int(logits.argmax()) != y) == (sign == 1) and float(gap.detach()) <= -kappa

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
            loss = (x_adv - x).pow(2).sum() + weight * max(gap, torch.tensor(-kappa, dtype=gap.dtype))
            (gradient,) = torch.autograd.grad(loss, w)
            if success and norm < shortest:
                best, shortest = x_adv.detach(), norm
            ever = ever or success
            mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
            w = w.detach() - lr * mean / (1 - 0.9**step) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
        low, high = (low, weight) if ever else (weight, high)
        weight = (low + high) / 2 if math.isfinite(high) else 10 * weight
    return best


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    ("c", "kappa", "targeted"), [(10.0, 0.0, False), (None, 0.0, False), (None, 0.5, False), (None, 0.0, True)]
)
def test_it_does_to_each_image_of_a_batch_what_a_loop_does_to_one(
    c: float | None, kappa: float, targeted: bool
) -> None:
    model, (x, y) = network(), images()
    aim = (y + 1) % 5 if targeted else y
    settings: dict[str, Any] = {"steps": 25, "lr": 0.05}
    x_adv = cw_l2(model, x, aim, c=c, kappa=kappa, targeted=targeted, search_steps=5, **settings)
    for i in range(len(x)):
        expected = naive(model, x[i : i + 1], int(aim[i]), c, kappa, **settings, rounds=5, sign=-1 if targeted else 1)
        torch.testing.assert_close(x_adv[i : i + 1], expected, rtol=0, atol=1e-7)
    moved = (x_adv != x).flatten(1).any(1)
    assert int(moved.sum()) >= 4
    assert fooled(model(x_adv), aim, targeted)[moved].all()
    verify("cw-l2", x_adv, x, None)


def test_what_is_misclassified_already_comes_back_as_it_is() -> None:
    model, (x, y) = network(), images()
    wrong = (model(x).argmax(1) + 1) % 5
    assert torch.equal(cw_l2(model, x, wrong), x)
    assert torch.equal(cw_l2(model, x, model(x).argmax(1), targeted=True), x)
    assert torch.equal(cw_l2(model, x, y)[0], x[0])
    margins = margin(model(x), wrong).detach()
    confident = cw_l2(model, x, wrong, kappa=float(margins.max()) + 0.1, steps=200, lr=0.05)
    assert not (confident == x).flatten(1).all(1).any()
    assert (margin(model(confident), wrong) >= margins.max() + 0.1).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"c": 0.0}, "c: got 0; allowed: above 0"),
        ({"c": float("nan")}, "c: got nan"),
        ({"lr": -1.0}, "lr: got -1; allowed: above 0"),
        ({"initial_c": float("inf")}, "initial c: got inf"),
        ({"kappa": -0.1}, "kappa: got -0.1; allowed: 0 or more"),
        ({"steps": 0}, "steps: got 0; allowed: 1 or more"),
        ({"search_steps": 0}, "search steps: got 0; allowed: 1 or more"),
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
        cw_l2(**arguments)
    assert "\n" not in str(error.value)


def test_cards_before_the_search_had_another_box_stay_what_they_were() -> None:
    attack = catalogue.parse("cw-l2:c=search")
    assert attack.parameters["box"] == "sine"
    assert "box" not in catalogue.parse("cw-l2").parameters
    older = {name: value for name, value in attack.parameters.items() if name != "box"}
    again = catalogue.stored(attack.name, attack.norm, attack.eps, older)
    assert again.parameters == older
    assert again != attack
