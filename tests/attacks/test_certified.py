"""No attack breaks an image that is certified, nor finds a way shorter than the certificate.

Interval bounds (Gowal et al., 2018, arXiv:1810.12715) on networks of two layers prove that no image of a ball is of
another class. What an attack finds there would be an image outside of its ball, or a wrong decision.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from taet.attacks import autoattack, cw_l2, cw_linf, deepfool, fgsm, pgd, quick
from taet.attacks.autoattack import run_parts
from taet.attacks.ball import Norm, distance
from taet.attacks.objectives import OBJECTIVES

SHAPE, HIDDEN, CLASSES = (1, 5, 5), 12, 4
NETWORKS, IMAGES = 5, 250
CLOSE = 1e-9
"""Share by which an image is inside the largest ball that is certified: rounding is in float64."""
Attack = Callable[..., Tensor]


class Network(nn.Module):
    """W2 relu(W1 (x - 0.5) + b1) + b2 in float64."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        size = SHAPE[0] * SHAPE[1] * SHAPE[2]

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.first, self.begin = draw(HIDDEN, size), 0.3 * draw(HIDDEN)
        self.second, self.end = draw(CLASSES, HIDDEN), 0.1 * draw(CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = (x.to(torch.float64).flatten(1) - 0.5) @ self.first.T + self.begin
        return hidden.relu() @ self.second.T + self.end

    def least_margin(self, x: Tensor, y: Tensor, eps: Tensor, norm: Norm) -> Tensor:
        """A lower bound of min_k z_y - z_k over the ball of each image, (N,)."""
        x = x.flatten(1)
        if norm == "linf":  # the ball inside [0, 1] is a box
            low, high = (x - eps[:, None]).clamp(min=0), (x + eps[:, None]).clamp(max=1)
            middle, reach = (low + high) / 2 - 0.5, (high - low) / 2 @ self.first.abs().T
        else:
            middle, reach = x - 0.5, eps[:, None] * self.first.norm(dim=1)
        middle = middle @ self.first.T + self.begin
        low, high = (middle - reach).relu(), (middle + reach).relu()
        gaps = self.second[y][:, None] - self.second  # (N, C, H): of the label minus of each class
        bound = gaps.clamp(min=0) @ low[:, :, None] + gaps.clamp(max=0) @ high[:, :, None]
        bound = bound.squeeze(2) + self.end[y][:, None] - self.end
        return bound.scatter(1, y[:, None], torch.inf).amin(1)

    def certified(self, x: Tensor, y: Tensor, norm: Norm) -> Tensor:
        """The largest radius of each image, by bisection, in which its margin is proven to be above 0, (N,)."""
        low, high = torch.zeros(len(x), dtype=torch.float64), torch.ones(len(x), dtype=torch.float64)
        for _ in range(50):
            middle = (low + high) / 2
            proven = self.least_margin(x, y, middle, norm) > 0
            low, high = torch.where(proven, middle, low), torch.where(proven, high, middle)
        return low * (1 - CLOSE)


def problem(seed: int, norm: Norm) -> tuple[Network, Tensor, Tensor, Tensor]:
    """A network, images, its predictions, and their certified radii."""
    model = Network(seed)
    x = torch.rand(IMAGES, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    y = model(x).argmax(1)
    radius = model.certified(x, y, norm)
    assert (radius > 0).all()
    return model, x, y, radius


def ascent(norm: Norm, **settings: Any) -> Attack:
    def attack(model: nn.Module, x: Tensor, y: Tensor, eps: Tensor) -> Tensor:
        return pgd(model, x, y, eps=eps, steps=8, step_size=eps / 3, norm=norm, **settings)

    return attack


def cheap(norm: Norm) -> Attack:
    return lambda model, x, y, eps: quick(model, x, y, eps=eps, norm=norm, targets=1, near=0.0)


def aimed(norm: Norm) -> Attack:
    """At the runner-up."""

    def attack(model: nn.Module, x: Tensor, y: Tensor, eps: Tensor) -> Tensor:
        target = model(x).scatter(1, y[:, None], -torch.inf).argmax(1)
        return pgd(model, x, target, eps=eps, steps=8, step_size=eps / 3, norm=norm, targeted=True)

    return attack


BALLS: dict[str, tuple[Norm, Attack]] = {
    "fgsm": ("linf", lambda model, x, y, eps: fgsm(model, x, y, eps=eps)),
    "cw-linf": ("linf", lambda model, x, y, eps: cw_linf(model, x, y, eps=eps, steps=8, step_size=eps / 3)),
    "cw-l2": ("l2", lambda model, x, y, eps: cw_l2(model, x, y, eps=eps, steps=60, lr=0.05)),
    "deepfool": ("l2", lambda model, x, y, eps: deepfool(model, x, y, eps=eps)),
}
for ball in ("linf", "l2"):
    BALLS |= {f"pgd {ball} {name}": (ball, ascent(ball, objective=objective)) for name, objective in OBJECTIVES.items()}
    BALLS |= {f"pgd {ball} restarts": (ball, ascent(ball, restarts=3)), f"pgd {ball} aimed": (ball, aimed(ball))}
    BALLS[f"quick {ball}"] = (ball, cheap(ball))
    BALLS |= {f"pgd {ball} gaussian": (ball, ascent(ball, start="gaussian"))}


@pytest.mark.sample(5)
@pytest.mark.parametrize("name", BALLS)
def test_no_certified_image_is_broken_and_the_same_attack_breaks_others(name: str) -> None:
    norm, attack = BALLS[name]
    broken = tried = 0
    for seed in range(NETWORKS):
        model, x, y, radius = problem(seed, norm)
        x_adv = attack(model, x, y, radius)
        assert bool((distance(x_adv, x, norm) <= radius * (1 + 1e-6)).all())
        assert torch.equal(model(x_adv).argmax(1), y)
        far = attack(model, x, y, (8 * radius).clamp(max=1))
        broken, tried = broken + int((model(far).argmax(1) != y).sum()), tried + len(x)
    assert broken > tried / 10, "larger balls hold images of other classes, which this attack finds"


@pytest.mark.sample(2)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_autoattack_breaks_no_certified_image(norm: Norm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["taet.attacks.autoattack"], "QUERIES", 30)
    for seed in range(NETWORKS):
        model, x, y, radius = problem(seed, norm)
        eps = float(radius.median())
        sure = radius > eps * (1 + 1e-5)  # it runs in float32
        outcome = run_parts(model, x.float(), y, eps=eps, norm=norm, version="10")
        assert bool(outcome.correct[sure].all())
        assert int(sure.sum()) > IMAGES / 3
    x_adv = autoattack(model, x[:20].float(), y[:20], eps=min(1.0, 8 * eps), norm=norm, version="10")
    assert bool((model(x_adv).argmax(1) != y[:20]).any())
