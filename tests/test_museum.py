"""Every broken defence of the museum raises its flag in the probe of every evaluation; sound networks raise none."""

import sys
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import taet
from taet.attacks.counted import Counted
from taet.attacks.noise import Draws
from taet.evaluation import ResultCard
from taet.evaluation.bundles import CURVES, curves
from taet.evaluation.facts import Merged, ModelFacts, deep_facts, probe
from taet.evaluation.rules import MASKING, of_deep, of_model
from taet.evaluation.runner import Runner
from taet.evaluation.subject import count_classes
from tests import museum

Sample = tuple[Runner, Tensor, Tensor, Tensor]


def sample(model: nn.Module) -> Sample:
    """A runner, its images and labels, and start noise."""
    x, y = museum.tested()
    device = torch.device("cpu")
    images, labels = x.numpy(), y.numpy()
    width = count_classes(model, images, labels, device)
    runner = Runner(Counted(model), images, labels, width, len(y), 0, device)
    return runner, x, y, Draws(0, "probe", np.arange(len(y))).start(x, museum.EPS)


def facts_of(model: nn.Module) -> ModelFacts:
    runner, x, y, noise = sample(model)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sites = runner.sites
        with runner.still():
            return probe(runner.model, x, y, noise, museum.EPS, sites)


def raised(facts: ModelFacts) -> set[str]:
    return {*of_model(facts)}


# Which of two replacements of its steps has the better gradients depends on its trained weights, so on rounding.
OTHERWISE = {museum.k_winners: {"straight-through-beats-gradients"}}


@pytest.mark.sample(5)
@pytest.mark.parametrize("seed", range(5))
def test_plain_adversarial_training_raises_nothing(seed: int) -> None:
    assert raised(facts_of(museum.base(seed))) == set()


def small_logits(hidden: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    return lambda: museum.defended(hidden=hidden, after=lambda z: 0.01 * z)


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
        (small_logits(lambda h: h * (h > 0)), {"logit-scale"}),  # and not a comparison, which is sound here
        (small_logits(lambda h: h.view(len(h), -1, 2).sort(2).values.flatten(1).relu()), {"logit-scale"}),
    ],
)
def test_what_fools_attacks_is_named_and_nothing_else(build: Callable[[], nn.Module], expected: set[str]) -> None:
    assert raised(facts_of(build())) in (expected, OTHERWISE.get(build))


def test_dummy_classes_and_random_draws_are_named_by_the_deep_facts() -> None:
    x, model = museum.tested()[0], museum.dummies()
    expected = torch.maximum(*model(x).split(museum.CLASSES, 1))
    assert torch.equal(Merged(model, museum.CLASSES)(x), expected)
    for model, random, flag in (
        (Merged(museum.dummies(), museum.CLASSES).eval(), False, "dummy-classes"),
        (museum.stochastic(), True, "eot-beats-one-draw"),
        (museum.base(), False, None),
    ):
        runner, x, y, noise = sample(model)
        with torch.random.fork_rng(), runner.still():
            torch.manual_seed(0)
            found = of_deep(deep_facts(model, x, y, noise, museum.EPS, random=random))
        assert {*found} == ({flag} if flag else set())


ATTACKS = ("fgsm", "pgd-20", "pgd-100", "cw-linf-20", "adaptive-pgd-20", "autoattack-10", *CURVES)


def evaluated(model: nn.Module, monkeypatch: pytest.MonkeyPatch, attacks: Sequence[str] = ATTACKS) -> ResultCard:
    """Attack a model on three hundred images in one batch; Square has 100 queries."""
    monkeypatch.setattr(sys.modules["taet.attacks.autoattack"], "QUERIES", 100)  # the name is also a function
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return taet.evaluate(model, *museum.tested(), attacks, eps=museum.EPS, batch_size=museum.TEST)


def masking(card: ResultCard) -> set[str]:
    return {flag["flag"] for flag in card.flags} & MASKING


@pytest.mark.full
def test_a_whole_evaluation_of_plain_adversarial_training_raises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    card = evaluated(museum.base(), monkeypatch)
    assert masking(card) == set()
    of = {name: [float(one.correct.mean()) for one in points.values()] for name, points in curves(card).items()}
    assert of["eps"] == sorted(of["eps"], reverse=True)
    assert of["eps"][0] > 0.9 > of["eps"][-1] == 0
    # More steps need not break each image that fewer break: which one is left depends on the processor's rounding.
    assert all(more <= fewer + 0.01 for fewer, more in pairwise(of["steps"][:-1]))


@pytest.mark.full
@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (museum.flat_softmax, {"logit-scale", "adaptive-beats-plain", "margin-beats-cross-entropy"}),
        (museum.large_logits, {"zero-gradients", "logit-scale", "does-not-reach-zero"}),
        (museum.quantised, {"zero-gradients", "straight-through-beats-gradients", "autoattack-far-below-pgd"}),
    ],
)
def test_what_fools_attacks_is_named_by_a_whole_evaluation(
    build: Callable[[], nn.Module], expected: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert masking(evaluated(build(), monkeypatch)) >= expected
