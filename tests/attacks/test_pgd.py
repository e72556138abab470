"""PGD and FGSM against golden numbers, closed forms, and their promises to leave things alone."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taet.attacks import fgsm, pgd
from taet.attacks.pgd import cross_entropy
from taet.errors import UserError

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "attacks.json").read_text())


def golden(key: str) -> tuple[dict[str, Any], nn.Module]:
    """Inputs of a golden attack in float64, and its linear model."""
    inputs = GOLDEN[key]["inputs"]
    tensors = {name: torch.tensor(inputs[name], dtype=torch.float64) for name in ("x", "start", "W")}
    model = nn.Linear(4, 3, bias=False, dtype=torch.float64)
    model.weight.data = tensors["W"]
    return {**inputs, **tensors}, model


def number(text: str) -> float:
    return float(Fraction(text))


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))


def images(count: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 3, 8, 8, generator=generator), torch.arange(count) % 5


def check(key: str, x_adv: Tensor) -> None:
    expected = torch.tensor(GOLDEN[key]["expected"], dtype=torch.float64)
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=GOLDEN[key]["tolerance"])


@pytest.mark.parametrize("weight", [None, *GOLDEN["pgd5_weighted_ce_equals_ce"]["inputs"]["weight"]])
def test_cross_entropy_on_a_linear_model_is_golden_whatever_positive_weight_it_has(weight: float | None) -> None:
    inputs, model = golden("pgd5_ce_linear")
    x_adv = pgd(
        model,
        inputs["x"],
        torch.tensor(inputs["labels"]),
        eps=number(inputs["eps"]),
        steps=inputs["K"],
        step_size=number(inputs["alpha"]),
        start_noise=inputs["start"],
        objective=lambda logits, y: (1 if weight is None else weight) * cross_entropy(logits, y),
    )
    check("pgd5_ce_linear", x_adv)


def test_divergence_on_a_linear_model_is_golden() -> None:
    inputs, model = golden("pgd5_kl_linear")
    target = model(inputs["x"]).softmax(1).detach()
    x_adv = pgd(
        model,
        inputs["x"],
        torch.zeros(2, dtype=torch.int64),
        eps=number(inputs["eps"]),
        steps=inputs["K"],
        step_size=number(inputs["alpha"]),
        start="gaussian",
        start_noise=inputs["start"],
        objective=lambda logits, _: F.kl_div(logits.log_softmax(1), target, reduction="none").sum(1),
    )
    check("pgd5_kl_linear", x_adv)


def test_ball_step_and_number_of_steps_may_differ_per_sample() -> None:
    inputs, model = golden("las_masked_pgd_linear")
    steps = torch.tensor(inputs["iters"])
    x_adv = pgd(
        model,
        inputs["x"],
        torch.tensor(inputs["labels"]),
        eps=torch.tensor([number(eps) for eps in inputs["eps"]], dtype=torch.float64),
        steps=int(steps.max()),
        step_size=torch.tensor([number(alpha) for alpha in inputs["alpha"]], dtype=torch.float64),
        start_noise=inputs["start"],
        active=torch.arange(int(steps.max()))[:, None] < steps,
    )
    check("las_masked_pgd_linear", x_adv)


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_a_linear_model_breaks_exactly_at_margin_over_l1_norm(attack: str) -> None:
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(20, 2, dtype=torch.float64)
    model.weight.data = torch.randn(2, 20, generator=generator, dtype=torch.float64)
    x = 0.4 + 0.2 * torch.rand(16, 20, generator=generator, dtype=torch.float64)
    logits = model(x).detach()
    y = logits.argmax(1)
    margin = logits.amax(1) - logits.amin(1)
    critical = margin / (model.weight[0] - model.weight[1]).abs().sum().detach()
    assert float(critical.max()) < 0.4  # away from the borders of the image range
    for factor, breaks in ((0.999, False), (1.001, True)):
        eps = critical * factor
        if attack == "fgsm":
            x_adv = fgsm(model, x, y, eps=eps)
        else:
            x_adv = pgd(model, x, y, eps=eps, steps=20, step_size=eps / 4)
        assert ((model(x_adv).argmax(1) != y) == breaks).all()


def test_nothing_but_the_result_changes() -> None:
    model, (x, y) = network(), images()
    model[1].eval()
    model[0].bias.requires_grad_(False)
    model(x).sum().backward()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    gradient, generator_state, before = model[4].weight.grad.clone(), torch.random.get_rng_state(), x.clone()
    with torch.no_grad():
        x_adv = pgd(model, x, y, eps=0.1, steps=3, step_size=0.05)
    assert not x_adv.requires_grad
    assert x_adv.dtype == torch.float32
    assert [module.training for module in model.modules()] == [True, True, False, True, True, True]
    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True, True, True]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(model[4].weight.grad, gradient)
    assert torch.equal(torch.random.get_rng_state(), generator_state)
    assert torch.equal(x, before)
    assert not x.requires_grad
    assert float((x_adv - x).abs().max()) <= 0.1 + 1e-6
    assert 0 <= float(x_adv.min()) <= float(x_adv.max()) <= 1


def test_same_seed_same_bits_and_other_seed_other_bits() -> None:
    model, (x, y) = network(), images()

    def attack(seed: int) -> Tensor:
        return pgd(model, x, y, eps=0.1, steps=2, step_size=0.02, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(attack(3), attack(3))
    assert not torch.equal(attack(3), attack(4))


def test_each_sample_moves_by_itself_in_its_own_ball() -> None:
    model, (x, y) = network(), images()
    eps = torch.tensor([0.0, 0.01, 0.02, 0.03, 0.04, 0.05])
    x_adv = pgd(model, x, y, eps=eps, steps=5, step_size=eps / 2, start="none")
    assert torch.equal(x_adv[0], x[0])
    for i in range(1, 6):
        alone = pgd(
            model, x[i : i + 1], y[i : i + 1], eps=float(eps[i]), steps=5, step_size=float(eps[i]) / 2, start="none"
        )
        torch.testing.assert_close(x_adv[i : i + 1], alone)


@pytest.mark.parametrize("start", ["uniform", "gaussian", "none"])
def test_no_radius_returns_the_images_and_no_step_stays_inside(start: Any) -> None:
    model, (x, y) = network(), images()
    assert torch.equal(pgd(model, x, y, eps=0, steps=2, step_size=0.1, start=start), x)
    still = pgd(model, x.round(), y, eps=0.1, steps=0, step_size=0.1, start=start)
    assert float((still - x.round()).abs().max()) <= 0.1 + 1e-6
    assert 0 <= float(still.min()) <= float(still.max()) <= 1


def test_inactive_samples_stay_and_the_observer_sees_every_iterate_before_its_update() -> None:
    model, (x, y) = network(), images()
    active = torch.tensor([True, False] * 3)
    seen: list[Tensor] = []

    def observe(step: int, logits: Tensor) -> None:
        assert step == len(seen)
        assert not logits.requires_grad
        seen.append(logits)

    x_adv = pgd(model, x, y, eps=0.1, steps=3, step_size=0.05, start="none", active=active, observe=observe)
    assert torch.equal((x_adv != x).flatten(1).any(1), active)
    assert len(seen) == 3
    torch.testing.assert_close(seen[0], model.eval()(x).detach())


def test_objective_gets_float32_under_autocast() -> None:
    model, (x, y) = network(), images()
    dtypes = []

    def objective(logits: Tensor, labels: Tensor) -> Tensor:
        dtypes.append(logits.dtype)
        return cross_entropy(logits, labels)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        x_adv = pgd(model, x.bfloat16(), y, eps=0.1, steps=1, step_size=0.1, objective=objective)
    assert dtypes == [torch.float32]
    assert x_adv.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": 8}, "eps: got 8; .* did you mean 8/255"),
        ({"eps": -1}, "eps: got -1"),
        ({"step_size": 2.0}, "step size: got 2; .* did you mean 2/255"),
        ({"step_size": float("nan")}, "step size: got nan"),
        ({"x": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}, "images: got torch.uint8; .*divide uint8 by 255"),
    ],
)
def test_bad_input_is_one_line(change: dict[str, Any], message: str) -> None:
    arguments = {"x": torch.zeros(2, 3, 8, 8), "y": torch.zeros(2).long(), "eps": 0.1, "step_size": 0.1, **change}
    with pytest.raises(UserError, match=message) as error:
        pgd(network(), **arguments, steps=1)
    assert "\n" not in str(error.value)
    if "step_size" not in change:
        del arguments["step_size"]
        with pytest.raises(UserError, match=message):
            fgsm(network(), **arguments)


def test_train_mode_moves_the_statistics_in_every_step() -> None:
    model, (x, y) = network(), images()
    pgd(model, x, y, eps=0.1, steps=3, step_size=0.05, bn_mode="train")
    assert int(model[1].num_batches_tracked) == 3


def test_fgsm_is_one_signed_step() -> None:
    model, (x, y) = network().eval(), images()
    leaf = x.clone().requires_grad_()
    cross_entropy(model(leaf), y).sum().backward()
    assert leaf.grad is not None
    torch.testing.assert_close(fgsm(model, x, y, eps=0.05), (x + 0.05 * leaf.grad.sign()).clamp(0, 1))
