"""Methods against the text of their papers, written out: loops over samples, the framework's
optimiser, optima."""

import math
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taet.attacks.ball import frozen
from taet.data.loader import Batch
from taet.methods import las_at
from taet.methods.base import Loss, Step
from taet.methods.faal import least_favourable
from taet.methods.gairat import importance
from taet.methods.las_at import draw, probe
from taet.models.view import make_view
from taet.settings import Training
from taet.training.state import build_optimizer
from tests.methods.conftest import (
    Network,
    built,
    loss_on,
    make_attack,
    perturb,
    same,
    seen_of,
    state_of,
    trained_step,
)

EPS = 8 / 255

# -- ADT


@pytest.mark.parametrize("accumulate", [True, False])
def test_the_fit_of_adt_is_that_of_adam_without_memory(
    accumulate: bool, network: Network, digits: Batch
) -> None:
    """Against the framework's optimiser, whose gradients are cleared or not, on the objective
    written out."""
    batch, model = Batch(*(part[:5] for part in digits)), network(10, dtype=torch.float64).eval()
    x = batch.x.double()
    source, steps, samples, weight = make_attack().source, 3, 2, 0.5
    mean, rho = (torch.zeros_like(x).requires_grad_() for _ in range(2))
    optimizer = torch.optim.Adam([mean, rho], lr=0.3, betas=(0.0, 0.0))
    for _ in range(steps):
        if not accumulate:
            optimizer.zero_grad()
        for _ in range(samples):
            noise, sigma = source.normal(x), F.softplus(rho)
            a = torch.tanh(mean + noise * sigma)
            entropy = (noise**2 / 2 + (sigma + 1e-8).log() + (1 - a**2 + 1e-8).log()).mean()
            objective = (
                F.cross_entropy(model((x + EPS * a).clamp(0, 1)), batch.y) + weight * entropy
            )
            (-objective).backward()
        optimizer.step()
    expected = (x + EPS * torch.tanh(mean + source.normal(x) * F.softplus(rho))).clamp(0, 1)
    method = built(
        "adt", steps=steps, samples=samples, entropy_weight=weight, accumulate=accumulate
    )
    found = perturb(method, model, batch._replace(x=x), make_attack()).x
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-9)


# -- GAIRAT and HARL


@pytest.mark.parametrize("form", ["tanh", "sigmoid", "discrete"])
def test_weights_of_gairat_fall_with_every_step_withstood_and_are_finite_in_short_attacks(
    form: Any,
) -> None:
    for steps in (1, 2, 3, 10):
        kappa = torch.arange(steps + 1.0)
        weights = importance(kappa, steps, form, -1.0)
        assert (weights.diff() < 0).all()
        assert ((weights > 0) & (weights <= 1)).all()
        torch.testing.assert_close(
            weights.double(), importance(kappa.double(), steps, form, -1.0), rtol=1e-5, atol=0
        )
    assert importance(torch.zeros(3), 0, form, 0.0).unique().numel() == 1


def test_gairat_counts_the_iterates_before_each_step_and_not_the_last(
    network: Network, digits: Batch
) -> None:
    method, model = built("gairat", 9), network(10)
    with torch.no_grad():  # an untrained network is right too seldom to count
        model.head.weight[digits.y[0]] *= 3
    labels = model.eval()(digits.x).argmax(1).roll(20)
    right: list[Tensor] = []
    found = method.perturb(model, digits.x, labels, make_attack(steps=4))
    again = make_attack(steps=4)(
        model, digits.x, labels, observe=lambda _, z: right.append(z.argmax(1) == labels)
    )
    assert torch.equal(found.x, again), "counting moves no example"
    assert torch.equal(found.info["kappa"], torch.stack(right).float().sum(0))
    assert len(found.info["kappa"].unique()) > 1


@pytest.mark.parametrize("name", ["harl", "taet"])
def test_running_means_of_harl_move_for_present_classes(
    name: str, network: Network, digits: Batch
) -> None:
    method, batch = (
        built(name, 9, absent="ema", momentum=0.75),
        Batch(*(part[digits.y < 7] for part in digits)),
    )
    running = (method if name == "harl" else method.equalization).running
    assert running.tolist() == pytest.approx([math.log(10)] * 10)
    loss = trained_step(method, network(10), batch)
    losses = F.cross_entropy(loss.logits, batch.y, reduction="none")
    for c in range(10):
        seen = losses[batch.y == c].mean().item() if c < 7 else math.log(10)
        assert running[c].item() == pytest.approx(0.75 * math.log(10) + 0.25 * seen, rel=1e-5)


# -- FAAL, FRL and WAT


@pytest.mark.parametrize("radius", [0.01, 0.5, 3.0])
def test_nothing_within_the_bound_of_faal_is_better(radius: float) -> None:
    draws = torch.Generator().manual_seed(0)
    for _ in range(20):
        u = torch.randn(8, generator=draws, dtype=torch.float64)
        q = torch.rand(8, generator=draws, dtype=torch.float64)
        q /= q.sum()
        p = least_favourable(u, q, radius)
        assert p.min() > 0
        assert p.sum().item() == pytest.approx(1)
        assert (q * (q / p).log()).sum().item() == pytest.approx(radius, abs=1e-9)
        torch.testing.assert_close(least_favourable(7 * u - 3, q, radius), p, rtol=1e-8, atol=1e-12)
        others = torch.randn(1000, 8, generator=draws, dtype=torch.float64).softmax(1)
        allowed = others[(q * (q / others).log()).sum(1) <= radius]
        assert (allowed @ u <= p @ u + 1e-12).all()


def test_faal_weighs_means_of_classes_or_samples() -> None:
    logits, labels = (
        torch.randn(6, 3, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0, 0, 0, 1, 1, 2]),
    )
    losses = F.cross_entropy(logits, labels, reduction="none")
    means = torch.stack([losses[labels == c].mean() for c in range(3)])
    by_sample, by_class = (
        built("faal", 9, (4, 3, 2), aggregate=how) for how in ("sample", "class")
    )
    p = by_sample.weights(logits, labels).float() / 3
    assert p.std() > 0.05
    assert loss_on(by_sample, logits, logits, labels).total.item() == pytest.approx(
        (3 * p[labels] * losses).mean()
    )
    assert loss_on(by_class, logits, logits, labels).total.item() == pytest.approx(
        (p @ means).item()
    )


@pytest.mark.parametrize("classes", [2, 100])
@pytest.mark.parametrize("limit", [0.0, 0.5])
def test_no_weight_or_budget_of_frl_reaches_zero_whatever_is_fed_back(
    classes: int, limit: float
) -> None:
    draws, task = torch.Generator().manual_seed(classes), {"monitored_epochs": range(10)}
    method = built(
        "frl",
        9,
        tuple(range(classes + 1, 1, -1)),
        task=task,
        rate=5.0,
        margin_rate=5.0,
        limit=limit,
    )
    method.feedback(4, seen_of(torch.rand(classes), torch.zeros(classes)))
    assert not method.multipliers.any(), "the epoch after it is of the burn-in"
    assert method.scale == 40 / 4, "epochs 5, 6, 7 and 8 are followed by one that has the weights"
    for _ in range(50):
        clean = 1 - torch.rand(classes, generator=draws) ** 4
        method.feedback(5, seen_of(clean, clean * torch.rand(classes, generator=draws)))
        assert (method.multipliers[:2] >= 0).all()
        assert method.weights.min() >= 0.5 / classes - 1e-6
        torch.testing.assert_close(method.weights.sum(1), torch.ones(2))
        assert 0.98 <= method.factor.min() <= method.factor.max() <= 3


def test_wat_learns_as_much_from_few_points_of_the_curve_as_from_many() -> None:
    few, many, shifted = (
        built("wat", counts=(4, 3, 2), task={"monitored_epochs": w})
        for w in ((4, 9), (2, 4, 6, 9), (4, 9))
    )
    for method in (few, many, shifted):
        for epoch in method.task.monitored_epochs:
            costs = [11.0, 12.0, 14.0] if method is shifted else [1.0, 2.0, 4.0]
            method.feedback(epoch, seen_of(0.0, torch.zeros(3), costs))
    torch.testing.assert_close(few.weights, many.weights)
    torch.testing.assert_close(few.weights, shifted.weights)
    assert few.weights[2] > few.weights[0]


# -- LAS-AT


def step_of(batch: Batch, model: nn.Module, seed: int = 0, number: int = 0, **more: Any) -> Step:
    loss = Loss(torch.zeros(()), {}, torch.zeros(len(batch.y), 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    return Step(
        batch.index, batch.x, batch.y, loss, make_attack(seed, eps=EPS), optimizer, number
    )._replace(**more)


def las(network: Network, digits: Batch, **knobs: Any) -> tuple[Any, Any, Tensor]:
    """The method, a model after twenty steps in which the strategy learns nothing, and the least of
    all choices."""
    method, model = built("las-at", **{"width": 2, "interval": 100, **knobs}), network(10)
    for number in range(1, 21):
        trained_step(method, model, digits, number=number)
    return method, model, torch.zeros(len(digits.x), 3, dtype=torch.int64)


def test_choices_follow_their_probabilities() -> None:
    probabilities, grid = torch.tensor([0.1, 0.0, 0.5, 0.4]), (torch.arange(1000) + 0.5) / 1000
    choices = draw(
        [probabilities.log().expand(1000, 4), torch.zeros(1000, 1)],
        torch.stack([grid, grid.flip(0)], 1),
    )
    assert choices[:, 0].bincount().tolist() == [100, 0, 500, 400]
    assert not choices[:, 1].any()
    edges = draw([probabilities.log().expand(2, 4)], torch.tensor([[0.0], [1 - 2**-24]]))
    assert edges.flatten().tolist() == [0, 3]


@pytest.mark.full
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_reward_is_the_attacked_loss_and_two_accuracies_of_the_copy_ahead(
    optimizer: Any, network: Network, digits: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SGD without momentum, as published, or AdamW with its moments; nothing moves in what trains
    the model."""
    method, model, choices = las(network, digits)
    ours = build_optimizer(model, Training(optimizer=optimizer, lr=0.1, weight_decay=5e-4))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    kept = state_of(model)
    ours.step()  # fills its state
    model.load_state_dict(kept)
    model.zero_grad()
    ahead, theirs = deepcopy((model, ours))
    with frozen(model):
        adversarial = method.attacked_by(model, digits.x, digits.y, make_attack(eps=EPS), choices)
        raised = F.cross_entropy(model(adversarial.x), digits.y)
    method.loss(ahead.train(), digits.x, digits.y, adversarial).total.backward()
    if optimizer == "sgd":
        with torch.no_grad():
            for parameter in ahead.parameters():
                parameter.sub_(0.1 * (parameter.grad + 5e-4 * parameter))
    else:
        theirs.step()
    probed, used = 1 - digits.x, list[dict[str, Tensor]]()
    monkeypatch.setattr(las_at, "probe", lambda copy, *_: used.append(state_of(copy)) or probed)
    with frozen(ahead):
        robust, clean = (
            (ahead(x).argmax(1) == digits.y).float().mean() for x in (probed, digits.x)
        )
    expected = (raised + 4 * robust + 2 * clean).item()
    before = deepcopy(ours.state_dict()["state"])
    for view in (None, make_view(model, (1, 8, 8))):
        found = method.reward(model, step_of(digits, model, optimizer=ours, view=view), choices)
        assert found.item() == pytest.approx(expected, rel=1e-4)
    for name, value in state_of(ahead).items():
        torch.testing.assert_close(used[0][name], value, rtol=1e-5, atol=1e-6)
    assert same(kept, state_of(model))
    after = ours.state_dict()["state"]
    assert all(
        torch.equal(value, after[key][name])
        for key, entry in before.items()
        for name, value in entry.items()
    )


def test_the_probe_is_pgd_that_stops_where_it_has_won(network: Network, digits: Batch) -> None:
    """Against a loop that steps the images that are still right, in batch statistics, and keeps the
    worse restart."""
    _, model, _ = las(network, digits)
    twin, x, y, eps = deepcopy(model), digits.x, digits.y, 3 * EPS
    source = make_attack(eps=eps).source
    best, best_loss, stopped = x.clone(), torch.full((len(x),), -1.0), 0
    for _ in range(2):
        x_adv = (x + eps * source.uniform(x, -1, 1)).clamp(0, 1)
        for _ in range(10):
            x_adv = x_adv.detach().requires_grad_()
            logits = twin.train()(x_adv)
            (gradient,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), x_adv)
            right = logits.argmax(1) == y
            stopped += int((~right).sum())
            x_adv = x_adv.detach()
            stepped = x_adv[right] + eps / 4 * gradient[right].sign()
            x_adv[right] = torch.min(torch.max(stepped, x[right] - eps), x[right] + eps).clamp(0, 1)
        loss = F.cross_entropy(twin(x_adv), y, reduction="none").detach()
        worse = loss >= best_loss
        best[worse], best_loss[worse] = x_adv[worse], loss[worse]
    assert 0 < stopped < 20 * len(x)
    assert (probe(model, x, y, make_attack(eps=eps)) - best).abs().max() < 1e-6


def test_the_strategy_learns_in_every_interval_th_step_by_at_most_its_rate(
    network: Network, digits: Batch
) -> None:
    method, model = (
        built("las-at", interval=3, strategy_lr=1.0, robust_reward=1e4, width=2),
        network(10).train(),
    )
    lengths = []
    for number in range(4):
        before = state_of(method.strategy)
        method.after_step(model, step_of(digits, model, number, number))
        moved = [(p - before[name]).norm() for name, p in method.strategy.named_parameters()]
        lengths.append(torch.stack(moved).norm().item())
    assert lengths == pytest.approx([1, 0, 0, 1], rel=1e-4)


@pytest.mark.parametrize("outer", ["logit-adjustment", "ldam", "focal"])
def test_both_shares_of_the_target_of_las_at_go_through_the_outer_loss(outer: str) -> None:
    """The framework's cross-entropy with a soft target, on what the outer loss makes of the
    logits."""
    labels, logits = (
        torch.tensor([0, 1, 2, 0, 0, 1]),
        torch.randn(6, 3, generator=torch.Generator().manual_seed(0)),
    )
    counts, target = (
        torch.tensor([30.0, 6, 1]),
        torch.full((6, 3), 0.15).scatter(1, labels[:, None], 0.7),
    )
    seen = {"ldam": logits - 30 * 0.5 * counts.pow(-0.25) * F.one_hot(labels, 3), "focal": logits}
    expected = F.cross_entropy(
        seen.get(outer, logits + (counts / 37).log()), target, reduction="none"
    )
    if outer == "focal":  # defined for one label: it scales the share of the label only
        ce = F.cross_entropy(logits, labels, reduction="none")
        expected = expected - 0.7 * (1 - (1 - (-ce).exp()) ** 2) * ce
    torch.testing.assert_close(
        built("las-at", 6, (30, 6, 1), outer, width=2).smoothed(logits, labels), expected
    )
