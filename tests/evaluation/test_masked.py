"""Models that are known to fool attacks, made from trained ones: flags name the cause, and are silent without one."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

import taet
from taet.attacks import pgd
from taet.evaluation import ResultCard
from taet.evaluation.bundles import CURVES, curves
from taet.evaluation.rules import RULES

EPS = 0.15
STEP = EPS / 8
TRAIN, TEST = 1000, 600
FULL = pytest.mark.full
ABOUT_IMAGES = {"few-images-per-class", "small-test-set", "selected-on-test-set", "extra-not-compared"}
MASKING = {rule.flag for rule in RULES if rule.of in ("attacks", "model", "test")} - ABOUT_IMAGES


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    return torch.from_numpy(data.images / 16).float()[:, None], torch.from_numpy(data.target)


class Network(nn.Module):
    """A small network; with a scale, its logits are cosines of features and class vectors times that scale."""

    def __init__(self, scale: float | None = None) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
        self.head, self.scale = nn.Linear(64, 10, bias=False), scale

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x)
        if self.scale is None:
            return self.head(features)  # type: ignore[no-any-return]
        return self.scale * functional.linear(functional.normalize(features), functional.normalize(self.head.weight))


@functools.cache
def trained(scale: float | None = None) -> Network:
    """Plain adversarial training."""
    x, y = digits()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Network(scale)
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in range(400):
            rows = torch.randint(0, TRAIN, (64,))
            x_adv = pgd(model, x[rows], y[rows], eps=EPS, steps=4, step_size=EPS / 3)
            optimizer.zero_grad()
            functional.cross_entropy(model(x_adv), y[rows]).backward()
            optimizer.step()
    return model


class Through(nn.Module):
    """The trained model with something before or behind it."""

    def __init__(self, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.call = trained(), call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.model, x)


def cosines_at_scale_one() -> nn.Module:
    """Trained at scale 16 and deployed without it, as RoBal's public code is evaluated."""
    model = Network(1.0)
    model.load_state_dict(trained(16.0).state_dict())
    return model


def rounded() -> nn.Module:
    return Through(lambda model, x: model((16 * x).round() / 16))


def randomised() -> nn.Module:
    return Through(lambda model, x: model(x + 0.1 * torch.randn_like(x)))


def probabilities() -> nn.Module:
    return Through(lambda model, x: model(x).softmax(1))


def saturated() -> nn.Module:
    return Through(lambda model, x: 1000 * model(x))


def undefined() -> nn.Module:
    """The gradient is nan between the grey levels of the test images."""

    def between(x: Tensor) -> bool:
        return bool((16 * x - (16 * x).round()).abs().max() > 0.01)

    return Through(lambda model, x: model(x) + ((0 * x).sqrt().sum() if between(x) else 0))


def coupled() -> nn.Module:
    """Batch statistics in eval mode, as of BatchNorm(track_running_stats=False)."""
    return Through(lambda model, x: functional.batch_norm(model(x), None, None, training=True))


def counting() -> nn.Module:
    """Its logits turn by a little with every fiftieth answer."""
    answers: list[int] = []

    def drifted(model: nn.Module, x: Tensor) -> Tensor:
        answers.append(len(x))
        return model(x) + 0.01 * (len(answers) // 50) * torch.arange(10.0)  # type: ignore[no-any-return]

    return Through(drifted)


@pytest.fixture
def evaluate(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ResultCard]:
    """Return a function that attacks a model on six hundred images; Square has 100 queries."""
    monkeypatch.setattr(sys.modules["taet.attacks.autoattack"], "QUERIES", 100)  # the name is also a function

    def run(model: nn.Module, *attacks: str, count: int = TEST) -> ResultCard:
        x, y = (tensor[TRAIN : TRAIN + count] for tensor in digits())
        kinds = CURVES if count == TEST else ()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return taet.evaluate(model, x, y, attacks=(*attacks, *kinds), eps=EPS, step_size=STEP, batch_size=count)

    return run


def masking(card: ResultCard) -> set[str]:
    return {flag["flag"] for flag in card.flags} & MASKING


def accuracies(card: ResultCard, name: str) -> dict[float, float]:
    return {x: float(column.correct.mean()) for x, column in curves(card)[name].items()}  # type: ignore[index]


@pytest.mark.full
@pytest.mark.parametrize(
    ("scale", "suite"),
    [(None, ()), pytest.param(16.0, (), marks=FULL), pytest.param(None, ("autoattack-10",), marks=FULL)],
)
def test_plain_adversarial_training_raises_nothing(
    evaluate: Callable[..., ResultCard], scale: float | None, suite: tuple[str, ...]
) -> None:
    card = evaluate(trained(scale), "fgsm", "pgd-20", "pgd-100", "cw-linf-20", "adaptive-pgd-20", *suite)
    assert masking(card) == set()
    steps, balls, factors = (accuracies(card, name) for name in ("steps", "eps", "logit-scale"))
    assert steps[1] > steps[5] > steps[20] > steps[100] - 0.02 > 0.4
    values = list(balls.values())
    assert values == sorted(values, reverse=True)
    assert balls[0] > 0.9
    assert balls[1] == 0
    assert min(factors, key=lambda factor: factors[factor]) == 1


# Gradients of a loss over the batch mislead either loss; by how much its trained weights decide.
PERHAPS = {coupled: {"margin-beats-cross-entropy"}}


@pytest.mark.full
@pytest.mark.parametrize(
    ("build", "attacks", "expected", "reaches_zero"),
    [
        (cosines_at_scale_one, (), {"logit-scale", "adaptive-beats-plain", "margin-beats-cross-entropy"}, True),
        pytest.param(
            rounded,
            ("autoattack-10",),
            {
                "zero-gradients",
                "straight-through-beats-gradients",
                "does-not-reach-zero",
                "black-box-beats-gradients",
                "autoattack-far-below-pgd",
            },
            False,
            marks=FULL,
        ),
        pytest.param(randomised, (), {"randomised"}, True, marks=FULL),
        (probabilities, (), {"softmax-outputs"}, True),
        (coupled, (), {"batch-dependent"}, True),
        pytest.param(counting, (), {"changes-between-calls"}, True, marks=FULL),
        pytest.param(
            saturated,
            (),
            {
                "zero-gradients",
                "logit-scale",
                "does-not-reach-zero",
                "adaptive-beats-plain",
                "margin-beats-cross-entropy",
            },
            False,
            marks=FULL,
        ),
    ],
)
def test_what_fools_attacks_is_named_and_nothing_else(
    evaluate: Callable[..., ResultCard],
    build: Callable[[], nn.Module],
    attacks: tuple[str, ...],
    expected: set[str],
    reaches_zero: bool,
) -> None:
    card = evaluate(build(), "fgsm", "pgd-20", "cw-linf-20", "adaptive-pgd-20", *attacks)
    assert masking(card) - PERHAPS.get(build, set()) == expected
    at_the_whole = accuracies(card, "eps")[1]
    assert at_the_whole == 0 if reaches_zero else at_the_whole > 0.3


@pytest.mark.full
@pytest.mark.parametrize(("build", "best"), [(cosines_at_scale_one, 10), (saturated, 0.01)])
def test_the_curve_over_the_logit_scale_shows_what_the_scale_hides(
    evaluate: Callable[..., ResultCard], build: Callable[[], nn.Module], best: float
) -> None:
    card = evaluate(build(), "cw-linf-20")
    factors = accuracies(card, "logit-scale")
    assert factors[best] == pytest.approx(min(factors.values()), abs=0.02)
    assert factors[best] < factors[1] - 0.04
    assert factors[best] == pytest.approx(card.column("cw-linf-20").correct.mean(), abs=0.03)


@pytest.mark.full
def test_an_attack_without_a_ball_that_stops_early_is_named_and_one_that_arrives_is_not(
    evaluate: Callable[..., ResultCard],
) -> None:
    card = evaluate(trained(), "cw-l2", "cw-l2:lr=0.1", "deepfool", count=100)
    left = {column.name: float(column.correct.mean()) for column in card.columns}
    assert left["cw-l2"] > 0.1
    assert left["cw-l2:lr=0.1"] == left["deepfool"] == 0
    (text,) = (flag["text"] for flag in card.flags if flag["flag"] == "unbounded-attack-not-converged")
    assert text.startswith(f"cw-l2 leaves {100 * left['cw-l2']:.1f} % of the images correct")


def test_gradients_that_are_not_finite_are_named_where_no_attack_met_them(evaluate: Callable[..., ResultCard]) -> None:
    assert masking(evaluate(undefined(), "fgsm", count=100)) == {"nonfinite-gradients"}
    assert masking(evaluate(trained(), "fgsm", count=100)) == set()
