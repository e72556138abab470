"""LAS-AT: golden formulas, what the strategy chooses and is rewarded for, and that learning leaves the model alone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from copy import deepcopy
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taet import methods
from taet.attacks.ball import frozen
from taet.attacks.noise import Source
from taet.data.loader import Batch
from taet.errors import UserError
from taet.losses import effective_number_weights, focal
from taet.methods import Method, Task, las_at
from taet.methods.base import Adversarial, Attack, Loss, Step
from taet.methods.las_at import LARGEST_LOSS, draw, probe, reinforce
from taet.models import Classifier
from taet.models.view import make_view
from taet.settings import Outer, Threat, Training
from taet.training.optimizer import build_optimizer
from taet.training.state import State
from taet.training.step import training_step

Network = Callable[..., Classifier]

FOLDER = Path(__file__).parents[1] / "golden"
GOLDEN = json.loads((FOLDER / "methods.json").read_text()) | json.loads((FOLDER / "attacks.json").read_text())
COUNTS = (14, 12, 10, 9, 8, 7, 6, 5, 4, 3)
EPS = 8 / 255


def build(
    counts: tuple[int, ...] = COUNTS,
    shape: tuple[int, int, int] = (1, 8, 8),
    outer: Any = "cross-entropy",
    **knobs: Any,
) -> Method:
    outer = outer if isinstance(outer, Outer) else Outer(name=outer)
    task = Task(counts, shape, epochs=8, steps_per_epoch=4, milestones=(6, 7), outer=outer)
    return methods.build("las-at", {"width": 2, **knobs}, task)


def attack(seed: int = 0, eps: float = EPS) -> Attack:
    return Attack(Threat(eps=eps), Source(torch.Generator().manual_seed(seed)))


def perturb(method: Method, model: nn.Module, batch: Batch, attack: Attack) -> Adversarial:
    with frozen(model):
        return method.perturb(model, batch.x, batch.y, attack)


def step_of(batch: Batch, model: nn.Module, seed: int = 0, number: int = 0) -> Step:
    loss = Loss(torch.zeros(()), {}, torch.zeros(len(batch.y), 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    return Step(batch.index, batch.x, batch.y, loss, attack(seed), optimizer, number)


def train(method: Method, model: nn.Module, batch: Batch) -> None:
    """Twenty steps in which the strategy learns nothing."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method.config = method.config.replace(interval=100)
    for number in range(1, 21):
        training_step(State(model, method, optimizer, step=number), batch, attack())


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def double(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# -- golden ------------------------------------------------------------------------------------------------------------


def test_golden_smoothed_cross_entropy() -> None:
    golden = GOLDEN["las_label_smooth_ce_f0.7"]
    logits, y = double(golden["inputs"]["logits"]), torch.tensor(golden["inputs"]["labels"])
    method = build(counts=(3, 2, 1), label_mass=golden["inputs"]["factor"])
    loss = method.loss(nn.Identity(), logits, y, Adversarial(logits))
    assert loss.total.item() == pytest.approx(golden["expected"]["loss"], abs=golden["tolerance"])
    assert method.config == build(counts=(3, 2, 1)).config


def test_golden_reinforce() -> None:
    golden = GOLDEN["las_reinforce"]
    inputs, config = golden["inputs"], build().config
    robust, clean = config.robust_reward * inputs["rob_acc"], config.clean_reward * inputs["clean_acc"]
    reward = torch.tensor(inputs["R1"]).double().clamp(0, LARGEST_LOSS) + robust + clean
    assert reward.item() == pytest.approx(golden["expected"]["reward"], abs=1e-7)
    log_probabilities = [double(logits).log_softmax(1) for logits in inputs["head_logits"]]
    choices = torch.tensor(inputs["actions"]).T
    loss = reinforce(log_probabilities, choices, double(golden["expected"]["reward"]))
    assert loss.item() == pytest.approx(golden["expected"]["loss"], abs=golden["tolerance"])


class Recorded(Source):
    """Gives one recorded draw."""

    def uniform(self, like: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
        assert (low, high) == (-1, 1)
        return self.values  # type: ignore[attr-defined,no-any-return]


def test_golden_attack() -> None:
    golden = GOLDEN["las_masked_pgd_linear"]
    inputs = golden["inputs"]
    source = Recorded(torch.Generator())
    object.__setattr__(source, "values", double(inputs["start"]) / EPS)
    levels = [
        [int(Fraction(eps.split("/")[0])), steps, int(Fraction(alpha.split("/")[0]))]
        for eps, steps, alpha in zip(inputs["eps"], inputs["iters"], inputs["alpha"], strict=True)
    ]
    lowest = torch.tensor([low for low, _ in build().ranges])
    model, x = nn.Linear(4, 3, bias=False).double(), double(inputs["x"])
    model.weight.data = double(inputs["W"])
    method = build(counts=(3, 2, 1))
    y = torch.tensor(inputs["labels"])
    found = method.attacked_by(model, x, y, Attack(Threat(eps=EPS), source), torch.tensor(levels) - lowest).x
    torch.testing.assert_close(found, double(golden["expected"]), rtol=0, atol=golden["tolerance"])


# -- choices -----------------------------------------------------------------------------------------------------------


def test_choices_follow_their_probabilities() -> None:
    probabilities = torch.tensor([0.1, 0.2, 0.3, 0.4])
    grid = (torch.arange(1000) + 0.5) / 1000
    uniform = torch.stack([grid, grid.flip(0)], 1)
    choices = draw([probabilities.log().expand(1000, 4), torch.zeros(1000, 1)], uniform)
    assert choices[:, 0].bincount().tolist() == [100, 200, 300, 400]
    assert not choices[:, 1].any()
    edges = draw([probabilities.log().expand(2, 4)], torch.tensor([[0.0], [1 - 2**-24]]))
    assert edges.flatten().tolist() == [0, 3]


def test_an_impossible_option_is_never_chosen() -> None:
    log_probabilities = torch.tensor([[-math.inf, math.log(0.5), -math.inf, math.log(0.5)]]).expand(3, 4)
    assert draw([log_probabilities], torch.tensor([[0.0], [0.5], [0.9]])).flatten().tolist() == [1, 3, 3]


def test_every_level_is_drawn_and_none_beyond(network: Network, digits: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def spy(*arguments: Any, **settings: Any) -> Tensor:
        seen.update(settings)
        return arguments[2]

    monkeypatch.setattr(Attack, "__call__", spy)
    method, x = build(), digits.x.repeat(8, 1, 1, 1)
    perturb(method, network(10), Batch(digits.index.repeat(8), x, digits.y.repeat(8)), attack())
    found = {"steps": seen["active"].sum(0), "eps": seen["eps"] / EPS * 8, "step_size": seen["step_size"] / EPS * 8}
    for name, levels in found.items():
        low, high = getattr(method.config, name)
        assert levels.round().long().unique().tolist() == list(range(low, high + 1)), name
    assert seen["active"].shape == (seen["steps"], len(x))
    assert (seen["active"].int().diff(dim=0) <= 0).all()  # the first steps are taken, not the last


def test_choices_depend_on_the_source_and_not_on_the_mode_of_the_strategy(network: Network, digits: Batch) -> None:
    method, model = build(), network(10)
    first = perturb(method, model, digits, attack()).x
    method.strategy.eval()
    assert torch.equal(perturb(method, model, digits, attack()).x, first)
    assert not method.strategy.training
    assert not torch.equal(perturb(method, model, digits, attack(1)).x, first)


def test_the_drawn_ball_scales_with_the_threat_s_and_with_each_image_s(network: Network, digits: Batch) -> None:
    method, model = build(eps=(15, 15), steps=(4, 4), step_size=(5, 5)), network(10)
    factor = torch.linspace(0, 2, len(digits.x))
    x = perturb(method, model, digits, attack().scaled(factor)).x
    reach = (x - digits.x).abs().flatten(1).amax(1)
    assert torch.equal(x[0], digits.x[0])
    torch.testing.assert_close(reach, factor * EPS * 15 / 8, rtol=1e-4, atol=1e-6)
    assert torch.equal(perturb(method, model, digits, attack(eps=0)).x, digits.x)


def test_the_start_is_in_the_threat_s_ball_and_not_projected_to_a_smaller_one(network: Network, digits: Batch) -> None:
    seen: list[Tensor] = []
    model = network(10)
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    perturb(build(eps=(1, 1)), model, digits, attack())
    assert EPS / 2 < (seen[0] - digits.x).abs().max() <= EPS + 1e-6
    assert seen[0].min() >= -1e-7
    assert all((x - digits.x).abs().max() <= EPS / 8 + 1e-6 for x in seen[1:])


# -- loss --------------------------------------------------------------------------------------------------------------


LABELS = torch.tensor([0, 1, 2, 0, 0, 1])
LOGITS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "outer",
    ["cross-entropy", "balanced-softmax", "logit-adjustment", "class-balanced", "ldam", Outer(drw=True),
     Outer(name="ldam", drw=True)],
    ids=str,
)  # fmt: skip
def test_both_shares_of_the_target_go_through_the_outer_loss(outer: Any) -> None:
    """The framework's cross-entropy with a soft target, on what the outer loss makes of the logits."""
    method = build(counts=(30, 6, 1), outer=outer)
    method.enter(6)  # the first milestone
    name, weights, counts = method.outer.name, torch.ones(3), torch.tensor([30.0, 6, 1])
    seen = LOGITS.clone()
    if name in ("balanced-softmax", "logit-adjustment"):
        seen += (counts / counts.sum()).log()
    if name == "ldam":
        seen -= 30 * 0.5 * counts.pow(-0.25) * F.one_hot(LABELS, 3)
    if name == "class-balanced" or method.outer.outer.drw:
        weights = effective_number_weights(counts, 0.9999)
    target = torch.full((6, 3), 0.15).scatter(1, LABELS[:, None], 0.7)
    losses = weights[LABELS] * F.cross_entropy(seen, target, reduction="none") / weights[LABELS].mean()
    torch.testing.assert_close(method.smoothed(LOGITS, LABELS), losses)
    whole = build(counts=(30, 6, 1), outer=outer, label_mass=1.0)
    assert torch.equal(whole.smoothed(LOGITS, LABELS), whole.outer(LOGITS, LABELS))


def test_focal_loss_takes_the_place_of_the_label_share_only() -> None:
    smoothed = build(outer="focal").smoothed(LOGITS, LABELS)
    rest = build().smoothed(LOGITS, LABELS) - 0.7 * F.cross_entropy(LOGITS, LABELS, reduction="none")
    torch.testing.assert_close(smoothed, 0.7 * focal(LOGITS, LABELS, 2.0) + rest)


# -- how the strategy learns -------------------------------------------------------------------------------------------


def test_rewarded_choices_become_likelier(network: Network, digits: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        las_at.LearnableAttackStrategy, "reward", lambda *arguments: 10 * (arguments[3][:, 0] == 2).float().mean()
    )
    method = build(eps=(3, 5), strategy_lr=0.1, interval=1)
    batch = Batch(*(values[:1] for values in digits))

    def likelihood() -> float:
        with torch.no_grad(), frozen(method.strategy):
            return method.strategy(batch.x)[0].softmax(1)[:, 2].mean().item()

    before = likelihood()
    model = network(10)
    for number in range(60):
        method.after_step(model, step_of(batch, model, seed=number, number=number))
    assert before < 0.5
    assert likelihood() > 0.8


def test_the_strategy_learns_in_every_interval_th_step_only(network: Network, digits: Batch) -> None:
    method, model = build(interval=3, strategy_lr=1.0), network(10)
    moved = []
    for number in range(7):
        before = state(method)
        method.after_step(model, step_of(digits, model, number, number))
        moved.append(not same(before, state(method)))
    assert moved == [True, False, False, True, False, False, True]


@pytest.mark.parametrize(("total", "here", "learns"), [(None, 2, True), (2, 1, True), (1, 1, False)])
def test_batch_statistics_are_used_everywhere_or_nowhere(
    total: int | None, here: int, learns: bool, network: Network, digits: Batch
) -> None:
    """They are those of the images of all processes, however few of them are here."""
    method, model, batch = build(), network(10), Batch(*(part[:here] for part in digits))
    source = Source(torch.Generator().manual_seed(0), total=total)
    step = step_of(batch, model)._replace(attack=Attack(Threat(eps=EPS), source))
    if total == 2:  # alone, without the other process, its one image has no statistics
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            method.after_step(model, step)
    else:
        method.after_step(model, step)
    assert method.strategy.training is learns


def test_its_gradient_is_clipped(network: Network, digits: Batch) -> None:
    method, model = build(robust_reward=1e4, strategy_lr=1.0), network(10)
    before = [p.detach().clone() for p in method.strategy.parameters()]
    method.after_step(model, step_of(digits, model))
    moved = [(p - q).norm() for p, q in zip(method.strategy.parameters(), before, strict=True)]
    assert torch.stack(moved).norm().item() == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("bn_mode", ["eval", "train"])
def test_learning_leaves_the_model_as_it_was(bn_mode: Any, network: Network, digits: Batch) -> None:
    method, model = build(), network(10).train()
    model.body[1].eval()  # whatever it was
    model.body[0].weight.requires_grad_(False)
    model.head.bias.grad = torch.full((10,), 3.0)
    before, x = state(model), digits.x.clone()
    modes, rng = [module.training for module in model.modules()], torch.random.get_rng_state()
    step = step_of(digits, model)
    threat = Threat(eps=EPS, bn_mode=bn_mode)
    method.after_step(model, step._replace(attack=Attack(threat, step.attack.source)))
    assert same(before, state(model))
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True, True]
    assert [p.grad is not None for p in model.parameters()] == [False, False, False, False, True]
    assert (model.head.bias.grad == 3).all()
    assert torch.equal(digits.x, x)
    assert torch.equal(torch.random.get_rng_state(), rng)


def test_the_reward_is_the_attacked_loss_and_two_accuracies_of_the_copy_ahead(
    network: Network, digits: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, model = build(), network(10)
    train(method, model, digits)
    choices = torch.zeros(len(digits.x), len(method.ranges), dtype=torch.int64)

    def naive(probed: Tensor) -> float:
        with frozen(model):
            adversarial = method.attacked_by(model, digits.x, digits.y, attack(), choices)
            logits = model(adversarial.x)
            raised = F.cross_entropy(logits, digits.y)
        ahead = deepcopy(model).train()
        loss = method.loss(ahead, digits.x, digits.y, adversarial).total
        gradients = torch.autograd.grad(loss, list(ahead.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(ahead.parameters(), gradients, strict=True):
                parameter -= 0.1 * (gradient + 5e-4 * parameter)
            robust, clean = ((ahead.eval()(x).argmax(1) == digits.y).float().mean() for x in (probed, digits.x))
        return (raised + 4 * robust + 2 * clean).item()

    probed = 1 - digits.x
    monkeypatch.setattr(las_at, "probe", lambda *_: probed)
    step = step_of(digits, model)
    for parameter in model.parameters():
        step.optimizer.state[parameter] = {"momentum_buffer": torch.ones_like(parameter)}  # left out, as published
    assert method.reward(model, step, choices).item() == pytest.approx(naive(probed), rel=1e-4)
    with torch.no_grad():
        model.head.weight *= 1e4
    reward = build(robust_reward=0.0, clean_reward=0.0).reward(model, step_of(digits, model), choices)
    assert reward.item() == pytest.approx(10)


def test_with_a_view_of_the_model_the_reward_is_the_same_after_the_weights_have_moved(
    network: Network, digits: Batch
) -> None:
    method, model = build(), network(10)
    view = make_view(model, (1, 8, 8))
    assert view is not None
    attacks: list[Tensor] = []
    view.module.register_forward_hook(lambda *arguments: attacks.append(arguments[2]))
    train(method, model, digits)
    choices = torch.zeros(len(digits.x), len(method.ranges), dtype=torch.int64)
    plain, viewed = (
        method.reward(model, step_of(digits, model)._replace(view=given), choices) for given in (None, view)
    )
    assert viewed.item() == pytest.approx(plain.item(), rel=1e-4)
    assert len(attacks) > method.config.steps[1]


def test_with_adamw_the_copy_takes_the_step_that_training_would_take(
    network: Network, digits: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moments and decay included; of training's own optimiser nothing moves."""
    method, model = build(), network(10)
    optimizer = build_optimizer(model, Training(optimizer="adamw", lr=0.01, weight_decay=0.5))
    for number in range(1, 4):
        training_step(State(model, method, optimizer, step=number), digits, attack())
    twin, theirs = deepcopy((model, optimizer))
    choices = torch.zeros(len(digits.x), len(method.ranges), dtype=torch.int64)
    seen: list[dict[str, Tensor]] = []

    def probed(ahead: nn.Module, x: Tensor, *_: Any) -> Tensor:
        seen.append(state(ahead))
        return x

    monkeypatch.setattr(las_at, "probe", probed)
    method.reward(model, step_of(digits, model)._replace(optimizer=optimizer), choices)
    with frozen(model):
        adversarial = method.attacked_by(model, digits.x, digits.y, attack(), choices)
    assert same(state(model), state(twin))
    before, after = optimizer.state_dict()["state"], theirs.state_dict()["state"]
    assert all(torch.equal(value, after[key][name]) for key, entry in before.items() for name, value in entry.items())
    theirs.zero_grad()
    method.loss(twin.train(), digits.x, digits.y, adversarial).total.backward()
    theirs.step()
    assert same(seen[0], state(twin))
    assert not same(seen[0], state(model))


def test_the_probe_is_pgd_that_stops_where_it_has_won(network: Network, digits: Batch) -> None:
    """Against a loop that steps the images that are still right, in batch statistics, and keeps the worse restart."""
    method, model = build(), network(10)
    train(method, model, digits)
    twin, x, y, eps = deepcopy(model), digits.x, digits.y, 3 * EPS
    source = attack().source
    best, best_loss = x.clone(), torch.full((len(x),), -1.0)
    stopped = 0
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
    found = probe(model, x, y, attack(eps=eps))
    assert (found - best).abs().max() < 1e-6


# -- all ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "shape"), [([7], (1, 4, 4)), ([1, 2, 9], (1, 8, 8)), ([4, 4], (3, 32, 32))], ids=["4", "8", "32"]
)
def test_any_image_size(labels: list[int], shape: tuple[int, int, int], network: Network) -> None:
    x = torch.rand(len(labels), *shape, generator=torch.Generator().manual_seed(1))
    method, model = build(shape=shape, steps=(1, 2)), network(10, shape[0])
    batch = Batch(torch.arange(len(labels)), x, torch.tensor(labels))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert torch.isfinite(training_step(State(model, method, optimizer), batch, attack()).total)
    assert all(torch.isfinite(value).all() for value in method.state_dict().values())


def test_a_restored_run_goes_on_as_before(network: Network, digits: Batch) -> None:
    method, model = build(interval=1, strategy_lr=1.0), network(10)

    def step(method: Method, model: nn.Module, seed: int) -> Tensor:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return training_step(State(model, method, optimizer), digits, attack(seed)).total

    step(method, model, 0)
    other, twin = build(interval=1, strategy_lr=1.0), deepcopy(model)
    assert not same(state(method), state(other))
    other.load_state_dict(deepcopy(method.state_dict()))
    other.optimizers["strategy"].load_state_dict(deepcopy(method.optimizers["strategy"].state_dict()))
    for seed in (1, 2):
        assert torch.equal(step(method, model, seed), step(other, twin, seed))
    assert same(state(method), state(other))


def test_the_strategy_is_the_same_in_every_run_and_leaves_the_random_state_alone() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        before = torch.random.get_rng_state()
        first = build()
        assert torch.equal(torch.random.get_rng_state(), before)
        torch.manual_seed(4)
        assert same(state(first), state(build()))


@pytest.mark.parametrize(
    ("knob", "value"),
    [("label_mass", 0.0), ("label_mass", 1.1), ("label_mass", math.nan), ("eps", (5, 3)), ("steps", (1, 2, 3)),
     ("step_size", (-1, 3)), ("interval", 0), ("width", 0), ("strategy_lr", 0.0),
     ("robust_reward", -1.0), ("clean_reward", math.inf)],
)  # fmt: skip
def test_bad_knobs(knob: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"method {knob.replace('_', ' ')}: got "):
        build(**{knob: value})


def test_no_weighting_of_the_attack() -> None:
    task = Task(COUNTS, (1, 8, 8), epochs=4, steps_per_epoch=4, weighting="brw")
    with pytest.raises(UserError, match="weighting brw"):
        methods.build("las-at", None, task)
