"""How long attacks take is told before they begin, from a batch as they use it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from taet.evaluation import runner
from taet.evaluation.measurement import attack_seconds, span
from taet.settings import Run
from taet.training.prepare import prepare


def test_what_is_usual_is_told_beside_the_most() -> None:
    assert span((180.0, 720.0)) == "about 3 minutes, at most 12 minutes"
    assert span((180.0, 182.0)) == "about 3 minutes"


@pytest.mark.parametrize(("attacks", "least"), [(("pgd-20",), 1.0), (("clean", "autoattack-fast"), 0.55)])
def test_a_suite_usually_takes_less_than_the_most(
    attacks: tuple[str, ...], least: float, tiny: Callable[..., Run]
) -> None:
    run = tiny("at", {"evaluation.attacks": attacks})
    plan, state = prepare(run)
    usual, most = attack_seconds(run, state.model, plan.dataset.test, plan.device)
    assert least <= usual / most <= max(least, 0.8)


def test_a_whole_batch_is_timed_where_that_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few images do not fill the processor: each takes longer than in a batch."""
    images, labels = np.zeros((300, 4, 4, 1), np.uint8), np.arange(300) % 2
    made = runner.make_runner(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), images, labels)
    timed = list[int]()
    gradient = runner.input_gradient

    def seen(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        timed.append(len(x))
        return gradient(model, x, y)

    monkeypatch.setattr(runner, "input_gradient", seen)
    assert made.seconds_of_pass() > 0
    assert timed == [32, 32, 250, 250]
    monkeypatch.setattr(runner, "QUICK", 0.0)
    made.seconds_of_pass()
    assert timed[4:] == [32, 32]
