"""The L2 attack of Carlini and Wagner against a loop over single images, and its edges."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from taet.attacks import catalogue, cw_l2, deepfool, fgsm
from taet.attacks.ball import distance, verify
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


def test_nothing_but_the_result_changes() -> None:
    model, (x, y) = network().train().float(), images()
    x = x.float()
    model(x).sum().backward()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    gradient, generator, before = model[1].weight.grad.clone(), torch.random.get_rng_state(), x.clone()
    with torch.no_grad():
        x_adv = cw_l2(model, x, y, c=None, steps=5)
    assert not x_adv.requires_grad
    assert x_adv.dtype == torch.float32
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(model[1].weight.grad, gradient)
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert torch.equal(x, before)


def test_black_and_white_pixels_and_zero_gradients_give_no_nan() -> None:
    _, (x, y) = network(), images()
    for picture in (x.round(), torch.zeros_like(x), torch.ones_like(x)):
        x_adv = cw_l2(lambda images: 0 * images.flatten(1)[:, :5] + torch.eye(5)[y], picture, y, c=None, steps=5)
        assert torch.equal(x_adv, picture)
    model = network().float()
    black = torch.zeros(1, 3, 4, 4)
    x_adv = cw_l2(model, black, model(black).argmax(1), steps=500, lr=0.1)
    assert fooled(model(x_adv), model(black).argmax(1)).all()
    verify("cw-l2", x_adv, black, None)


def test_more_rounds_find_no_longer_perturbation() -> None:
    model, (x, y) = network(), images()
    found = [cw_l2(model, x, y, c=None, steps=25, lr=0.05, search_steps=rounds) for rounds in (4, 6, 8)]
    norms = [torch.where(fooled(model(f), y), distance(f, x, "l2"), torch.inf) for f in found]
    assert (norms[1] <= norms[0]).all()
    assert (norms[2] <= norms[1]).all()
    assert (norms[2] < norms[0]).any()


FAILING: dict[str, Any] = {
    "gradients": lambda model: lambda x: model(x) + (0 * x.flatten(1)[:, :1]).sqrt(),
    "logits": lambda model: lambda x: model(x) / 0,
    "logits off the 8-bit grid": lambda model: lambda x: torch.where(on_grid(x), model(x), torch.nan),
}


def on_grid(x: Tensor) -> Tensor:
    """Whether all values are multiples of 1/4, as clean ones are here: (N, 1)."""
    return ((4 * x).round() == 4 * x).flatten(1).all(1)[:, None]


@pytest.mark.parametrize("settings", [{}, {"eps": 0.5}])
@pytest.mark.parametrize("failing", FAILING)
def test_what_is_not_finite_is_refused_not_counted(failing: str, settings: dict[str, Any]) -> None:
    model, x = network(), (4 * images()[0]).round() / 4
    y = model(x).argmax(1)
    with pytest.raises(
        UserError, match=r"cw-l2: the model's logits or gradients are not finite on 8 of 8 images"
    ) as error:
        cw_l2(FAILING[failing](model), x[:8], y[:8], **settings)
    assert "\n" not in str(error.value)


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


@pytest.mark.full
def test_the_search_finds_what_deepfool_finds_on_images_of_black_and_white_pixels() -> None:
    source = load_digits()
    x, y = torch.from_numpy(source.images).float().flatten(1)[:, None] / 16, torch.from_numpy(source.target)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    adam = torch.optim.Adam(model.parameters(), 3e-3)
    for number in range(300):
        rows = torch.arange(1000)[number % 10 :: 10]
        adversarial = fgsm(model, x[rows], y[rows], eps=0.1, checked=True)  # so that one pixel is not enough
        adam.zero_grad()
        nn.functional.cross_entropy(model(adversarial), y[rows]).backward()
        adam.step()
    x, y = x[1000:1030], y[1000:1030]
    assert ((x == 0) | (x == 1)).float().mean() > 0.5
    boundary, free = deepfool(model, x, y), cw_l2(model, x, y, c=None)
    near, far = (distance(found, x, "l2") for found in (boundary, free))
    bound = near.max()
    clear = near < 0.5 * bound
    assert 10 <= clear.sum() < len(x)
    assert bool((fooled(model(free), y) & (far <= bound))[clear].all())
    assert fooled(model(free), y).sum() >= fooled(model(boundary), y).sum()
    assert float((far / near)[near > 0].median()) < 1.1
    before = fooled(model(cw_l2(model, x, y, c=None, box="tanh")), y)
    assert before.float().mean() < 0.95, "which is why the search has another box"


def test_cards_before_the_search_had_another_box_stay_what_they_were() -> None:
    attack = catalogue.parse("cw-l2:c=search")
    assert attack.parameters["box"] == "sine"
    assert "box" not in catalogue.parse("cw-l2").parameters
    older = {name: value for name, value in attack.parameters.items() if name != "box"}
    again = catalogue.stored(attack.name, attack.norm, attack.eps, older)
    assert again.parameters == older
    assert again != attack
