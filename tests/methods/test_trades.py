"""TRADES: golden numbers, an attack that never sees a label, and gradients through both predictions."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from taet import methods
from taet.attacks import pgd
from taet.attacks.ball import frozen
from taet.attacks.noise import Source
from taet.errors import UserError
from taet.losses import balanced_softmax, kl_divergence
from taet.methods import Task
from taet.methods.base import Adversarial, Attack
from taet.settings import Outer, Threat

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "losses.json").read_text())
CLEAN, ATTACKED = torch.zeros(4, 1), torch.ones(4, 1)  # stand for images


def build(outer="cross-entropy", counts=(100, 20, 5), weighting="none", **knobs):
    task = Task(counts, (1, 8, 8), epochs=10, steps_per_epoch=1, outer=Outer(name=outer), weighting=weighting)
    return methods.build("trades", knobs, task)


def attack(threat):
    return Attack(threat, Source(torch.Generator().manual_seed(3)))


def golden():
    entry = GOLDEN["trades_outer_beta6"]
    natural, logits = (
        torch.tensor(entry["inputs"][name], dtype=torch.float64, requires_grad=True)
        for name in ("logits_nat", "logits_adv")
    )
    return entry, natural, logits, torch.tensor(entry["inputs"]["labels"])


def test_the_loss_is_the_golden_one():
    entry, natural, logits, labels = golden()
    loss = build(beta=6.0).loss(lambda x: logits if x is ATTACKED else natural, CLEAN, labels, Adversarial(ATTACKED))
    expected, tolerance = entry["expected"], entry["tolerance"]
    assert loss.total.item() == pytest.approx(expected["loss"], rel=tolerance)
    assert loss.parts["label"].item() == pytest.approx(expected["ce_nat"], rel=tolerance)
    assert loss.parts["kl"].item() == pytest.approx(expected["kl_batchmean"], rel=tolerance)
    assert loss.logits is logits


def test_the_target_of_the_divergence_is_not_detached():
    _, natural, logits, labels = golden()
    loss = build().loss(lambda x: logits if x is ATTACKED else natural, CLEAN, labels, Adversarial(ATTACKED))
    (found,) = torch.autograd.grad(loss.total, natural)
    (label,) = torch.autograd.grad(functional.cross_entropy(natural, labels), natural)
    (divergence,) = torch.autograd.grad(6 * kl_divergence(natural, logits.detach()).mean(), natural)
    assert divergence.abs().max() > 0.1
    torch.testing.assert_close(found, label + divergence)


def test_one_clean_pass_and_then_one_attacked_pass():
    _, natural, logits, labels = golden()
    seen = []

    def model(x):
        seen.append(x)
        return logits if x is ATTACKED else natural

    build().loss(model, CLEAN, labels, Adversarial(ATTACKED))
    assert [x is ATTACKED for x in seen] == [False, True]


def test_the_outer_loss_replaces_the_clean_term_alone():
    entry, natural, logits, labels = golden()
    method = build("balanced-softmax")
    loss = method.loss(lambda x: logits if x is ATTACKED else natural, CLEAN, labels, Adversarial(ATTACKED))
    expected = balanced_softmax(natural, labels, torch.tensor([100, 20, 5])).mean()
    torch.testing.assert_close(loss.parts["label"], expected)
    assert loss.parts["kl"].item() == pytest.approx(entry["expected"]["kl_batchmean"], rel=1e-8)


@pytest.mark.parametrize("start", ["gaussian", "uniform"])
def test_the_attack_climbs_the_divergence_from_a_clean_pass_made_once(start, network, digits):
    method, model = build(counts=(7,) * 10), network(10)
    passes = []
    hook = model.body.register_forward_hook(lambda *_: passes.append(None))
    with frozen(model):
        found = method.perturb(model, digits.x, digits.y, attack(Threat(steps=3, start=start))).x
        wrong = method.perturb(model, digits.x, (digits.y + 1) % 10, attack(Threat(steps=3, start=start))).x
    hook.remove()
    assert len(passes) == 2 * (1 + 3)
    assert torch.equal(found, wrong), "labels are not used"
    natural = network(10).eval()(digits.x).detach()
    expected = pgd(
        network(10), digits.x, digits.y, eps=8 / 255, step_size=2 / 255, steps=3, start=start,
        start_noise=torch.Generator().manual_seed(3), objective=lambda logits, _: kl_divergence(natural, logits),
    )  # fmt: skip
    assert torch.equal(found, expected)


def test_an_attack_without_labels_takes_no_weights():
    with pytest.raises(UserError, match="trades: got the weighting rbl"):
        build(weighting="rbl")


@pytest.mark.parametrize("beta", [-1.0, math.nan, math.inf])
def test_a_beta_that_is_no_factor_is_refused(beta):
    with pytest.raises(UserError, match=rf"^method beta: got {beta:g}; allowed: 0 or more(, a finite number)?$"):
        build(beta=beta)


def test_its_published_factor():
    assert methods.find("trades").Config().beta == 6
