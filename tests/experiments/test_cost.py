"""Passes against what the specification of each method says, memory against sizes known, and one small measurement."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from taet.errors import UserError
from taet.experiments import cost
from taet.experiments.cost import Timing, measure
from taet.experiments.memory import held_bytes, peak_bytes
from taet.experiments.steps import MethodSteps, Workload

CPU = torch.device("cpu")
SMALL = Workload(image_shape=(3, 8, 8))
QUICK = Timing(batch_size=4, steps=2, curve=(1, 3), rounds=2, device="cpu", precision="float32")


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    ("name", "forwards", "backwards"),
    [
        ("standard", 1, 1),
        ("at", 11, 11),
        ("trades", 13, 12),  # the natural logits of the attack are computed once
        ("mart", 12, 12),
        ("reat", 11, 11),
        ("robal", 12, 12),
        ("taet", 0.4 * 1 + 0.6 * 11, 0.4 * 1 + 0.6 * 11),
        ("adt", 36, 36),
        ("wat", 13, 12),
        ("frl", 0.75 * 11 + 0.25 * 13, 0.75 * 11 + 0.25 * 12),  # burn-in as at
        ("faal", 11, 11),
        ("cgr", 11, 11),
        ("dafa", 13, 12),  # that of its base, trades
        ("cfa", 13, 12),
        ("n-fgsm", 2, 2),
        ("liet", 3 + 10 / 20 / 2, 3 + 10 / 20 / 2),  # ten grey images every 20 steps, of two images
    ],
)
def test_passes_are_those_of_the_formulas(name: str, forwards: float, backwards: float) -> None:
    steps = MethodSteps(name, {}, SMALL, precision="float32")
    assert steps.passes() == pytest.approx((forwards, backwards))


def test_passes_follow_steps_and_clean_epochs() -> None:
    timing = Timing(steps=3, epochs=10, clean_epochs=7, precision="float32")
    settings = {"clean_share": timing.clean_share}
    steps = MethodSteps("taet", settings, SMALL, epochs=10, attack_steps=3, precision="float32")
    assert steps.passes() == pytest.approx((0.7 + 0.3 * 4, 0.7 + 0.3 * 4))


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return measure(SMALL, QUICK, [("at", {}), ("standard", {})])


@pytest.mark.full
def test_every_ratio_is_a_median_within_its_spread(found: dict[str, Any]) -> None:
    points = [value for point in found["curve"] for value in point.values() if isinstance(value, dict)]
    table = [entry["eta"] for entry in found["by_clean_epochs"]]
    for measured in [*found["model"].values(), *points, *table, found["measured_eta"]]:
        low, high = measured["spread"]
        assert low <= measured["median"] <= high
    timed = [found["model"][name] for name in ("forward", "attack_forward", "gamma")]  # others are differences
    assert min(measured["spread"][0] for measured in [*timed, *points, found["measured_eta"]]) > 0
    assert found["batch_size"] == 4
    assert found["images"] == 20_431
    assert found["threads"] == torch.get_num_threads()


def test_eta_falls_along_the_clean_epochs_from_1_to_rho(found: dict[str, Any]) -> None:
    etas = {entry["clean_epochs"]: entry["eta"]["median"] for entry in found["by_clean_epochs"]}
    assert list(etas) == [*range(0, 101, 10)]
    assert etas[0] == 1
    assert etas[40] == found["model"]["eta"]["median"]
    assert etas[100] == found["model"]["rho"]["median"]


def test_costs_of_methods_are_ratios_to_adversarial_training(found: dict[str, Any]) -> None:
    adversarial, standard = found["costs"]
    assert (adversarial["forwards"], adversarial["passes_ratio"], adversarial["seconds_ratio"]) == (3, 1, 1)
    assert standard["passes_ratio"] == pytest.approx(1 / 3, abs=1e-3)
    assert standard["spread"][0] <= standard["seconds_ratio"] <= standard["spread"][1]


def test_an_adversarial_step_holds_no_more_than_its_images_beyond_a_clean_one(found: dict[str, Any]) -> None:
    """The attack's graphs are gone, and smaller, when the weights' is built; its examples are all that is left."""
    memory = found["memory"]
    assert memory["held_mb"] < memory["clean_mb"] <= memory["adversarial_mb"]
    assert memory["extra_mb"] <= memory["images_mb"] + 0.1
    assert memory["xi_mb"] == pytest.approx(0.4 * memory["extra_mb"], abs=0.01)


def test_everything_has_each_method_once_and_its_variants() -> None:
    pairs = [(name, *settings.values()) for name, settings in cost.everything()]
    assert len(set(pairs)) == len(pairs)
    assert {("at",), ("adt",), ("adt", "exp-am"), ("adt", "imp-am")} <= set(pairs)


# --- memory -----------------------------------------------------------------------------------------------------------

KILO = 250  # float32 values of 1,000 bytes


def test_the_peak_counts_what_is_alive_at_once_and_what_was_held() -> None:
    held = torch.zeros(3 * KILO)

    def work() -> None:
        first = torch.zeros(10 * KILO)
        second = first + 1  # 20,000
        del first
        third = torch.zeros(5 * KILO)  # 15,000
        del second, third
        torch.zeros(7 * KILO)

    assert peak_bytes(work, [held, held[1:]], CPU) == 23_000
    assert held_bytes([held, held[1:], torch.zeros(KILO)]) == 4_000


def test_a_view_and_an_update_in_place_take_nothing() -> None:
    held = torch.zeros(2 * KILO)
    assert peak_bytes(lambda: held.view(2, KILO).add_(1).t()[0].mul_(2), [held], CPU) == 2_000


def test_what_autograd_keeps_for_the_backward_pass_is_alive() -> None:
    weight = torch.ones(10 * KILO, requires_grad=True)

    def work() -> None:
        weight.exp().exp().exp().sum().backward()

    # Three results are kept, of which the last is not named by anybody else; then a gradient beside them.
    assert peak_bytes(work, [weight], CPU) >= 4 * 10_000 + 10_000
    assert weight.grad is not None


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch size: got 0; allowed: 1 or more"),
        ({"rounds": 0}, "rounds: got 0"),
        ({"threads": 0}, "threads: got 0"),
        ({"clean_epochs": 101}, "clean epochs: got 101; allowed: 0 to 100, the epochs"),
        ({"curve": (5, 0)}, "curve: got .5, 0.; allowed: each 1 or more"),
    ],
)
def test_impossible_timings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Timing(**settings)


def test_what_a_model_cannot_give_is_refused() -> None:
    with pytest.raises(UserError, match="image shape: got"):
        Workload(image_shape=(3, 0, 8))
    with pytest.raises(UserError, match="unknown model 'resnet9'"):
        measure(Workload("resnet9"), QUICK)


def test_the_number_of_threads_is_put_back() -> None:
    before = torch.get_num_threads()
    with pytest.raises(UserError, match="unknown model"):
        measure(Workload("resnet9"), Timing(threads=before + 1))
    assert torch.get_num_threads() == before
