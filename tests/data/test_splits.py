"""What `load` chooses whatever the source: cuts, caps, validation, whole groups, names and size."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taet.data import load
from taet.data.sources import full_name
from taet.data.splits import hold_out
from tests.calls import one_line


@pytest.fixture
def saved(npz, arrays):
    """Return a function that writes an .npz with these class counts."""
    return lambda train=(40, 40, 40), test=(8, 8, 8), **more: npz(arrays(train, test) | more)


def counts(dataset):
    return dataset.train.class_counts.tolist(), dataset.test.class_counts.tolist()


def test_a_set_is_cut_only_where_a_ratio_is_given(saved):
    name = saved()
    for settings, expected in (
        ({}, ([40, 40, 40], [8, 8, 8])),
        ({"imbalance_ratio": 4}, ([40, 20, 10], [8, 4, 2])),
        ({"imbalance_ratio": 4, "profile": "step"}, ([40, 40, 10], [8, 8, 2])),
        ({"imbalance_ratio": 4, "test": "balanced"}, ([40, 20, 10], [8, 8, 8])),
        ({"imbalance_ratio": 4, "max_count": 20, "test_max_count": 4}, ([20, 10, 5], [4, 2, 1])),
        (
            {"imbalance_ratio": 4, "test": "balanced", "test_max_count": 3},
            ([40, 20, 10], [3, 3, 3]),
        ),
        ({"max_count": 10, "test_max_count": 2}, ([10, 10, 10], [2, 2, 2])),
        ({"train_share": 0.3, "imbalance_ratio": 40}, ([12, 2, 1], [8, 1, 0])),
    ):
        assert counts(found := load(name, **settings)) == expected, settings
        taken = (
            f"{sum(expected[1])} of 24 test images are taken, at most {max(expected[1])} of a class"
        )
        assert (taken in found.notes) == (sum(expected[1]) < 24), settings
    larger, smaller, other = (
        load(name, imbalance_ratio=r, seed=s) for r, s in ((4, 0), (40, 0), (4, 1))
    )
    assert set(smaller.train.indices) < set(larger.train.indices)
    assert set(smaller.test.indices) < set(larger.test.indices)
    assert set(other.train.indices) != set(larger.train.indices)


def test_a_long_tailed_set_gives_the_largest_profile_that_fits(saved, refused):
    name = saved((40, 20, 5), (8, 4, 1))
    assert counts(load(name, imbalance_ratio=2)) == ([11, 7, 5], [3, 2, 1])
    refused(
        name,
        "a largest class of 12; allowed: up to 11, at imbalance ratio 2",
        imbalance_ratio=2,
        max_count=12,
    )
    refused(
        saved(),
        "class '2' would get no training image: imbalance ratio 50; allowed: up to 4",
        imbalance_ratio=50,
    )
    refused(saved(test=(0, 8, 8)), "test set: class '0' has no image", imbalance_ratio=4)


def test_validation_comes_out_of_the_long_tailed_training_images(saved, refused):
    whole, parted = load("digits-lt"), load("digits-lt", validation=0.1)
    assert parted.validation.class_counts.tolist() == [12, 9, 7, 5, 4, 3, 3, 2, 2, 1]
    assert (
        parted.train.class_counts + parted.validation.class_counts
    ).tolist() == whole.class_counts.tolist()
    assert sorted([*parted.train.indices, *parted.validation.indices]) == sorted(
        whole.train.indices
    )
    assert parted.test.sha256 == whole.test.sha256
    assert whole.validation is None
    stand_in = load("digits-lt", validation=0.1, test="validation")
    assert stand_in.test.sha256 == parted.validation.sha256
    refused("digits-lt", "test set: got validation, but no validation images", test="validation")
    images = np.arange(180, dtype=np.uint8).reshape(3, 4, 5, 3)
    given = load(saved(val_images=images, val_labels=[0, 2, 2]), validation=0.5)
    assert (len(given.validation), len(given.train)) == (3, 120)
    assert [*given.notes[-2:]] == [
        "the source's own validation split is kept",
        "no validation image of: 1",
    ]


# Names

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
"""  # noqa: E501


@pytest.fixture
def _toy(tmp_path, monkeypatch):
    (tmp_path / "plugins" / "data").mkdir(parents=True)
    (tmp_path / "plugins" / "data" / "toy.py").write_text(SOURCE)
    monkeypatch.setenv("TAET_PLUGINS", str(tmp_path / "plugins"))
    monkeypatch.delitem(sys.modules, "taet_plugin_data_toy", raising=False)


@pytest.mark.usefixtures("_toy")
def test_a_name_says_what_is_cut():
    for name, settings, expected in (
        ("toy", {}, ([40, 40, 40], [8, 8, 8])),
        ("toy-lt", {}, ([40, 12, 4], [8, 2, 0])),
        ("toy-lt", {"default_imbalance_ratio": 4}, ([40, 20, 10], [8, 4, 2])),
        ("own-lt", {"default_imbalance_ratio": 10}, ([40, 25, 10], [8, 5, 2])),  # as published
        ("own-lt", {"imbalance_ratio": 8}, ([40, 22, 5], [8, 4, 1])),
        ("own-lt", {"profile": "exponential"}, ([40, 20, 10], [8, 4, 2])),
        ("toy-balanced-small", {"imbalance_ratio": 4}, ([24, 23, 23], [8, 8, 8])),
        ("toy-balanced-small", {"test_max_count": 2}, ([19, 19, 18], [2, 2, 2])),
    ):
        assert counts(load(name, **settings)) == expected, (name, settings)
    small, long_tailed = (
        load(f"toy-{kind}", imbalance_ratio=4) for kind in ("balanced-small", "lt")
    )
    assert set(small.train.indices[small.train.labels == 0]) < set(long_tailed.train.indices)
    assert small.notes[0].startswith(
        "training set spread evenly, 70 images as in the exponential profile, imbalance ratio 4"
    )


@pytest.mark.usefixtures("_toy")
@pytest.mark.parametrize("settings", [{}, {"imbalance_ratio": 4}])
def test_groups_of_a_source_are_held_out_whole(settings):
    dataset = load("signs", validation=0.2, **settings)
    assert dataset.validation.class_counts.all()
    assert not set(dataset.validation.groups) & set(dataset.train.groups)
    both = set(dataset.train.indices) | set(dataset.validation.indices)
    assert both == set(load("signs", **settings).train.indices)


def test_a_bare_path_is_known_by_what_it_is(tmp_path, arrays, monkeypatch):
    np.savez(tmp_path / "a-lt", **arrays((40, 40, 40), (8, 8, 8)))
    (tmp_path / "a-lt.npz").rename(tmp_path / "a-lt")
    # a path may end in -lt
    assert counts(load(f"npz:{tmp_path / 'a-lt'}")) == ([40, 40, 40], [8, 8, 8])
    (tmp_path / "a-lt").rename(tmp_path / "a.NPZ")
    assert load(str(tmp_path / "a.NPZ")).name == f"npz:{tmp_path}/a.NPZ"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "modes").mkdir()
    for name, full in (("modes", "folder:modes"), ("a.csv", "csv:a.csv"), ("npz:x", "npz:x")):
        assert full_name(name) == full


def test_identical_images_in_two_splits_or_classes_are_counted(saved, arrays):
    given = arrays((6, 3, 1), (4, 4, 4))
    given["test_images"][[3, 7]] = given["train_images"][[5, 0]]
    name = saved((6, 3, 1), (4, 4, 4), **given)
    note = "identical images: 2 of 12 test images are also in train, e.g. number 3"
    note += "; 1 of 10 train images are also in another class, e.g. number 0"
    note += "; 1 of 12 test images are also in another class, e.g. number 7"
    assert load(name).notes[-1] == load(name, size=8).notes[-1] == note
    assert not load(name).about(of_training=False)["notes"]  # for a model that saw none of these


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "digit-lt",
            {},
            "unknown data set, and no folder.* here: 'digit-lt'; allowed: .*did you mean "
            "'digits-lt'",
        ),
        ("/dev/nul", {}, r"got '/dev/nul', where nothing is; .*did you mean '/dev/null'\?"),
        ("/dev/null", {}, "got '/dev/null', a file of another kind; allowed: a folder"),
        ("folder:", {}, "data 'folder' needs a path"),
        (
            "digits-lt",
            {"profile": "exponental"},
            "unknown profile 'exponental'.*did you mean 'exponential'",
        ),
        (
            "digits-lt",
            {"group": "writer"},
            "data group: got 'writer' for digits-lt; allowed: with your own images",
        ),
    ],
)
def test_mistakes_are_one_line(name, arguments, message, refused):
    refused(name, message, **arguments)


@pytest.mark.parametrize(
    ("mirror", "expected"), [("auto", (True, False)), ("yes", (True, True)), ("no", (False, False))]
)
def test_mirroring_is_the_sources_unless_it_is_given(mirror, expected, saved):
    assert (
        load(saved(), mirror=mirror).mirror,
        load("digits-lt", mirror=mirror).mirror,
    ) == expected


# Groups


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=2, max_size=60),
    st.integers(0, 5),
    st.data(),
)
def test_groups_are_never_divided_and_no_class_loses_its_last_one(pairs, seed, data):
    present = sorted({label for label, _ in pairs})
    labels = np.array([present.index(label) for label, _ in pairs])
    groups = np.array([group for _, group in pairs])
    share = data.draw(st.sampled_from([0.05, 0.1, 0.2, 0.34, 0.5]))
    held = hold_out(labels, groups, share, seed)
    assert not {*groups[held]} & {*groups[~held]}
    assert {*labels[~held]} == {*labels}
    assert (hold_out(labels, groups, share, seed) == held).all()


@pytest.mark.full
def test_a_class_of_two_groups_has_one_held_out_and_a_single_group_none():
    labels, groups = np.repeat([0, 1], [30, 4]), np.concatenate([np.arange(30), [40, 40, 41, 41]])
    held = hold_out(labels, groups, 0.2, 0)
    assert held[30:].sum() == 2
    assert not hold_out(np.zeros(5, int), np.zeros(5, int), 0.2, 0).any()
    # fewer groups than tenths
    assert hold_out(np.arange(40) % 2, np.repeat(np.arange(8), 5), 0.3, 0).mean() == 0.25
    for share in (0.02, 0.05, 0.1, 0.25, 0.3):
        assert hold_out(np.arange(400) % 2, np.arange(400), share, 0).mean() == share


def test_a_name_that_nearly_is_a_folder_here_is_told_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("lesions").mkdir()
    with one_line("unknown data set, .* here: 'leisons'; allowed: .*did you mean 'lesions'"):
        load("leisons")
