"""Accuracies and tests against naive loops, scipy, scikit-learn and textbook numbers."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from sklearn.metrics import roc_auc_score

from taet import intervals, metrics, statistics
from taet.evaluation.column import Column, Summary
from tests.calls import one_line

CORRECT, TOTAL = np.array([8, 3, 0, 5, 0]), np.array([10, 4, 2, 5, 0])


def test_accuracies_equal_naive_loops() -> None:
    recalls = [c / t for c, t in zip(CORRECT, TOTAL, strict=True) if t]
    assert metrics.accuracy(CORRECT, TOTAL) == 16 / 21
    assert metrics.balanced_accuracy(CORRECT, TOTAL) == pytest.approx(sum(recalls) / len(recalls))
    np.testing.assert_allclose(metrics.per_class_accuracy(CORRECT, TOTAL), [0.8, 0.75, 0, 1, np.nan])
    assert statistics.worst_class(CORRECT, TOTAL) == (2, 0.0)
    groups = metrics.group_accuracy(CORRECT, TOTAL, {"head": [0, 1], "tail": [3, 4], "none": [4], "empty": []})
    assert [*groups.values()] == pytest.approx([0.775, 1, math.nan, math.nan], nan_ok=True)
    labels = np.random.default_rng(0).integers(0, 4, (2, 50))
    correct, total = statistics.class_counts(labels[0] == labels[1], labels[0], 6)
    with one_line("mask: got int64; allowed: bool"):
        statistics.class_counts(labels[1], labels[0], 6)
    for of in (metrics.accuracy, metrics.balanced_accuracy, metrics.balanced_interval, metrics.wilson_interval):
        for wrong in (labels[1], labels[0] == labels[1]):  # as scikit-learn's functions take them, or a mask
            with one_line("correct: got a mask, or more than the total; allowed: counts by class"):
                of(wrong, labels[0])
    for c in range(6):
        own = [(label, answer) for label, answer in labels.T if label == c]
        assert (total[c], correct[c]) == (len(own), sum(label == answer for label, answer in own))


def test_nothing_to_count_is_nan_without_a_warning() -> None:
    zero = np.zeros(3, dtype=int)
    numbers = [statistics.accuracy(zero, zero), statistics.balanced_accuracy(zero, zero)]
    numbers += [*statistics.class_shares([], [], 2)]
    numbers += [*statistics.balanced_interval(zero, zero), *np.ravel(statistics.wilson_interval(zero, zero))]
    assert np.isnan(numbers).all()
    assert statistics.worst_class(zero, zero)[0] == -1
    assert statistics.weak_classes([0], [0]) == []


images = st.integers(1, 40).flatmap(
    lambda count: st.tuples(*(st.lists(st.integers(0, 3), min_size=count, max_size=count) for _ in range(3)))
)


@given(images)
def test_flips_and_errors_equal_naive_loops(drawn: tuple[list[int], list[int], list[int]]) -> None:
    labels, clean, attacked = drawn
    rows, about = list(zip(labels, clean, attacked, strict=True)), {"eps": None, "bounded": True, "parameters": {}}
    before, after = (
        Column(name="any", norm=None, correct=np.array(found) == labels, predictions=np.array(found), **about)
        for found in (clean, attacked)
    )
    of = Summary(after, before, np.array(labels), 5, None)
    assert of.flip_rate == pytest.approx(sum(a != b for _, a, b in rows) / len(rows))
    flips, natural, boundary = of.class_flip_rate, of.natural_error, of.boundary_error
    for c in range(5):
        own = [(a, b) for label, a, b in rows if label == c]
        if not own:
            assert np.isnan([flips[c], natural[c], boundary[c]]).all()
            continue
        assert flips[c] == pytest.approx(sum(a != b for a, b in own) / len(own))
        assert natural[c] == pytest.approx(sum(a != c for a, _ in own) / len(own))
        # Robust error: the image or its adversarial example is misclassified.
        assert natural[c] + boundary[c] == pytest.approx(sum(a != c or b != c for a, b in own) / len(own))


def test_an_image_that_did_not_fall_is_further_than_any_that_did() -> None:
    assert statistics.median_distance([0.0, 0.2, 0.7, 0.0, 0.3]) == 0.3
    assert statistics.median_distance([0.1, 0.3, math.nan]) == 0.3
    for beyond in ([0.2, math.nan, math.nan], [0.2, math.nan], []):
        assert math.isnan(statistics.median_distance(beyond))


def test_ranks_and_groups_follow_counts_not_labels() -> None:
    counts = [5, 9, 1, 9, 3, 2, 8]
    assert statistics.class_ranks(counts).tolist() == [3, 0, 6, 1, 4, 5, 2]
    groups = statistics.class_groups(counts)
    assert groups == {"head": [1, 3], "body": [6, 0], "tail": [4, 5, 2], "last_half": [4, 5, 2]}
    ten = statistics.class_groups(range(10, 0, -1))
    assert [len(ten[name]) for name in ("head", "body", "tail", "last_half")] == [3, 3, 4, 5]
    assert statistics.class_groups([3, 2, 1])["body"] == []
    assert statistics.few_images([49, 50, 0, 1000]) == [0, 2]


def test_weak_classes_are_those_below_the_mean_however_it_is_rounded() -> None:
    assert statistics.weak_classes([9, 5, 1, 0], [10, 10, 10, 0]) == [2]
    for total in range(1, 30):
        for correct in range(total + 1):
            assert statistics.weak_classes([correct] * 7, [total] * 7) == []


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(3, 5), st.integers(0, 2))
def test_pairwise_auc_counts_pairs(seed: int, count: int, classes: int, decimals: int) -> None:
    scores, labels = softmax_scores(seed, count, classes, decimals)
    matrix = statistics.pairwise_auc(scores, labels)
    for j in range(classes):
        for k in range(classes):
            own, others = scores[labels == j, j], scores[labels == k, j]
            if j == k or not (len(own) and len(others)):
                assert np.isnan(matrix[j, k])
                continue
            won = sum((a > b) + (a == b) / 2 for a in own for b in others)
            assert matrix[j, k] == pytest.approx(won / (len(own) * len(others)), abs=1e-6)


def softmax_scores(seed: int, count: int, classes: int, decimals: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores whose ties are many where the decimals are few; the last class has no images."""
    generator = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes - 1), generator.integers(0, classes - 1, count)])
    logits = generator.normal(size=(len(labels), classes)).round(decimals)
    logits[np.arange(len(labels)), labels] += 1
    return special.softmax(logits, axis=1), labels


@pytest.mark.parametrize("decimals", [0, 8])
def test_roc_auc_equals_scikit_learn(decimals: int) -> None:
    scores, labels = softmax_scores(0, 300, 11, decimals)
    present = scores[:, :-1] / scores[:, :-1].sum(1, keepdims=True)  # scikit-learn takes no class without images
    expected = roc_auc_score(labels, present, multi_class="ovo", average="macro")
    assert statistics.roc_auc(statistics.pairwise_auc(present, labels)) == pytest.approx(expected, abs=1e-7)
    assert math.isnan(statistics.roc_auc(statistics.pairwise_auc(np.ones((2, 3)), [1, 1])))
    for wrong in (np.ones((4, 3)), np.ones(5), np.full((5, 3), np.nan)):
        with pytest.raises(ValueError, match="scores"):
            statistics.pairwise_auc(wrong, np.zeros(5, dtype=int))


@given(st.integers(0, 60), st.integers(1, 60))
def test_wilson_and_mcnemar_are_those_of_scipy(some: int, more: int) -> None:
    low, high = statistics.wilson_interval(some, some + more)
    expected = stats.binomtest(some, some + more).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert intervals.mcnemar(some, more) == pytest.approx(stats.binomtest(some, some + more).pvalue)
    assert intervals.mcnemar(some, more) == intervals.mcnemar(more, some)
    assert intervals.mcnemar(0, 0) == intervals.mcnemar(50_000, 50_000) == 1
