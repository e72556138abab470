"""Groups that are held out whole."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taet.data.groups import hold_out
from taet.errors import UserError


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=2, max_size=60), st.integers(0, 5), st.data())
def test_groups_are_never_divided_and_no_class_loses_its_last_one(pairs, seed, data):
    present = sorted({label for label, _ in pairs})
    labels = np.array([present.index(label) for label, _ in pairs])
    groups = np.array([group for _, group in pairs])
    share = data.draw(st.sampled_from([0.05, 0.1, 0.2, 0.34, 0.5]))
    held = hold_out(labels, groups, share, seed)
    assert not {*groups[held]} & {*groups[~held]}
    assert {*labels[~held]} == {*labels}
    assert (hold_out(labels, groups, share, seed) == held).all()


@pytest.mark.parametrize("share", [0.1, 0.2, 0.34])
def test_about_the_share_of_each_class_is_held_out(share):
    draws = np.random.default_rng(0)
    groups = draws.integers(0, 400, 3000)
    labels = draws.choice(5, 400, p=[0.5, 0.25, 0.13, 0.07, 0.05])[groups]
    held = hold_out(labels, groups, share, 0)
    shares = np.bincount(labels[held], minlength=5) / np.bincount(labels)
    assert (abs(shares - share) < 0.06).all()
    assert (hold_out(labels, groups, share, 1) != held).any()


def test_a_class_of_two_groups_has_one_held_out_and_a_single_group_none():
    labels, groups = np.repeat([0, 1], [30, 4]), np.concatenate([np.arange(30), [40, 40, 41, 41]])
    held = hold_out(labels, groups, 0.2, 0)
    assert held[30:].sum() == 2
    assert not hold_out(np.zeros(5, int), np.zeros(5, int), 0.2, 0).any()


def test_a_seed_beyond_32_bits_is_refused():
    with pytest.raises(UserError, match=r"data seed: got 4294967296; allowed: 0 to 2\*\*32 - 1"):
        hold_out(np.zeros(4, int), np.arange(4), 0.5, 2**32)
