"""FRL: golden multipliers, weights and loss, the bounds of both, and when it begins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from taet import methods
from taet.attacks.noise import Source
from taet.errors import UserError
from taet.methods import Task
from taet.methods.base import Adversarial, Attack, Seen
from taet.methods.frl import FACTORS
from taet.settings import Threat

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "class_methods.json").read_text())


def build(classes=4, epochs=42, milestones=(1,), watched=(), **knobs):
    """By default with a feedback before each of 40 epochs that follow it, as published."""
    counts = tuple(range(classes + 1, 1, -1))
    task = Task(counts, (1, 8, 8), epochs, 1, milestones=milestones, watched=watched or tuple(range(1, 41)))
    return methods.build("frl", knobs, task)


def seen(error, boundary):
    error, boundary = (torch.as_tensor(values, dtype=torch.float64) for values in (error, boundary))
    images, zero = torch.full_like(error, 100), torch.zeros_like(error)
    return Seen("validation", images, 100 * (1 - error), torch.diag(100 * (1 - error - boundary)), zero, zero, zero)


@pytest.mark.parametrize("name", ["frl_multipliers", "frl_multipliers_published"])
def test_the_multipliers_are_the_golden_ones(name):
    inputs, expected = GOLDEN[name]["inputs"], GOLDEN[name]["expected"]
    knobs = {"rate": inputs["rate1"], "margin_rate": inputs["rate2"], "delta": inputs["delta"]}
    method = build(**knobs, limit=inputs["limit"]).double()
    found = []
    for errors in zip(inputs["natural_error"], inputs["boundary_error"], strict=True):
        method.feedback(1, seen(*errors))
        lambdas = {f"lambda{number}": values.tolist() for number, values in enumerate(method.multipliers)}
        natural, boundary = method.weights.tolist()
        factor = method.factor.tolist()
        found.append({**lambdas, "weight_natural": natural, "weight_boundary": boundary, "factor": factor})
    for update, wanted in zip(
        found[-len(expected.get("updates", [1])) :], expected.get("updates", [expected]), strict=True
    ):
        assert update.keys() == wanted.keys()
        for key, values in wanted.items():
            assert update[key] == pytest.approx(values, abs=1e-8), key


def test_the_loss_is_the_golden_one():
    entry = GOLDEN["frl_loss"]
    inputs = entry["inputs"]
    natural, logits = (torch.tensor(inputs[f"logits_{kind}"], dtype=torch.float64) for kind in ("nat", "adv"))
    method = build(classes=3).double()
    method.enter(5)
    rows = [inputs["weight_natural"], inputs["weight_boundary"]]
    method.weights.copy_(torch.tensor(rows, dtype=torch.float64))
    x = torch.zeros(4, 1)
    adversarial = Adversarial(torch.ones(4, 1))
    loss = method.loss(lambda given: natural if given is x else logits, x, torch.tensor(inputs["labels"]), adversarial)
    assert loss.total.item() == pytest.approx(entry["expected"], abs=1e-8)


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_no_weight_or_budget_reaches_zero_whatever_is_fed_back(classes):
    draw = torch.Generator().manual_seed(classes)
    method = build(classes, rate=5.0, margin_rate=5.0)
    for _ in range(50):
        error = torch.rand(classes, generator=draw) ** 4
        method.feedback(3, seen(error, (1 - error) * torch.rand(classes, generator=draw)))
        assert (method.multipliers[:2] >= 0).all()
        assert (method.multipliers[:2].sum(1) <= 0.5 + 1e-9).all()
        assert method.weights.min() >= 0.5 / classes - 1e-6
        torch.testing.assert_close(method.weights.sum(1), torch.ones(2))
        assert method.factor.min() >= FACTORS[0]
        assert method.factor.max() <= FACTORS[1]


def test_equal_errors_move_no_weight_and_shrink_the_budget_to_its_least():
    method = build()
    for _ in range(3):
        method.feedback(1, seen([0.3] * 4, [0.2] * 4))
    assert (method.multipliers[:2] == 0).all()
    assert (method.weights == 0.25).all()
    assert method.factor.tolist() == pytest.approx([0.98] * 4)


def test_without_margin_no_ball_is_scaled_and_the_gap_is_larger():
    method = build(margin=False)
    method.feedback(1, seen([0.1, 0.2, 0.3, 0.8], [0.1, 0.5, 0.1, 0.1]))
    assert (method.factor == 1).all()
    assert method.delta == 0.1
    assert build().delta == 0.07


def test_it_follows_feedback_from_the_last_epoch_of_the_burn_in_on_and_scales_its_rates():
    method = build(epochs=10, milestones=(6, 8), watched=tuple(range(10)))
    assert [method.task.stages[epoch] for epoch in (5, 6)] == ["burn-in", "fair"]
    for epoch, moved in ((4, False), (5, True)):
        method.feedback(epoch, seen([0.1, 0.2, 0.3, 0.8], [0.1, 0.5, 0.1, 0.1]))
        assert bool(method.multipliers.any()) == moved
    assert method.scale == 40 / 4, "epochs 5, 6, 7 and 8 are followed by one that has the weights"
    assert build(epochs=10, begin=0.3, watched=tuple(range(10))).task.stages[3] == "fair"


def test_a_curve_that_no_epoch_could_follow_is_refused():
    with pytest.raises(UserError, match=r"^frl: got no point of the curve"):
        build(epochs=10, milestones=(6,), watched=(3, 9))
    build(epochs=10, milestones=(6,), watched=(5, 9))


def test_examples_keep_to_the_budget_of_their_class(network, digits):
    method = build(10)
    method.enter(5)
    method.factor.copy_(torch.linspace(0.98, 3, 10))
    threat = Threat(eps=4 / 255, step_size=2 / 255, steps=8)
    attack = Attack(threat, Source(torch.Generator().manual_seed(0)))
    x = method.perturb(network(10), digits.x, digits.y, attack).x
    distance = (x - digits.x).abs().flatten(1).amax(1)
    assert (distance <= 4 / 255 * method.factor[digits.y] + 1e-6).all()
    assert distance.max() > 8 / 255
