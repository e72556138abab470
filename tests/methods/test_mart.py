"""MART: golden numbers, where the outer loss enters, and what the weight of the divergence does."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from taet import methods
from taet.attacks.noise import Source
from taet.errors import UserError
from taet.losses import balanced_softmax, boosted_cross_entropy
from taet.methods import Task
from taet.methods.base import Adversarial, Attack
from taet.settings import Outer, Threat

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "losses.json").read_text())
CLEAN, ATTACKED = torch.zeros(4, 1), torch.ones(4, 1)  # stand for images
COUNTS = (100, 20, 5)


def build(outer="cross-entropy", counts=COUNTS, **knobs):
    task = Task(counts, (1, 8, 8), epochs=10, steps_per_epoch=1, milestones=(6,), outer=Outer(name=outer))
    return methods.build("mart", knobs, task)


def golden(key="mart_outer_beta5"):
    entry = GOLDEN[key]
    natural, logits = (
        torch.tensor(entry["inputs"][name], dtype=torch.float64, requires_grad=True)
        for name in ("logits_nat", "logits_adv")
    )
    return entry, natural, logits, torch.tensor(entry["inputs"]["labels"])


def loss_of(method, natural, logits, labels):
    return method.loss(lambda x: logits if x is ATTACKED else natural, CLEAN, labels, Adversarial(ATTACKED))


@pytest.mark.parametrize("key", ["mart_outer_beta5", "mart_outer_beta6"])
def test_the_loss_is_the_golden_one(key):
    entry, natural, logits, labels = golden(key)
    loss = loss_of(build(beta=entry["inputs"]["beta"]), natural, logits, labels)
    expected, tolerance = entry["expected"], entry["tolerance"]
    assert loss.total.item() == pytest.approx(expected["loss"], rel=tolerance)
    assert loss.parts["label"].item() == pytest.approx(expected["bce"], rel=tolerance)
    assert loss.parts["kl"].item() == pytest.approx(expected["weighted_kl"], rel=tolerance)
    assert loss.logits is logits


def test_nothing_is_detached():
    _, natural, logits, labels = golden()
    method = build()

    def total(z):
        return loss_of(method, z, logits, labels).total

    assert torch.autograd.gradcheck(total, natural), "through the target and through its weight"
    assert torch.autograd.gradcheck(lambda z: loss_of(method, natural, z, labels).total, logits)
    (gradient,) = torch.autograd.grad(total(natural), natural)
    assert gradient.abs().max() > 0.01


def test_one_clean_pass_and_then_one_attacked_pass():
    _, natural, logits, labels = golden()
    seen = []

    def model(x):
        seen.append(x)
        return logits if x is ATTACKED else natural

    build().loss(model, CLEAN, labels, Adversarial(ATTACKED))
    assert [x is ATTACKED for x in seen] == [False, True]


def test_balanced_softmax_shifts_both_terms_of_the_boosted_loss_and_not_the_divergence():
    entry, natural, logits, labels = golden()
    loss = loss_of(build("balanced-softmax"), natural, logits, labels)
    expected = boosted_cross_entropy(logits + torch.tensor(COUNTS).double().log(), labels).mean()
    torch.testing.assert_close(loss.parts["label"], expected)
    assert loss.parts["kl"].item() == pytest.approx(entry["expected"]["weighted_kl"], rel=1e-8)
    shifted_once = balanced_softmax(logits, labels, torch.tensor(COUNTS)).mean()
    assert loss.parts["label"] > shifted_once, "the penalty of the runner-up is added"


def test_focal_replaces_the_cross_entropy_within_the_boosted_loss():
    entry, natural, logits, labels = golden()
    method = build("focal")
    loss = loss_of(method, natural, logits, labels)
    plain = method.outer(logits, labels).mean()
    penalty = entry["expected"]["bce"] - torch.nn.functional.cross_entropy(logits, labels)
    torch.testing.assert_close(loss.parts["label"], plain + penalty)


def test_class_weights_act_on_both_terms_of_the_boosted_loss():
    _, natural, logits, labels = golden()
    method = build("class-balanced")
    weights = method.outer.weights[labels] / method.outer.weights[labels].mean()
    assert weights.std() > 0.1
    each = torch.stack([boosted_cross_entropy(logits[[i]], labels[[i]])[0] for i in range(len(labels))])
    loss = loss_of(method, natural, logits, labels)
    torch.testing.assert_close(loss.parts["label"], (weights * each).mean())


def test_the_attack_is_the_protocols_on_cross_entropy(network, digits):
    threat = Threat(steps=2)
    first, second = (Attack(threat, Source(torch.Generator().manual_seed(0))) for _ in range(2))
    method = build(counts=(7,) * 10)
    found = method.perturb(network(10), digits.x, digits.y, first).x
    assert torch.equal(found, second(network(10), digits.x, digits.y))


@pytest.mark.parametrize("beta", [-0.5, math.nan])
def test_a_beta_that_is_no_factor_is_refused(beta):
    with pytest.raises(UserError, match=rf"^method beta: got {beta:g}; allowed: 0 or more(, a finite number)?$"):
        build(beta=beta)


def test_its_published_factor():
    assert methods.find("mart").Config().beta == 5
