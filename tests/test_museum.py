"""Every broken defence of the museum raises its flag in the probe of every evaluation; sound
networks raise none."""

import sys
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import taet
from taet.attacks.counting_model import CountingModel
from taet.attacks.noise import Draws
from taet.card.facts import ModelFacts
from taet.evaluation import ResultCard
from taet.evaluation.attack_sets import CURVES, curves
from taet.evaluation.flags import MASKING, raised_about
from taet.evaluation.probe import Merged, deep_facts, probe
from taet.evaluation.runner import Runner
from taet.evaluation.target import count_classes
from tests import museum

Sample = tuple[Runner, Tensor, Tensor, Tensor]


def sample(model: nn.Module) -> Sample:
    """A runner, its images and labels, and start noise."""
    x, y = museum.tested()
    device = torch.device("cpu")
    images, labels = x.numpy(), y.numpy()
    width = count_classes(model, images, labels, device)
    runner = Runner(CountingModel(model), images, labels, width, len(y), 0, device)
    return runner, x, y, Draws(0, "probe", np.arange(len(y))).start(x, museum.EPS)


def facts_of(model: nn.Module) -> ModelFacts:
    runner, x, y, noise = sample(model)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sites = runner.sites
        with runner.frozen_and_exact():
            return probe(runner.model, x, y, noise, museum.EPS, sites)


def raised(facts: ModelFacts) -> set[str]:
    return {*raised_about("model", facts)}


# Which of two replacements of its steps has the better gradients depends on its trained weights, so
# on rounding.
OTHERWISE = {museum.k_winners: {"straight-through-beats-gradients"}}


@pytest.mark.sample(5)
@pytest.mark.parametrize("seed", range(5))
def test_plain_adversarial_training_raises_nothing(seed: int) -> None:
    assert raised(facts_of(museum.base(seed))) == set()


def products_with_signs() -> nn.Module:
    """Logits over 100, with ReLU written as a product with a comparison."""
    return museum.defended(hidden=lambda h: h * (h > 0), after=lambda z: 0.01 * z)


def sorted_pairs() -> nn.Module:
    """Logits over 100, with hidden units that are sorted in pairs."""

    def hidden(h: Tensor) -> Tensor:
        return h.view(len(h), -1, 2).sort(2).values.flatten(1).relu()

    model = museum.seeded(lambda: museum.Network(hidden=hidden))
    museum.fitted(model, museum.adversarial)
    model.after = lambda z: 0.01 * z
    return model


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
        # and not a comparison, which is sound here
        (products_with_signs, {"logit-scale"}),
        (sorted_pairs, {"logit-scale"}),
    ],
)
def test_what_fools_attacks_is_named_and_nothing_else(
    build: Callable[[], nn.Module], expected: set[str]
) -> None:
    assert raised(facts_of(build())) in (expected, OTHERWISE.get(build))


@pytest.mark.full
def test_a_merged_class_has_the_larger_logit_of_its_two_outputs() -> None:
    x, model = museum.tested()[0], museum.dummies()
    expected = torch.maximum(*model(x).split(museum.CLASSES, 1))
    assert torch.equal(Merged(model, museum.CLASSES)(x), expected)


def merged() -> nn.Module:
    """A network with a dummy class beside each class, merged to the classes."""
    return Merged(museum.dummies(), museum.CLASSES).eval()


@pytest.mark.full
@pytest.mark.parametrize(
    ("build", "random", "expected"),
    [
        (merged, False, {"dummy-classes"}),
        (museum.stochastic, True, {"eot-beats-one-draw"}),
        (museum.base, False, set()),
    ],
)
def test_the_deep_facts_name_dummy_classes_and_random_draws(
    build: Callable[[], nn.Module], random: bool, expected: set[str]
) -> None:
    model = build()
    runner, x, y, noise = sample(model)
    with torch.random.fork_rng(), runner.frozen_and_exact():
        torch.manual_seed(0)
        facts = deep_facts(model, x, y, noise, museum.EPS, random=random)
    assert {*raised_about("kind of model", facts)} == expected


ATTACKS = ("fgsm", "pgd-20", "pgd-100", "cw-linf-20", "adaptive-pgd-20", "autoattack-10", *CURVES)


def evaluated(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch, attacks: Sequence[str] = ATTACKS
) -> ResultCard:
    """Attack a model on three hundred images in one batch; Square has 100 queries."""
    # the name is also a function
    monkeypatch.setattr(sys.modules["taet.attacks.autoattack"], "QUERIES", 100)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return taet.evaluate(
            model, *museum.tested(), attacks, eps=museum.EPS, batch_size=museum.TEST
        )


def masking(card: ResultCard) -> set[str]:
    return {flag["flag"] for flag in card.flags} & MASKING


@pytest.mark.full
def test_a_whole_evaluation_of_plain_adversarial_training_raises_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    card = evaluated(museum.base(), monkeypatch)
    assert masking(card) == set()
    of = {
        name: [float(one.correct.mean()) for one in points.values()]
        for name, points in curves(card).items()
    }
    assert of["eps"] == sorted(of["eps"], reverse=True)
    assert of["eps"][0] > 0.9 > of["eps"][-1] == 0
    # More steps need not break each image that fewer break: which one is left depends on the
    # processor's rounding.
    assert all(more <= fewer + 0.01 for fewer, more in pairwise(of["steps"][:-1]))


@pytest.mark.full
@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (
            museum.flat_softmax,
            {"logit-scale", "adaptive-beats-plain", "margin-beats-cross-entropy"},
        ),
        (museum.large_logits, {"zero-gradients", "logit-scale", "does-not-reach-zero"}),
        (
            museum.quantised,
            {"zero-gradients", "straight-through-beats-gradients", "autoattack-far-below-pgd"},
        ),
    ],
)
def test_what_fools_attacks_is_named_by_a_whole_evaluation(
    build: Callable[[], nn.Module], expected: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert masking(evaluated(build(), monkeypatch)) >= expected
