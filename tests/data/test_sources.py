"""`load`: names, cuts, caps, validation and size, whatever the source."""

import subprocess
import sys

import numpy as np
import pytest

from taet.data import facts, full_name, load
from taet.errors import UserError
from taet.settings import Data


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


def test_a_class_too_small_to_be_held_out_is_noted(tmp_path, arrays):
    np.savez(tmp_path / "a.npz", **arrays((40, 20, 1)))
    dataset = load(str(tmp_path / "a.npz"), validation=0.1)
    assert dataset.validation.class_counts.tolist() == [4, 2, 0]
    assert dataset.notes[-1] == "no validation image of: 2"


def test_a_split_of_the_source_stands_for_the_held_out_share(tmp_path, arrays):
    given = arrays()
    np.savez(tmp_path / "a.npz", **given, val_images=255 - given["test_images"], val_labels=given["test_labels"])
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


def test_the_fit_is_that_of_every_split_and_needs_a_size(tmp_path):
    images, labels = np.full((8, 20, 10), 99, np.uint8), np.arange(8) % 2
    np.savez(tmp_path / "x.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    fitted = load(str(tmp_path / "x.npz"), size=10, fit="pad")
    for split in fitted.splits.values():
        assert (split.images[0, 5, :, 0] == [0, 0, 0, 99, 99, 99, 99, 99, 0, 0]).all()
    assert (load(str(tmp_path / "x.npz"), size=10).test.images == 99).all()
    with pytest.raises(UserError, match="data fit: got crop for images that keep their size"):
        load(str(tmp_path / "x.npz"), fit="crop")


SOURCE = """
from taet.data import Dataset
import numpy as np

NAMES = {"toy": "whole", "toy-lt": "cut", "toy-balanced-small": "spread", "own-lt": "as published", "signs": "grouped"}
PUBLISHED = {"own-lt": {"profile": "linear", "imbalance_ratio": 4.0}}


def read(data):
    import dataclasses
    draws = np.random.default_rng(0)
    labels = {"train": np.repeat([0, 1, 2], 40), "test": np.repeat([0, 1, 2], 8)}
    images = {part: draws.integers(0, 256, (len(of), 4, 4, 3), np.uint8) for part, of in labels.items()}
    dataset = Dataset.from_arrays(images["train"], labels["train"], images["test"], labels["test"], name=data.name)
    if data.name == "signs":  # 10 tracks of 4 frames for each class
        dataset = dataclasses.replace(dataset, train=dataclasses.replace(dataset.train, groups=np.arange(120) // 4))
    return dataset
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    (tmp_path / "plugins" / "data").mkdir(parents=True)
    (tmp_path / "plugins" / "data" / "toy.py").write_text(SOURCE)
    monkeypatch.setenv("TAET_PLUGINS", str(tmp_path / "plugins"))
    monkeypatch.delitem(sys.modules, "taet_plugin_data_toy", raising=False)


@pytest.mark.usefixtures("toy")
def test_a_name_says_what_is_cut():
    assert counts(load("toy")) == ([40, 40, 40], [8, 8, 8])
    assert counts(load("toy", imbalance_ratio=4)) == ([40, 20, 10], [8, 4, 2])
    assert counts(load("toy-lt")) == ([40, 12, 4], [8, 2, 0])
    assert counts(load("toy-lt", default_imbalance_ratio=4)) == ([40, 20, 10], [8, 4, 2])
    assert counts(load("toy-lt", imbalance_ratio=4, profile="linear")) == ([40, 25, 10], [8, 5, 2])


@pytest.mark.usefixtures("toy")
def test_a_set_that_is_published_cut_is_cut_so():
    assert counts(load("own-lt", default_imbalance_ratio=10)) == ([40, 25, 10], [8, 5, 2])
    assert counts(load("own-lt", imbalance_ratio=8)) == ([40, 22, 5], [8, 4, 1])
    assert counts(load("own-lt", profile="exponential")) == ([40, 20, 10], [8, 4, 2])
    assert load("own-lt").notes[0] == "training set cut to the linear profile, imbalance ratio 4, seed 0"


@pytest.mark.usefixtures("toy")
def test_balanced_small_has_the_long_tailed_total_and_the_whole_test_set():
    dataset = load("toy-balanced-small", imbalance_ratio=4, validation=0.1)
    assert counts(load("toy-balanced-small", imbalance_ratio=4)) == ([24, 23, 23], [8, 8, 8])
    assert counts(load("toy-balanced-small", test_max_count=2)) == ([19, 19, 18], [2, 2, 2])
    assert counts(load("toy-balanced-small", imbalance_ratio=4, max_count=20)) == ([12, 12, 11], [8, 8, 8])
    assert dataset.validation.class_counts.tolist() == [2, 2, 2]
    assert dataset.notes[:2] == (
        "as many training images as in the exponential profile, imbalance ratio 4, 70, spread evenly, seed 0",
        "test set not made long-tailed: all images of each class",
    )
    long_tailed = load("toy-lt", imbalance_ratio=4)
    assert set(dataset.train.indices[dataset.train.labels == 0]) < set(long_tailed.train.indices)


@pytest.mark.usefixtures("toy")
def test_groups_of_a_source_are_held_out_whole():
    for settings in ({}, {"imbalance_ratio": 4}):
        dataset = load("signs", validation=0.2, **settings)
        assert dataset.validation.class_counts.all()
        assert not set(dataset.validation.groups) & set(dataset.train.groups)
        both = set(dataset.train.indices) | set(dataset.validation.indices)
        assert both == set(load("signs", **settings).train.indices)
    with pytest.raises(UserError, match="data group: got 'track' for signs; allowed: with your own images that have"):
        load("signs", group="track")


def test_a_folder_whose_name_ends_in_lt_is_taken_as_it_is(tmp_path, arrays):
    np.savez(tmp_path / "a-lt", **arrays((40, 40, 40), (8, 8, 8)))
    (tmp_path / "a-lt.npz").rename(tmp_path / "a-lt")
    assert counts(load(f"npz:{tmp_path / 'a-lt'}")) == ([40, 40, 40], [8, 8, 8])


def test_a_bare_path_is_known_by_what_it_is(tmp_path, arrays):
    np.savez(tmp_path / "a.NPZ", **arrays())
    (tmp_path / "a.NPZ.npz").rename(tmp_path / "a.NPZ")
    assert load(str(tmp_path / "a.NPZ")).name == f"npz:{tmp_path}/a.NPZ"
    with pytest.raises(UserError, match=r"no such file: '.*a\.CSV'"):
        load(str(tmp_path / "a.CSV"))
    given = arrays((6, 3, 2), (2, 2, 2), (4, 4, 3))
    folder = tmp_path / "cifar10lt_10"
    folder.mkdir()
    for key, array in given.items():
        flat = array.transpose(0, 3, 1, 2).reshape(len(array), -1) if key.endswith("images") else array
        np.save(folder / f"{key}.npy", flat)
    assert (load(str(folder)).train.images == given["train_images"]).all()


def test_a_bare_name_of_a_folder_is_known_in_full(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "modes").mkdir()
    assert full_name("modes") == "folder:modes"
    assert [full_name(name) for name in ("a.csv", "digits-lt", "npz:x", "nowhere")] == [
        *("csv:a.csv", "digits-lt", "npz:x", "nowhere")
    ]


def test_identical_images_in_two_splits_are_counted(tmp_path, arrays):
    given = arrays((6, 3, 1), (4, 4, 4))
    given["test_images"][[3, 7]] = given["train_images"][[5, 0]]
    np.savez(tmp_path / "a.npz", **given)
    note = "identical images: 2 of 12 test images are also in train, e.g. number 3"
    assert load(str(tmp_path / "a.npz")).notes[-1] == note
    assert load(str(tmp_path / "a.npz"), size=8).notes[-1] == note


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("digit-lt", {}, "no folder or file 'digit-lt' here, and no data set of this name.*did you mean 'digits-lt'"),
        ("nzp:a", {}, "no data set of this name.*did you mean 'npz'"),
        ("npz", {}, "data 'npz' needs a path: npz:PATH"),
        ("folder:", {}, "data 'folder' needs a path"),
        ("no/where", {}, "no folder or file 'no/where' here"),
        ("digits-lt", {"imbalance_ratio": 0.02}, "imbalance ratio: got 0.02.*did you mean 50"),
        ("digits-lt", {"max_count": 0}, "max count: got 0"),
        ("digits-lt", {"max_count": 5000}, "class '0', which has 118; the largest that fits: 118"),
        ("digits-lt", {"profile": "exponental"}, "unknown profile 'exponental'.*did you mean 'exponential'"),
        ("digits-lt", {"storage": "dsik"}, "unknown storage 'dsik'.*did you mean 'disk'"),
        (
            "digits-lt",
            {"group": "writer"},
            "data group: got 'writer' for digits-lt; allowed: with your own images that have",
        ),
        ("digits-lt", {"test": "balance"}, "unknown test set 'balance'.*did you mean 'balanced'"),
        ("digits-lt", {"validation": 1}, "validation share: got 1"),
        ("digits-lt", {"size": 2}, "size: got 2"),
        ("digits-lt", {"seed": -1}, "seed: got -1"),
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


@pytest.mark.parametrize(
    ("mirror", "expected"), [("auto", (True, False)), ("yes", (True, True)), ("no", (False, False))]
)
def test_own_images_are_mirrored_unless_told_otherwise_and_published_ones_as_is_known(mirror, expected, long_tailed):
    assert (load(long_tailed, mirror=mirror).mirror, load("digits-lt", mirror=mirror).mirror) == expected
    assert facts(Data(name="digits-lt", mirror=mirror)).mirror == expected[1]


def test_official_files_that_are_not_here_are_no_facts_and_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TAET_DATA", raising=False)
    assert facts(Data(name="cifar10-lt")) is None
    with pytest.raises(UserError, match="CIFAR-10 is not in 'data'; run taet data prepare cifar10"):
        load("cifar10")
