"""PGD and FGSM against golden numbers and naive loops, and their promises to leave things alone."""

from typing import Any
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taet.attacks import fgsm, pgd
from taet.attacks.ball import Norm, distance, verify
from taet.attacks.objectives import fooled, margin
from taet.losses import cross_entropy
from tests.calls import one_line
from tests.golden_numbers import Golden

BOTH = pytest.mark.parametrize("norm", ["linf", "l2"])


def linear(golden: Golden) -> nn.Module:
    model = nn.Linear(4, 3, bias=False, dtype=torch.float64)
    model.weight.data = golden["W"]
    return model


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)
        )


def images(count: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 3, 8, 8, generator=generator), torch.arange(count) % 5


def test_cross_entropy_on_a_linear_model_is_golden() -> None:
    golden = Golden("pgd5_ce_linear")
    settings = {"eps": golden["eps"], "steps": golden["K"], "step_size": golden["alpha"]}
    golden.check(
        pgd(linear(golden), golden["x"], golden["labels"], **settings, start_noise=golden["start"])
    )


def test_divergence_on_a_linear_model_is_golden() -> None:
    golden = Golden("pgd5_kl_linear")
    model, x = linear(golden), golden["x"]
    target = model(x).softmax(1).detach()
    settings = {"eps": golden["eps"], "steps": golden["K"], "step_size": golden["alpha"]}
    settings |= {"start": "gaussian", "start_noise": golden["start"]}
    divergence = lambda z, _: F.kl_div(z.log_softmax(1), target, reduction="none").sum(1)  # noqa: E731
    golden.check(pgd(model, x, torch.zeros(len(x)).long(), **settings, objective=divergence))


@pytest.mark.parametrize("objective", [cross_entropy, margin])
@pytest.mark.parametrize("targeted", [False, True])
def test_fgsm_is_one_signed_step_up_or_down_to_the_target(objective: Any, targeted: bool) -> None:
    model, (x, y) = network().eval(), images()
    leaf, eps = x.clone().requires_grad_(), torch.tensor([0.0, 0.01, 0.02, 0.03, 0.04, 0.5])
    objective(model(leaf), y).sum().backward()
    step = (-1 if targeted else 1) * eps.view(-1, 1, 1, 1) * leaf.grad.sign()
    x_adv = fgsm(model, x, y, eps=eps, objective=objective, targeted=targeted)
    torch.testing.assert_close(x_adv, (x + step).clamp(0, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step_size": 2.0}, "step size: got 2; .* did you mean 2/255"),
        (
            {"step_size": [torch.tensor(0.1), torch.tensor(-0.1)]},
            "step size: got -0.1; allowed: a number, 0 to 1",
        ),
        ({"step_size": [0.1]}, "got 1 for 2 steps; allowed: one, or one per step"),
        (
            {"eps": torch.zeros(3)},
            r"eps: got a tensor of shape \(3,\); allowed: a number or one per image, \(2,\)",
        ),
        ({"norm": "L2"}, "unknown norm 'L2'; allowed: l2, linf; did you mean 'l2'"),
        ({"restarts": 2, "start": "none"}, "restarts: got several of start none"),
        (
            {"restarts": 2, "start_noise": torch.zeros(2, 3, 8, 8)},
            "start noise: got 1; allowed: one per restart, 2",
        ),
        (
            {"start_noise": Mock(spec=torch.Generator, device=torch.device("cuda"))},
            "got a generator on cuda; allowed: on c",
        ),
        ({"objective": "ce"}, "objective: got 'ce'; .*OBJECTIVES"),
        (
            {"objective": torch.nn.CrossEntropyLoss()},
            r"objective: got \(\) for 2 images; allowed: one value",
        ),
        ({"eps": "8/255"}, "eps: got '8/255'; allowed: a number, e.g. 8 / 255"),
    ],
)
def test_bad_input_is_one_line(change: dict[str, Any], message: str) -> None:
    settings = {"eps": 0.1, "steps": 2, "step_size": 0.1, **change}
    with one_line(message):
        pgd(network(), torch.zeros(2, 3, 8, 8), torch.zeros(2).long(), **settings)


def test_train_mode_moves_the_statistics_in_every_step_which_the_observer_sees() -> None:
    model, (x, y) = network(), images()
    seen: list[int] = []
    pgd(
        model,
        x,
        y,
        eps=0.1,
        steps=3,
        step_size=0.05,
        bn_mode="train",
        observe=lambda step, _: seen.append(step),
    )
    assert seen == [0, 1, 2]
    assert int(model[1].num_batches_tracked) == 3


def test_l2_steps_along_each_gradient_and_scales_back_onto_each_ball() -> None:
    model, (x, y) = network().eval().double(), images()
    x = x.double()
    eps = torch.tensor([0.0, 0.1, 0.2, 0.5, 1.0, 3.0], dtype=torch.float64)
    x_adv = pgd(model, x, y, eps=eps, steps=4, step_size=eps / 3, norm="l2", start="none")
    for i in range(6):
        moved = x[i].clone()
        for _ in range(4):
            leaf = moved.clone().requires_grad_()
            F.cross_entropy(model(leaf[None]), y[i : i + 1]).backward()
            delta = moved + eps[i] / 3 * leaf.grad / leaf.grad.norm() - x[i]
            moved = (x[i] + delta * min(1.0, float(eps[i] / delta.norm().clamp(min=1e-9)))).clamp(
                0, 1
            )
        torch.testing.assert_close(x_adv[i], moved, rtol=0, atol=1e-9)


def first_two(logits: Tensor, y: Tensor) -> Tensor:
    """An objective that says little about whether the model is fooled."""
    return logits[:, :2].sum(1) + 0 * y


@pytest.mark.parametrize("objective", [cross_entropy, first_two])
@pytest.mark.parametrize("targeted", [False, True])
@BOTH
def test_restarts_keep_the_first_that_fools_the_model_else_the_highest(
    norm: Norm, targeted: bool, objective: Any
) -> None:
    model, (x, y) = network().eval(), images(40)
    generator = torch.Generator().manual_seed(2)
    noise = 0.2 * torch.randn(4, *x.shape, generator=generator)
    settings: dict[str, Any] = {
        "steps": 2,
        "norm": norm,
        "targeted": targeted,
        "objective": objective,
    }
    settings |= (
        {"eps": 0.2, "step_size": 0.002} if norm == "linf" else {"eps": 2.0, "step_size": 0.02}
    )
    single = [pgd(model, x, y, start_noise=one, **settings) for one in noise]
    together = pgd(model, x, y, start_noise=noise, restarts=4, **settings)
    logits = [model(x_adv).detach() for x_adv in single]
    heights = torch.stack([(-1 if targeted else 1) * objective(z, y) for z in logits], 1)
    breaks = torch.stack([fooled(z, y, targeted) for z in logits], 1)
    chosen = [
        next((k for k, b in enumerate(row) if b), int(heights[i].argmax()))
        for i, row in enumerate(breaks)
    ]
    assert len(set(chosen)) > 1
    assert torch.equal(together, torch.stack([single[k][i] for i, k in enumerate(chosen)]))
    assert torch.equal(fooled(model(together), y, targeted), breaks.any(1))
    assert not torch.equal(breaks.any(1), breaks[:, 0]), (
        "restarts break images that the first does not"
    )


@BOTH
def test_a_gradient_of_zero_moves_nothing_and_a_tiny_one_moves_as_far_as_any(norm: Norm) -> None:
    x, y = images()
    settings: dict[str, Any] = {
        "eps": 0.5,
        "steps": 1,
        "step_size": 0.1,
        "norm": norm,
        "start": "none",
    }
    weights = torch.tensor([0.0, 1e-30, 1.0, 1.0, 1.0, 1.0])

    def model(images: Tensor) -> Tensor:
        return weights[:, None] * images.mean(3).flatten(1)

    moved = distance(pgd(model, 0.25 + x / 2, y, objective=margin, **settings), 0.25 + x / 2, norm)
    assert moved.tolist() == pytest.approx([0.0, *[0.1] * 5], rel=1e-4)


def rooted(where: Tensor, slope: float) -> Any:
    """A model whose gradient at an image with the first value `where` (N,) is infinite, or NaN with
    a slope of 0."""

    def model(x: Tensor) -> Tensor:
        first = x.flatten(1)[:, 0]
        return torch.stack([first, -first + slope * (first - where).sqrt()], 1)

    return model


@BOTH
@pytest.mark.parametrize("slope", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_makes_its_image_nan_and_no_other(
    norm: Norm, slope: float
) -> None:
    x, y = 0.25 + images()[0] / 2, torch.zeros(6, dtype=torch.int64)
    where = torch.full((6,), -1.0)
    where[2] = x[2].flatten()[0]
    model = rooted(where, slope)
    assert model(x).isfinite().all()
    x_adv = pgd(model, x, y, eps=0.1, steps=3, step_size=0.02, norm=norm, start="none")
    assert x_adv.isnan().flatten(1).any(1).tolist() == [i == 2 for i in range(6)]
    with one_line(r"attack: 1 images left the ball .*gradients finite"):
        verify("attack", x_adv, x, 0.1, norm)


@BOTH
@pytest.mark.parametrize("bad", [0, 1, 2])
def test_restarts_keep_what_is_not_finite(norm: Norm, bad: int) -> None:
    x, y = 0.25 + images()[0] / 2, torch.zeros(6, dtype=torch.int64)
    noise = torch.full((3, *x.shape), 0.01)
    noise[bad] = 0
    model = rooted(x.flatten(1)[:, 0], 0.0)
    # a model that hides it counts no better
    for laundered in (model, lambda images: model(images).nan_to_num()):
        settings: dict[str, Any] = {
            "eps": 0.1,
            "steps": 2,
            "step_size": 0.001,
            "norm": norm,
            "restarts": 3,
        }
        assert pgd(laundered, x, y, start_noise=noise, **settings).isnan().flatten(1).any(1).all()
