"""Models that are known to fool attacks, attacked as a whole: flags name the cause, and are silent without one."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import taet
from taet.evaluation import ResultCard
from taet.evaluation.bundles import CURVES, curves
from taet.evaluation.rules import MASKING
from tests import museum

ATTACKS = ("fgsm", "pgd-20", "pgd-100", "cw-linf-20", "adaptive-pgd-20", "autoattack-10", *CURVES)


class Through(nn.Module):
    """The sound network with something before or behind it."""

    def __init__(self, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.call = museum.base(), call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.model, x)


def undefined() -> nn.Module:
    """The gradient is nan between the grey levels of the test images."""

    def between(x: Tensor) -> bool:
        return bool((16 * x - (16 * x).round()).abs().max() > 0.01)

    return Through(lambda model, x: model(x) + ((0 * x).sqrt().sum() if between(x) else 0))


def counting() -> nn.Module:
    """Its logits turn by a little with every fiftieth answer."""
    answers: list[int] = []

    def drifted(model: nn.Module, x: Tensor) -> Tensor:
        answers.append(len(x))
        return model(x) + 0.01 * (len(answers) // 50) * torch.arange(10.0)  # type: ignore[no-any-return]

    return Through(drifted)


@pytest.fixture
def evaluate(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ResultCard]:
    """Return a function that attacks a model on three hundred images in one batch; Square has 100 queries."""
    monkeypatch.setattr(sys.modules["taet.attacks.autoattack"], "QUERIES", 100)  # the name is also a function

    def run(model: nn.Module, *attacks: str) -> ResultCard:
        x, y = museum.tested()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return taet.evaluate(model, x, y, attacks, eps=museum.EPS, batch_size=len(y))

    return run


def masking(card: ResultCard) -> set[str]:
    return {flag["flag"] for flag in card.flags} & MASKING


@pytest.mark.full
def test_plain_adversarial_training_raises_nothing(evaluate: Callable[..., ResultCard]) -> None:
    card = evaluate(museum.base(), *ATTACKS)
    assert masking(card) == set()
    found = curves(card)
    steps, balls, scales = (
        {x: float(one.correct.mean()) for x, one in found[name].items()} for name in ("steps", "eps", "logit-scale")
    )
    assert steps[1] > steps[5] > steps[20] > steps[100] - 0.02
    assert [*balls.values()] == sorted(balls.values(), reverse=True)
    assert balls[0] > 0.9
    assert balls[1] == 0
    assert min(scales.values()) > scales[1] - 0.03


@pytest.mark.full
@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (museum.flat_softmax, {"logit-scale", "adaptive-beats-plain", "margin-beats-cross-entropy"}),
        (museum.large_logits, {"zero-gradients", "logit-scale", "does-not-reach-zero"}),
        (museum.quantised, {"zero-gradients", "straight-through-beats-gradients", "autoattack-far-below-pgd"}),
        (museum.stochastic, {"randomised"}),
        (counting, {"changes-between-calls"}),
    ],
)
def test_what_fools_attacks_is_named(
    evaluate: Callable[..., ResultCard], build: Callable[[], nn.Module], expected: set[str]
) -> None:
    assert masking(evaluate(build(), *ATTACKS)) >= expected


@pytest.mark.full
def test_an_attack_without_a_ball_that_stops_early_is_named_and_one_that_arrives_is_not(
    evaluate: Callable[..., ResultCard],
) -> None:
    card = evaluate(museum.base(), "cw-l2", "cw-l2:lr=0.1", "deepfool")
    left = {column.name: float(column.correct.mean()) for column in card.columns}
    assert left["cw-l2"] > 0.01
    assert left["cw-l2:lr=0.1"] == left["deepfool"] == 0
    (text,) = (flag["text"] for flag in card.flags if flag["flag"] == "unbounded-attack-not-converged")
    assert text.startswith(f"cw-l2 leaves {100 * left['cw-l2']:.1f} % of the images correct")


def test_gradients_that_are_not_finite_are_named_where_no_attack_met_them(evaluate: Callable[..., ResultCard]) -> None:
    assert masking(evaluate(undefined(), "fgsm")) == {"nonfinite-gradients"}
    assert masking(evaluate(museum.base(), "fgsm")) == set()
