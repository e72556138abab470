"""The formulas of the cost model against numbers worked out by hand and those that the paper prints."""

from __future__ import annotations

import pytest

from taet.experiments import cost_model
from taet.experiments.cost_model import BY_MULTIPLICATIONS, CostModel, image_megabytes, line_gamma

RHO, ETA = 0.139, 0.608  # as the paper prints them


def test_a_model_worked_out_by_hand() -> None:
    """F + B = 4, F' + B_adv = 2, kappa = 6: an adversarial epoch is 16. 25 of 100 epochs clean: 25 x 4 + 75 x 16."""
    model = CostModel(gamma=2 / 4, steps=6)
    assert model.rho == 4 / 16
    assert model.eta(0.25) == pytest.approx((25 * 4 + 75 * 16) / (100 * 16))
    assert model.eta(0) == model.printed_eta(0) == 1
    assert model.eta(1) == model.rho


def test_gamma_of_the_paper_gives_its_rho_and_by_equation_13_its_eta() -> None:
    model = CostModel(cost_model.GAMMA)
    assert round(model.rho, 3) == RHO
    assert round(model.printed_eta(), 3) == ETA
    kappa_gamma = 10 * cost_model.GAMMA
    assert model.printed_eta() == pytest.approx((40 * model.rho + 60 * (1 + kappa_gamma)) / (100 * (1 + kappa_gamma)))


def test_the_two_times_of_the_paper_give_another_eta() -> None:
    model = CostModel(cost_model.GAMMA)
    assert round(model.eta(), 3) == 0.656
    assert CostModel(cost_model.GAMMA, 79).eta() == pytest.approx(ETA, abs=1e-4)  # it would take 79 steps
    assert CostModel(cost_model.GAMMA).printed_eta(1) == pytest.approx(RHO**2, abs=1e-3)


@pytest.mark.parametrize("model", [CostModel(1e9), CostModel(1e9, 1000)])
def test_40_clean_epochs_of_100_never_save_more_than_40_per_cent(model: CostModel) -> None:
    assert model.eta() == pytest.approx(0.6)
    assert model.printed_eta() == pytest.approx(0.6)


def test_a_line_is_that_of_least_squares() -> None:
    assert line_gamma({1: 5.0, 3: 9.0}) == pytest.approx(2 / 3)
    assert line_gamma({0: 1.0, 1: 1.0, 2: 4.0}) == pytest.approx(1.5 / 0.5)


def test_the_seconds_of_the_paper_give_another_gamma() -> None:
    assert line_gamma(cost_model.EPOCH_SECONDS) == pytest.approx(6.166 / 23.21, abs=1e-3)
    # Means over 40 clean and 60 adversarial epochs hold six tenths of the steps.
    assert line_gamma(cost_model.EPOCH_SECONDS, clean_share=0.4) == pytest.approx(0.266 / 0.6, abs=1e-3)


def test_multiplications_are_counted() -> None:
    """Forward 1, backward to the weights 2, to the images 1: 3 for a clean step, 2 for a step of the attack."""
    assert CostModel(BY_MULTIPLICATIONS).rho == pytest.approx(3 / (3 + 10 * 2))
    assert CostModel(BY_MULTIPLICATIONS, 2).rho == pytest.approx(3 / 7)


def test_memory_of_the_paper() -> None:
    assert pytest.approx(cost_model.XI_MB, abs=0.01) == cost_model.CLEAN_SHARE * cost_model.MEMORY_MB
    assert image_megabytes() == pytest.approx(1.57, abs=0.01)
    assert image_megabytes((2, 1, 5, 5)) == 2 * 25 * 4 / 1e6


def test_seconds_of_reat_are_beside_those_of_adversarial_training() -> None:
    assert all(seconds["at"] < seconds["robal"] < seconds["reat"] for seconds in cost_model.REAT_EPOCH_SECONDS.values())
