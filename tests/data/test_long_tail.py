"""Long-tailed counts and the choice of images: published numbers, and what holds for any
numbers."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taet.data.long_tail import (
    PROFILES,
    balanced_small_counts,
    even_sample,
    held_out_counts,
    largest_max_count,
    long_tail_counts,
    long_tail_indices,
)
from taet.errors import UserError

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "long_tail.json").read_text())
SUBSET = GOLDEN["lt_subset_indices"]

profiles = st.sampled_from(PROFILES)
ratios = st.integers(1, 500) | st.floats(1, 500)


@pytest.mark.parametrize("key", [key for key in GOLDEN if key.startswith("lt_counts")])
def test_counts_are_the_published_ones(key):
    golden = GOLDEN[key]
    counts = long_tail_counts(golden["num_classes"], golden["max_count"], golden["imbalance_ratio"])
    assert sum(counts) == golden["total"]
    assert counts == golden.get("counts", counts)
    assert (counts[0], counts[-1]) == (
        golden.get("first", counts[0]),
        golden.get("last", counts[-1]),
    )


def test_published_and_hand_made_counts_in_full():
    totals = {10: 4084, 20: 3401, 50: 2795, 100: 2478}  # of the long-tailed test set of CIFAR-10
    assert {ratio: sum(long_tail_counts(10, 1000, ratio)) for ratio in totals} == totals
    assert long_tail_counts(5, 100, 10, "linear") == [100, 77, 55, 32, 10]
    assert long_tail_counts(4, 100, 8, "step") == [100, 100, 12, 12]
    assert long_tail_counts(5, 100, 8, "step") == [100, 100, 100, 12, 12]
    assert long_tail_counts(2, 98, 49)[-1] == 2  # 98 * (1 / 49) is below 2
    assert balanced_small_counts(10, 5000, 50) == [1400] * 6 + [1399] * 4  # 13996 images
    assert balanced_small_counts(100, 500, 10) == [196] * 73 + [195] * 27  # 19573 images


@given(st.integers(2, 40), st.integers(1, 5000), ratios, profiles)
def test_counts_fall_from_the_largest_to_the_smallest_or_are_spread(
    num_classes, max_count, ratio, profile
):
    counts = long_tail_counts(num_classes, max_count, ratio, profile)
    assert len(counts) == num_classes
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == max_count
    assert counts[-1] == (max_count / Fraction(ratio) + Fraction(1, 10**9)) // 1
    spread = balanced_small_counts(num_classes, max_count, ratio, profile)
    assert sum(spread) == sum(counts)
    assert spread == sorted(spread, reverse=True)
    assert spread[0] - spread[-1] in (0, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 10, 10), "number of classes: got 1"),
        ((10, 10, 0.02), "imbalance ratio: got 0.02; allowed: 1 or more"),
        ((10, 10, 10, "linaer"), "unknown profile 'linaer'.*did you mean 'linear'"),
    ],
)
def test_impossible_profiles_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        long_tail_counts(*arguments)


@given(st.lists(st.integers(0, 60), min_size=2, max_size=8), ratios, profiles)
def test_largest_max_count_fits_and_one_more_does_not(available, ratio, profile):
    def fits(max_count):
        counts = long_tail_counts(len(available), max_count, ratio, profile)
        return all(count <= there for count, there in zip(counts, available, strict=True))

    largest = largest_max_count(available, ratio, profile)
    assert largest == 0 or fits(largest)
    assert not fits(largest + 1)


def test_indices_are_the_published_choice_and_leave_the_global_generator_alone():
    before = np.random.get_state()[1:3]  # noqa: NPY002 - it is the global generator that is meant
    indices = long_tail_indices(np.arange(50) % 5, SUBSET["counts"], SUBSET["seed"])
    after = np.random.get_state()[1:3]  # noqa: NPY002
    assert indices.dtype == np.int64
    assert indices.tolist() == [index for one in SUBSET["per_class"] for index in one]
    assert (before[0] == after[0]).all()
    assert before[1] == after[1]


@given(st.data())
def test_smaller_choices_lie_within_larger_ones(data):
    labels = np.array(data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=40)))
    counts = [data.draw(st.integers(0, int((labels == label).sum()))) for label in range(4)]
    fewer = [data.draw(st.integers(0, count)) for count in counts]
    seed = data.draw(st.integers(0, 2**32 - 1))
    large, small = long_tail_indices(labels, counts, seed), long_tail_indices(labels, fewer, seed)
    assert labels[large].tolist() == sorted(labels[large])
    assert np.bincount(labels[large], minlength=4).tolist() == counts
    assert len(set(large.tolist())) == len(large)
    assert set(small.tolist()) <= set(large.tolist())


def test_held_out_counts_round_and_leave_one():
    assert held_out_counts([5000, 645, 15, 14, 5, 2, 1, 0], 0.1) == [500, 65, 2, 1, 1, 1, 0, 0]
    assert held_out_counts([50], 0.29) == [15]  # 14.5 on paper, 14.499999999999998 in binary


LABELS = np.repeat([0, 1, 2, 4], [100, 10, 2, 30])  # grouped by class, one of which has no images


@pytest.mark.parametrize(
    ("count", "expected"), [(4, (1, 1, 1, 1)), (40, (14, 10, 2, 14)), (999, (100, 10, 2, 30))]
)
def test_a_sample_is_as_even_over_the_classes_as_their_images_allow(count, expected):
    rows = even_sample(LABELS, count, 0)
    assert (np.diff(rows) > 0).all()
    assert tuple(np.bincount(LABELS[rows])[[0, 1, 2, 4]]) == expected
    np.testing.assert_array_equal(rows, even_sample(LABELS, count, 0))
    drawn = np.unique([even_sample(LABELS, 8, seed) for seed in range(1000)])
    assert len(drawn) == len(LABELS), "every image can be drawn"
