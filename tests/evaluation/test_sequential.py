"""The anytime-valid paired test: golden numbers, error rates when it is looked at after every round, symmetry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from taet.errors import UserError
from taet.evaluation import sequential
from taet.evaluation.sequential import StopRule

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "until_decided.json").read_text())
NEEDED = np.log(40)


def golden(key: str) -> tuple[NDArray[np.float64], NDArray[np.float64], dict[str, Any]]:
    """The rounds of a vector, the weights of their images, and what it expects."""
    vector = GOLDEN[key]
    rounds = [[np.atleast_1d(one) for one in found] for found in vector["inputs"]["rounds"]]
    classes = np.repeat(np.arange(len(rounds[0])), [len(one) for one in rounds[0]])
    weight = sequential.weights(classes)
    np.testing.assert_allclose(np.unique(weight)[::-1], np.unique(vector["inputs"]["weights"])[::-1])
    return np.array([np.concatenate(one) for one in rounds]), weight, vector["expected"]


@pytest.mark.parametrize("key", ["e_values_balanced", "e_values_unequal"])
def test_the_evidence_has_the_golden_numbers(key: str) -> None:
    differences, weight, expected = golden(key)
    first, second = sequential.evidence(differences, weight)
    np.testing.assert_allclose(np.exp(first), expected["first_better"], rtol=1e-8)
    np.testing.assert_allclose(np.exp(second), expected["second_better"], rtol=1e-8)


def test_the_evidence_against_a_difference_has_the_golden_numbers() -> None:
    differences, weight, expected = golden("e_values_unequal")
    _, below = sequential.evidence(differences, weight, 0.05)
    np.testing.assert_allclose(np.exp(below), expected["within_minus_5"], rtol=1e-8)


def test_the_stop_and_the_interval_have_the_golden_numbers() -> None:
    differences, weight, expected = golden("e_values_balanced")
    after, why = sequential.stop(differences, weight, 1000, StopRule()) or (0, "")
    assert (after, why) == (expected["stops_after"], "decided")
    low, high = sequential.interval(differences[:after], weight, 0.05)
    assert low == pytest.approx(expected["interval"][0], abs=1e-8)
    assert high is expected["interval"][1] is None


def test_the_interval_ends_where_the_evidence_decides() -> None:
    differences = np.random.default_rng(0).choice([-1, 0, 1], (400, 10), p=[0.1, 0.8, 0.1])
    weight = np.ones(10)
    low, high = sequential.interval(differences, weight, 0.05)
    assert low is not None
    assert high is not None
    assert low < differences.mean() < high
    assert sequential.evidence(differences, weight, low)[0][-1] == pytest.approx(NEEDED, abs=1e-6)
    assert sequential.evidence(differences, weight, high)[1][-1] == pytest.approx(NEEDED, abs=1e-6)
    assert sequential.interval(np.ones((50, 10)), weight, 0.05) == (0.25, None)
    assert sequential.interval(-np.ones((50, 10)), weight, 0.05) == (None, -0.25)
    assert sequential.interval(np.zeros((1, 10)), weight, 0.05) == (None, None)


def test_sides_swap_with_the_models_and_the_order_of_classes_changes_nothing() -> None:
    differences, weight, _ = golden("e_values_unequal")
    first, second = sequential.evidence(differences, weight)
    np.testing.assert_allclose(sequential.evidence(-differences, weight), (second, first))
    swapped = np.random.default_rng(0).permutation(len(weight))
    np.testing.assert_allclose(sequential.evidence(differences[:, swapped], weight[swapped]), (first, second))
    low, high = sequential.interval(differences, weight, 0.5)
    assert sequential.interval(-differences, weight, 0.5) == (
        None if high is None else -high,
        None if low is None else -low,
    )


def test_a_round_has_every_class_and_the_smallest_class_ends_the_order() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 3], [50, 7, 20]))  # class 2 has no image
    order = sequential.rounds(labels, 0)
    assert order.shape == (7, 7 + 1 + 2)
    assert len(np.unique(order)) == order.size
    assert (labels[order] == np.repeat([0, 1, 3], [7, 1, 2])).all()
    np.testing.assert_array_equal(sequential.weights(labels[order[0]]), np.repeat([1 / 7, 1, 1 / 2], [7, 1, 2]))
    assert (sequential.rounds(labels, 0) == order).all()
    assert (sequential.rounds(labels, 1) != order).any()
    assert np.bincount(sequential.rounds(np.repeat([0, 1], 30), 5).ravel()).tolist() == [1] * 60


def test_the_estimate_weighs_classes_equally() -> None:
    weight = sequential.weights([0, 1, 1, 1])
    assert sequential.estimate([[1, 0, 0, 0], [0, 1, 1, 0]], weight) == pytest.approx((1 / 2 + 1 / 3) / 2)


def stopped(differences: NDArray[np.int8], weight: NDArray[np.float64]) -> NDArray[np.int64]:
    """Of each simulated evaluation, (S,): which side it was ever decided for, 1 or -1, or 0."""
    first, second = sequential.evidence(differences, weight)
    for_first, for_second = (side >= NEEDED for side in (first, second))
    sooner = np.where(for_first.any(1), for_first.argmax(1), 10**6) < np.where(
        for_second.any(1), for_second.argmax(1), 10**6
    )
    return np.where(sooner, 1, -1) * (for_first.any(1) | for_second.any(1))


def drawn(means: NDArray[np.float64], differing: float, simulations: int, rounds: int) -> NDArray[np.int8]:
    """Differences of images, (S, T, M), of which a share differs, with these means, (M,)."""
    uniform = np.random.default_rng(1).random((simulations, rounds, len(means)), dtype=np.float32)
    up, either = (differing + means) / 2, np.full(len(means), differing)
    return (uniform < up).astype(np.int8) - ((uniform >= up) & (uniform < either))


UNEQUAL = [20, 13, 8, 5, 3, 2, 2, 1, 1, 1]
NULLS: dict[str, tuple[list[float], float, list[int]]] = {
    "25 % differ": ([0] * 10, 0.25, [1] * 10),
    "10 % differ": ([0] * 10, 0.10, [1] * 10),
    "classes at 20 points above and below": ([0.2, -0.2] * 5, 0.25, [1] * 10),
    "one class far above": ([0.18] + [-0.02] * 9, 0.25, [1] * 10),
    "long-tailed test set": ([0] * 10, 0.25, UNEQUAL),
    "long-tailed, classes above and below": ([0.2, -0.2] * 5, 0.25, UNEQUAL),
}
OFTEN = ("one class far above", "long-tailed test set")
"""Run every time: close to the limit, and with rounds of unequal classes."""


@pytest.mark.parametrize(
    "null", [pytest.param(null, marks=() if null in OFTEN else pytest.mark.full) for null in NULLS]
)
def test_looked_at_after_every_round_it_decides_between_equals_at_most_in_5_of_100(null: str) -> None:
    means, differing, sizes = NULLS[null]
    simulations, rounds = (4000, 100) if sum(sizes) == 10 else (4000, 20)
    sides = drawn(np.repeat(np.array(means), sizes), differing, simulations, rounds)
    wrong = stopped(sides, sequential.weights(np.repeat(np.arange(10), sizes)))
    for side in (1, -1):  # each has half of the error probability
        assert (wrong == side).mean() <= 0.025 + 3 * np.sqrt(0.025 * 0.975 / simulations)


def test_per_image_looks_would_not_be_valid_and_rounds_are() -> None:
    """With the classes in order inside a round, one class above and one below 0: only round ends may be looked at."""
    means = np.array([0.9, -0.9])
    differences = drawn(means, 0.9, 400, 200)
    assert (stopped(differences, np.ones(2)) != 0).mean() <= 0.05
    for_first, _ = sequential.evidence(differences.reshape(400, -1, 1), np.ones(1))
    assert (for_first[:, 0::2] >= for_first[:, 1::2]).mean() > 0.8  # after its image the evidence is always above


def test_a_difference_of_8_points_is_decided_soon_and_for_the_right_side() -> None:
    differences = drawn(np.full(10, 0.08), 0.25, 400, 150)
    found = stopped(differences, np.ones(10))
    assert (found == 1).mean() > 0.9
    assert (found == -1).mean() <= 0.01
    first, _ = sequential.evidence(differences, np.ones(10))
    images = 10 * (1 + np.where((first >= NEEDED).any(1), (first >= NEEDED).argmax(1), 150))
    assert 250 <= np.median(images) <= 420  # 330 over 2,000 simulations


def test_equal_models_are_shown_to_be_within_a_margin() -> None:
    rule = StopRule(within=0.1)
    ends = [sequential.stop(one, np.ones(10), 400, rule) for one in drawn(np.zeros(10), 0.1, 30, 400)]
    assert sum(end is not None and end[1] == "within" for end in ends) >= 27
    after, _ = next(end for end in ends if end is not None and end[1] == "within")
    one = drawn(np.zeros(10), 0.1, 30, 400)[0]
    low, high = sequential.interval(one[:after], np.ones(10), 0.05)
    assert low is not None
    assert high is not None
    assert -0.1 <= low < high <= 0.1


def test_it_stops_when_no_image_is_left_or_none_that_is_left_could_decide() -> None:
    nothing = np.zeros((20, 2))
    assert sequential.stop(nothing, np.ones(2), 100, StopRule()) is None
    # 5 rounds of 2 images, all for one side: (1 + bet)^10 on average over the bets reaches 40, 8 images do not.
    assert sequential.stop(nothing, np.ones(2), 20, StopRule()) == (16, "hopeless")
    assert sequential.stop(np.ones((20, 2)), np.ones(2), 20, StopRule()) == (5, "decided")
    assert sequential.stop(nothing, np.ones(2), 20, StopRule(within=0.02)) == (20, "exhausted")


def test_wrong_rules_are_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"within: got 3; allowed: above 0, below 0\.25 \(0\.03 is 3 points\)"):
        StopRule(within=3.0)
    with pytest.raises(UserError, match="alpha"):
        StopRule(alpha=0)
