"""Adversarial weight perturbation: its golden number, what it maximises, and that it leaves no trace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from taet.training.weight_perturbation import perturbed_weights, weight_perturbations

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "training.json").read_text())


@pytest.fixture
def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).double()


X = torch.linspace(-1, 1, 18, dtype=torch.float64).view(6, 3)
Y = torch.tensor([0, 1, 0, 1, 1, 0])


def loss_of(model: nn.Module) -> Tensor:
    return nn.functional.cross_entropy(model(X), Y)


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_golden() -> None:
    case = GOLDEN["awp_perturbation"]
    weight, gradient = (torch.tensor(case["inputs"][name], dtype=torch.float64) for name in ("weight", "grad"))
    other = torch.ones(2, 3, 4, dtype=torch.float64)
    found, _ = weight_perturbations([weight, other], [gradient, other], case["inputs"]["gamma"])
    torch.testing.assert_close(
        found, torch.tensor(case["expected"], dtype=torch.float64), rtol=0, atol=case["tolerance"]
    )
    assert found.norm().item() == pytest.approx(case["inputs"]["gamma"] * weight.norm().item())


def test_within_it_the_loss_is_higher_by_the_first_order_and_afterwards_nothing_has_changed(model: nn.Module) -> None:
    before, gamma = values(model), 1e-4
    weights = [p for p in model.parameters() if p.ndim > 1]
    gradients = torch.autograd.grad(loss_of(model.eval()), weights)
    rise = sum(gamma * w.detach().norm() * g.norm() for w, g in zip(weights, gradients, strict=True))
    base = loss_of(model)
    with perturbed_weights(model, lambda: loss_of(model), gamma):
        assert (loss_of(model) - base).item() == pytest.approx(float(rise), rel=1e-3)
        for name, value in model.named_parameters():
            assert torch.equal(value, before[name]) == (value.ndim == 1), name
    assert all(p.grad is None for p in model.parameters())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=1e-15)


def test_the_ascent_leaves_the_statistics_of_batch_normalisation_alone(model: nn.Module) -> None:
    before = values(model.train())
    with perturbed_weights(model, lambda: loss_of(model), 0.01):
        for name, buffer in model.named_buffers():
            assert torch.equal(buffer, before[name]), name
        loss_of(model)
    assert model.get_buffer("1.num_batches_tracked") == 1, "the forward within the context counts, the ascent does not"


def test_a_step_within_it_is_taken_at_the_perturbed_weights(model: nn.Module) -> None:
    """w' = w - lr (grad + wd (w + v)), all at w + v; then v is taken away."""
    model.eval()
    weight = model[3].weight
    before = weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, weight_decay=0.1)
    with perturbed_weights(model, lambda: loss_of(model), 0.05):
        moved = weight.detach() - before
        loss_of(model).backward()  # type: ignore[no-untyped-call]
        assert weight.grad is not None
        expected = before - 0.5 * (weight.grad + 0.1 * (before + moved))
        optimizer.step()
    assert moved.norm().item() == pytest.approx(0.05 * before.norm().item())
    torch.testing.assert_close(weight.detach(), expected)


def test_an_interrupted_step_gives_the_weights_back(model: nn.Module) -> None:
    before = values(model)
    with pytest.raises(KeyboardInterrupt), perturbed_weights(model, lambda: loss_of(model.eval()), 0.05):
        raise KeyboardInterrupt
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=1e-15)


def test_no_length_calls_no_loss(model: nn.Module) -> None:
    def never() -> Tensor:
        raise AssertionError("called")

    before = values(model)
    with perturbed_weights(model, never, 0.0):
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
