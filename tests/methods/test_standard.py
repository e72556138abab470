"""Standard training: clean images, the run's outer loss, no attack."""

from __future__ import annotations

import pytest
import torch

from taet import methods
from taet.attacks.noise import Source
from taet.errors import UserError
from taet.losses import balanced_softmax, cross_entropy
from taet.methods import Task
from taet.methods.base import Attack
from taet.settings import Outer, Threat

COUNTS = (14, 12, 10, 9, 8, 7, 6, 5, 4, 3)


def task(outer="cross-entropy", weighting="none"):
    return Task(
        COUNTS, (1, 8, 8), epochs=10, steps_per_epoch=1, milestones=(6,), outer=Outer(name=outer), weighting=weighting
    )


def test_every_epoch_is_clean_and_no_image_is_touched(network, digits):
    method = methods.build("standard", None, task())
    assert {method.task.stages[epoch] for epoch in range(10)} == {"clean"}
    attack = Attack(Threat(), Source(torch.Generator()))
    assert method.perturb(network(10), digits.x, digits.y, attack).x is digits.x


def test_the_loss_is_the_outer_loss_on_clean_images(network, digits):
    for outer, expected in (
        ("cross-entropy", cross_entropy),
        ("balanced-softmax", lambda logits, y: balanced_softmax(logits, y, torch.tensor(COUNTS))),
    ):
        method, model = methods.build("standard", None, task(outer)), network(10)
        attack = Attack(Threat(), Source(torch.Generator()))
        examples = method.perturb(model, digits.x, digits.y, attack)
        loss = method.loss(model.train(), digits.x, digits.y, examples)
        assert torch.equal(loss.logits, network(10).train()(digits.x))
        torch.testing.assert_close(loss.total, expected(loss.logits, digits.y).mean())


def test_there_is_no_attack_to_weigh():
    with pytest.raises(UserError, match="standard: got the weighting rw"):
        methods.build("standard", None, task(weighting="rw"))
