"""REAT: its three parts, each with its switch, the state of RBL, and what the run's outer loss replaces."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from taet import methods, protocols
from taet.attacks.noise import Source
from taet.errors import UserError
from taet.losses import balanced_softmax, focal, rebalancing_weights, tail_margin
from taet.methods import Task
from taet.methods.base import Adversarial, Attack
from taet.settings import Outer, Threat, override

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "losses.json").read_text())
COUNTS = (14, 12, 10, 9, 8, 7, 6, 5, 4, 3)


def build(outer="cross-entropy", counts=COUNTS, weighting="none", **knobs):
    task = Task(counts, (1, 8, 8), epochs=10, steps_per_epoch=1, outer=Outer(name=outer), weighting=weighting)
    return methods.build("reat", knobs, task)


def attack(**threat):
    return Attack(Threat(steps=3, start="uniform", **threat), Source(torch.Generator().manual_seed(0)))


def parts(method, network, batch):
    """The loss of a batch, and the features and logits of the same images."""
    model = network(10, head=method.task.head).train()
    loss = method.loss(model, batch.x, batch.y, Adversarial(batch.x))
    features = model.features(batch.x)
    return loss, features, model.classify(features)


@pytest.mark.parametrize("key", ["reat_rbl", "reat_rbl_zero_count"])
def test_weights_are_the_golden_ones_after_an_epoch_of_these_predictions(key):
    entry = GOLDEN[key]
    method = build(counts=tuple(int(n) for n in entry["inputs"]["class_counts"])).double()
    predicted = torch.tensor(entry["inputs"]["adv_pred_counts"], dtype=torch.float64)
    before = method.weights
    method.start_epoch(1, predicted)
    assert method.weights is before, "written in place"
    assert method.weights.tolist() == pytest.approx(entry["expected"]["weights"], rel=entry["tolerance"])


def test_weights_begin_as_if_each_class_had_been_predicted_as_often_as_it_occurs_and_are_saved():
    method = build()
    counts = torch.tensor(COUNTS, dtype=torch.float32)
    assert torch.equal(method.state_dict()["weights"], rebalancing_weights(counts, counts))
    assert method.weights.sum().item() == pytest.approx(10)


def test_the_objective_is_weighted_by_class_and_never_shifted(network, digits):
    """Seen in train mode of BN, where samples feel each other; in eval mode the weights move nothing."""
    for rbl in (True, False):
        method = build(rbl=rbl)
        method.start_epoch(1, torch.tensor([60.0, 9, 1, 1, 1, 1, 1, 1, 1, 2]))
        found = method.perturb(network(10), digits.x, digits.y, attack(bn_mode="train")).x
        plain = attack(bn_mode="train")
        expected = plain.weighted(method.weights) if rbl else plain
        assert torch.equal(found, expected(network(10), digits.x, digits.y))
        assert torch.equal(found, plain_examples(network, digits)) is not rbl


def plain_examples(network, digits):
    return attack(bn_mode="train")(network(10), digits.x, digits.y)


@pytest.mark.parametrize("form", ["official", "paper", "per-pair"])
def test_the_loss_is_balanced_softmax_plus_tail(form, network, digits):
    method = build(form=form, tail_weight=0.5)
    loss, features, logits = parts(method, network, digits)
    label = balanced_softmax(logits, digits.y, torch.tensor(COUNTS)).mean()
    tail = tail_margin(features, digits.y, torch.tensor(COUNTS), form)
    torch.testing.assert_close(loss.parts["label"], label)
    torch.testing.assert_close(loss.parts["tail"], tail)
    torch.testing.assert_close(loss.total, label + 0.5 * tail)
    assert torch.equal(loss.logits, logits), "predictions are counted on raw logits"


@pytest.mark.parametrize("form", ["official", "per-pair", "paper"])
def test_tail_is_the_golden_one(form):
    entry = GOLDEN["reat_tail_paper" if form == "paper" else "reat_tail"]
    expected = entry["expected"]
    if form != "paper":
        expected = expected["official_collapsed" if form == "official" else "per_pair"]
    inputs = entry["inputs"]
    features = torch.tensor(inputs["features"], dtype=torch.float64)

    class Recorded(torch.nn.Module):
        def features(self, _):
            return features

        def classify(self, features):
            return features.new_zeros(len(features), 10)

    method = build(counts=tuple(int(n) for n in inputs["class_counts"]), form=form).double()
    x = torch.zeros(len(features), 1)
    loss = method.loss(Recorded(), x, torch.tensor(inputs["labels"]), Adversarial(x))
    assert loss.parts["tail"].item() == pytest.approx(expected, rel=entry["tolerance"])


def test_one_pass_gives_features_and_logits(network, digits):
    model, passes = network(10).train(), []
    model.body.register_forward_hook(lambda *_: passes.append(None))
    build().loss(model, digits.x, digits.y, Adversarial(digits.x))
    assert len(passes) == 1


def test_without_tail_no_features_are_needed(network, digits):
    assert build().uses_features
    method = build(tail=False)
    assert not method.uses_features
    loss = method.loss(lambda x: network(10).train()(x), digits.x, digits.y, Adversarial(digits.x))
    expected = balanced_softmax(loss.logits, digits.y, torch.tensor(COUNTS)).mean()
    torch.testing.assert_close(loss.total, expected)
    assert loss.parts == {}


@pytest.mark.parametrize("bsl", [True, False])
def test_the_label_loss(bsl, network, digits):
    loss, _, logits = parts(build(bsl=bsl), network, digits)
    counts = torch.tensor(COUNTS) if bsl else torch.ones(10)
    torch.testing.assert_close(loss.parts["label"], balanced_softmax(logits, digits.y, counts).mean())
    loss, _, logits = parts(build("focal", bsl=bsl), network, digits)
    torch.testing.assert_close(loss.parts["label"], focal(logits, digits.y).mean(), msg="the run's own outer loss")


def test_without_its_parts_it_is_adversarial_training(network, digits):
    method, at = build(rbl=False, bsl=False, tail=False), methods.build("at", None, build().task)
    found, expected = (m.perturb(network(10), digits.x, digits.y, attack()) for m in (method, at))
    assert torch.equal(found.x, expected.x)
    loss, _, logits = parts(method, network, digits)
    torch.testing.assert_close(loss.total, functional.cross_entropy(logits, digits.y))


def test_tail_follows_the_rank_and_not_the_label():
    assert build(counts=COUNTS[::-1]).tail.tolist() == [True] * 3 + [False] * 7
    assert build(form="paper").tail.tolist() == [False] * 6 + [True] * 4


def test_a_second_weighting_of_the_attack_is_refused_unless_its_own_is_off():
    with pytest.raises(UserError, match=r"^reat: got the weighting enr; .* add --method\.no-rbl$"):
        build(weighting="enr")
    method = build(weighting="enr", rbl=False)
    given = replace(attack(), weights=torch.arange(10.0))
    seen = []
    method.perturb(
        lambda x: seen.append(None) or x.flatten(1)[:, :10], torch.zeros(2, 1, 8, 8), torch.tensor([0, 1]), given
    )
    assert len(seen) == 3


@pytest.mark.parametrize(("knob", "value"), [("form", "paper"), ("tail_weight", 0.5)])
def test_knobs_of_tail_are_refused_without_it(knob, value):
    with pytest.raises(UserError, match=f"^method {knob.replace('_', ' ')}: got {value!r}; allowed: with tail only$"):
        build(tail=False, **{knob: value})


@pytest.mark.parametrize(("knob", "value", "message"), [
    ("tail_weight", -1.0, "method tail weight: got -1; allowed: 0 or more"),
    ("tail_weight", math.nan, "method tail weight: got nan; allowed: 0 or more"),
    ("form", "oficial", "unknown form 'oficial'; allowed: official, paper, per-pair; did you mean 'official'"),
    ("rbl", "no", "method rbl: got 'no'; allowed: true or false"),
])  # fmt: skip
def test_nonsense_is_refused_in_one_line(knob, value, message):
    with pytest.raises(UserError, match=f"^{message}"):
        build(**{knob: value})


def test_its_published_settings_are_those_of_the_protocol_that_it_gave():
    run, protocol = override(protocols.taet("reat"), methods.find("reat").official), protocols.reat("reat")
    assert run.threat == protocol.threat
    assert run.model == protocol.model
    assert run.training.replace(selection=protocol.training.selection) == protocol.training
