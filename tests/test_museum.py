"""Every broken defence of the museum raises its flag in the probe of every evaluation; sound networks raise none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from taet.evaluation.diagnostics import MODEL
from taet.evaluation.facts import ModelFacts, probed
from taet.evaluation.probe import probe
from taet.evaluation.runner import make_runner
from tests import museum


def facts_of(model: nn.Module) -> ModelFacts:
    x, y = museum.tested()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        runner = make_runner(model, x, y, batch_size=len(y))
        facts = probed(probe(runner, museum.EPS, len(y), lambda _: None), len(y))
    assert facts is not None
    return facts


def raised(facts: ModelFacts) -> set[str]:
    found = {rule.flag: rule.unless for rule in MODEL if rule.text(facts)}
    return {flag for flag, unless in found.items() if found.keys().isdisjoint(unless)}


# Which of two replacements of its steps has the better gradients depends on its trained weights, so on rounding.
OTHERWISE = {museum.k_winners: {"straight-through-beats-gradients"}}


@pytest.mark.sample(5)
@pytest.mark.parametrize("seed", range(5))
def test_plain_adversarial_training_raises_nothing(seed: int) -> None:
    assert raised(facts_of(museum.base(seed))) == set()


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (museum.standard, set()),
        (museum.stepped, {"zero-gradients", "straight-through-beats-gradients"}),
        (museum.quantised, {"zero-gradients", "straight-through-beats-gradients"}),
        (museum.large_logits, {"zero-gradients", "logit-scale"}),
        (museum.flat_softmax, {"logit-scale"}),
        (museum.stochastic, {"randomised"}),
        (museum.k_winners, {"soft-beats-hard"}),
        (museum.batch_statistics, {"batch-dependent"}),
    ],
)
def test_what_fools_attacks_is_named_and_nothing_else(build: Callable[[], nn.Module], expected: set[str]) -> None:
    assert raised(facts_of(build())) in (expected, OTHERWISE.get(build))


def test_the_scale_of_the_logits_changes_nothing_that_the_probe_finds_at_its_own_scale() -> None:
    found = {round(facts_of(model()).scaled_pgd_correct / 3) for model in (museum.large_logits, museum.flat_softmax)}
    assert found == {round(facts_of(museum.base()).scaled_pgd_correct / 3)}
