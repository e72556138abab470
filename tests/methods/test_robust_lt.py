"""RobustLT: the budget by class, its warm-up, and that the method inside is otherwise as it was."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from taet import methods
from taet.attacks.noise import Source
from taet.errors import UserError
from taet.methods import Task
from taet.methods.base import Attack, Step
from taet.methods.robust_lt import class_budgets
from taet.models import Head
from taet.settings import Outer, Run, Threat, from_json, override, to_json
from taet.training.state import State
from taet.training.step import training_step

COUNTS = (14, 12, 10, 9, 8, 7, 6, 5, 4, 3)
CIFAR10_LT = torch.tensor([5000.0, 3237, 2096, 1357, 878, 568, 368, 238, 154, 100])


def task(outer="cross-entropy", weighting="none", epochs=10):
    return Task(COUNTS, (1, 8, 8), epochs, 1, milestones=(6, 8), outer=Outer(name=outer), weighting=weighting)


def build(base, base_settings=None, outer="cross-entropy", weighting="none", **settings):
    return methods.build(
        "robust-lt", {"base": base, "base_settings": base_settings, **settings}, task(outer, weighting)
    )


def attack(**threat):
    return Attack(Threat(**{"steps": 2, **threat}), Source(torch.Generator().manual_seed(0)))


@given(st.lists(st.integers(1, 5000), min_size=2, max_size=20), st.floats(0, 1))
def test_the_mean_budget_of_an_image_is_eps_and_the_largest_class_has_the_smallest(counts, a):
    n = torch.tensor(counts, dtype=torch.float64)
    budgets = class_budgets(n, a)
    assert ((n * budgets).sum() / n.sum()).item() == pytest.approx(1)
    assert budgets[n.argmax()] == budgets.min()
    if n.min() < n.max():
        assert budgets.min().item() == pytest.approx(1 - a)
    order = n.argsort(descending=True)
    assert (budgets[order].diff() >= 0).all()


def test_budgets_of_cifar10_lt_are_those_of_the_formula():
    scores = [math.sqrt(math.log(5000 / n)) for n in CIFAR10_LT.tolist()]
    tau = 0.3 / sum(n / CIFAR10_LT.sum().item() * s for n, s in zip(CIFAR10_LT.tolist(), scores, strict=True))
    assert class_budgets(CIFAR10_LT, 0.3).tolist() == pytest.approx([0.7 + tau * s for s in scores])


def test_a_class_without_an_image_has_the_budget_of_one():
    budgets = class_budgets(torch.tensor([10.0, 1.0, 0.0]), 0.3)
    assert torch.isfinite(budgets).all()
    assert budgets[2] == budgets[1]


@pytest.mark.parametrize(
    ("base", "b", "length"), [("at-bsl", None, 8), ("taet", None, 10), ("at", 0.5, 5), ("at", 0, 0)]
)
def test_the_warm_up_grows_the_whole_budget_from_nothing(base, b, length):
    method = build(base, b=b)
    for epoch in range(10):
        factor = method.factor
        method.start_epoch(epoch, method.class_counts)
        share = min(epoch / length, 1) if length else 1
        torch.testing.assert_close(method.factor, share * class_budgets(method.class_counts, 0.3))
        assert method.factor is factor, "written in place"
    assert "factor" in method.state_dict(), "a run that is resumed within an epoch goes on with it"


@pytest.mark.parametrize("start", ["uniform", "gaussian"])
def test_every_example_keeps_to_the_budget_of_its_class(start, network, digits):
    method = build("at", a=0.6)
    distance = {}
    for epoch in (0, 4, 9):
        method.start_epoch(epoch, method.class_counts)
        x = method.perturb(network(10), digits.x, digits.y, attack(steps=6, start=start)).x
        distance[epoch] = (x - digits.x).abs().flatten(1).amax(1)
        assert (distance[epoch] <= 8 / 255 * method.factor[digits.y] + 1e-6).all()
    assert (distance[0] == 0).all(), "the first epoch trains on the images themselves"
    head, tail = (distance[9][digits.y == c].max() for c in (0, 9))
    assert head.item() == pytest.approx(0.4 * 8 / 255, abs=1e-6)
    assert tail > 8 / 255


@pytest.mark.parametrize("base", ["at", "at-bsl", "trades", "mart", "gairat", "reat", "harl", "taet"])
def test_it_is_the_base_on_an_attack_scaled_by_class(base, network, digits):
    wrapped, plain = build(base), methods.build(base, None, task())
    predicted = torch.arange(1.0, 11)
    models = {}
    for epoch in (0, 7):
        for method in (wrapped, plain):
            method.enter(epoch)
            method.start_epoch(epoch, predicted)
            scaled = attack() if method is wrapped else attack().scaled(wrapped.factor[digits.y])
            model = network(10)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            models[method] = training_step(State(model, method, optimizer), digits, scaled), model
        (ours, our_model), (theirs, their_model) = models[wrapped], models[plain]
        assert wrapped.stage == plain.stage
        assert torch.equal(ours.total, theirs.total)
        assert ours.parts.keys() == theirs.parts.keys()
        for mine, other in zip(our_model.parameters(), their_model.parameters(), strict=True):
            assert torch.equal(mine, other)
    inner = {name.removeprefix("base."): v for name, v in wrapped.state_dict().items() if name.startswith("base.")}
    assert inner.keys() == plain.state_dict().keys()
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in inner.items())


def test_after_step_hands_the_base_the_scaled_attack(network, digits, monkeypatch):
    method, seen = build("harl"), []
    monkeypatch.setattr(type(method.base), "after_step", lambda *given: seen.append(given[-1]))
    loss = method.loss(network(10), digits.x, digits.y, method.perturb(network(10), digits.x, digits.y, attack()))
    step = Step(digits.index, digits.x, digits.y, loss, attack(), torch.optim.SGD(network(10).parameters()), 7)
    method.after_step(network(10), step)
    assert torch.equal(seen[0].attack.factor, method.factor[digits.y])
    assert (seen[0].loss, seen[0].number) == (loss, 7)


def test_everything_that_the_base_says_of_itself_is_passed_on():
    method = build("trades")
    assert method.title == "RobustLT + TRADES"
    assert "Zhang et al., ICML 2019" in method.reference
    assert not method.label_attack
    assert methods.find("robust-lt").title == "RobustLT", "the class is as it was"
    assert [build("reat").uses_features, build("reat", {"tail": False}).uses_features] == [True, False]
    assert build("at", outer="ldam").task.head == Head("cosine", 30.0)
    assert [build("taet").task.stages[epoch] for epoch in (3, 4)] == ["clean", "adversarial"]
    assert method.optimizers is method.base.optimizers
    assert len(method.deviations) == 1 + len(method.base.deviations)
    assert torch.equal(method.offset(), method.base.offset())
    gairat = build("gairat")
    gairat.enter(9)
    assert gairat.base.stage == gairat.stage == "weighted"


def test_the_average_of_the_base_is_kept(monkeypatch):
    monkeypatch.setattr(methods.find("wat"), "average_decay", 0.9)
    monkeypatch.setattr(methods.find("wat"), "admits", lambda _, epoch, __: epoch == 3)
    method = build("wat")
    assert method.average_decay == 0.9
    assert [method.admits(epoch, None) for epoch in (2, 3)] == [False, True]


def test_the_base_has_its_own_settings():
    built = build("trades", {"beta": 3})
    assert built.base.config == built.config.base_settings == methods.find("trades").Config(beta=3)
    assert build("trades").config.base_settings is None
    run = override(Run(method="robust-lt"), {"settings": built.config})
    assert from_json(Run, to_json(run)) == run
    assert override(run, {"settings.base_settings.beta": 4}).settings.base_settings.beta == 4


@pytest.mark.parametrize(("base", "own", "message"), [
    ("robust-lt", {}, "method base: got 'robust-lt'; allowed: a method that wraps no other"),
    ("trads", {}, r"robust-lt: base trads: unknown method 'trads'; .*did you mean 'trades'\?"),
    ("trades", {"betta": 3}, r"robust-lt: base trades: unknown field of Config 'betta'; allowed: beta; .* 'beta'\?"),
    ("trades", {"beta": -3}, "robust-lt: base trades: method beta: got -3; allowed: 0 or more"),
])  # fmt: skip
def test_a_base_or_setting_that_cannot_be_is_refused_in_one_line(base, own, message):
    with pytest.raises(UserError, match=f"^{message}") as error:
        build(base, own)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("base", "own"), [("standard", None), ("taet", {"clean_share": 1})])
def test_a_base_that_never_attacks_has_no_budget_to_scale(base, own):
    with pytest.raises(
        UserError, match=f"^method base: got {base}, which attacks in no epoch; allowed: one that does$"
    ):
        build(base, own)


@pytest.mark.parametrize(("settings", "message"), [
    ({"a": 1.5}, "method a: got 1.5; allowed: 0 to 1"),
    ({"a": math.nan}, "method a: got nan; allowed: 0 to 1, a finite number"),
    ({"b": -0.1}, "method b: got -0.1; allowed: 0 to 1"),
])  # fmt: skip
def test_nonsense_is_refused_in_one_line(settings, message):
    with pytest.raises(UserError, match=f"^{message}$"):
        build("at", **settings)


def test_what_the_base_refuses_stays_refused():
    with pytest.raises(UserError, match="trades: got the weighting brw"):
        build("trades", weighting="brw")
    with pytest.raises(UserError, match="harl: got the outer loss focal"):
        build("harl", outer="focal")
    assert build("at", weighting="brw").label_attack
