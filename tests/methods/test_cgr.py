"""CGR: golden scores, weights, graph and losses, its bounds, its points of the curve, and its parts switched off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from taet import methods
from taet.attacks.ball import frozen
from taet.attacks.noise import Source
from taet.errors import UserError
from taet.methods import Task
from taet.methods.base import Adversarial, Attack, Seen
from taet.methods.cgr import EDGE, class_betas, class_weights, next_score, rivals
from taet.settings import Outer, Threat

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "class_methods.json").read_text())
OFF = {"balanced": False, "weights": False, "margin": 0.0, "budget": False}


def build(counts=(500, 200, 80, 20), epochs=110, watched=(), outer="cross-entropy", weighting="none", **knobs):
    task = Task(counts, (1, 8, 8), epochs, 1, milestones=(epochs - 1,), outer=Outer(name=outer), weighting=weighting,
                watched=watched)  # fmt: skip
    return methods.build("cgr", knobs, task)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def seen(confusion, features=None):
    zero = torch.zeros(len(confusion), dtype=torch.float64)
    return Seen("validation", confusion.sum(1), zero, confusion, zero, zero, zero, features)


def test_feedback_is_the_golden_one():
    inputs, updates = GOLDEN["cgr_feedback"]["inputs"], GOLDEN["cgr_feedback"]["expected"]["updates"]
    counts = tensor(inputs["class_counts"])
    score, graph = torch.ones(4, dtype=torch.float64), torch.zeros(4, 4, dtype=torch.float64)
    method = build(form="trades").double()
    for confusion, features, expected in zip(inputs["confusions"], inputs["features"], updates, strict=True):
        confusion, features = tensor(confusion), tensor(features)
        score = next_score(score, confusion.diagonal() / confusion.sum(1))
        graph = 0.8 * graph + 0.2 * rivals(confusion, features, counts, inputs["top"])
        found = {
            "score": score,
            "weights": class_weights(score),
            "betas": class_betas(score, inputs["beta_share"]),
            "graph": graph,
        }
        method.update(seen(confusion, features))
        for name, values in found.items():
            torch.testing.assert_close(values, tensor(expected[name]), rtol=0, atol=1e-8, msg=name)
            if name != "graph":  # of which the method keeps three edges
                torch.testing.assert_close(getattr(method, name), values)


def test_the_clips_are_the_golden_ones():
    inputs, expected = GOLDEN["cgr_clips"]["inputs"], GOLDEN["cgr_clips"]["expected"]
    weights = class_weights(tensor(expected["weight_score"]), expected["weight_lambda"])
    assert weights.tolist() == pytest.approx(expected["weights"], abs=1e-8)
    assert class_betas(tensor(inputs["score"]), inputs["beta_share"]).tolist() == pytest.approx(
        expected["betas"], abs=1e-8
    )


@pytest.mark.parametrize("form", ["at", "trades"])
@pytest.mark.parametrize("kind", ["balanced", "plain"])
def test_the_loss_is_the_golden_one(form, kind):
    inputs, expected = GOLDEN["cgr_losses"]["inputs"], GOLDEN["cgr_losses"]["expected"]
    method = build((100, 20, 5), form=form, balanced=kind == "balanced").double()
    for name in ("weights", "betas", "graph"):
        getattr(method, name).copy_(tensor(inputs[name]))
    natural, logits = tensor(inputs["logits_nat"]), tensor(inputs["logits_adv"])
    x = torch.zeros(4, 1)
    adversarial = Adversarial(torch.ones(4, 1))
    loss = method.loss(lambda given: natural if given is x else logits, x, torch.tensor(inputs["labels"]), adversarial)
    assert loss.total.item() == pytest.approx(expected[f"{form}_{kind}"], abs=1e-8)
    assert method.margin == inputs[f"margin_{form}"]
    assert loss.parts["margin"].item() == pytest.approx(method.margin * expected["margin"], abs=1e-8)


def test_without_weights_the_scores_stay_and_the_divergences_are_equal():
    robust, images = torch.tensor([0.8, 0.5, 0.3, 0.1]).double(), torch.full((4,), 100.0).double()
    zero = torch.zeros(4).double()
    seen = Seen("validation", images, images, torch.diag(100 * robust), zero, zero, zero)
    for weights in (True, False):
        method = build(form="trades", weights=weights)
        method.update(seen)
        for name, first in (("score", 1), ("weights", 1), ("betas", 4)):
            assert bool((getattr(method, name) == first).all()) != weights, name


@pytest.mark.parametrize("classes", [2, 10, 50])
def test_scores_weights_and_edges_keep_to_their_bounds(classes):
    draw = torch.Generator().manual_seed(classes)
    method = build(tuple(range(10 * classes, 0, -10)), form="trades")
    for number in range(20):
        confusion = torch.rand(classes, classes, generator=draw, dtype=torch.float64) ** 8 * 50
        confusion[number % classes] *= number % 3  # a class that is missing now and then
        method.update(seen(confusion.round(), torch.randn(classes, 16, generator=draw, dtype=torch.float64)))
        assert method.score.mean().item() == pytest.approx(1, abs=1e-5)
        assert (method.weights > 0).all()
        assert (method.betas > 0).all()
        assert method.weights.mean().item() == pytest.approx(1, abs=1e-5)
        assert 0 <= method.graph.min() <= method.graph.max() <= EDGE
        assert (method.graph.diagonal() == 0).all()
    edges = rivals(
        confusion, torch.randn(classes, 16, generator=draw, dtype=torch.float64), torch.ones(classes).double()
    )
    assert ((edges > 0).sum(1) <= 3).all()
    perfect = seen(torch.eye(classes, dtype=torch.float64) * 9, torch.ones(classes, 16, dtype=torch.float64))
    method.update(perfect)
    assert torch.isfinite(method.graph).all()
    assert torch.isfinite(method.score).all()


def test_feedback_is_taken_where_it_was_published():
    assert sorted(build().points) == [9, 19, 29, 39, 49, 59, 69, 79, 89, 99]
    assert sorted(build(watched=tuple(range(4, 110, 5))).points) == [9, 19, 29, 39, 49, 59, 69, 79, 89, 99]
    assert build(epochs=5).points <= set(range(5))
    method, told = build(), seen(torch.eye(4, dtype=torch.float64) + 1, torch.ones(4, 2, dtype=torch.float64))
    method.feedback(8, told)
    assert not method.graph.any()
    method.feedback(9, told)
    assert method.graph.any()


@pytest.mark.parametrize(("form", "base"), [("at", "at"), ("trades", "trades")])
def test_with_all_parts_off_it_is_its_base(form, base, network, digits):
    counts = (14, 12, 10, 9, 8, 7, 6, 5, 4, 3)
    method = build(counts, **OFF, form=form)
    plain = methods.build(base, {"beta": 4.0} if form == "trades" else None, method.task)
    method.update(seen(torch.rand(10, 10, dtype=torch.float64), None))
    attack = Attack(Threat(steps=2), Source(torch.Generator().manual_seed(0)))
    found = []
    for each in (method, plain):
        attack.source.generator.manual_seed(0)
        each.start_epoch(50, each.class_counts)
        model = network(10)
        with frozen(model):
            adversarial = each.perturb(model, digits.x, digits.y, attack)
        found.append((adversarial.x, each.loss(model, digits.x, digits.y, adversarial).total))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert method.deviations == ()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, (0, 1)),
        ({**OFF, "budget": True}, (0,)),
        ({**OFF, "weights": True}, (1,)),
        ({**OFF, "margin": 0.1}, (1,)),
        ({**OFF, "form": "trades"}, ()),
    ],
)
def test_only_parts_that_are_on_are_named_as_leaving_the_protocol(settings, told):
    method = build((14, 12, 10, 9, 8, 7, 6, 5, 4, 3), **settings)
    assert method.deviations == tuple(type(method).deviations[part] for part in told)


def test_the_prediction_on_clean_images_is_no_target_that_moves(network, digits):
    method, model = build((14, 12, 10, 9, 8, 7, 6, 5, 4, 3), form="trades", margin=0.0), network(10)
    moved = (digits.x + 0.05).clamp(0, 1).requires_grad_()
    x = digits.x.clone().requires_grad_()
    kl = method.loss(model, x, digits.y, Adversarial(moved)).parts["kl"]
    gradient = torch.autograd.grad(kl, [x, moved], allow_unused=True)
    assert gradient[0] is None or not gradient[0].any()
    assert gradient[1].any()


@pytest.mark.parametrize(("settings", "message"), [
    ({"outer": "focal"}, "cgr: got the outer loss focal, and it balances itself: add --method.no-balanced$"),
    ({"weighting": "brw"}, "cgr: got the weighting brw; it balances its attack itself: only none$"),
    ({"weighting": "rw", "form": "trades", "balanced": False}, "cgr: got the weighting rw; its attack raises no loss"),
    ({"class_beta": 0.2}, "method class beta: got 0.2; allowed: with form trades only$"),
    ({"class_beta": 0.2, "form": "trades", "weights": False}, "method class beta: got 0.2; .* with weights only$"),
])  # fmt: skip
def test_what_would_count_twice_or_do_nothing_is_refused(settings, message):
    with pytest.raises(UserError, match=f"^{message}"):
        build(**settings)
