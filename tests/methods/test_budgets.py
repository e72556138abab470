"""Wrappers: the budget of each class by its rule, when it begins, what is saved of it; all else is
the base's."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from taet import methods
from taet.data.loader import Batch
from taet.methods.dafa import class_weights
from taet.methods.robust_lt import class_budgets
from taet.models import Head
from tests.methods.conftest import (
    Network,
    built,
    make_attack,
    perturb,
    seen_of,
    state_of,
    trained_step,
)


@pytest.mark.parametrize(
    ("base", "b", "length"), [("at-bsl", None, 8), ("taet", None, 10), ("at", 0.5, 5), ("at", 0, 0)]
)
def test_the_warm_up_of_robust_lt_grows_the_whole_budget_from_nothing(
    base: str, b: Any, length: int
) -> None:
    method = built("robust-lt", base=base, b=b)
    factor = method.factor
    for epoch in range(10):
        method.start_epoch(epoch, method.class_counts)
        share = min(epoch / length, 1) if length else 1
        torch.testing.assert_close(method.factor, share * class_budgets(method.class_counts, 0.3))
        assert method.factor is factor, "written in place"
    assert class_budgets(torch.tensor([10.0, 1, 0]), 0.3).unique().numel() == 2, (
        "no image counts as one"
    )


def test_without_a_warm_up_robust_lt_says_so_beside_what_its_base_says() -> None:
    said = built("robust-lt", base="n-fgsm", b=0).deviations
    assert said[0].startswith("one step of eps from uniform noise")
    assert said[1:] == ("training eps and step size follow the class counts",)
    assert built("robust-lt", base="at", a=0).deviations == (
        "training eps and step size grow from 0 in the warm-up",
    )
    assert built("robust-lt", base="at", a=0, b=0).deviations == ()


BASES = pytest.mark.parametrize("base", ["at-bsl", "trades", "mart", "reat", "harl", "taet"])


@pytest.mark.parametrize("epoch", [0, 9])
@BASES
def test_a_step_of_robust_lt_is_that_of_the_base_on_an_attack_scaled_by_class(
    base: str, epoch: int, network: Network, digits: Batch
) -> None:
    wrapped, plain = built("robust-lt", base=base, a=0.6), built(base)
    for method in (wrapped, plain):
        method.enter(epoch)
        method.start_epoch(epoch, torch.arange(1.0, 11))
    attacks = {wrapped: make_attack(), plain: make_attack().scaled(wrapped.factor[digits.y])}
    steps = []
    for method, attack in attacks.items():
        model = network(10)
        loss = trained_step(method, model, digits, attack=attack)
        steps.append([loss.total, *loss.parts.values(), *state_of(model).values()])
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*steps, strict=True))


@BASES
def test_the_budget_of_robust_lt_bounds_the_images_of_each_class(
    base: str, network: Network, digits: Batch
) -> None:
    method = built("robust-lt", base=base, a=0.6)
    method.enter(9)
    method.start_epoch(9, torch.arange(1.0, 11))
    x = perturb(method, network(10), digits, make_attack(steps=6, start="uniform")).x
    distance = (x - digits.x).abs().flatten(1).amax(1)
    assert (distance <= 8 / 255 * method.factor[digits.y] + 1e-6).all()
    assert distance[digits.y == 9].max() > 8 / 255 > 2 * distance[digits.y == 0].max()


@BASES
def test_robust_lt_saves_the_state_of_its_base(base: str) -> None:
    state = built("robust-lt", base=base, a=0.6).state_dict()
    of_base = [name for name in state if name.startswith("base.")]
    assert of_base == [f"base.{name}" for name in built(base).state_dict()]


def test_a_wrapper_has_title_reference_and_deviations_of_its_base() -> None:
    method = built("robust-lt", base="trades", base_settings={"beta": 3})
    assert method.title == "RobustLT + TRADES"
    assert "Zhang et al., ICML 2019" in method.reference
    assert len(method.deviations) == 1 + len(method.base.deviations)
    assert methods.find("robust-lt").title == "RobustLT", "the class is as it was"


def test_a_wrapper_attacks_and_reads_features_as_its_base_does() -> None:
    assert not built("robust-lt", base="trades").label_attack
    assert built("robust-lt", base="reat").uses_features


def test_a_wrapper_deploys_the_head_and_the_offset_of_its_base() -> None:
    assert built("robust-lt", base="at", outer="ldam").task.head == Head("cosine", 30.0)
    assert torch.equal(built("robust-lt", base="robal").offset(), built("robal").offset())


def test_a_wrapper_warns_as_its_base_does_with_the_options_of_the_wrapper() -> None:
    (warning, *_) = built("taet", clean_share=1.0).warnings((5,) * 10, 128)
    assert warning.startswith("no epoch is adversarial")
    warnings = built("robust-lt", base="taet").warnings((5,) * 10, 128)
    assert "--method.base-settings.alpha 1 was" in " ".join(warnings)


def test_a_wrapper_averages_and_chooses_epochs_as_its_base_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(methods.find("wat"), "average_decay", 0.9)
    monkeypatch.setattr(methods.find("wat"), "accepts_epoch", lambda _, epoch, __: epoch == 3)
    wrapped = built("robust-lt", base="wat")
    assert wrapped.average_decay == 0.9
    assert wrapped.needs_feedback
    assert not wrapped.accepts_epoch(2, None)
    assert wrapped.accepts_epoch(3, None)


# -- DAFA


def epochs(method: Any, model: Any, digits: Batch, which: Any) -> None:
    for epoch in which:
        method.enter(epoch)
        method.start_epoch(epoch, method.class_counts)
        for number in range(2):
            trained_step(method, model, digits, number=number)


def test_the_weights_of_dafa_follow_from_the_last_epoch_of_the_warm_up_and_stay(
    network: Network, digits: Batch
) -> None:
    method, model = built("dafa", task={"epochs": 11}), network(10)
    epochs(method, model, digits, range(7))
    assert (method.factor == 1).all()
    assert method.rule.seen.sum() == 2 * len(digits.y), "one epoch alone is recorded"
    mean = method.rule.confusion / method.rule.seen[:, None]
    resumed, twin = built("dafa", task={"epochs": 11}), copy.deepcopy(model)
    resumed.load_state_dict(copy.deepcopy(method.state_dict()))
    for each, its_model in ((method, model), (resumed, twin)):
        epochs(each, its_model, digits, [7])
        torch.testing.assert_close(
            each.factor.double(), class_weights(mean, 1.0, 0.25), rtol=1e-6, atol=1e-6
        )
    before = method.factor.clone()
    epochs(method, model, digits, range(8, 11))
    assert torch.equal(method.factor, before)
    again = built("dafa", task={"epochs": 11})
    again.load_state_dict(resumed.state_dict())
    again.enter(8)  # resumed in the middle of an epoch: it does not start anew
    assert torch.equal(again.base.outer.factor, before.double())


# -- CFA


def test_cfa_counts_each_epoch_anew_and_a_class_without_an_image_keeps_its_ball() -> None:
    method = built("cfa", counts=(4, 3, 2), task={"epochs": 40})
    logits = torch.tensor([[9.0, 0, 0], [9, 0, 0], [0, 9, 0], [9, 0, 0]])
    # it begins after a twentieth
    expected = {1: [1.0] * 3, 2: [0.5 + 2 / 3, 0.5, 1.0], 3: [1.0, 1.5, 1.0]}
    for epoch, factor in expected.items():
        labels = torch.tensor([1, 1, 1, 1] if epoch == 3 else [0, 0, 0, 1])
        method.rule.observe(epoch - 1, logits.roll(1, 1) if epoch == 3 else logits, labels)
        resumed = built("cfa", counts=(4, 3, 2), task={"epochs": 40})
        resumed.load_state_dict(copy.deepcopy(method.state_dict()))  # in the middle of the epoch
        for each in (resumed, method):
            each.start_epoch(epoch, each.class_counts)
            found: Tensor = each.factor
            assert found.tolist() == pytest.approx(factor if epoch < 3 else [1.0, 0.5 + 3 / 4, 1.0])
        assert not method.rule.seen.any()


@pytest.mark.parametrize(
    ("gate", "rates", "images", "admitted"),
    [
        ("relative", (0.8, 0.5, 0.25), 100, True),
        ("relative", (0.8, 0.5, 0.15), 100, False),
        # a long tail on which nothing is robust yet in absolute terms
        ("relative", (0.08, 0.05, 0.025), 100, True),
        ("absolute", (0.08, 0.05, 0.025), 100, False),
        ("relative", (0.8, 0.5, 0.0), (100, 50, 4), True),  # four images have no vote
    ],
)
def test_an_epoch_is_admitted_by_its_worst_class(
    gate: str, rates: Any, images: Any, admitted: bool
) -> None:
    method = built("cfa", counts=(4, 3, 2), task={"epochs": 20}, gate=gate)
    assert method.needs_feedback
    assert method.accepts_epoch(3, seen_of(0.9, rates, images=images)) == admitted
    assert method.accepts_epoch(4, seen_of(0.9, [0.9] * 3))
    assert math.isclose(method.average_decay, 0.88)
