"""WAT: golden costs, weights and loss, and how its rate follows the points of the curve."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from taet import methods
from taet.methods import Task
from taet.methods.base import Adversarial, Seen
from taet.methods.wat import class_costs, hedge

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "class_methods.json").read_text())


def build(classes=3, watched=tuple(range(100)), epochs=100, **knobs):
    task = Task(tuple(range(classes + 1, 1, -1)), (1, 8, 8), epochs, 1, milestones=(75, 90), watched=watched)
    return methods.build("wat", knobs, task)


def seen(costs, images=None):
    """Feedback whose mean losses by class are these; their divergence is 0."""
    costs = torch.as_tensor(costs, dtype=torch.float64)
    images = torch.ones_like(costs) if images is None else torch.as_tensor(images, dtype=torch.float64)
    zero = torch.zeros_like(costs)
    return Seen("validation", images, zero, torch.diag(zero), costs * images, zero, zero)


def test_the_costs_are_the_golden_ones():
    entry = GOLDEN["wat_costs"]
    labels, losses = torch.tensor(entry["inputs"]["labels"]), torch.tensor(entry["inputs"]["losses"]).double()
    zero = torch.zeros(3, dtype=torch.float64)
    sums, images = zero.index_add(0, labels, losses / 2), torch.bincount(labels).double()
    halves = Seen("validation", images, zero, torch.diag(zero), sums, zero, sums / 6)  # half from each term
    assert class_costs(halves, 6.0).tolist() == pytest.approx(entry["expected"]["ours"], abs=1e-8)


def test_the_weights_are_the_golden_ones():
    entry = GOLDEN["wat_weights"]
    summed = torch.tensor(entry["inputs"]["costs"], dtype=torch.float64).cumsum(0)
    for costs, expected in zip(summed, entry["expected"]["weights"], strict=True):
        weights = hedge(costs, entry["inputs"]["eta"])
        assert weights.tolist() == pytest.approx(expected, abs=1e-8)
        assert weights.sum().item() == pytest.approx(3)


def test_feedback_adds_up_costs_and_their_mean_over_classes():
    method = build()
    assert (method.weights == 1).all()
    for costs in ([1.0, 2.0, 4.0], [3.0, 2.0, 0.0]):
        method.feedback(0, seen(costs, images=[50, 10, 1]))
    assert method.costs.tolist() == pytest.approx([4, 4, 4, 4])
    assert method.weights.tolist() == pytest.approx([0.75] * 4)


def test_the_loss_is_the_golden_one():
    entry = GOLDEN["wat_loss"]
    inputs = entry["inputs"]
    natural, logits = (torch.tensor(inputs[f"logits_{kind}"], dtype=torch.float64) for kind in ("nat", "adv"))
    method = build().double()
    method.weights.copy_(torch.tensor(inputs["weights"], dtype=torch.float64))
    x = torch.zeros(4, 1)
    adversarial = Adversarial(torch.ones(4, 1))
    loss = method.loss(lambda given: natural if given is x else logits, x, torch.tensor(inputs["labels"]), adversarial)
    assert loss.total.item() == pytest.approx(entry["expected"], abs=1e-8)


def test_as_many_points_of_the_curve_as_there_are_the_weights_come_out_the_same():
    few, many = build(watched=(9, 19)), build(watched=(9, 19, 29, 39))
    for method in (few, many):
        for epoch in method.task.watched:
            method.feedback(epoch, seen([1.0, 2.0, 4.0]))
    torch.testing.assert_close(few.weights, many.weights)
    assert few.weights[2] > few.weights[0]


@pytest.mark.full
def test_equal_costs_keep_weights_equal_a_shift_changes_nothing_and_none_overflows():
    equal, one, shifted = build(), build(), build()
    for _ in range(10_000):
        equal.feedback(0, seen([5.0] * 3))
        one.feedback(0, seen([1.0, 2.0, 4.0]))
        shifted.feedback(0, seen([11.0, 12.0, 14.0]))
    torch.testing.assert_close(equal.weights, torch.full((4,), 0.75))
    torch.testing.assert_close(one.weights, shifted.weights)
    assert torch.isfinite(one.weights).all()
    assert one.weights.sum().item() == pytest.approx(3)
