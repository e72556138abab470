"""Holding out whole groups: exact where it can be, near otherwise, and never a class without training images."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taet.data.groups import hold_out
from taet.errors import UserError


def held_counts(labels, held, classes):
    return np.bincount(labels[held], minlength=classes)


@st.composite
def grouped(draw, spanning):
    """Labels, groups and numbers to hold out; with `spanning`, groups may have images of several classes."""
    classes = draw(st.integers(1, 4))
    if spanning:
        rows = draw(st.lists(st.tuples(st.integers(0, classes - 1), st.integers(0, 7)), min_size=1, max_size=40))
        labels, groups = (np.array(column) for column in zip(*rows, strict=True))
    else:
        sizes = draw(st.lists(st.tuples(st.integers(0, classes - 1), st.integers(1, 6)), min_size=1, max_size=8))
        labels = np.repeat([label for label, _ in sizes], [size for _, size in sizes])
        groups = np.repeat(np.arange(len(sizes)) * 3 - 5, [size for _, size in sizes])
    counts = np.bincount(labels, minlength=classes)
    order = np.array(draw(st.permutations(range(len(labels)))))
    return labels[order], groups[order], [draw(st.integers(0, max(0, count - 1))) for count in counts.tolist()]


@given(st.booleans().flatmap(grouped), st.integers(0, 5))
def test_groups_stay_whole_and_every_class_keeps_one(case, seed):
    labels, groups, wanted = case
    held = hold_out(labels, groups, wanted, seed)
    assert not set(groups[held].tolist()) & set(groups[~held].tolist())
    assert set(labels[~held].tolist()) == set(labels.tolist())
    last = {label for label in labels.tolist() if len(set(groups[(labels == label) & ~held].tolist())) == 1}
    for label in np.flatnonzero((np.array(wanted) > 0) & (held_counts(labels, held, len(wanted)) == 0)):
        own = set(groups[labels == label].tolist())  # each of them is the last of some class
        assert all(last & set(labels[groups == group].tolist()) for group in own)
    assert (held == hold_out(labels, groups, wanted, seed)).all()


@given(grouped(spanning=False), st.integers(0, 5))
def test_groups_of_one_class_come_as_near_as_any_choice_of_them(case, seed):
    labels, groups, wanted = case
    got = held_counts(labels, hold_out(labels, groups, wanted, seed), len(wanted))
    for label, number in enumerate(wanted):
        sizes = np.unique(groups[labels == label], return_counts=True)[1].tolist()
        least = 1 if number and len(sizes) > 1 else 0
        sums = {sum(some) for k in range(least, max(len(sizes), 1)) for some in itertools.combinations(sizes, k)} or {0}
        nearest = min(abs(number - held) for held in sums)
        assert got[label] == max(held for held in sums if abs(number - held) == nearest)
        assert nearest <= max(sizes, default=0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("alone", [0, 200])
def test_groups_of_several_classes_come_nearer_than_the_largest_of_them(seed, alone):
    draws = np.random.default_rng(seed)
    sizes = draws.geometric(0.2, 300)
    groups = np.concatenate([np.repeat(np.arange(300), sizes), np.arange(1000, 1000 + alone)])
    labels = draws.choice(6, len(groups), p=np.array([32, 16, 8, 4, 2, 1]) / 63)
    wanted = np.bincount(labels) // 5
    held = hold_out(labels, groups, wanted.tolist(), seed)
    largest = [np.unique(groups[labels == label], return_counts=True)[1].max() for label in range(6)]
    assert (abs(held_counts(labels, held, 6) - wanted) <= largest).all()
    assert abs(held.sum() - wanted.sum()) <= 3
    if alone:  # as many of the images that stand alone as of the others, about
        assert 0.1 < held[-alone:].mean() < 0.3


def test_patients_with_two_kinds_of_lesion_are_held_out_as_one():
    labels, groups = np.tile([0, 0, 0, 1], 10), np.repeat(np.arange(10), 4)
    held = hold_out(labels, groups, [6, 2])
    assert held_counts(labels, held, 2).tolist() == [6, 2]
    assert len(set(groups[held].tolist())) == 2


@pytest.mark.parametrize("shared", [False, True])
def test_one_of_two_groups_is_held_out_though_none_would_be_nearer(shared):
    labels, groups = np.repeat([0, 1, 1], [60, 3, 3]), np.repeat([0, 1, 2], [60, 3, 3])
    groups[:60] = np.arange(60) // 6 + (1 if shared else 3)
    held = hold_out(labels, groups, [12, 1])
    assert held_counts(labels, held, 2)[1] == 3
    assert held_counts(labels, held, 2)[0] == 12


def test_the_seed_decides_which():
    labels, groups = np.repeat([0, 1], 50), np.arange(100) // 2
    chosen = [frozenset(groups[hold_out(labels, groups, [10, 4], seed)].tolist()) for seed in range(60)]
    assert len(set(chosen)) == 60
    assert set().union(*chosen) == set(range(50))


def test_a_class_of_one_group_is_never_held_out():
    labels = np.array([0, 0, 0, 1, 1, 1])
    assert not hold_out(labels, np.array([7, 7, 7, 7, 7, 7]), [2, 1]).any()
    assert not hold_out(labels, labels, [2, 2]).any()


def test_many_images_take_no_time():
    draws = np.random.default_rng(0)
    labels, groups = draws.integers(0, 50, 20_000), draws.integers(0, 6_000, 20_000)
    held = hold_out(labels, groups, [40] * 50)
    assert abs(held_counts(labels, held, 50) - 40).max() <= 2


def test_impossible_seeds_are_refused():
    with pytest.raises(UserError, match="data seed: got -1"):
        hold_out(np.array([0, 1]), np.array([0, 1]), [0, 0], -1)
