"""Metrics against naive loops and textbook numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from taet import metrics

CORRECT, TOTAL = np.array([8, 3, 0, 5, 0]), np.array([10, 4, 2, 5, 0])


def test_accuracies_equal_naive_loops() -> None:
    recalls = [c / t for c, t in zip(CORRECT, TOTAL, strict=True) if t]
    assert metrics.accuracy(CORRECT, TOTAL) == 16 / 21
    assert metrics.balanced_accuracy(CORRECT, TOTAL) == pytest.approx(sum(recalls) / len(recalls))
    np.testing.assert_allclose(metrics.per_class_accuracy(CORRECT, TOTAL), [0.8, 0.75, 0, 1, np.nan])
    assert metrics.worst_class(CORRECT, TOTAL) == (2, 0.0)
    groups = metrics.group_accuracy(CORRECT, TOTAL, {"head": [0, 1], "tail": [3, 4], "none": [4], "empty": []})
    assert groups["head"] == pytest.approx(0.775)
    assert groups["tail"] == 1
    assert math.isnan(groups["none"])
    assert math.isnan(groups["empty"])


def test_nothing_to_count_is_nan_without_a_warning() -> None:
    zero = np.zeros(3, dtype=int)
    assert math.isnan(metrics.accuracy(zero, zero))
    assert math.isnan(metrics.balanced_accuracy(zero, zero))
    assert metrics.worst_class(zero, zero)[0] == -1
    assert np.isnan(metrics.wilson_interval(zero, zero)).all()
    assert np.isnan(metrics.balanced_interval(zero, zero)).all()


def test_counts_and_confusion_equal_naive_loops() -> None:
    generator = np.random.default_rng(0)
    labels, predictions = generator.integers(0, 4, 50), generator.integers(0, 4, 50)
    correct, total = metrics.class_counts(labels == predictions, labels, 6)
    confusion = metrics.confusion_matrix(labels, predictions, 6)
    for c in range(6):
        assert total[c] == sum(label == c for label in labels)
        assert correct[c] == confusion[c, c]
        for k in range(6):
            assert confusion[c, k] == sum(a == c and b == k for a, b in zip(labels, predictions, strict=True))


@pytest.mark.parametrize("bad", [-1, 4])
def test_confusion_refuses_a_class_out_of_range(bad: int) -> None:
    with pytest.raises(ValueError, match="predictions"):
        metrics.confusion_matrix([0, 1], [0, bad], 4)


def test_wilson_interval_equals_the_textbook() -> None:
    # Newcombe, Statistics in Medicine 17, 1998, table I: 81/263, 15/148, 0/20, 1/29 by the score method.
    low, high = metrics.wilson_interval([81, 15, 0, 1], [263, 148, 20, 29])
    np.testing.assert_allclose(low, [0.2553, 0.0624, 0, 0.0061], atol=5e-5)
    np.testing.assert_allclose(high, [0.3662, 0.1605, 0.1611, 0.1718], atol=5e-5)


def test_balanced_interval_is_wilson_for_one_class_and_keeps_width_at_the_border() -> None:
    low, high = metrics.wilson_interval(7, 20)
    np.testing.assert_allclose(metrics.balanced_interval([7], [20]), (low, high))
    low_all, high_all = metrics.balanced_interval([3, 3], [3, 3])
    assert low_all < 0.9
    assert high_all == 1


def test_balanced_interval_covers_the_truth() -> None:
    generator = np.random.default_rng(0)
    truth, total = np.array([0.9, 0.6, 0.3, 0.05]), np.array([200, 60, 20, 8])
    covered = 0
    for _ in range(1000):
        low, high = metrics.balanced_interval(generator.binomial(total, truth), total)
        covered += low <= truth.mean() <= high
    assert 930 <= covered <= 990


def test_mean_and_standard_error_are_those_of_the_textbook() -> None:
    mean, error = metrics.mean_and_standard_error([0.2, 0.4, 0.9])
    assert mean == pytest.approx(0.5)
    assert error == pytest.approx(math.sqrt((0.09 + 0.01 + 0.16) / 2) / math.sqrt(3))
    means, errors = metrics.mean_and_standard_error([[0.2, 1.0], [0.4, math.nan], [0.9, 1.0]])
    np.testing.assert_allclose(means, [0.5, np.nan])
    np.testing.assert_allclose(errors, [float(error), np.nan])


def test_one_value_has_no_standard_error_and_none_no_mean() -> None:
    mean, error = metrics.mean_and_standard_error([0.25])
    assert (mean, math.isnan(error)) == (0.25, True)
    assert np.isnan(metrics.mean_and_standard_error([])).all()
    assert np.isnan(metrics.mean_and_standard_error(np.empty((0, 3)))).all()


def test_ranks_and_groups_follow_counts_not_labels() -> None:
    counts = [5, 9, 1, 9, 3, 2, 8]
    assert metrics.class_ranks(counts).tolist() == [3, 0, 6, 1, 4, 5, 2]
    groups = metrics.class_groups(counts)
    assert groups == {"head": [1, 3], "body": [6, 0], "tail": [4, 5, 2], "last_half": [4, 5, 2]}
    assert metrics.class_groups(range(10, 0, -1)) == {
        "head": [0, 1, 2],
        "body": [3, 4, 5],
        "tail": [6, 7, 8, 9],
        "last_half": [5, 6, 7, 8, 9],
    }
    assert metrics.class_groups([3, 2, 1])["body"] == []
