"""The attack as a value, and what a method is built from."""

from typing import Any

import pytest
import torch
from torch import Tensor

from taet import methods
from taet.attacks import pgd
from taet.data.loader import Batch
from taet.errors import UserError
from taet.methods.base import Attack
from taet.models import Head
from taet.settings import Outer
from tests.methods.conftest import Network, built, make_attack

THREAT = {"eps": 0.1, "step_size": 0.05, "steps": 3, "start": "uniform"}


def attack(**more: Any) -> Attack:
    return make_attack(3, **{**THREAT, **more})


def test_attack_is_pgd_with_the_settings_of_the_threat_or_what_a_method_replaces(
    network: Network, digits: Batch
) -> None:
    seen = list[Tensor]()
    for own in ({}, {"eps": 1.0, "norm": "l2", "restarts": 2, "bn_mode": "train"}):
        noise = torch.Generator().manual_seed(3)
        expected = pgd(network(10), digits.x, digits.y, **{**THREAT, **own}, start_noise=noise)
        assert torch.equal(attack()(network(10), digits.x, digits.y, **own), expected)
    options = {
        "eps": 0.02,
        "steps": 2,
        "start": "none",
        "observe": lambda _, logits: seen.append(logits),
    }
    x = attack()(network(10), digits.x, digits.y, **options)
    assert len(seen) == 2
    assert torch.equal(seen[0], network(10).eval()(digits.x))
    assert (x - digits.x).abs().max() == pytest.approx(0.02, abs=1e-6)


def test_weights_and_prior_are_those_of_the_objective(network: Network, digits: Batch) -> None:
    """No sign step feels a weight above 0, but one of 0 leaves an example where it started."""
    given = attack(start="none")
    weights = torch.tensor([0.0, *[7.0] * 9])
    x = Attack(given.threat, given.source, weights=weights)(network(10), digits.x, digits.y)
    plain = given(network(10), digits.x, digits.y)
    assert torch.equal((x != digits.x).flatten(1).any(1), digits.y > 0)
    assert torch.equal(x[digits.y > 0], plain[digits.y > 0])
    prior = Attack(given.threat, given.source, prior=torch.logspace(4, 0, 10))
    assert not torch.equal(prior(network(10), digits.x, digits.y), plain)


def test_what_does_not_belong_together_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"method taet: got settings of type Harl\.Config; allowed: its own Config"
    ):
        methods.build("taet", methods.find("harl").Config(), built("at").task)


def test_ldam_brings_its_cosine_head_and_he_keeps_its_own() -> None:
    for name, outer, head in (
        ("at", Outer(name="ldam", scale=12), 12),
        ("he", Outer(name="ldam"), 15),
    ):
        assert built(name, counts=(4, 2), outer=outer).task.head == Head("cosine", scale=head)
    logits, labels = torch.tensor([[3.0, -6.0]]), torch.tensor([1])
    # The rarest class has LDAM's margin of 0.5 in cosines, and that of HE of 0.2.
    ldam, he = (built(name, counts=(40, 2), outer="ldam") for name in ("at", "he"))
    assert ldam.outer(logits, labels).item() == pytest.approx(9 + 30 * 0.5, rel=1e-4)
    assert he.margin_loss(logits, labels).item() == pytest.approx(9 + 15 * (0.5 + 0.2), rel=1e-4)


def test_enter_takes_everything_held_to_the_epoch() -> None:
    """A pure function of the epoch: a run that resumes there is where one that never stopped is."""
    method = built("robust-lt", counts=(40, 2), outer=Outer(drw=True, beta=0.9), base="gairat")
    logits, labels = torch.zeros(2, 2), torch.tensor([0, 1])
    for epoch in (0, 9, 3, 6, 5):
        method.enter(epoch)
        assert method.stage == method.base.stage == ("burn-in" if epoch < 6 else "weighted")
        losses = method.base.outer(logits, labels)
        assert (losses[1] > 2 * losses[0]) == (epoch >= 6)
