"""The attack and the task as values, and the search for methods."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from taet import methods, models
from taet.attacks import pgd
from taet.attacks.noise import Source
from taet.data.loader import Batch
from taet.errors import UserError
from taet.methods import Method, Task
from taet.methods.base import Attack
from taet.models import Classifier, Head
from taet.settings import Outer, Threat

THREAT = Threat(eps=0.1, step_size=0.05, steps=3, start="uniform")


def attack() -> Attack:
    return Attack(THREAT, Source(torch.Generator().manual_seed(3)))


def test_attack_is_pgd_with_the_settings_of_the_threat(network: Callable[..., Classifier], digits: Batch) -> None:
    model = network(10)
    expected = pgd(
        model, digits.x, digits.y, eps=0.1, steps=3, step_size=0.05, start="uniform",
        start_noise=torch.Generator().manual_seed(3),
    )  # fmt: skip
    assert torch.equal(attack()(model, digits.x, digits.y), expected)


def test_a_deviation_replaces_one_setting(network: Callable[..., Classifier], digits: Batch) -> None:
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


def test_inactive_examples_stay_at_their_start(network: Callable[..., Classifier], digits: Batch) -> None:
    active = torch.arange(64) < 10
    x = attack()(network(10), digits.x, digits.y, active=active, start="none")
    assert torch.equal((x != digits.x).flatten(1).any(1), active)


def test_scaled_multiplies_radius_and_step_per_example(network: Callable[..., Classifier], digits: Batch) -> None:
    factor = torch.linspace(0, 1, 64)
    scaled = attack().scaled(factor)
    distance = (scaled(network(10), digits.x, digits.y) - digits.x).abs().flatten(1).amax(1)
    assert (distance <= 0.1 * factor + 1e-6).all()
    assert (distance[1:] > 0.05 * factor[1:]).all()
    assert torch.equal(scaled.scaled(torch.full((64,), 0.5)).factor, factor / 2)


def test_a_factor_reaches_what_a_deviation_is_built_from() -> None:
    assert (attack().eps, attack().step_size) == (0.1, 0.05)
    scaled = attack().scaled(torch.tensor([0.5, 2.0]))
    assert scaled.eps.tolist() == pytest.approx([0.05, 0.2])
    assert scaled.step_size.tolist() == pytest.approx([0.025, 0.1])


def test_weights_by_label_multiply_the_objective(network: Callable[..., Classifier], digits: Batch) -> None:
    """No sign step feels a weight above 0, but one of 0 leaves an example where it started."""
    weights = torch.tensor([0.0, *[1.0] * 9])
    x = attack().weighted(weights)(network(10), digits.x, digits.y, start="none")
    assert torch.equal((x != digits.x).flatten(1).any(1), digits.y > 0)


def test_task_ranks_classes_by_count_with_ties_by_label() -> None:
    task = Task(class_counts=(10, 40, 10, 40), image_shape=(1, 8, 8), epochs=1, steps_per_epoch=1)
    assert task.ranks == (2, 0, 3, 1)
    assert task.prior == (0.1, 0.4, 0.1, 0.4)
    assert task.num_classes == 4
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.epochs = 2  # type: ignore[misc]


def test_the_default_hooks_are_those_of_plain_adversarial_training(
    network: Callable[..., Classifier], digits: Batch
) -> None:
    task = Task(class_counts=(7,) * 10, image_shape=(1, 8, 8), epochs=3, steps_per_epoch=1)
    method = Method(Method.Config(), task)
    assert [method.task.stages[epoch] for epoch in range(3)] == ["adversarial"] * 3
    assert torch.equal(method.perturb(network(10), digits.x, digits.y, attack()).x, attack()(network(10), *digits[1:]))
    assert (method.offset() == 0).all()
    assert method.optimizers == {}
    assert method.task.head == Head()
    with pytest.raises(NotImplementedError):
        method.loss(network(10), digits.x, digits.y, method.perturb(network(10), digits.x, digits.y, attack()))


def test_an_unknown_method_is_refused_with_the_nearest_match() -> None:
    with pytest.raises(UserError, match=r"unknown method 'teat'.*did you mean 'taet'\?"):
        methods.find("teat")


def test_an_unknown_outer_loss_is_refused_with_the_nearest_match() -> None:
    with pytest.raises(UserError, match=r"did you mean 'balanced-softmax'\?"):
        Outer(name="balance-softmax")


def test_settings_of_another_method_are_refused() -> None:
    task = Task(class_counts=(4, 2), image_shape=(1, 8, 8), epochs=2, steps_per_epoch=1)
    with pytest.raises(UserError, match=r"method taet: got settings of type Harl\.Config; allowed: its own Config"):
        methods.build("taet", methods.find("harl").Config(), task)


def test_a_prior_moves_the_examples_and_label_weights_do_not() -> None:
    model = models.build("resnet8", 3, (1, 8, 8))
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(12, 1, 8, 8, generator=generator), torch.arange(12) % 3

    def attacked(**rebalancing: torch.Tensor) -> torch.Tensor:
        attack = Attack(Threat(steps=3), Source(torch.Generator().manual_seed(0)), **rebalancing)
        return attack(model, x, y)

    plain = attacked()
    assert torch.equal(attacked(weights=torch.tensor([0.01, 1.0, 7.0])), plain)
    assert not torch.equal(attacked(prior=torch.tensor([100.0, 10.0, 1.0])), plain)


def test_ldam_brings_its_cosine_head() -> None:
    task = Task((4, 2), (1, 8, 8), epochs=2, steps_per_epoch=1, outer=Outer(name="ldam", scale=12))
    method = methods.build("at", None, task)
    assert method.task.head == Head("cosine", scale=12)
    logits, labels = torch.tensor([[3.0, -6.0]]), torch.tensor([1])
    # The rarest class has the margin 0.5 of cosines, 6 of logits.
    assert method.outer(logits, labels).item() == pytest.approx(15, rel=1e-4)


def test_enter_takes_everything_held_to_the_epoch() -> None:
    """A pure function of the epoch: a run that resumes there is where one that never stopped is."""
    task = Task((40, 2), (1, 8, 8), epochs=10, steps_per_epoch=1, milestones=(7, 9), outer=Outer(drw=True, beta=0.9))
    outer = Method(Method.Config(), task)
    outer.held = methods.build("gairat", None, task)
    logits, labels = torch.zeros(2, 2), torch.tensor([0, 1])
    weights = outer.outer.weights
    for epoch in (0, 9, 3, 7, 6):
        outer.enter(epoch)
        assert outer.stage == "adversarial"
        assert outer.held.stage == ("burn-in" if epoch < 7 else "weighted")
        for method in (outer, outer.held):
            losses = method.outer(logits, labels)
            assert (losses[1] > 2 * losses[0]) == (epoch >= 7)
    assert outer.outer.weights is weights, "in place, so that a captured step sees it"


def test_a_weighting_is_refused_where_the_attack_raises_no_label_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task((4, 2), (1, 8, 8), epochs=2, steps_per_epoch=1, weighting="rw")
    methods.build("at", None, task)
    monkeypatch.setattr(methods.find("at"), "label_attack", False)
    with pytest.raises(UserError, match=r"^at: got the weighting rw; its attack raises no loss on labels: only none$"):
        methods.build("at", None, task)
    methods.build("at", None, dataclasses.replace(task, weighting="none"))


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("class-budget", {"rule": "dafa"}, "eps, step size and weight of the label term differ by class, by the rule"),
        ("class-budget", {"rule": "dafa", "base": "harl"}, "and no label weight, differ by class"),
        ("dafa", {"base": "harl"}, "and no label weight, differ by class"),
        ("dafa", {"base": "taet"}, "and no label weight, differ by class"),
        ("n-fgsm", {"noise": 0.5}, "noise, not projected: examples are up to 1.5 eps from the image"),
        ("n-fgsm", {"noise": 0.0}, "one step of eps from the image"),
        ("frl", {"margin": False}, "weights of the classes follow their error on validation images"),
        ("frl", {"margin_rate": 0.0}, "weights of the classes follow their error on validation images"),
        ("frl", {"rate": 0.0}, "eps (0.98 to 3 times) and step size of the classes follow"),
        ("frl", {"rate": 0.0, "margin": False}, None),
    ],
)
def test_tables_name_how_the_settings_leave_the_protocol(name: str, settings: dict[str, Any], told: str | None) -> None:
    method = methods.build(name, settings, Task((4, 2), (1, 8, 8), 11, 1, milestones=(8,)))
    assert len(method.deviations) == (told is not None)
    assert told is None or told in method.deviations[0]
    assert type(method).deviations != method.deviations
    plain = {"base": "at"} if name in ("dafa", "class-budget") else {}
    assert methods.build(name, plain, method.task).deviations == type(method).deviations


@pytest.mark.parametrize("name", ["faal", "frl"])
@pytest.mark.parametrize(
    ("epochs", "milestones", "begin", "message"),
    [
        (10, (7,), 1.0, "got 1 of 10 epochs; allowed: a share that leaves an epoch after it"),
        (2, (1,), 0.8, "got 0.8 of 2 epochs; allowed: a share that leaves an epoch after it"),
        (10, (), None, "got no milestone in 10 epochs; allowed: a share that leaves an epoch after it"),
        (1, (1,), None, "got no milestone in 1 epochs; allowed: a share that leaves an epoch after it"),
        (2, (1,), None, None),
        (2, (), 0.0, None),
    ],
)
def test_a_run_of_burn_in_alone_is_refused(
    name: str, epochs: int, milestones: tuple[int, ...], begin: float | None, message: str | None
) -> None:
    task = Task((4, 2), (1, 8, 8), epochs, 1, milestones)
    for holder, settings in (
        (name, {"begin": begin}),
        ("robust-lt", {"base": name, "base_settings": {"begin": begin}}),
    ):
        if message is None:
            assert "fair" in methods.build(holder, settings, task).task.stages
        else:
            with pytest.raises(UserError) as error:
                methods.build(holder, settings, task)
            assert str(error.value) == f"method begin: {message}"
