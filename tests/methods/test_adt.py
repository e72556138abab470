"""ADT: golden formulas, and the fit of the distribution."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taet import methods
from taet.attacks.ball import frozen
from taet.attacks.noise import Source
from taet.data.loader import Batch
from taet.errors import UserError
from taet.methods import Method, Task
from taet.methods.adt import ascend, sample_mean, tanh_entropy, width_entropy
from taet.methods.base import Adversarial, Attack
from taet.models import Classifier
from taet.settings import Outer, Threat
from taet.training.state import State
from taet.training.step import training_step

Network = Callable[..., Classifier]

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "methods.json").read_text())
COUNTS = (14, 12, 10, 9, 8, 7, 6, 5, 4, 3)


def build(shape: tuple[int, int, int] = (1, 8, 8), outer: str = "cross-entropy", **knobs: Any) -> Method:
    task = Task(COUNTS, shape, epochs=4, steps_per_epoch=4, outer=Outer(name=outer))  # type: ignore[arg-type]
    return methods.build("adt", knobs, task)


def attack(seed: int = 0, eps: float = 8 / 255) -> Attack:
    return Attack(Threat(eps=eps), Source(torch.Generator().manual_seed(seed)))


def perturb(method: Method, model: nn.Module, batch: Batch, attack: Attack) -> Adversarial:
    with frozen(model):
        return method.perturb(model, batch.x, batch.y, attack)


def batch_of(labels: list[int], shape: tuple[int, int, int]) -> Batch:
    x = torch.rand(len(labels), *shape, generator=torch.Generator().manual_seed(1))
    return Batch(torch.arange(len(labels)), x, torch.tensor(labels))


def sharp(model: Classifier) -> Classifier:
    """The model with larger logits, so that small perturbations matter."""
    with torch.no_grad():
        model.head.weight *= 10
    return model


def golden(key: str) -> tuple[dict[str, Any], Any, float]:
    return GOLDEN[key]["inputs"], GOLDEN[key]["expected"], GOLDEN[key]["tolerance"]


def double(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# -- golden ------------------------------------------------------------------------------------------------------------


def drawn(mean: Tensor, rho: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Directions of a draw, and its entropy from the shares that the fit differentiates."""
    directions = torch.tanh(mean + noise * F.softplus(rho))
    return directions, sample_mean(noise.square()) / 2 + width_entropy(F.softplus(rho)) + tanh_entropy(directions)


def test_golden_entropy() -> None:
    inputs, expected, tolerance = golden("adt_exp_entropy")
    directions, entropy = drawn(*(double(inputs[name]) for name in ("mean", "rho", "noise")))
    torch.testing.assert_close(directions, double(expected["a"]), rtol=0, atol=tolerance)
    assert entropy.mean().item() == pytest.approx(expected["entropy"], abs=tolerance)


@pytest.mark.parametrize(("field", "accumulate"), [("official_accumulating", True), ("reset_each_step", False)])
def test_golden_inner_steps(field: str, accumulate: bool) -> None:
    inputs, expected, tolerance = golden("adt_exp_inner_steps")
    gradients = [-double(values) for values in inputs["grads_of_minimised_objective"]]
    for steps, wanted in enumerate(expected[field], 1):
        remaining = iter(gradients)
        value = ascend(lambda _, r=remaining: next(r), torch.zeros(3).double(), steps, inputs["lr"], accumulate)
        torch.testing.assert_close(value, double(wanted), rtol=0, atol=tolerance)


def test_the_entropy_is_that_of_the_density_up_to_a_constant() -> None:
    """-log p(a) of a = tanh(u), u normal: -log N(u; mu, sigma) + log(1 - a^2)."""
    generator = torch.Generator().manual_seed(0)
    mean, rho, noise = torch.randn(3, 5, 2, 4, 4, generator=generator, dtype=torch.float64)
    _, entropy = drawn(mean, rho, noise)
    normal = torch.distributions.Normal(mean, F.softplus(rho))
    tanh = torch.distributions.TransformedDistribution(normal, [torch.distributions.TanhTransform(cache_size=1)])
    draw = torch.tanh(mean + F.softplus(rho) * noise)
    expected = -tanh.log_prob(draw).flatten(1).mean(1) - math.log(2 * math.pi) / 2
    torch.testing.assert_close(entropy, expected, rtol=0, atol=1e-6)


# -- explicit ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [True, False])
def test_the_fit_is_that_of_adam_without_memory(accumulate: bool, network: Network) -> None:
    """Against the framework's optimiser, whose gradients are cleared or not, on the objective written out."""
    batch, model = batch_of([0, 3, 5, 9, 1], (1, 8, 8)), network(10, dtype=torch.float64).eval()
    x = batch.x.double()
    source, steps, samples, weight = attack().source, 3, 2, 0.5
    mean, rho = (torch.zeros_like(x).requires_grad_() for _ in range(2))
    optimizer = torch.optim.Adam([mean, rho], lr=0.3, betas=(0.0, 0.0))
    for _ in range(steps):
        if not accumulate:
            optimizer.zero_grad()
        for _ in range(samples):
            noise, sigma = source.normal(x), F.softplus(rho)
            a = torch.tanh(mean + noise * sigma)
            entropy = (noise**2 / 2 + (sigma + 1e-8).log() + (1 - a**2 + 1e-8).log()).mean()
            objective = F.cross_entropy(model((x + 8 / 255 * a).clamp(0, 1)), batch.y) + weight * entropy
            (-objective).backward()
        optimizer.step()
    expected = (x + 8 / 255 * torch.tanh(mean + source.normal(x) * F.softplus(rho))).clamp(0, 1)
    method = build(steps=steps, samples=samples, entropy_weight=weight, accumulate=accumulate)
    found = perturb(method, model, batch._replace(x=x), attack()).x
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-9)


def test_the_fit_raises_the_loss_and_the_entropy_keeps_the_spread(network: Network, digits: Batch) -> None:
    model = sharp(network(10)).eval()

    def fitted(**knobs: Any) -> Tensor:
        return perturb(build(**knobs), model, digits, attack()).x

    losses = [F.cross_entropy(model(x), digits.y).item() for x in (fitted(inner_lr=1e-6), fitted())]
    assert losses[1] > 1.03 * losses[0]
    sizes = [(fitted(entropy_weight=weight) - digits.x).abs().mean().item() for weight in (0.0, 1e4)]
    assert sizes[0] > 1.1 * sizes[1]  # without entropy the directions run to -1 and 1


def test_the_mean_is_over_the_global_batch(network: Network, digits: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of the batch, on a process that is told of the rest, gets the examples that it gets in the whole."""
    method, model = build(inner_lr=0.01), network(10)
    whole = perturb(method, model, digits, attack()).x
    monkeypatch.setattr("taet.methods.adt.global_sum", lambda count: 4 * count)
    quarter = Batch(*(values[16:32] for values in digits))
    source = Source(torch.Generator().manual_seed(0), begin=16, total=64)
    found = perturb(method, model, quarter, Attack(Threat(eps=8 / 255), source)).x
    torch.testing.assert_close(found, whole[16:32], rtol=0, atol=1e-6)


def test_clearing_gradients_is_a_switch(network: Network, digits: Batch) -> None:
    model = network(10).eval()
    first, second = (perturb(build(accumulate=value), model, digits, attack()).x for value in (True, False))
    assert not torch.equal(first, second)


# -- all ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "shape"), [([7], (1, 4, 4)), ([1, 2, 9], (1, 8, 8)), ([4, 4], (3, 32, 32))], ids=["4", "8", "32"]
)
def test_any_image_size(labels: list[int], shape: tuple[int, int, int], network: Network) -> None:
    method, model, batch = build(shape, steps=2, samples=1), network(10, shape[0]), batch_of(labels, shape)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = training_step(State(model, method, optimizer), batch, attack())
    assert torch.isfinite(loss.total)
    assert all(torch.isfinite(value).all() for value in method.state_dict().values())


def test_every_image_has_its_own_ball(network: Network, digits: Batch) -> None:
    method, model = build(), network(10)
    factor = torch.linspace(0, 2, len(digits.x))
    x = perturb(method, model, digits, attack().scaled(factor)).x
    reach = (x - digits.x).abs().flatten(1).amax(1)
    assert (reach <= factor * 8 / 255 + 1e-6).all()
    assert torch.equal(x[0], digits.x[0])
    assert reach[-1] > 1.5 * reach[len(reach) // 2] > 0
    assert torch.equal(perturb(method, model, digits, attack(eps=0)).x, digits.x)


def test_the_outer_loss_is_the_run_s(network: Network, digits: Batch) -> None:
    model = network(10)
    adversarial = perturb(build(), model, digits, attack())
    loss = build(outer="balanced-softmax").loss(model.train(), digits.x, digits.y, adversarial)
    expected = F.cross_entropy(loss.logits + torch.tensor(COUNTS).log(), digits.y).item()
    assert loss.parts.get("label", loss.total).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("knob", "value"),
    [("steps", 0), ("samples", 0), ("inner_lr", 0.0), ("entropy_weight", -0.1), ("entropy_weight", math.nan)],
)
def test_bad_knobs(knob: str, value: float) -> None:
    with pytest.raises(UserError, match=f"method {knob.replace('_', ' ')}: got .*allowed"):
        build(**{knob: value})


def test_no_weighting_of_the_attack() -> None:
    task = Task(COUNTS, (1, 8, 8), epochs=4, steps_per_epoch=4, weighting="rw")
    with pytest.raises(UserError, match="weighting rw"):
        methods.build("adt", None, task)
