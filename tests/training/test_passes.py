"""Passes are counted over real steps of each stage, and give the epochs of a budget."""

from typing import Any

import pytest
import torch
from torch import nn

from taet import methods, protocols
from taet.data import DataFacts
from taet.settings import Run, override
from taet.training.passes import PassCounter, count_passes, epochs_for_passes, run_passes
from tests.calls import one_line

FACTS = DataFacts((20, 10, 4), (1, 8, 8), {"train": 34, "test": 6})


def two_steps(method: str, **settings: Any) -> Run:
    """A run of a method with two attack steps."""
    start = protocols.start("taet", method)
    start = start.replace(settings=start.settings or methods.find(method).Config())
    own = {"threat.steps": 2, "threat.step_size": 6 / 255, "model.name": "resnet8"}
    return override(start, own | {f"method.{name}": value for name, value in settings.items()})


def test_a_forward_and_a_backward_pass_of_an_image_are_one_pass() -> None:
    network, counter = nn.Linear(3, 2), PassCounter()
    with counter.counting(network):
        network(torch.ones(4, 3)).sum().backward()
        network(torch.ones(2, 3))
    network(torch.ones(7, 3))  # no longer counted
    assert (counter.forward, counter.backward, counter.passes) == (6, 4, 5.0)


@pytest.mark.full
@pytest.mark.parametrize(
    ("method", "settings", "passes"),
    [
        ("at-bsl", {}, {"adversarial": 3.0}),
        ("taet", {}, {"clean": 1.0, "adversarial": 3.0}),
        ("trades", {}, {"adversarial": 4.5}),
        ("mart", {}, {"adversarial": 4.0}),
        ("standard", {}, {"clean": 1.0}),
        ("las-at", {"steps": (1, 2)}, {"adversarial": 4.275}),
    ],
)
def test_the_passes_of_a_method_are_those_of_its_steps(
    method: str, settings: dict[str, Any], passes: dict[str, float]
) -> None:
    assert count_passes(two_steps(method, **settings), FACTS) == pytest.approx(passes)


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("method", "budget", "epochs", "spent"),
    [("at", 4.5, 1, 3), ("at-bsl", 90, 30, 90), ("taet", 90, 41, 91), ("mart", 90, 22, 88)],
)
def test_epochs_are_the_nearest_to_the_budget_and_ties_go_down(
    method: str, budget: float, epochs: int, spent: float
) -> None:
    run = two_steps(method)
    assert epochs_for_passes(run, FACTS, budget) == (epochs, spent)
    run = override(run, {"training.epochs": epochs})
    assert run_passes(run, FACTS, count_passes(run, FACTS)) == spent


def test_a_stage_that_a_short_run_lacks_is_counted() -> None:
    """Two of 100 epochs are clean, none of 20."""
    assert epochs_for_passes(two_steps("taet", clean_share=0.02), FACTS, 296) == (100, 296)


def test_a_budget_of_nothing_is_refused() -> None:
    with one_line("passes: got 0; allowed: above 0"):
        epochs_for_passes(two_steps("at"), FACTS, 0)
