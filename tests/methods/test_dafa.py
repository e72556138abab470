"""DAFA: golden weights, losses and examples, when the weights begin, and what of them a checkpoint holds."""

from __future__ import annotations

import copy
import json
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from taet import methods
from taet.attacks.ball import frozen
from taet.attacks.noise import Source
from taet.errors import UserError
from taet.methods import Task
from taet.methods.base import Adversarial, Attack
from taet.methods.dafa import class_weights
from taet.settings import Outer, Threat
from taet.training.state import State
from taet.training.step import training_step

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "class_methods.json").read_text())
CASES = ("lambda1.0", "lambda1.5", "long_tail_lambda1.0", "long_tail_lambda1.5", "ties")
COUNTS = (14, 12, 10, 9, 8, 7, 6, 5, 4, 3)


def build(epochs=11, counts=COUNTS, outer="cross-entropy", **settings):
    task = Task(counts, (1, 8, 8), epochs, 1, milestones=(epochs - 1,), outer=Outer(name=outer))
    return methods.build("dafa", settings, task)


def attack(**threat):
    return Attack(Threat(**{"steps": 2, **threat}), Source(torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("of", CASES)
def test_the_weights_are_the_golden_ones(of):
    entry = GOLDEN[f"dafa_weights_{of}"]
    inputs, expected = entry["inputs"], entry["expected"]
    confusion = torch.tensor(inputs["confusion"], dtype=torch.float64)
    found = class_weights(confusion, inputs["lam"], inputs["floor"])
    assert found.tolist() == pytest.approx(expected["weights"], abs=1e-8)
    assert found.sum().item() == pytest.approx(len(found))
    assert found.min() >= inputs["floor"] - 1e-12


def test_published_weights_are_negative_on_the_long_tail_and_ours_are_not():
    expected = GOLDEN["dafa_weights_long_tail_lambda1.0"]["expected"]
    assert min(expected["official"]) < 0 < min(expected["weights"])


def test_permuting_classes_permutes_the_weights_and_equal_classes_have_one():
    confusion = torch.rand(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).softmax(1)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    permuted = class_weights(confusion[order][:, order], 1.0, 0.25)
    torch.testing.assert_close(permuted, class_weights(confusion, 1.0, 0.25)[order])
    assert torch.equal(class_weights(torch.full((4, 4), 0.25), 1.0, 0.25), torch.ones(4))
    confusion[2] = 0  # a class without an image
    assert class_weights(confusion, 1.0, 0.25)[2] == 1


def golden_loss(base):
    inputs = GOLDEN["dafa_losses"]["inputs"]
    natural, logits = (torch.tensor(inputs[f"logits_{kind}"], dtype=torch.float64) for kind in ("nat", "adv"))
    method = build(counts=(5, 4, 3), base=base)
    method.factor.copy_(torch.tensor(inputs["weights"]))
    method.double().factor.copy_(torch.tensor(inputs["weights"]))
    method.enter(9)
    x = torch.zeros(4, 1)
    return method.loss(lambda given: natural if given is x else logits, x, torch.tensor(inputs["labels"]),
                       Adversarial(torch.ones(4, 1)))  # fmt: skip


@pytest.mark.parametrize("base", ["at", "trades"])
def test_the_loss_is_the_golden_one(base):
    found = golden_loss(base).total.item()
    assert found == pytest.approx(GOLDEN["dafa_losses"]["expected"][base], abs=1e-8)


def test_the_examples_are_the_golden_ones():
    inputs, expected = GOLDEN["dafa_attack_linear"]["inputs"], GOLDEN["dafa_attack_linear"]["expected"]
    eps, alpha = (float(Fraction(inputs[name])) for name in ("eps", "alpha"))
    method = build(counts=(5, 4, 3), base="at").double()
    method.factor.copy_(torch.tensor(inputs["weights"]))
    weight = torch.tensor(inputs["W"], dtype=torch.float64)
    x = torch.tensor(inputs["x"], dtype=torch.float64)[:, None, None]

    class Shifted:
        """Start noise of a constant."""

        def normal(self, like):
            return torch.full_like(like, 1000 * inputs["start"])  # of which a Gaussian start takes a thousandth

    threat = Threat(eps=eps, step_size=alpha, steps=inputs["K"], start="gaussian")
    found = method.perturb(lambda x: x.flatten(1) @ weight.T, x, torch.tensor(inputs["labels"]),
                           Attack(threat, Shifted())).x  # fmt: skip
    torch.testing.assert_close(found.flatten(1), torch.tensor(expected["ours"], dtype=torch.float64),
                               atol=1e-8, rtol=0)  # fmt: skip
    weights = torch.tensor(inputs["weights"], dtype=torch.float64)
    assert ((found - x).abs().flatten(1).amax(1) <= weights * eps + 1e-9).all()


def trained(method, network, digits, epochs, steps=2, model=None):
    """Some epochs of a few steps, as the trainer makes them."""
    model = network(10) if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in epochs:
        method.enter(epoch)
        method.start_epoch(epoch, method.class_counts)
        for number in range(steps):
            training_step(State(model, method, optimizer, step=number), digits, attack())
    return model


def test_the_weights_begin_after_7_of_11_epochs_and_stay(network, digits):
    method = build()
    trained(method, network, digits, range(7))
    assert (method.factor == 1).all()
    assert method.rule.seen.sum() == 2 * len(digits.y), "the last epoch of the warm-up alone is recorded"
    mean = method.rule.confusion / method.rule.seen[:, None]
    torch.testing.assert_close(mean.sum(1), torch.ones(10, dtype=torch.float64))
    expected = class_weights(mean, 1.0, 0.25)
    trained(method, network, digits, [7])
    torch.testing.assert_close(method.factor.double(), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(method.base.outer.factor, method.factor.double())
    before = method.factor.clone()
    trained(method, network, digits, range(8, 11))
    assert torch.equal(method.factor, before)


def test_a_run_that_goes_on_in_the_recorded_epoch_has_all_of_it(network, digits):
    method = build()
    model = trained(method, network, digits, [6])
    saved = copy.deepcopy(method.state_dict())
    resumed = build()
    resumed.load_state_dict(saved)
    for each in (method, resumed):
        trained(each, network, digits, [7], model=copy.deepcopy(model))
    assert torch.equal(method.factor, resumed.factor)
    again = build()
    again.load_state_dict(resumed.state_dict())
    again.enter(8)  # resumed in the middle of an epoch: it does not start anew
    assert torch.equal(again.base.outer.factor, method.factor.double())


def test_label_weights_follow_weights_by_outer_loss_and_leave_the_divergence(network, digits):
    method, plain = build(outer="class-balanced"), methods.build(
        "trades", None, Task(COUNTS, (1, 8, 8), 11, 1, milestones=(10,), outer=Outer(name="class-balanced"))
    )  # fmt: skip
    method.factor.copy_(torch.linspace(0.5, 1.5, 10))
    method.enter(9)
    model = network(10)
    with frozen(model):
        adversarial = plain.perturb(model, digits.x, digits.y, attack())
    given = digits.x, digits.y, adversarial
    ours, theirs = (each.loss(copy.deepcopy(model).train(), *given) for each in (method, plain))
    natural = copy.deepcopy(model).train()(digits.x)
    expected = (method.factor[digits.y] * plain.outer(natural, digits.y)).mean()
    torch.testing.assert_close(ours.parts["label"], expected)
    assert torch.equal(ours.parts["kl"], theirs.parts["kl"])


@pytest.mark.parametrize(("epochs", "settings", "message"), [
    (1, {}, r"method warm up: got 0.636 of 1 epochs, which leaves none of them; allowed: another share"),
    (11, {"warm_up": 0.99}, r"method warm up: got 0.99 of 11 epochs, which leaves none"),
    (11, {"base": "taet", "base_settings": {"clean_share": 0.8}}, "method warm up: .+ epoch without an attack"),
    (11, {"floor": 0.0}, "method floor: got 0; allowed: above 0, below 1"),
    (11, {"lam": -1.0}, "method lam: got -1; allowed: 0 or more"),
])  # fmt: skip
def test_nonsense_is_refused_in_one_line(epochs, settings, message):
    with pytest.raises(UserError, match=f"^{message}"):
        build(epochs, **settings)


def test_lambda_is_larger_with_many_classes():
    assert [build(counts=counts).rule.lam for counts in ((3,) * 99, (3,) * 100)] == [1.0, 1.5]
    assert build(counts=(3,) * 100, lam=0.5).rule.lam == 0.5
