"""N-FGSM: golden examples, how far examples go, and that one step costs one gradient."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from taet import methods
from taet.attacks.ball import frozen
from taet.attacks.noise import Source
from taet.methods import Task
from taet.methods.base import Adversarial, Attack
from taet.settings import Threat

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "class_methods.json").read_text())


def build(name, classes=3, shape=(1, 1, 4), epochs=100, **knobs):
    return methods.build(name, knobs, Task(tuple(range(classes + 1, 1, -1)), shape, epochs, 1, milestones=(75, 90)))


def attack(source=None, **threat):
    return Attack(Threat(**threat), source or Source(torch.Generator().manual_seed(0)))


class Given:
    """Draws that are given, in their order."""

    def __init__(self, *draws):
        self.draws = list(draws)

    def uniform(self, like, low=0.0, high=1.0):
        del low, high
        return self.draws.pop(0).view(like.shape)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def linear(entry):
    weight = tensor(entry["inputs"]["W"])
    return lambda x: x.flatten(1) @ weight.T


def images(entry):
    return tensor(entry["inputs"]["x"])[:, None, None], torch.tensor(entry["inputs"]["labels"])


def test_the_examples_of_n_fgsm_are_the_golden_ones():
    entry = GOLDEN["n_fgsm_linear"]
    inputs, expected = entry["inputs"], entry["expected"]
    eps, (x, y) = float(Fraction(inputs["eps"])), images(entry)
    method = build("n-fgsm", noise=inputs["k"]).double()
    found = method.perturb(linear(entry), x, y, attack(Given(tensor(inputs["uniform"])), eps=eps)).x
    assert found.flatten(1).tolist() == [pytest.approx(row, abs=1e-8) for row in expected["x_adv"]]
    radius = (found - x).abs().flatten(1).amax(1) / eps
    assert radius.tolist() == pytest.approx(expected["radius_over_eps"], abs=1e-6)


@pytest.mark.parametrize(("name", "eps", "reach"), [
    ("n-fgsm", 8 / 255, 3), ("n-fgsm", 0.6, 3),
])  # fmt: skip
def test_one_gradient_and_examples_within_reach(name, eps, reach, network, digits, monkeypatch):
    method, model = build(name, 10, (1, 8, 8)), network(10)
    calls = []
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *given, **more: calls.append(1) or grad(*given, **more))
    with frozen(model):
        x = method.perturb(model, digits.x, digits.y, attack(eps=eps, steps=7)).x
    assert len(calls) == 1, "whatever the number of steps of the protocol"
    distance = (x - digits.x).abs().max().item()
    assert distance <= reach * eps + 1e-6
    assert distance > min(0.9 * eps, 0.5)


def test_adversarial_is_what_the_loss_is_on(network, digits):
    method, at = build("n-fgsm", 10, (1, 8, 8)), methods.build("at", None, build("n-fgsm", 10, (1, 8, 8)).task)
    given = Adversarial(digits.x)
    ours, theirs = (each.loss(network(10), digits.x, digits.y, given).total for each in (method, at))
    assert torch.equal(ours, theirs)
