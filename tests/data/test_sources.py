"""`load`: names, cuts, caps, validation and size, whatever the source."""

import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest

from taet.config import Data
from taet.data import load
from taet.errors import UserError


@pytest.fixture
def long_tailed(tmp_path, arrays):
    np.savez(tmp_path / "a.npz", **arrays((40, 20, 5), (8, 4, 1)))
    return str(tmp_path / "a.npz")


@pytest.fixture
def balanced(tmp_path, arrays):
    np.savez(tmp_path / "b.npz", **arrays((40, 40, 40), (8, 8, 8)))
    return str(tmp_path / "b.npz")


def counts(dataset):
    return dataset.train.class_counts.tolist(), dataset.test.class_counts.tolist()


def test_the_settings_of_a_run_are_its_arguments():
    data = Data("digits-lt", imbalance_ratio=20, validation=0.1)
    assert load(**asdict(data)).train.sha256 == load("digits-lt", imbalance_ratio=20, validation=0.1).train.sha256


def test_a_set_is_cut_only_where_a_ratio_is_given(balanced):
    assert counts(load(balanced)) == ([40, 40, 40], [8, 8, 8])
    assert counts(load(balanced, imbalance_ratio=4)) == ([40, 20, 10], [8, 4, 2])
    assert counts(load(balanced, imbalance_ratio=4, profile="step")) == ([40, 40, 10], [8, 8, 2])
    assert counts(load(balanced, imbalance_ratio=4, test="balanced")) == ([40, 20, 10], [8, 8, 8])
    assert counts(load(balanced, imbalance_ratio=1)) == ([40, 40, 40], [8, 8, 8])


def test_max_counts_are_the_largest_class_or_a_cap(balanced, long_tailed):
    assert counts(load(balanced, imbalance_ratio=4, max_count=20, test_max_count=4)) == ([20, 10, 5], [4, 2, 1])
    assert counts(load(balanced, imbalance_ratio=4, test="balanced", test_max_count=3)) == ([40, 20, 10], [3, 3, 3])
    dataset = load(long_tailed, max_count=10, test_max_count=2)
    assert counts(dataset) == ([10, 10, 5], [2, 2, 1])
    assert dataset.notes == ("taken as it is, but for the caps on its classes: the source's imbalance ratio is 8",)


def test_a_long_tailed_set_gives_the_largest_profile_that_fits(long_tailed):
    assert counts(load(long_tailed, imbalance_ratio=2)) == ([11, 7, 5], [3, 2, 1])
    with pytest.raises(UserError, match=r"training set: .* needs 6 images of class '2', which has 5; .* fits: 11"):
        load(long_tailed, imbalance_ratio=2, max_count=12)


def test_a_class_without_an_image_is_noted_in_the_test_set_and_refused_in_training(balanced):
    dataset = load(balanced, imbalance_ratio=10)
    assert counts(dataset) == ([40, 12, 4], [8, 2, 0])
    assert dataset.notes[-1] == "no test image of: 2"
    with pytest.raises(UserError, match=r"class '2' would get no training image: imbalance ratio 50 .* up to 40"):
        load(balanced, imbalance_ratio=50)


def test_a_test_set_that_lacks_the_largest_class_cannot_be_cut(tmp_path, arrays):
    np.savez(tmp_path / "c.npz", **arrays((40, 40, 40), (0, 8, 8)))
    with pytest.raises(UserError, match="test set: class '0' has no image"):
        load(str(tmp_path / "c.npz"), imbalance_ratio=4)
    assert counts(load(str(tmp_path / "c.npz"), imbalance_ratio=4, test="balanced"))[1] == [0, 8, 8]


def test_validation_comes_out_of_the_long_tailed_training_images():
    whole, parted = load("digits-lt"), load("digits-lt", validation=0.1)
    assert parted.validation.class_counts.tolist() == [12, 9, 7, 5, 4, 3, 3, 2, 2, 1]
    assert (parted.train.class_counts + parted.validation.class_counts).tolist() == whole.class_counts.tolist()
    assert sorted([*parted.train.indices, *parted.validation.indices]) == sorted(whole.train.indices)
    assert parted.test.sha256 == whole.test.sha256
    assert whole.validation is None


def test_validation_of_an_uncut_set_is_stratified(long_tailed):
    dataset = load(long_tailed, validation=0.1)
    assert dataset.validation.class_counts.tolist() == [4, 2, 1]
    assert dataset.class_counts.tolist() == [36, 18, 4]


def test_a_split_of_the_source_stands_for_the_held_out_share(tmp_path, arrays):
    given = arrays()
    np.savez(tmp_path / "a.npz", **given, val_images=given["test_images"], val_labels=given["test_labels"])
    dataset = load(str(tmp_path / "a.npz"), validation=0.5)
    assert len(dataset.validation) == 5
    assert len(dataset.train) == 10
    assert dataset.notes[-1] == "the source's own validation split is kept, nothing else is held out"


def test_subsets_are_nested_and_follow_the_seed():
    larger, smaller, other = (load("digits-lt", imbalance_ratio=r, seed=s) for r, s in ((10, 0), (50, 0), (10, 1)))
    assert set(smaller.train.indices) < set(larger.train.indices)
    assert set(smaller.test.indices) < set(larger.test.indices)
    assert set(other.train.indices) != set(larger.train.indices)


def test_size_resizes_every_split():
    dataset = load("digits-lt", size=16, validation=0.1)
    assert {split.images.shape[1:] for split in dataset.splits.values()} == {(16, 16, 1)}


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("digit-lt", {}, "unknown data set 'digit-lt'.*did you mean 'digits-lt'"),
        ("nzp:a", {}, "unknown data set 'nzp'.*did you mean 'npz'"),
        ("npz", {}, "data 'npz' needs a path: npz:PATH"),
        ("folder:", {}, "data 'folder' needs a path"),
        ("no/where", {}, "no such data: 'no/where'"),
        ("digits-lt", {"imbalance_ratio": 0.02}, "imbalance ratio: got 0.02.*did you mean 50"),
        ("digits-lt", {"max_count": 0}, "max count: got 0"),
        ("digits-lt", {"max_count": 5000}, "class '0', which has 118; the largest that fits: 118"),
        ("digits-lt", {"profile": "exponental"}, "unknown profile 'exponental'.*did you mean 'exponential'"),
        ("digits-lt", {"test": "balance"}, "unknown test set 'balance'.*did you mean 'balanced'"),
        ("digits-lt", {"validation": 1}, "validation share: got 1"),
        ("digits-lt", {"size": 2}, "size: got 2"),
        ("digits-lt", {"seed": -1}, "data seed: got -1"),
    ],
)
def test_mistakes_are_one_line(name, arguments, message):
    with pytest.raises(UserError, match=message) as error:
        load(name, **arguments)
    assert "\n" not in str(error.value)


def test_importing_data_imports_no_torch():
    code = "import sys, taet.data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.data
def test_real_ham10000_is_taken_as_it_is(real_data):
    dataset = load(str(real_data("ham10000_32.npz")))
    assert dataset.class_counts.tolist() == [229, 360, 770, 82, 781, 4694, 100]
    assert [len(split) for split in dataset.splits.values()] == [7016, 1001, 1998]
    assert dataset.imbalance_ratio == pytest.approx(4694 / 82)
