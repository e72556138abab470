"""Accuracies and tests against naive loops, scipy, scikit-learn and textbook numbers."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from taet import metrics
from taet.card.column import Column
from taet.card.retired import flip_rate
from taet.card.summary import Summary
from taet.metrics import accuracies, intervals, paired
from tests.calls import one_line

CORRECT, TOTAL = np.array([8, 3, 0, 5, 0]), np.array([10, 4, 2, 5, 0])


def test_accuracies_equal_naive_loops() -> None:
    recalls = [c / t for c, t in zip(CORRECT, TOTAL, strict=True) if t]
    assert metrics.accuracy(CORRECT, TOTAL) == 16 / 21
    assert metrics.balanced_accuracy(CORRECT, TOTAL) == pytest.approx(sum(recalls) / len(recalls))
    np.testing.assert_allclose(
        metrics.per_class_accuracy(CORRECT, TOTAL), [0.8, 0.75, 0, 1, np.nan]
    )
    assert accuracies.worst_class(CORRECT, TOTAL) == (2, 0.0)
    groups = metrics.group_accuracy(
        CORRECT, TOTAL, {"head": [0, 1], "tail": [3, 4], "none": [4], "empty": []}
    )
    assert [*groups.values()] == pytest.approx([0.775, 1, math.nan, math.nan], nan_ok=True)
    labels = np.random.default_rng(0).integers(0, 4, (2, 50))
    correct, total = accuracies.class_counts(labels[0] == labels[1], labels[0], 6)
    with one_line("mask: got int64; allowed: bool"):
        accuracies.class_counts(labels[1], labels[0], 6)
    for of in (
        metrics.accuracy,
        metrics.balanced_accuracy,
        metrics.balanced_interval,
        metrics.wilson_interval,
    ):
        # as scikit-learn's functions take them, or a mask
        for wrong in (labels[1], labels[0] == labels[1]):
            with one_line("correct: got a mask, or more than the total; allowed: counts by class"):
                of(wrong, labels[0])
    for c in range(6):
        own = [(label, answer) for label, answer in labels.T if label == c]
        assert (total[c], correct[c]) == (len(own), sum(label == answer for label, answer in own))


def test_nothing_to_count_is_nan_without_a_warning() -> None:
    zero = np.zeros(3, dtype=int)
    numbers = [accuracies.accuracy(zero, zero), accuracies.balanced_accuracy(zero, zero)]
    numbers += [*accuracies.class_shares([], [], 2)]
    numbers += [
        *intervals.balanced_interval(zero, zero),
        *np.ravel(intervals.wilson_interval(zero, zero)),
    ]
    assert np.isnan(numbers).all()
    assert accuracies.worst_class(zero, zero)[0] == -1


images = st.integers(1, 40).flatmap(
    lambda count: st.tuples(
        *(st.lists(st.integers(0, 3), min_size=count, max_size=count) for _ in range(3))
    )
)


@given(images)
def test_flips_and_errors_equal_naive_loops(drawn: tuple[list[int], list[int], list[int]]) -> None:
    labels, clean, attacked = drawn
    rows, about = (
        list(zip(labels, clean, attacked, strict=True)),
        {"eps": None, "bounded": True, "parameters": {}},
    )
    before, after = (
        Column(
            name="any",
            norm=None,
            correct=np.array(found) == labels,
            predictions=np.array(found),
            **about,
        )
        for found in (clean, attacked)
    )
    of = Summary(after, before, np.array(labels), 5, None)
    assert flip_rate(after, before) == pytest.approx(sum(a != b for _, a, b in rows) / len(rows))
    flips, natural, boundary = of.class_flip_rate, of.natural_error, of.boundary_error
    for c in range(5):
        own = [(a, b) for label, a, b in rows if label == c]
        if not own:
            assert np.isnan([flips[c], natural[c], boundary[c]]).all()
            continue
        assert flips[c] == pytest.approx(sum(a != b for a, b in own) / len(own))
        assert natural[c] == pytest.approx(sum(a != c for a, _ in own) / len(own))
        # Robust error: the image or its adversarial example is misclassified.
        assert natural[c] + boundary[c] == pytest.approx(
            sum(a != c or b != c for a, b in own) / len(own)
        )


def test_an_image_that_did_not_fall_is_further_than_any_that_did() -> None:
    assert accuracies.median_distance([0.0, 0.2, 0.7, 0.0, 0.3]) == 0.3
    assert accuracies.median_distance([0.1, 0.3, math.nan]) == 0.3
    for beyond in ([0.2, math.nan, math.nan], [0.2, math.nan], []):
        assert math.isnan(accuracies.median_distance(beyond))


def test_ranks_and_groups_follow_counts_not_labels() -> None:
    counts = [5, 9, 1, 9, 3, 2, 8]
    assert accuracies.class_ranks(counts).tolist() == [3, 0, 6, 1, 4, 5, 2]
    groups = accuracies.class_groups(counts)
    assert groups == {"head": [1, 3], "body": [6, 0], "tail": [4, 5, 2], "last_half": [4, 5, 2]}
    ten = accuracies.class_groups(range(10, 0, -1))
    assert [len(ten[name]) for name in ("head", "body", "tail", "last_half")] == [3, 3, 4, 5]
    assert accuracies.class_groups([3, 2, 1])["body"] == []
    assert accuracies.few_images([49, 50, 0, 1000]) == [0, 2]


@given(st.integers(0, 60), st.integers(1, 60))
def test_wilson_and_mcnemar_are_those_of_scipy(some: int, more: int) -> None:
    low, high = intervals.wilson_interval(some, some + more)
    expected = stats.binomtest(some, some + more).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert paired.mcnemar(some, more) == pytest.approx(stats.binomtest(some, some + more).pvalue)
    assert paired.mcnemar(some, more) == paired.mcnemar(more, some)
    assert paired.mcnemar(0, 0) == paired.mcnemar(50_000, 50_000) == 1
