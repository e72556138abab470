"""FAAL: the closed form of its weights, golden losses, absent classes, and when the weights begin."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from taet import methods
from taet.errors import UserError
from taet.losses.least_favourable import least_favourable
from taet.methods import Task
from taet.methods.base import Adversarial
from taet.settings import Outer

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "class_methods.json").read_text())
PROBLEMS = ("r0.0", "r0.01", "r0.1", "r0.5", "r2.0", "absent", "equal", "one_class", "tie")


def build(classes=3, epoch=9, outer="cross-entropy", milestones=(6, 8), **knobs):
    counts = tuple(range(classes + 1, 1, -1))
    task = Task(counts, (1, 8, 8), 10, 1, milestones=milestones, outer=Outer(name=outer))
    method = methods.build("faal", knobs, task)
    method.enter(epoch)
    return method


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def divergence(q, p):
    return torch.where(q > 0, q * (q / p).log(), 0.0).sum().item()


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_distribution_is_the_golden_one(problem):
    entry = GOLDEN[f"faal_p_{problem}"]
    u, q, r = tensor(entry["inputs"]["u"]), tensor(entry["inputs"]["q"]), entry["inputs"]["r"]
    p = least_favourable(u, q, r)
    assert p.tolist() == pytest.approx(entry["expected"]["p"], abs=entry["tolerance"])
    if "kl" in entry["expected"]:
        assert divergence(q, p) == pytest.approx(r, abs=1e-9)
        assert (p @ u).item() == pytest.approx(entry["expected"]["objective"], abs=1e-8)


@pytest.mark.parametrize("radius", [0.01, 0.5, 3.0])
def test_it_is_on_the_simplex_and_the_bound_follows_the_utility_and_nothing_allowed_is_better(radius):
    draw = torch.Generator().manual_seed(0)
    for _ in range(20):
        u = torch.randn(8, generator=draw, dtype=torch.float64)
        q = torch.rand(8, generator=draw, dtype=torch.float64)
        q /= q.sum()
        p = least_favourable(u, q, radius)
        assert p.min() > 0
        assert p.sum().item() == pytest.approx(1)
        assert divergence(q, p) == pytest.approx(radius, abs=1e-9)
        assert divergence(q, p) <= radius + 1e-12
        assert torch.equal((p / q).argsort(), u.argsort())
        torch.testing.assert_close(least_favourable(7 * u - 3, q, radius), p, rtol=1e-8, atol=1e-12)
        others = torch.randn(1000, 8, generator=draw, dtype=torch.float64).softmax(1)
        allowed = others[(q * (q / others).log()).sum(1) <= radius]
        assert (allowed @ u <= p @ u + 1e-12).all()


def golden_loss(name, **knobs):
    inputs = GOLDEN[name]["inputs"]
    logits, labels = tensor(inputs["logits_adv"]), torch.tensor(inputs["labels"])
    natural = tensor(inputs.get("logits_nat", inputs["logits_adv"]))
    method = build(radius=inputs["r"], **knobs)
    x = torch.zeros(4, 1)
    loss = method.loss(lambda given: natural if given is x else logits, x, labels, Adversarial(torch.ones(4, 1)))
    return loss.total.item(), method.weights(logits, labels)


@pytest.mark.parametrize("utility", ["margin", "count-margin"])
@pytest.mark.parametrize("form", ["at", "trades"])
def test_the_loss_is_the_golden_one(utility, form):
    expected = GOLDEN[f"faal_loss_{utility}"]["expected"]
    total, weights = golden_loss(f"faal_loss_{utility}", utility=utility, form=form)
    assert (weights / 3).tolist() == pytest.approx(expected["p"], abs=1e-8)
    assert total == pytest.approx(expected[form], abs=1e-8)


def test_an_absent_class_is_left_out_or_takes_its_part():
    expected = GOLDEN["faal_loss_absent"]["expected"]
    total, weights = golden_loss("faal_loss_absent")
    assert (weights / 2).tolist() == pytest.approx(expected["skip"]["p"], abs=1e-8)
    assert total == pytest.approx(expected["skip"]["at"], abs=1e-8)
    total, weights = golden_loss("faal_loss_absent", utility="count-margin", absent="official")
    assert (weights / 3).tolist() == pytest.approx(expected["official"]["p"], abs=1e-8)
    assert total == pytest.approx(expected["official"]["at"], abs=1e-8)


@pytest.mark.parametrize(("form", "base"), [("at", "at"), ("trades", "trades")])
def test_without_radius_and_before_the_first_decay_it_is_its_base(form, base, network, digits):
    method = methods.build(base, None, build(10).task)
    draw = torch.Generator().manual_seed(0)
    adversarial = Adversarial((digits.x + 0.03 * torch.randn(digits.x.shape, generator=draw)).clamp(0, 1))
    expected = method.loss(network(10), digits.x, digits.y, adversarial).total
    for other in (build(10, radius=0.0, form=form), build(10, epoch=5, form=form)):
        assert torch.equal(other.loss(network(10), digits.x, digits.y, adversarial).total, expected)
    assert not torch.equal(build(10, form=form).loss(network(10), digits.x, digits.y, adversarial).total, expected)


def test_means_of_classes_and_samples_are_two_aggregates():
    expected = GOLDEN["faal_loss_margin"]["expected"]["p"]
    inputs = GOLDEN["faal_loss_margin"]["inputs"]
    total, _ = golden_loss("faal_loss_margin", aggregate="class")
    losses = torch.nn.functional.cross_entropy(
        tensor(inputs["logits_adv"]), torch.tensor(inputs["labels"]), reduction="none"
    )
    means = tensor([losses[[0, 3]].mean(), losses[1], losses[2]])
    assert total == pytest.approx((tensor(expected) @ means).item())


def test_stages_and_refusals():
    assert [build().task.stages[epoch] for epoch in (5, 6)] == ["burn-in", "fair"]
    assert build(begin=0.0).task.stages[0] == "fair"
    with pytest.raises(UserError, match=r"^method beta: got 3; allowed: with form trades only$"):
        build(beta=3.0)
    with pytest.raises(UserError, match=r"^method radius: got -1; allowed: 0 or more"):
        build(radius=-1.0)
