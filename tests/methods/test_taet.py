"""AT, AT-BSL, HARL and TAET: how they differ from each other, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from taet import methods
from taet.attacks.noise import Source
from taet.data.loader import Batch
from taet.errors import UserError
from taet.losses import balanced_softmax, cross_entropy, hierarchical_equalization
from taet.methods import Method, Task
from taet.methods.base import Adversarial, Attack, Loss
from taet.models import Classifier
from taet.settings import Outer, Threat
from taet.training.state import State
from taet.training.step import training_step

COUNTS = (14, 12, 10, 9, 8, 7, 6, 5, 4, 3)
THREAT = Threat(steps=2)
CLEAN, ADVERSARIAL = 0, 9  # epochs of a run of ten
Network = Callable[..., Classifier]


def build(name: str, epoch: int = ADVERSARIAL, outer: Any = "cross-entropy", epochs: int = 10, **knobs: Any) -> Method:
    task = Task(class_counts=COUNTS, image_shape=(1, 8, 8), epochs=epochs, steps_per_epoch=1, outer=Outer(name=outer))
    method = methods.build(name, knobs, task)
    method.enter(epoch)
    return method


def attack() -> Attack:
    return Attack(THREAT, Source(torch.Generator().manual_seed(0)))


def examples(method: Method, model: Classifier, batch: Batch) -> Adversarial:
    return method.perturb(model, batch.x, batch.y, attack())


def loss_of(method: Method, network: Network, batch: Batch) -> Loss:
    model = network(10)
    return method.loss(model.train(), batch.x, batch.y, examples(method, model, batch))


def step(method: Method, model: Classifier, batch: Batch) -> Loss:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return training_step(State(model, method, optimizer), batch, attack())


def logits_of(network: Network, x: Tensor) -> Tensor:
    return network(10).train()(x)


@pytest.mark.parametrize(
    ("epochs", "share", "clean"), [(100, 0.4, 40), (30, 0.4, 12), (5, 0.4, 2), (1, 0.4, 0), (10, 0.0, 0), (10, 1.0, 10)]
)
def test_the_clean_stage_is_the_first_share_of_the_run(epochs: int, share: float, clean: int) -> None:
    method = build("taet", epochs=epochs, clean_share=share)
    stages = [method.task.stages[epoch] for epoch in range(epochs)]
    assert stages == ["clean"] * clean + ["adversarial"] * (epochs - clean)
    assert methods.find("taet").Config().clean_share == 0.4


def test_the_clean_stage_is_cross_entropy_on_the_images_themselves(network: Network, digits: Batch) -> None:
    method = build("taet", CLEAN)
    assert examples(method, network(10), digits).x is digits.x
    loss = loss_of(method, network, digits)
    assert torch.equal(loss.total, cross_entropy(logits_of(network, digits.x), digits.y).mean())
    assert loss.parts == {}


@pytest.mark.parametrize("outer", ["balanced-softmax", "logit-adjustment"])
def test_the_outer_loss_of_the_run_reaches_the_clean_stage_only(outer: str, network: Network, digits: Batch) -> None:
    clean = loss_of(build("taet", CLEAN, outer), network, digits)
    expected = balanced_softmax(logits_of(network, digits.x), digits.y, torch.tensor(COUNTS)).mean()
    torch.testing.assert_close(clean.total, expected, rtol=1e-5, atol=1e-6)
    adversarial = loss_of(build("taet", ADVERSARIAL, outer), network, digits)
    assert torch.equal(adversarial.total, loss_of(build("taet"), network, digits).total)


@pytest.mark.parametrize("absent", ["zero", "skip", "ema"])
def test_after_the_clean_stage_it_is_harl(absent: str, network: Network, digits: Batch) -> None:
    batch = Batch(*(part[digits.y < 7] for part in digits))
    taet, harl = build("taet", absent=absent, alpha=0.3), build("harl", absent=absent, alpha=0.3)
    assert torch.equal(examples(taet, network(10), batch).x, examples(harl, network(10), batch).x)
    ours, theirs = loss_of(taet, network, batch), loss_of(harl, network, batch)
    assert torch.equal(ours.total, theirs.total)
    assert ours.parts == theirs.parts


def test_harl_is_the_equalization_loss_on_attacked_images_with_its_own_factors(network: Network, digits: Batch) -> None:
    method = build("harl", alpha=0.2, beta=0.5, gamma=0.7)
    logits = logits_of(network, examples(method, network(10), digits).x)
    expected = hierarchical_equalization(logits, digits.y, 0.2, 0.5, 0.7)
    loss = loss_of(method, network, digits)
    assert torch.equal(loss.total, expected.total)
    assert set(loss.parts) == {"bcl", "hdl", "rcel"}
    config = methods.find("harl").Config()
    assert (config.alpha, config.beta, config.gamma, config.absent) == (0.1, 0.1, 0.1, "zero")


def test_at_bsl_is_at_with_balanced_softmax_and_the_same_attack(network: Network, digits: Batch) -> None:
    bsl, at = build("at-bsl"), build("at", outer="balanced-softmax")
    x = examples(bsl, network(10), digits).x
    assert torch.equal(x, examples(at, network(10), digits).x)
    assert torch.equal(x, examples(build("at"), network(10), digits).x), "the prior stays out of the attack"
    assert torch.equal(loss_of(bsl, network, digits).total, loss_of(at, network, digits).total)
    assert loss_of(build("at"), network, digits).total != loss_of(bsl, network, digits).total


def test_at_is_cross_entropy_on_attacked_images(network: Network, digits: Batch) -> None:
    x = examples(build("at"), network(10), digits).x
    assert torch.equal(
        loss_of(build("at"), network, digits).total, cross_entropy(logits_of(network, x), digits.y).mean()
    )


@pytest.mark.parametrize(
    ("name", "outer"), [("harl", "balanced-softmax"), ("harl", "logit-adjustment"), ("at-bsl", "logit-adjustment")]
)
def test_a_loss_that_balances_already_refuses_another_outer_loss(name: str, outer: str) -> None:
    with pytest.raises(UserError, match=f"{name}: got the outer loss {outer}"):
        build(name, outer=outer)


@pytest.mark.parametrize(("epochs", "share"), [(10, 0.0), (1, 0.4), (10, 0.04)])
def test_an_outer_loss_is_refused_where_no_epoch_is_clean(epochs: int, share: float) -> None:
    assert build("taet", epochs=epochs, clean_share=share).stage == "adversarial"
    with pytest.raises(UserError, match=rf"^taet: got the outer loss focal; .* of {epochs} epochs none is clean$"):
        build("taet", outer="focal", epochs=epochs, clean_share=share)


@pytest.mark.parametrize("name", ["harl", "taet"])
def test_a_momentum_is_refused_where_no_mean_runs(name: str) -> None:
    with pytest.raises(UserError, match=r"^method momentum: got 0.5; allowed: with absent ema only$"):
        build(name, momentum=0.5)


@pytest.mark.parametrize("name", ["harl", "taet"])
def test_an_unknown_choice_is_refused_with_those_allowed(name: str) -> None:
    with pytest.raises(UserError, match=r"^unknown absent 'skp'; allowed: ema, skip, zero; did you mean 'skip'"):
        methods.find(name).Config(absent="skp")


@pytest.mark.parametrize("name", ["harl", "taet"])
@pytest.mark.parametrize(
    ("knob", "value"),
    [("alpha", -1), ("beta", -0.1), ("gamma", math.nan), ("momentum", 1), ("momentum", -0.1)],
)
def test_nonsense_is_refused_in_one_line_that_names_the_knob(name: str, knob: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"{knob}: got {value}; allowed: [^\n]+$"):
        build(name, **{knob: value})


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_the_clean_share_is_a_share(share: float) -> None:
    with pytest.raises(UserError, match="clean share"):
        build("taet", clean_share=share)


@pytest.mark.parametrize("name", ["harl", "taet"])
def test_running_means_move_for_present_classes_by_the_momentum(name: str, network: Network, digits: Batch) -> None:
    method = build(name, absent="ema", momentum=0.75)
    batch = Batch(*(part[digits.y < 7] for part in digits))
    running = (method if name == "harl" else method.equalization).running
    assert running.tolist() == pytest.approx([math.log(10)] * 10)
    loss = step(method, network(10), batch)
    losses = cross_entropy(loss.logits, batch.y)
    for c in range(10):
        seen = losses[batch.y == c].mean().item() if c < 7 else math.log(10)
        assert running[c].item() == pytest.approx(0.75 * math.log(10) + 0.25 * seen, rel=1e-5)
    assert (running[7:] == torch.tensor(math.log(10))).all()


def test_an_absent_class_counts_as_its_running_mean(network: Network, digits: Batch) -> None:
    method = build("harl", absent="ema")
    batch = Batch(*(part[digits.y < 7] for part in digits))
    before = loss_of(method, network, batch)
    method.running[9] += 5
    after = loss_of(method, network, batch)
    assert after.parts["bcl"].item() == pytest.approx(before.parts["bcl"].item() + 0.5, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "epoch", "absent"), [("taet", CLEAN, "ema"), ("taet", ADVERSARIAL, "zero"), ("harl", ADVERSARIAL, "skip")]
)
def test_running_means_stay_where_they_are_not_used(
    name: str, epoch: int, absent: str, network: Network, digits: Batch
) -> None:
    method = build(name, epoch, absent=absent)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    step(method, network(10), digits)
    for key, value in method.state_dict().items():
        assert torch.equal(value, before[key]), key
