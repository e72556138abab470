"""N-FGSM and LIET: golden examples and divergence, how far examples go, and that one step costs one gradient."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from taet import methods
from taet.attacks.ball import frozen
from taet.attacks.noise import Source
from taet.losses.consistency import js_divergence
from taet.methods import Task
from taet.methods.base import Adversarial, Attack, Step
from taet.methods.liet import INTERVAL
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


def test_the_examples_and_the_divergence_of_liet_are_the_golden_ones():
    entry = GOLDEN["liet"]
    inputs, expected = entry["inputs"], entry["expected"]
    eps, (x, y) = float(Fraction(inputs["eps"])), images(entry)
    method = build("liet").double()
    method.signs.copy_(tensor(inputs["label_init"]).sign().view_as(method.signs))
    side = [1.0 if sign > 0 else 0.0 for sign in inputs["sign"]]
    mask = tensor([[0.0 if chosen else 1.0 for chosen in row] for row in inputs["mask"]])[:, None, None]
    # Share, side, which values are replaced (those below the share), and with what.
    draws = Given(tensor([0.3, 0.3]), tensor(side), mask, tensor(inputs["uniform"]))
    found = method.perturb(linear(entry), x, y, attack(draws, eps=eps))
    for key, values in (("start", found.info["start"]), ("x_adv", found.x)):
        assert values.flatten(1).tolist() == [pytest.approx(row, abs=1e-8) for row in expected[key]], key
    start, adversarial = tensor(inputs["logits_start"]), tensor(inputs["logits_adv"])
    assert js_divergence(start, adversarial).mean().item() == pytest.approx(expected["js"], abs=1e-8)
    method.start_epoch(inputs["epoch"], method.class_counts)
    assert method.strength.item() == pytest.approx(expected["weight"])
    logits = {id(found.info["start"]): start, id(found.x): adversarial}
    loss = method.loss(lambda given: logits[id(given)], x, torch.tensor([0, 1, 2, 0]), found)
    assert (method.strength * loss.parts["js"]).item() == pytest.approx(expected["term"], abs=1e-8)


@pytest.mark.parametrize(("name", "eps", "reach"), [
    ("n-fgsm", 8 / 255, 3), ("liet", 8 / 255, 1), ("liet", 12 / 255, 3), ("n-fgsm", 0.6, 3), ("liet", 0.6, 3),
])  # fmt: skip
def test_one_gradient_and_examples_within_reach(name, eps, reach, network, digits, monkeypatch):
    method, model = build(name, 10, (1, 8, 8)), network(10)
    calls = []
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *given, **more: calls.append(1) or grad(*given, **more))
    method.signs = torch.ones(10, 1, 8, 8) if name == "liet" else None
    with frozen(model):
        x = method.perturb(model, digits.x, digits.y, attack(eps=eps, steps=7)).x
    assert len(calls) == 1, "whatever the number of steps of the protocol"
    distance = (x - digits.x).abs().max().item()
    assert distance <= reach * eps + 1e-6
    assert distance > min(0.9 * eps, 0.5)


def test_no_divergence_between_equal_predictions_and_at_most_log_2():
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(js_divergence(logits, logits), torch.zeros(5))
    far = torch.tensor([[300.0, -300, 0]]), torch.tensor([[-300.0, 300, 0]])
    assert js_divergence(*far).item() == pytest.approx(math.log(2))


def test_the_signs_of_a_label_are_those_of_the_grey_image_and_follow_every_20_steps(network, digits):
    method, model = build("liet", 10, (1, 8, 8)), network(10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert not method.signs.any()
    for number in (1, INTERVAL - 1):
        method.after_step(model, Step(digits.index, digits.x, digits.y, None, attack(), optimizer, number))
        assert not method.signs.any()
    method.after_step(model, Step(digits.index, digits.x, digits.y, None, attack(), optimizer, INTERVAL))
    grey = torch.full((10, 1, 8, 8), 0.5, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(model.eval()(grey), torch.arange(10), reduction="sum")
    assert torch.equal(method.signs, torch.autograd.grad(loss, grey)[0].sign())


def test_a_smoothed_target_spreads_its_part_over_the_other_classes(network, digits):
    method, model = build("liet", 10, (1, 8, 8), smoothing=0.6), network(10)
    with frozen(model):
        found = method.perturb(model, digits.x, digits.y, attack())
    others = found.info["others"]
    assert (others.gather(1, digits.y[:, None]) == 0).all()
    torch.testing.assert_close(others.sum(1), torch.ones(len(others)))
    loss = method.loss(model, digits.x, digits.y, found)
    target = 0.6 * others + 0.4 * torch.nn.functional.one_hot(digits.y, 10)
    expected = torch.nn.functional.cross_entropy(loss.logits, target)
    torch.testing.assert_close(loss.parts["label"], expected)
    assert "others" not in build("liet", 10, (1, 8, 8)).perturb(model, digits.x, digits.y, attack()).info


def test_class_weights_act_on_the_label_and_on_what_is_spread(network, digits):
    budget = methods.build("class-budget", {"rule": "dafa", "base": "liet", "knobs": ("smoothing=0.6",)},
                           build("liet", 10, (1, 8, 8)).task)  # fmt: skip
    method, model = budget.base, network(10)
    method.outer.factor.copy_(torch.linspace(0.25, 1.75, 10))
    with frozen(model):
        found = method.perturb(model, digits.x, digits.y, attack())
    loss = method.loss(model, digits.x, digits.y, found)
    target = 0.6 * found.info["others"] + 0.4 * torch.nn.functional.one_hot(digits.y, 10)
    each = torch.nn.functional.cross_entropy(loss.logits, target, reduction="none")
    torch.testing.assert_close(loss.parts["label"], (method.outer.factor.float()[digits.y] * each).mean())


def test_adversarial_is_what_the_loss_is_on(network, digits):
    method, at = build("n-fgsm", 10, (1, 8, 8)), methods.build("at", None, build("n-fgsm", 10, (1, 8, 8)).task)
    given = Adversarial(digits.x)
    ours, theirs = (each.loss(network(10), digits.x, digits.y, given).total for each in (method, at))
    assert torch.equal(ours, theirs)
