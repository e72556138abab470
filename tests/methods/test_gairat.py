"""GAIRAT: golden weights and loss, the count of steps, and when the weights begin."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from taet import methods
from taet.attacks.noise import Source
from taet.errors import UserError
from taet.methods import Task
from taet.methods.base import Adversarial, Attack
from taet.methods.gairat import importance, weighted_mean
from taet.settings import Outer, Threat

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "methods.json").read_text())
FORMS = ("tanh", "sigmoid", "discrete")


def build(epoch=9, milestones=(6, 8), outer="cross-entropy", counts=(100, 20, 5), **knobs):
    task = Task(counts, (1, 8, 8), epochs=10, steps_per_epoch=1, milestones=milestones, outer=Outer(name=outer))
    method = methods.build("gairat", knobs, task)
    method.enter(epoch)
    return method


def attack(steps):
    return Attack(Threat(steps=steps, start="uniform"), Source(torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("form", FORMS)
def test_the_weights_are_the_golden_ones(form):
    entry = GOLDEN[f"gairat_weights_{form}"]
    inputs = entry["inputs"]
    found = importance(torch.tensor(inputs["kappa"], dtype=torch.float64), inputs["K"], form, inputs["lam"])
    found = found * len(found) / found.sum()
    assert found.tolist() == pytest.approx(entry["expected"], rel=entry["tolerance"])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("steps", [2, 3, 10])
def test_weights_fall_with_every_step_withstood_and_keep_their_digits_in_float32(form, steps):
    kappa = torch.arange(steps + 1.0)
    weights = importance(kappa, steps, form, -1.0)
    assert (weights.diff() < 0).all()
    assert ((weights > 0) & (weights <= 1)).all()
    torch.testing.assert_close(weights.double(), importance(kappa.double(), steps, form, -1.0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_short_attacks_have_finite_weights(form):
    one = importance(torch.tensor([0.0, 1.0]), 1, form, 0.0)
    assert 0 < one[1] < one[0] <= 1
    none = importance(torch.zeros(3), 0, form, 0.0)
    assert none[0] > 0
    assert (none == none[0]).all()


def golden_loss(method):
    entry = GOLDEN["gairat_outer"]
    inputs = entry["inputs"]
    logits = torch.tensor(inputs["logits"], dtype=torch.float64)
    kappa = torch.tensor(inputs["kappa"], dtype=torch.float64)
    info = {"kappa": kappa, "weights": importance(kappa, inputs["K"], method.config.weighting, inputs["lam"])}
    x = torch.zeros(4, 1)
    return entry, method.loss(lambda _: logits, x, torch.tensor(inputs["labels"]), Adversarial(x, info))


def test_the_loss_is_the_golden_one_from_the_first_milestone_on():
    entry, loss = golden_loss(build(epoch=6))
    assert loss.total.item() == pytest.approx(entry["expected"]["loss"], rel=entry["tolerance"])


@pytest.mark.parametrize(("epoch", "milestones"), [(0, (6, 8)), (5, (6, 8)), (9, ())])
def test_before_the_first_milestone_it_is_the_plain_mean(epoch, milestones):
    method = build(epoch, milestones)
    assert method.stage == "burn-in"
    entry, loss = golden_loss(method)
    logits, labels = (torch.tensor(entry["inputs"][name]) for name in ("logits", "labels"))
    assert loss.total.item() == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)


def test_stages_follow_the_milestones():
    method = build()
    assert [method.task.stages[epoch] for epoch in (0, 5, 6, 9)] == ["burn-in", "burn-in", "weighted", "weighted"]


def test_the_outer_loss_is_what_is_weighted():
    method = build(outer="balanced-softmax")
    entry, loss = golden_loss(method)
    logits, labels = torch.tensor(entry["inputs"]["logits"], dtype=torch.float64), entry["inputs"]["labels"]
    losses = method.outer(logits, torch.tensor(labels))
    weights = torch.tensor(entry["expected"]["weights"], dtype=torch.float64)
    torch.testing.assert_close(loss.total, (weights * losses).mean())


def test_equal_weights_give_the_mean():
    losses = torch.tensor([1.0, 2.0, 6.0])
    assert weighted_mean(torch.full((3,), 1e-6), losses).item() == pytest.approx(3.0)


def test_kappa_counts_the_iterates_before_each_step_and_not_the_last(network, digits):
    method, model = build(counts=(7,) * 10), network(10)
    with torch.no_grad():  # an untrained network is right too seldom to count
        model.head.weight[digits.y[0]] *= 3
    labels = model.eval()(digits.x).argmax(1).roll(20)
    seen = []
    examples = method.perturb(model, digits.x, labels, attack(4))
    repeated = attack(4)(
        model, digits.x, labels, observe=lambda _, logits: seen.append((logits.argmax(1) == labels).float())
    )
    assert torch.equal(examples.x, repeated), "counting moves no example"
    assert torch.equal(examples.info["kappa"], torch.stack(seen).sum(0))
    assert len(examples.info["kappa"].unique()) > 1
    assert torch.equal(examples.info["weights"], importance(examples.info["kappa"], 4, "tanh", -1.0))


def test_lambda_is_refused_where_the_weights_have_none():
    assert build(weighting="sigmoid", lam=0.5).config.lam == 0.5
    with pytest.raises(UserError, match=r"^method lam: got 0.5; allowed: with weighting tanh or sigmoid only$"):
        build(weighting="discrete", lam=0.5)


@pytest.mark.parametrize(("knob", "value", "message"), [
    ("lam", math.inf, "method lam: got inf; allowed: -20 to 20"),
    ("lam", math.nan, "method lam: got nan; allowed: -20 to 20"),
    ("weighting", "tan", "unknown weighting 'tan'; allowed: discrete, sigmoid, tanh; did you mean 'tanh'"),
])  # fmt: skip
def test_nonsense_is_refused_in_one_line(knob, value, message):
    with pytest.raises(UserError, match=f"^{message}"):
        build(**{knob: value})
