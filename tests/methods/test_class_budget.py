"""Budgets by class: one wrapper with several rules; no rule takes a class to nothing, and ones change nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from taet import methods
from taet.attacks.noise import Source
from taet.errors import UserError
from taet.methods import Task
from taet.methods.base import Attack
from taet.methods.robust_lt import class_budgets
from taet.settings import Threat
from taet.training.state import State
from taet.training.step import training_step

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "class_methods.json").read_text())
COUNTS = (14, 12, 10, 9, 8, 7, 6, 5, 4, 3)
RULES = ("counts", "dafa", "cfa")
HOLDERS = ("cfa", "class-budget", "dafa", "robust-lt")


def task(epochs=11, counts=COUNTS):
    return Task(counts, (1, 8, 8), epochs, 1, milestones=(8, 9))


def build(name="class-budget", counts=COUNTS, **settings):
    return methods.build(name, settings, task(counts=counts))


def attack():
    return Attack(Threat(steps=2), Source(torch.Generator().manual_seed(0)))


def one_step(method, network, batch, epoch=0):
    method.enter(epoch)
    method.start_epoch(epoch, method.class_counts)
    model = network(10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = training_step(State(model, method, optimizer), batch, attack())
    return [loss.total, loss.logits, *model.parameters()]


@pytest.mark.parametrize("name", ["budget_counts", "budget_counts_equal"])
def test_the_budgets_by_counts_are_the_golden_ones(name):
    entry = GOLDEN[name]
    counts = torch.tensor(entry["inputs"]["class_counts"], dtype=torch.float64)
    found = class_budgets(counts, entry["inputs"]["a"])
    assert found.tolist() == pytest.approx(entry["expected"]["factor"], abs=entry["tolerance"])


@pytest.mark.parametrize("base", ["at-bsl", "taet"])
def test_the_rule_counts_is_robust_lt_and_takes_its_state(base, network, digits):
    general, special = build(base=base, rule="counts"), build("robust-lt", base=base)
    for epoch in (0, 4, 10):
        for found, expected in zip(
            one_step(general, network, digits, epoch), one_step(special, network, digits, epoch), strict=True
        ):
            assert torch.equal(found, expected)
    general.load_state_dict(special.state_dict())
    assert set(special.state_dict()) - {f"base.{name}" for name in special.base.state_dict()} == {"factor"}


@pytest.mark.parametrize("base", ["at", "at-bsl", "trades", "mart", "las-at"])
def test_factors_of_one_leave_the_base_as_it_is(base, network, digits):
    wrapped, plain = build(rule="dafa", base=base), methods.build(base, None, task())
    for found, expected in zip(one_step(wrapped, network, digits), one_step(plain, network, digits), strict=True):
        assert torch.equal(found, expected)


def confusions(classes, tail, number=200):
    """Random row-stochastic matrices whose columns lean to the large classes, as on a long tail."""
    draw = torch.Generator().manual_seed(classes)
    counts = tail ** torch.linspace(0, -1, classes, dtype=torch.float64)
    lean = counts.log() * torch.rand(number, 1, 1, generator=draw, dtype=torch.float64) * 3
    logits = 2 * torch.randn(number, classes, classes, generator=draw, dtype=torch.float64) + lean
    own = 4 * torch.rand(number, classes, generator=draw, dtype=torch.float64)
    return (logits + own.diag_embed()).softmax(2)


@pytest.mark.parametrize("tail", [10, 100, 1000])
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_no_class_comes_to_nothing_on_any_long_tail(classes, tail):
    from taet.methods.dafa import class_weights

    draws = confusions(classes, tail, 200 if classes < 100 else 50)
    clamped = 0
    for confusion in draws:
        weights = class_weights(confusion, 1.5, 0.25)
        assert weights.min() >= 0.25 - 1e-12
        assert weights.sum().item() == pytest.approx(classes)
        clamped += weights.min().item() == pytest.approx(0.25)
    assert classes == 2 or clamped, "the bound was reached"
    counts = torch.tensor([round(1000 * tail ** (-c / (classes - 1))) for c in range(classes)], dtype=torch.float64)
    assert (class_budgets(counts, 0.99) > 0).all()


@pytest.mark.parametrize("name", HOLDERS)
def test_none_holds_another_or_what_never_attacks(name):
    for base in HOLDERS:
        with pytest.raises(UserError, match=f"^method base: got '{base}'; allowed: a method that wraps no other$"):
            build(name, base=base)
    with pytest.raises(UserError, match=r"^method base: got standard, which attacks"):
        build(name, base="standard")
    with pytest.raises(UserError, match=rf"^{name}: base trades: unknown field of Config 'betta'; allowed: beta"):
        build(name, base="trades", base_settings={"betta": 3})


@pytest.mark.parametrize("rule", RULES)
def test_a_constant_of_another_rule_is_refused(rule):
    for knob, value, belongs in (("a", 0.5, "counts"), ("lam", 2.0, "dafa"), ("lambda_1", 0.4, "cfa")):
        if belongs != rule:
            with pytest.raises(
                UserError, match=f"^method {knob.replace('_', ' ')}: got .+; allowed: with rule {belongs} only$"
            ):
                build(rule=rule, **{knob: value})


def test_a_factor_that_is_no_number_is_an_error_that_names_the_class():
    method = build(rule="dafa")
    method.enter(6)
    method.start_epoch(6, method.class_counts)
    logits = torch.zeros(10, 10)
    logits[3] = torch.nan
    method.rule.observe(6, logits, torch.arange(10))
    method.enter(7)
    with pytest.raises(UserError, match=r"^class-budget: got the factor nan of class 0; allowed: 0 or more$"):
        method.start_epoch(7, method.class_counts)
