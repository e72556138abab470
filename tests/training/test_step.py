"""Adversarial weight perturbation, the averages of weights, the optimiser and its learning rate."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from taet import models, protocols
from taet.losses import Loss
from taet.models import CosineHead, Head
from taet.models.tuning import LowRank, extend, select
from taet.settings import Run, Training, override
from taet.training.schedule import learning_rate
from taet.training.state import build_optimizer, ema_decay
from taet.training.step import checked, perturbed_weights
from tests.calls import one_line
from tests.golden_numbers import Golden

X = torch.linspace(-1, 1, 18, dtype=torch.float64).view(6, 3)
Y = torch.tensor([0, 1, 0, 1, 1, 0])


@pytest.fixture
def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)
        ).double()


def loss_of(model: nn.Module) -> Tensor:
    return nn.functional.cross_entropy(model(X), Y)


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    "wrong",
    [
        torch.tensor(1.0, requires_grad=True),
        Loss(torch.ones(6, requires_grad=True), {}, torch.zeros(6, 2)),
        Loss(torch.tensor(1.0), {}, torch.zeros(6, 2)),
        Loss(torch.tensor(1.0, requires_grad=True), {"label": 0.5}, torch.zeros(6, 2)),  # type: ignore[dict-item]
        Loss(torch.tensor(1.0, requires_grad=True), {"label": torch.ones(6)}, torch.zeros(6, 2)),
        Loss(torch.tensor(1.0, requires_grad=True), {}, torch.zeros(12, 2)),
    ],
)
def test_what_a_method_must_not_return_is_one_line(wrong: Any) -> None:
    with one_line(r"^Linear\.loss: got .*; allowed: Loss\(total, parts, logits\)"):
        checked(wrong, Y, nn.Linear(1, 1))  # type: ignore[arg-type]


def test_the_golden_perturbation() -> None:
    golden, model = Golden("awp_perturbation"), nn.Linear(2, 2).double()
    model.load_state_dict({"weight": golden["weight"], "bias": torch.zeros(2)})
    with perturbed_weights(model, lambda: (model.weight * golden["grad"]).sum(), golden["gamma"]):
        golden.check(model.weight.detach() - golden["weight"])


def test_within_it_the_loss_is_higher_by_the_first_order_and_afterwards_nothing_has_changed(
    model: nn.Module,
) -> None:
    before, gamma = values(model), 1e-4
    weights = [p for p in model.parameters() if p.ndim > 1]
    gradients = torch.autograd.grad(loss_of(model.eval()), weights)
    rise = sum(
        gamma * w.detach().norm() * g.norm() for w, g in zip(weights, gradients, strict=True)
    )
    base = loss_of(model)
    # as in a transformer: no weight
    model.register_parameter("token", token := nn.Parameter(torch.ones(1, 2)))
    before["token"] = token.detach().clone()
    with perturbed_weights(model, lambda: loss_of(model) + token.sum(), gamma):
        assert (loss_of(model) - base).item() == pytest.approx(float(rise), rel=1e-3)
        for name, value in model.named_parameters():
            assert torch.equal(value, before[name]) == (value.ndim == 1 or value is token), name
    assert all(p.grad is None for p in model.parameters())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=1e-15)


def test_the_ascent_leaves_the_statistics_of_batch_normalisation_alone(model: nn.Module) -> None:
    before = values(model.train())
    with pytest.raises(KeyboardInterrupt), perturbed_weights(model, lambda: loss_of(model), 0.01):
        raise KeyboardInterrupt
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=1e-15)
    with perturbed_weights(model, lambda: loss_of(model), 0.01):
        for name, buffer in model.named_buffers():
            assert torch.equal(buffer, before[name]), name
        loss_of(model)
    assert model.get_buffer("1.num_batches_tracked") == 1, (
        "the forward within the context counts, the ascent does not"
    )


def test_a_step_within_it_is_taken_at_the_perturbed_weights(model: nn.Module) -> None:
    """w' = w - lr (grad + wd (w + v)), all at w + v; then v is taken away."""
    weight = model.eval()[3].weight  # type: ignore[index]
    before = weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, weight_decay=0.1)
    with perturbed_weights(model, lambda: loss_of(model), 0.05):
        moved = weight.detach() - before
        loss_of(model).backward()  # type: ignore[no-untyped-call]
        expected = before - 0.5 * (weight.grad + 0.1 * (before + moved))
        optimizer.step()
    assert moved.norm().item() == pytest.approx(0.05 * before.norm().item())
    torch.testing.assert_close(weight.detach(), expected)


def test_the_golden_decay() -> None:
    golden = Golden("ema_decay")
    found = [ema_decay(step, golden["warmup"], golden["tau"]) for step in golden.raw["steps"]]
    assert found == pytest.approx(golden.expected, abs=golden.tolerance)


def rates(steps: int, **changes: object) -> list[float]:
    given = {f"training.{key}": value for key, value in changes.items()}
    run: Run = override(protocols.start("taet", "at", "vit"), given)
    return [
        learning_rate(run, epoch, step, steps)
        for epoch in range(run.training.epochs)
        for step in range(steps)
    ]


def test_the_rate_rises_evenly_to_the_whole_and_falls_along_half_a_cosine() -> None:
    found = rates(5, epochs=10, warmup=0.2, lr=0.5)
    assert found[:10] == pytest.approx([0.05 * step for step in range(1, 11)])
    assert found[10] == 0.5
    assert found[30] == pytest.approx(0.25)  # half of the 40 steps after the rise
    assert found[49] == pytest.approx(0.25 * (1 + math.cos(math.pi * 39 / 40)))


@pytest.mark.parametrize("warmup", [0.0, 0.3, 0.45])
def test_one_cycle_is_torchs(warmup: float) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.2)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.2, total_steps=100, pct_start=warmup or 0.3, cycle_momentum=False
    )
    expected = []
    for _ in range(100):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        cycle.step() if len(expected) < 100 else None
    assert rates(25, epochs=4, warmup=warmup, decay="one-cycle", lr=0.2) == pytest.approx(
        expected, rel=1e-12
    )


@pytest.mark.parametrize("name", ["resnet8", "vit-mini-p4"])
@pytest.mark.parametrize("head", [Head(), Head("cosine")], ids=["linear", "cosine"])
@pytest.mark.parametrize("tune", ["all", "lora:2"])
def test_adamw_decays_the_weights_of_layers_alone(name: str, head: Head, tune: str) -> None:
    """No bias, no gain of a normalisation, and of a transformer neither class token nor position
    embedding."""
    model = models.build(name, 3, (3, 8, 8), head=head)
    extend(model, tune)
    select(model, tune)
    optimizer = build_optimizer(model, Training(optimizer="adamw", lr=1e-3, weight_decay=0.05))
    decay = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    layers = nn.Conv2d | nn.Linear | nn.MultiheadAttention | CosineHead | LowRank
    assert decay == {
        id(parameter): 0.05 if isinstance(module, layers) and not part.endswith("bias") else 0.0
        for module in model.modules()
        for part, parameter in module.named_parameters(recurse=False)
        if parameter.requires_grad
    }
