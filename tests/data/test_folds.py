"""Folds of a cross-validation."""

import numpy as np
import pytest

from taet.data import load
from taet.data.folds import fold_of
from tests.calls import one_line
from tests.data.conftest import kinds, note_of

LABELS = np.repeat([0, 1, 2], [50, 9, 3])


def test_every_class_is_spread_evenly():
    folds = fold_of(LABELS, None, 5, 0)
    for label in range(3):
        counts = np.bincount(folds[label == LABELS], minlength=5)
        assert counts.max() - counts.min() <= 1


def test_the_folds_have_as_many_images_as_each_other():
    counts = np.bincount(fold_of(LABELS, None, 5, 0), minlength=5)
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("groups", [None, np.arange(62) // 2])
def test_the_seed_decides_the_folds(groups):
    first, again, other = (fold_of(LABELS, groups, 5, seed).tolist() for seed in (0, 0, 1))
    assert first == again != other


def test_groups_are_in_one_fold():
    groups = np.arange(62) // 4
    folds = fold_of(LABELS, groups, 5, 0)
    assert len({*zip(groups.tolist(), folds.tolist(), strict=True)}) == len({*groups.tolist()})
    assert {*folds.tolist()} == {*range(5)}


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (None, "data folds: got 99; allowed: up to 62, one image in each"),
        (np.arange(62) // 4, "data folds: got 99; allowed: up to 16, the number of groups"),
    ],
)
def test_more_folds_than_images_or_groups_are_refused(groups, message):
    with one_line(message):
        fold_of(LABELS, groups, 99, 0)


@pytest.fixture
def folder(tmp_path, fill):
    """Images of 15 patients with two kinds of lesion."""
    for label, level in (("mel", 0), ("nv", 100)):
        for patient in range(15):
            fill(tmp_path / label, level + 2 * patient, 2, name=f"p{patient:02d}_{{}}.png")
    return tmp_path


@pytest.mark.parametrize("pattern", [None, r"p(\d+)"])
def test_every_image_is_a_test_image_in_one_fold(pattern, folder):
    sets = [load(folder, folds=5, fold=fold, group_pattern=pattern) for fold in range(5)]
    tested = np.concatenate([dataset.test.indices for dataset in sets])
    assert sorted(tested) == list(range(60))
    for dataset in sets:
        assert not {*dataset.train.indices} & {*dataset.test.indices}
        assert len(dataset.train) + len(dataset.test) == 60


def test_groups_are_not_divided_by_a_fold(folder):
    dataset = load(folder, folds=5, fold=2, group_pattern=r"p(\d+)")
    assert not {*dataset.train.groups} & {*dataset.test.groups}


def test_a_note_names_the_fold(folder):
    dataset = load(folder, folds=5, fold=2)
    assert note_of(dataset, "fold").numbers == {"fold": 2, "folds": 5, "test": 12, "seed": 0}
    assert "divided" not in kinds(dataset)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"folds": 3, "fold": 3}, "data fold: got 3; allowed: 0 to 2"),
        ({"fold": 1}, "data fold: got 1; allowed: with folds only"),
        ({"folds": 1}, "data folds: got 1; allowed: a whole number, 2 to 1000"),
        ({"folds": 3, "name": "digits-lt"}, "--data.folds: got '3' for digits-lt; allowed: with"),
    ],
)
def test_folds_that_mean_nothing_are_refused(settings, message, folder):
    with one_line(message):
        load(**{"name": str(folder)} | settings)


def test_folds_of_images_with_splits_are_refused(tmp_path, fill, refused):
    for split in ("train", "test"):
        for label in ("a", "b"):
            fill(tmp_path / split / label, 0, 4)
    refused(tmp_path, "data folds: got 2; allowed: of images without splits", folds=2)
