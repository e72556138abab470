"""Every attack on linear models, where the smallest perturbation of each image is known in closed
form.

With z = W x + b, the boundary to class k is |z_y - z_k| / ||w_y - w_k||_p away, p being 1 for the
L-infinity and 2 for the L2 norm, as long as the perturbed image stays in [0, 1]. Below the nearest
boundary no attack may succeed.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from taet.attacks import cw_l2, cw_linf, deepfool, fgsm, pgd, quick
from taet.attacks.ball import Norm, distance, verify
from taet.attacks.objectives import margin

PIXELS, COUNT = 60, 16
DUAL = {"linf": 1, "l2": 2}


def problem(classes: int, seed: int = 0) -> tuple[nn.Linear, Tensor, Tensor]:
    """A linear model in float64, images in the middle of [0, 1] near a boundary, and its
    predictions as labels."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Linear(PIXELS, classes, dtype=torch.float64)
    model.weight.data = 10 * torch.randn(classes, PIXELS, generator=generator, dtype=torch.float64)
    model.bias.data = -0.5 * model.weight.data.sum(1)
    x = 0.35 + 0.3 * torch.rand(40 * COUNT, PIXELS, generator=generator, dtype=torch.float64)
    border = boundaries(model, x, predict(model, x), "l2").amin(1)
    x = x[(border > 0.05) & (border < 0.3)][:COUNT]
    assert len(x) == COUNT
    return model, x, predict(model, x)


def predict(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(1)


def boundaries(model: nn.Linear, x: Tensor, y: Tensor, norm: Norm) -> Tensor:
    """Distance to the boundary of every class, (N, C); infinite for the label's."""
    logits, weight = model(x).detach(), model.weight.detach()
    gaps = logits.gather(1, y[:, None]) - logits
    norms = (weight[y][:, None] - weight).norm(p=DUAL[norm], dim=2)
    return (gaps / norms).scatter(1, y[:, None], float("inf"))


def ascent(
    norm: Norm, attack: Callable[..., Tensor] = pgd, **settings: Any
) -> tuple[Norm, Callable[..., Tensor]]:
    def run(model: nn.Module, x: Tensor, y: Tensor, eps: Tensor, **more: Any) -> Tensor:
        chosen = {"norm": norm, **settings, **more}
        if attack is cw_linf:
            chosen.pop("objective", None)
        return attack(model, x, y, eps=eps, steps=40, step_size=eps / 4, **chosen)

    return norm, run


BALLS: list[tuple[Norm, Callable[..., Tensor]]] = [
    ("linf", fgsm),
    ascent("linf"),
    ascent("linf", start="positive"),
    ascent("linf", cw_linf),
    ascent("l2"),
    ascent("l2", start="none"),
]


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize(("norm", "attack"), BALLS)
def test_an_image_breaks_just_above_the_nearest_border_and_never_just_below(
    norm: Norm, attack: Callable[..., Tensor], classes: int
) -> None:
    """With more than two classes the attack aims at the nearest: else it may climb towards
    another."""
    model, x, y = problem(classes)
    border, nearest = boundaries(model, x, y, norm).min(1)
    aim: dict[str, Any] = (
        {"y": y} if classes == 2 else {"y": nearest, "targeted": True, "objective": margin}
    )
    for factor, breaks in ((0.9999, False), (1.0001, True)):
        x_adv = attack(model, x, eps=border * factor, **aim)
        verify("attack", x_adv, x, border * factor, norm)
        assert torch.equal(predict(model, x_adv), nearest if breaks else y)


@pytest.mark.diagonal("norm", "classes")
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("classes", [2, 3, 12])
def test_quick_breaks_an_image_whose_nearest_border_is_in_its_ball(
    norm: Norm, classes: int
) -> None:
    """A per mille above the border: a chain of steps has a last one."""
    model, x, y = problem(classes)
    border, nearest = boundaries(model, x, y, norm).min(1)
    for factor, breaks in ((0.999, False), (1.001, True)):
        x_adv = quick(model, x, y, eps=border * factor, norm=norm)
        verify("quick", x_adv, x, border * factor, norm)
        assert torch.equal(predict(model, x_adv), nearest if breaks else y)


def test_the_search_of_cw_l2_comes_within_five_percent_and_never_below() -> None:
    model, x, y = problem(5)
    x_adv = cw_l2(model, x, y, c=None)
    assert (predict(model, x_adv) != y).all()
    border = boundaries(model, x, y, "l2").amin(1)
    ratio = distance(x_adv, x, "l2") / border
    assert torch.equal(cw_l2(model, x, y, eps=border * 0.999), x), "no success that counts"
    assert 1 - 1e-9 < float(ratio.min()) <= float(ratio.max()) < 1.05


@pytest.mark.parametrize("overshoot", [0.0, 0.02, 0.5])
def test_deepfool_crosses_the_nearest_border_by_its_overshoot(overshoot: float) -> None:
    model, x, y = problem(5)
    border, nearest = boundaries(model, x, y, "l2").min(1)
    x_adv = deepfool(model, x, y, overshoot=overshoot)
    # so far beyond, a third class may win
    assert torch.equal(predict(model, x_adv), nearest) or overshoot == 0.5
    assert (predict(model, x_adv) != y).all()
    torch.testing.assert_close(distance(x_adv, x, "l2"), (1 + overshoot) * (border + 1e-4))
    assert torch.equal(deepfool(model, x, y, overshoot=overshoot, eps=border * 0.999), x)
