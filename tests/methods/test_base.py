"""The attack and the task as values, and the search for methods."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from taet import methods, models
from taet.attacks import pgd
from taet.config import Threat
from taet.data.loader import Batch
from taet.errors import UserError
from taet.methods import Method, Task
from taet.methods.base import Attack
from taet.models import Adapter

THREAT = Threat(eps=0.1, step_size=0.05, steps=3, start="uniform")


def attack() -> Attack:
    return Attack(THREAT, torch.Generator().manual_seed(3))


def test_attack_is_pgd_with_the_settings_of_the_threat(network: Callable[..., Adapter], digits: Batch) -> None:
    model = network(10)
    expected = pgd(
        model, digits.x, digits.y, eps=0.1, steps=3, step_size=0.05, start="uniform",
        generator=torch.Generator().manual_seed(3),
    )  # fmt: skip
    assert torch.equal(attack()(model, digits.x, digits.y), expected)


def test_a_deviation_replaces_one_setting(network: Callable[..., Adapter], digits: Batch) -> None:
    seen = []
    x = attack()(
        network(10),
        digits.x,
        digits.y,
        eps=0.02,
        steps=2,
        start="none",
        observe=lambda i, logits: seen.append((i, logits)),
    )
    assert [i for i, _ in seen] == [0, 1]
    assert torch.equal(seen[0][1], network(10).eval()(digits.x))
    assert (x - digits.x).abs().max() == pytest.approx(0.02, abs=1e-6)


def test_inactive_examples_stay_at_their_start(network: Callable[..., Adapter], digits: Batch) -> None:
    active = torch.arange(64) < 10
    x = attack()(network(10), digits.x, digits.y, active=active, start="none")
    assert torch.equal((x != digits.x).flatten(1).any(1), active)


def test_scaled_multiplies_radius_and_step_per_example(network: Callable[..., Adapter], digits: Batch) -> None:
    factor = torch.linspace(0, 1, 64)
    scaled = attack().scaled(factor)
    distance = (scaled(network(10), digits.x, digits.y) - digits.x).abs().flatten(1).amax(1)
    assert (distance <= 0.1 * factor + 1e-6).all()
    assert (distance[1:] > 0.05 * factor[1:]).all()
    assert torch.equal(scaled.scaled(torch.full((64,), 0.5)).factor, factor / 2)


def test_task_ranks_classes_by_count_with_ties_by_label() -> None:
    task = Task(class_counts=(10, 40, 10, 40), image_shape=(1, 8, 8), epochs=1, steps_per_epoch=1)
    assert task.ranks == (2, 0, 3, 1)
    assert task.prior == (0.1, 0.4, 0.1, 0.4)
    assert task.num_classes == 4
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.epochs = 2  # type: ignore[misc]


def test_the_default_hooks_are_those_of_plain_adversarial_training(
    network: Callable[..., Adapter], digits: Batch
) -> None:
    task = Task(class_counts=(7,) * 10, image_shape=(1, 8, 8), epochs=3, steps_per_epoch=1)
    method = Method(Method.Config(), task)
    assert [method.stage_at(epoch) for epoch in range(3)] == ["adversarial"] * 3
    assert torch.equal(method.perturb(network(10), digits.x, digits.y, attack()).x, attack()(network(10), *digits[1:]))
    assert (method.offset() == 0).all()
    assert method.optimizers == {}
    with pytest.raises(NotImplementedError):
        method.loss(network(10), digits.x, digits.y, method.perturb(network(10), digits.x, digits.y, attack()))


def test_an_unknown_method_is_refused_with_the_nearest_match() -> None:
    with pytest.raises(UserError, match=r"unknown method 'teat'.*did you mean 'taet'\?"):
        methods.find("teat")


def test_an_unknown_outer_loss_is_refused_with_the_nearest_match() -> None:
    task = Task(class_counts=(2, 1), image_shape=(1, 8, 8), epochs=1, steps_per_epoch=1, outer="balance-softmax")
    with pytest.raises(UserError, match=r"did you mean 'balanced-softmax'\?"):
        methods.build("at", None, task)


def test_settings_of_another_method_are_refused() -> None:
    task = Task(class_counts=(4, 2), image_shape=(1, 8, 8), epochs=2, steps_per_epoch=1)
    with pytest.raises(UserError, match=r"method taet: got settings of type Harl\.Config; allowed: its own Config"):
        methods.build("taet", methods.find("harl").Config(), task)


def test_a_prior_moves_the_examples_and_label_weights_do_not() -> None:
    model = models.build("resnet8", 3, (1, 8, 8))
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(12, 1, 8, 8, generator=generator), torch.arange(12) % 3

    def attacked(**rebalancing: torch.Tensor) -> torch.Tensor:
        attack = Attack(Threat(steps=3), torch.Generator().manual_seed(0), **rebalancing)
        return attack(model, x, y)

    plain = attacked()
    assert torch.equal(attacked(weights=torch.tensor([0.01, 1.0, 7.0])), plain)
    assert not torch.equal(attacked(prior=torch.tensor([100.0, 10.0, 1.0])), plain)
