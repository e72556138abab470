"""ADT: golden formulas, the fit of the explicit form, the two generators that climb what the classifier descends."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from copy import deepcopy
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
from taet.methods.adt import ascend, negative_entropy_bound, tanh_gaussian
from taet.methods.base import Adversarial, Attack, Step
from taet.models import Classifier
from taet.settings import Outer, Threat
from taet.training.step import training_step

Network = Callable[..., Classifier]

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "methods.json").read_text())
COUNTS = (14, 12, 10, 9, 8, 7, 6, 5, 4, 3)
AMORTISED = ("exp-am", "imp-am")
every_variant = pytest.mark.parametrize("variant", ["exp", *AMORTISED])
amortised = pytest.mark.parametrize("variant", AMORTISED)


def build(
    variant: str = "exp", shape: tuple[int, int, int] = (1, 8, 8), outer: str = "cross-entropy", **knobs: Any
) -> Method:
    task = Task(COUNTS, shape, epochs=4, steps_per_epoch=4, outer=Outer(name=outer))  # type: ignore[arg-type]
    small = {} if variant == "exp" else {"width": 4}
    return methods.build("adt", {"variant": variant, **small, **knobs}, task)


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


def charged(variant: str) -> dict[str, float]:
    """Knobs under which every bound is charged."""
    return {"threshold": -5.0} if variant == "imp-am" else {}


def golden(key: str) -> tuple[dict[str, Any], Any, float]:
    return GOLDEN[key]["inputs"], GOLDEN[key]["expected"], GOLDEN[key]["tolerance"]


def double(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# -- golden ------------------------------------------------------------------------------------------------------------


def test_golden_entropy() -> None:
    inputs, expected, tolerance = golden("adt_exp_entropy")
    directions, entropy = tanh_gaussian(*(double(inputs[name]) for name in ("mean", "rho", "noise")))
    torch.testing.assert_close(directions, double(expected["a"]), rtol=0, atol=tolerance)
    assert entropy.mean().item() == pytest.approx(expected["entropy"], abs=tolerance)


@pytest.mark.parametrize("key", ["adt_imp_neg_entropy_bound", "adt_imp_penalty_active"])
def test_golden_bound(key: str) -> None:
    inputs, expected, tolerance = golden(key)
    bound = negative_entropy_bound(*(double(inputs[name]) for name in ("z", "mean", "var"))).mean()
    assert bound.item() == pytest.approx(expected["U"], abs=tolerance)
    assert inputs["threshold"] == methods.find("adt").Config().threshold
    assert (bound - inputs["threshold"]).clamp(min=0).item() == pytest.approx(expected["penalty"], abs=tolerance)


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
    _, entropy = tanh_gaussian(mean, rho, noise)
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


# -- amortised ---------------------------------------------------------------------------------------------------------


def recording(model: Classifier) -> list[Tensor]:
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    return seen


@amortised
@pytest.mark.parametrize("autocast", [False, True])
def test_the_loss_makes_the_same_examples_again(variant: str, autocast: bool, network: Network, digits: Batch) -> None:
    method, model = build(variant), network(10)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        adversarial = perturb(method, model, digits, attack())
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        seen = recording(model)
        method.loss(model.train(), digits.x, digits.y, adversarial).total.backward()
    assert len(seen) == 1
    assert torch.equal(seen[0], adversarial.x)
    assert adversarial.x.dtype == torch.float32
    assert not adversarial.x.requires_grad
    assert all(p.grad is not None for p in method.generator.parameters())


@amortised
def test_the_generator_sees_the_image_and_two_gradients(variant: str, network: Network, digits: Batch) -> None:
    method, model = build(variant), network(10).eval()
    inputs = perturb(method, model, digits, attack()).info["inputs"]
    assert torch.equal(inputs[:, :1], digits.x)
    x = digits.x
    for channel in (1, 2):
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), digits.y), x)
        torch.testing.assert_close(inputs[:, channel : channel + 1], gradient)
        x = (digits.x + 8 / 255 * gradient.sign()).clamp(0, 1)


@amortised
def test_one_backward_pass_serves_both_sides(variant: str, network: Network, digits: Batch) -> None:
    """The weights get the gradient of the loss, the generator that of its own: -CE + lambda * charge."""
    method, model = build(variant, entropy_weight=0.3, **charged(variant)), network(10)
    adversarial = perturb(method, model, digits, attack())
    loss = method.loss(model.train(), digits.x, digits.y, adversarial)
    assert loss.total.item() == pytest.approx((loss.parts["label"] + 0.3 * loss.parts["entropy"]).item())
    loss.total.backward()
    inputs, noise = adversarial.info["inputs"], adversarial.info["noise"]
    if variant == "exp-am":
        directions, entropy = tanh_gaussian(*method.generator(inputs).chunk(2, 1), noise)
        charge = -entropy.mean()
    else:
        directions = method.generator(inputs, noise).tanh()
        mean, raw = method.encoder(directions).chunk(2, 1)
        charge = negative_entropy_bound(noise, mean, F.softplus(raw)).mean() + 5.0
    label = F.cross_entropy(model((digits.x + 8 / 255 * directions).clamp(0, 1)), digits.y)
    weights, own = list(model.parameters()), list(method.parameters())
    for parameter, wanted in zip(weights, torch.autograd.grad(label, weights, retain_graph=True), strict=True):
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-4, atol=1e-6)
    for parameter, wanted in zip(own, torch.autograd.grad(-label + 0.3 * charge, own), strict=True):
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.full
@amortised
def test_the_generator_ascends_what_the_classifier_descends(variant: str, network: Network, digits: Batch) -> None:
    model, steps = sharp(network(10)), 6
    generator = build(variant, generator_lr=0.01, entropy_weight=0.0)
    values = []
    for _ in range(steps):  # the classifier stands still
        adversarial = perturb(generator, model, digits, attack(eps=0.1))
        generator.zero_grad()
        loss = generator.loss(model.eval(), digits.x, digits.y, adversarial)
        loss.total.backward()
        still = torch.optim.SGD(model.parameters())
        generator.after_step(model, Step(digits.index, digits.x, digits.y, loss, attack(), still))
        values.append(loss.parts["label"].item())
    assert values[-1] > 1.03 * values[0]
    method, optimizer = build(variant, generator_lr=1e-12), torch.optim.SGD(model.parameters(), lr=0.01)
    losses = [training_step(model, method, optimizer, digits, attack(), autocast=False) for _ in range(steps)]
    assert losses[-1].parts["label"] < 0.9 * losses[0].parts["label"]


def test_only_a_bound_above_the_threshold_is_charged(network: Network, digits: Batch) -> None:
    model = network(10)
    adversarial = perturb(build("imp-am"), model, digits, attack())

    def charge(threshold: float) -> float:
        method = build("imp-am", threshold=threshold)
        loss = method.loss(model.train(), digits.x, digits.y, adversarial)
        assert loss.total.item() == pytest.approx((loss.parts["label"] + loss.parts["entropy"]).item())
        return loss.parts["entropy"].item()

    assert charge(100.0) == 0
    assert charge(-2.0) == pytest.approx(charge(-1.0) + 1, abs=1e-5)


@amortised
def test_generators_are_the_same_in_every_run_and_leave_the_random_state_alone(variant: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        before = torch.random.get_rng_state()
        first = build(variant)
        assert torch.equal(torch.random.get_rng_state(), before)
        torch.manual_seed(4)
        second = build(variant)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@amortised
def test_a_step_moves_the_generators_once_also_with_perturbed_weights(
    variant: str, network: Network, digits: Batch
) -> None:
    method, model = build(variant, **charged(variant)), network(10)
    before = deepcopy(method.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training_step(model, method, optimizer, digits, attack(), autocast=False, awp=0.01)
    moved = [(value - before[name]).abs().max().item() for name, value in method.state_dict().items()]
    assert max(moved) == pytest.approx(2e-4, rel=1e-2)  # the first step of Adam
    assert sum(value > 0 for value in moved) > 0.9 * len(moved)


@amortised
def test_a_restored_run_goes_on_as_before(variant: str, network: Network, digits: Batch) -> None:
    method, model = build(variant, **charged(variant)), network(10)

    def step(method: Method, model: nn.Module, seed: int) -> Tensor:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return training_step(model, method, optimizer, digits, attack(seed), autocast=False).total

    step(method, model, 0)
    other, twin = build(variant, **charged(variant)), deepcopy(model)
    other.load_state_dict(deepcopy(method.state_dict()))
    for name, optimizer in method.optimizers.items():
        other.optimizers[name].load_state_dict(deepcopy(optimizer.state_dict()))
    for seed in (1, 2):
        assert torch.equal(step(method, model, seed), step(other, twin, seed))


# -- all ---------------------------------------------------------------------------------------------------------------


@every_variant
@pytest.mark.parametrize(
    ("labels", "shape"), [([7], (1, 4, 4)), ([1, 2, 9], (1, 8, 8)), ([4, 4], (3, 32, 32))], ids=["4", "8", "32"]
)
def test_any_image_size(variant: str, labels: list[int], shape: tuple[int, int, int], network: Network) -> None:
    small = {"steps": 2, "samples": 1} if variant == "exp" else {}
    method, model, batch = build(variant, shape, **small), network(10, shape[0]), batch_of(labels, shape)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = training_step(model, method, optimizer, batch, attack(), autocast=False)
    assert torch.isfinite(loss.total)
    assert all(torch.isfinite(value).all() for value in method.state_dict().values())


@every_variant
def test_every_image_has_its_own_ball(variant: str, network: Network, digits: Batch) -> None:
    method, model = build(variant), network(10)
    factor = torch.linspace(0, 2, len(digits.x))
    x = perturb(method, model, digits, attack().scaled(factor)).x
    reach = (x - digits.x).abs().flatten(1).amax(1)
    assert (reach <= factor * 8 / 255 + 1e-6).all()
    assert torch.equal(x[0], digits.x[0])
    assert reach[-1] > 1.5 * reach[len(reach) // 2] > 0
    assert torch.equal(perturb(method, model, digits, attack(eps=0)).x, digits.x)


@every_variant
def test_the_outer_loss_is_the_run_s(variant: str, network: Network, digits: Batch) -> None:
    model = network(10)
    adversarial = perturb(build(variant), model, digits, attack())
    loss = build(variant, outer="balanced-softmax").loss(model.train(), digits.x, digits.y, adversarial)
    expected = F.cross_entropy(loss.logits + torch.tensor(COUNTS).log(), digits.y).item()
    assert loss.parts.get("label", loss.total).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("knob", "value"),
    [("steps", 0), ("samples", 0), ("width", 0), ("inner_lr", 0.0), ("generator_lr", -1.0), ("entropy_weight", -0.1),
     ("entropy_weight", math.nan), ("threshold", math.inf)],
)  # fmt: skip
def test_bad_knobs(knob: str, value: float) -> None:
    with pytest.raises(UserError, match=f"method {knob.replace('_', ' ')}: got .*allowed"):
        build(**{knob: value})


@pytest.mark.parametrize(
    ("variant", "knob", "value", "where"),
    [("exp-am", "steps", 9, "exp"), ("imp-am", "inner_lr", 0.1, "exp"), ("imp-am", "accumulate", False, "exp"),
     ("exp", "width", 8, "exp-am or imp-am"), ("exp", "generator_lr", 0.1, "exp-am or imp-am"),
     ("exp", "threshold", 0.1, "imp-am"), ("exp-am", "threshold", 0.1, "imp-am")],
)  # fmt: skip
def test_a_knob_of_another_variant_is_refused(variant: str, knob: str, value: Any, where: str) -> None:
    what = knob.replace("_", " ")
    with pytest.raises(UserError, match=f"^method {what}: got {value}; allowed: with variant {where} only$"):
        build(variant, **{knob: value})


def test_the_published_entropy_weights_and_no_weighting_of_the_attack() -> None:
    assert [build(variant).entropy_weight for variant in ("exp", *AMORTISED)] == [0.01, 0.01, 1.0]
    assert build(entropy_weight=0.0).entropy_weight == 0
    task = Task(COUNTS, (1, 8, 8), epochs=4, steps_per_epoch=4, weighting="rw")
    with pytest.raises(UserError, match="weighting rw"):
        methods.build("adt", None, task)
