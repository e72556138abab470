"""CFA: golden budgets, weights of the divergence and loss, what it counts, and when it begins."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

from taet import methods
from taet.errors import UserError
from taet.methods import Task
from taet.methods.base import Adversarial, Seen
from taet.training.state import averaged

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "class_methods.json").read_text())


def build(classes=3, epochs=20, **settings):
    counts = tuple(range(classes + 1, 1, -1))
    return methods.build("cfa", settings, Task(counts, (1, 8, 8), epochs, 1, milestones=(15,)))


def lived(method, robust, epoch=1):
    """The method at the start of `epoch` (from 0), after one in which these shares of ten images were right."""
    labels = torch.arange(len(robust)).repeat_interleave(10)
    right = torch.cat([torch.arange(10) < round(10 * share) for share in robust])
    predicted = torch.where(right, labels, (labels + 1) % len(robust))
    method.rule.observe(epoch - 1, torch.nn.functional.one_hot(predicted, len(robust)).float(), labels)
    method.enter(epoch)
    method.start_epoch(epoch, method.class_counts)
    return method


def test_budgets_and_weights_of_the_divergence_are_the_golden_ones():
    inputs, expected = GOLDEN["cfa_budget_beta"]["inputs"], GOLDEN["cfa_budget_beta"]["expected"]
    method = build(lambda_1=inputs["lambda_1"], lambda_2=inputs["lambda_2"]).double()
    share = method.rule.strength * 6 / (1 + method.rule.strength * 6)
    assert share.tolist() == pytest.approx([expected["before_begin"]] * 3, abs=1e-8)
    assert (method.factor == 1).all()
    lived(method, inputs["robust"])
    assert method.factor.tolist() == pytest.approx(expected["eps_factor"], abs=1e-8)
    share = method.rule.strength * 6 / (1 + method.rule.strength * 6)
    assert share.tolist() == pytest.approx(expected["class_beta"], abs=1e-8)


def loss_of(method):
    inputs = GOLDEN["cfa_ccr_loss"]["inputs"]
    natural, logits = (torch.tensor(inputs[f"logits_{kind}"], dtype=torch.float64) for kind in ("nat", "adv"))
    x = torch.zeros(4, 1)
    return method.loss(lambda given: natural if given is x else logits, x, torch.tensor(inputs["labels"]),
                       Adversarial(torch.ones(4, 1))).total.item()  # fmt: skip


@pytest.mark.parametrize(("regulariser", "key"), [("official", "official"), (None, "ours")])
def test_the_loss_is_the_golden_one(regulariser, key):
    method = lived(build(regulariser=regulariser).double(), [0.9, 0.5, 0.1])
    assert loss_of(method) == pytest.approx(GOLDEN["cfa_ccr_loss"]["expected"][key], abs=1e-8)


def test_it_is_trades_where_half_of_every_class_withstands_and_before_it_begins():
    trades = methods.build("trades", None, build().task).double()
    for method in (lived(build().double(), [0.5] * 3), build(lambda_1=0.3, lambda_2=0.8).double()):
        assert loss_of(method) == pytest.approx(loss_of(trades), abs=1e-12)
        assert method.factor.tolist() == pytest.approx([1.0] * 3)


@pytest.mark.parametrize("robust", [0.0, 1.0])
def test_budgets_and_weights_keep_to_their_ranges(robust):
    method = lived(build().double(), [robust] * 3)
    assert method.factor.tolist() == pytest.approx([0.5 + robust] * 3)
    assert (method.rule.strength > 0).all()


def test_it_begins_after_a_twentieth_of_the_epochs_and_counts_each_epoch_anew():
    method = build(epochs=40)
    lived(method, [0.9, 0.5, 0.1], epoch=1)
    assert (method.factor == 1).all()
    lived(method, [0.9, 0.5, 0.1], epoch=2)
    assert method.factor.tolist() == pytest.approx([1.4, 1.0, 0.6])
    lived(method, [0.1, 0.5, 0.9], epoch=3)
    assert method.factor.tolist() == pytest.approx([0.6, 1.0, 1.4])
    assert not method.rule.seen.any()


def test_a_class_counts_its_own_images_and_one_without_any_keeps_its_ball():
    method = build()
    labels = torch.tensor([0, 0, 0, 1])
    method.rule.observe(0, torch.tensor([[9.0, 0, 0], [9, 0, 0], [0, 9, 0], [9, 0, 0]]), labels)
    assert method.rule.hits.tolist() == [2, 0, 0]
    assert method.rule.seen.tolist() == [3, 1, 0]
    saved = copy.deepcopy(method.state_dict())  # in the middle of the epoch
    resumed = build()
    resumed.load_state_dict(saved)
    for each in (method, resumed):
        each.start_epoch(1, each.class_counts)
        assert each.factor.tolist() == pytest.approx([0.5 + 2 / 3, 0.5, 1.0])


@pytest.mark.parametrize(("settings", "message"), [
    ({"base": "at", "regulariser": "scaled"}, "method regulariser: got scaled, .* no divergence to weigh; .* off"),
    ({"base": "at", "lambda_2": 0.4}, "method lambda 2: got 0.4; allowed: with the regulariser only"),
    ({"lambda_1": 0.0}, "method lambda 1: got 0; allowed: above 0"),
    ({"epochs": 1}, "method begin: got 0.05 of 1 epochs, which leaves none of them; allowed: another share"),
])  # fmt: skip
def test_nonsense_is_refused_in_one_line(settings, message):
    with pytest.raises(UserError, match=f"^{message}$"):
        build(**settings)


def robust(*rates, images=100):
    """Feedback with these robust accuracies."""
    rates = torch.tensor(rates, dtype=torch.float64)
    counts = torch.as_tensor(images, dtype=torch.float64).expand(len(rates))
    zero = torch.zeros_like(rates)
    return Seen("validation", counts, zero, torch.diag(rates * counts), zero, zero, zero)


def test_the_average_of_admitted_epochs_is_the_golden_one():
    inputs, expected = GOLDEN["cfa_fawa"]["inputs"], GOLDEN["cfa_fawa"]["expected"]
    method = build(average=inputs["decay"], gate="absolute", threshold=inputs["threshold"])
    model = torch.nn.Linear(1, 1, bias=False).double()
    average = averaged(model, lambda _: method.average_decay)
    for epoch, (weight, worst) in enumerate(zip(inputs["weights"], inputs["worst_robust"], strict=True)):
        torch.nn.init.constant_(model.weight, weight)
        if method.admits(epoch, robust(0.5, worst, 0.9)):
            average.update_parameters(model)
        found = average.module.weight.item() if average.n_averaged else None
        assert found == (None if expected["average"][epoch] is None else pytest.approx(expected["average"][epoch]))


@pytest.mark.parametrize(("gate", "rates", "images", "admitted"), [
    ("relative", (0.8, 0.5, 0.25), 100, True),
    ("relative", (0.8, 0.5, 0.15), 100, False),
    ("relative", (0.08, 0.05, 0.025), 100, True),  # a long tail on which nothing is robust yet in absolute terms
    ("absolute", (0.08, 0.05, 0.025), 100, False),
    ("absolute", (0.8, 0.5, 0.25), 100, True),
    ("relative", (0.8, 0.5, 0.0), (100, 50, 4), True),  # four images have no vote
    ("relative", (0.8, 0.5, 0.0), (100, 50, 5), False),
    ("relative", (0.0, 0.0, 0.0), 100, False),
    ("relative", (0.8, 0.5, 0.4), 4, False),
])  # fmt: skip
def test_an_epoch_is_admitted_by_its_worst_class(gate, rates, images, admitted):
    method = build(gate=gate)
    images = torch.as_tensor(images)
    assert method.admits(3, robust(*rates, images=images)) == admitted
    assert not method.admits(3, robust(0.9, 0.9, 0.9)), "an epoch is judged once, also by a run that is resumed"
    assert method.admits(4, robust(0.9, 0.9, 0.9))


def test_without_an_average_it_needs_no_validation_and_its_state_is_as_before():
    assert not build().needs_feedback
    assert build(gate="relative").needs_feedback
    assert "judged" not in build().state_dict()
    for knob, value in (("average", 0.5), ("threshold", 0.1)):
        with pytest.raises(
            UserError, match=f"^method {knob}: got {value}; allowed: with gate relative or absolute only$"
        ):
            build(**{knob: value})


def test_around_a_method_without_its_divergence_it_is_budgets_alone():
    at = methods.build("at", None, build().task).double()
    assert loss_of(lived(build(base="at").double(), [0.9, 0.5, 0.1])) == loss_of(at)
