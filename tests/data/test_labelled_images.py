"""A list of labelled image files as a data set: classes, splits, groups, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from taet.data import facts, load
from taet.data.dataset import DataFacts
from taet.data.labelled_images import (
    BEGINNING,
    LabelledImage,
    grouped_by_pattern,
    note_on_names_alike,
    source_of,
    with_tracks,
)
from taet.data.sources import load_all
from taet.errors import UserError
from taet.settings import Data
from tests.calls import one_line
from tests.data.conftest import kinds, note_of


@pytest.fixture
def listed(tmp_path, fill):
    """Return a function that writes an image for each label, and lists them."""

    def make(labels, **more):
        files = fill(tmp_path, 0, len(labels))
        columns = [
            [value] * len(labels) if isinstance(value, str) else value for value in more.values()
        ]
        return [
            LabelledImage(file, label, **dict(zip(more, values, strict=True)))
            for file, label, *values in zip(files, labels, *columns, strict=True)
        ]

    return make


def test_classes_are_the_labels_in_alphabetical_order(listed):
    source = source_of(listed("babbaa"), Data())
    assert source.splits["train"].class_names == ("a", "b")


def test_an_order_of_the_classes_may_be_given(listed):
    source = source_of(listed("babbaa"), Data(), order=["b", "a"])
    assert source.splits["train"].class_names == ("b", "a")


def test_a_fifth_of_each_class_is_for_testing_where_no_split_is_given(listed):
    source = source_of(listed("a" * 10 + "bb"), Data())
    assert source.splits["test"].class_counts.tolist() == [2, 1]
    assert kinds(source) >= {"divided"}
    assert note_of(source, "divided").numbers == {"test": 3, "seed": 0}


def test_the_seed_decides_which_images_are_for_testing(listed):
    images = listed("a" * 20 + "b" * 20)
    chosen = [source_of(images, Data(seed=seed)).splits["test"].indices for seed in (0, 0, 1)]
    assert chosen[0].tolist() == chosen[1].tolist() != chosen[2].tolist()


def test_groups_are_kept_in_one_split(listed):
    groups = [f"patient {i // 4}" for i in range(40)]
    source = source_of(listed("ab" * 20, group=groups), Data())
    train, test = ({*part.groups} for part in source.splits.values())
    assert not train & test
    assert note_of(source, "groups").numbers == {"groups": 10, "alone": 0}


def test_images_without_a_group_stand_alone(listed):
    groups = ["p", "p", "q", "q", *[""] * 6]
    source = source_of(listed("ab" * 5, group=groups), Data())
    assert note_of(source, "groups") == "2 groups, each kept together; 6 images stand alone"
    numbers = np.concatenate([part.groups for part in source.splits.values()])
    assert len({*numbers}) == 2 + 6


def test_a_group_in_two_splits_is_refused(listed):
    images = listed("abab", split=["train", "train", "test", "test"], group=["p", "q", "p", "r"])
    with one_line("group 'p' is in two splits; keep it in one, or give --data.group none"):
        source_of(images, Data())


def test_given_splits_are_kept(listed):
    splits = ["train", "test", "train", "validation", "train", "test"]
    source = source_of(listed("aabbab", split=splits), Data())
    assert {part: len(of) for part, of in source.splits.items()} == {
        "train": 3,
        "validation": 1,
        "test": 2,
    }


def test_validation_images_are_the_test_set_where_there_is_no_other(listed):
    splits = ["train"] * 4 + ["validation"] * 2
    source = source_of(listed("ababab", split=splits), Data())
    assert {part: len(of) for part, of in source.splits.items()} == {"train": 4, "test": 2}
    assert "nothing is chosen by them" in note_of(source, "validation-is-test")


@pytest.mark.parametrize("splits", [("train", "train"), ("train", ""), ("test", "test")])
def test_other_sets_of_splits_are_refused(splits, listed):
    with one_line("got the splits .*; allowed: train, test and validation, or no splits"):
        source_of(listed("ab", split=splits), Data())


def test_a_class_without_a_training_image_is_refused(listed):
    with one_line("class 'b' has no training image"):
        source_of(listed("aba", split=["train", "test", "train"]), Data())


def test_a_set_without_a_second_image_of_any_class_is_refused(listed):
    with one_line("no test images are given, and no class has a second image"):
        source_of(listed("ab"), Data())


def test_one_class_is_refused(listed):
    with one_line("class names: got 'a'; allowed: 2 classes or more"):
        source_of(listed("aaa"), Data())


def test_one_class_is_enough_for_testing_a_model_that_exists(listed):
    source = source_of(listed("aaa"), Data(), only_test=True)
    assert {part: len(of) for part, of in source.splits.items()} == {"test": 3}


def test_a_file_that_is_listed_twice_is_refused(listed):
    images = listed("abab")
    with one_line(r"got '.*00\.png' in several rows; allowed: each image once"):
        source_of([*images, images[0]], Data())


@pytest.mark.parametrize("name", ["NA", "test"])
def test_a_class_whose_name_reads_as_no_label_or_a_split_is_noted(name, listed):
    source = source_of(listed([name, name, "a", "a"]), Data())
    assert note_of(source, "unlikely-class").numbers == {"name": name}


def test_unreadable_images_of_all_splits_are_named_at_once(listed):
    images = listed("abab", split=["train", "train", "test", "test"])
    for image in images[1:3]:
        image.file.write_bytes(b"no image")
    with one_line("2 of 4 images cannot be read by their headers: '.*01.png' .*skip-unreadable"):
        source_of(images, Data())


def test_unreadable_images_are_left_out_if_asked(listed):
    images = listed("aaabbb")
    noise = np.random.default_rng(0).integers(0, 256, (6, 6), np.uint8)
    Image.fromarray(noise).save(images[0].file)
    images[0].file.write_bytes(images[0].file.read_bytes()[:60])  # cut behind its header
    source = source_of(images, Data(skip_unreadable=True))
    assert sum(map(len, source.splits.values())) == 5
    assert note_of(source, "unreadable").numbers == {"count": 1, "files": (str(images[0].file),)}


# Groups by file names


def named(*names, split="", label="a"):
    return [LabelledImage(file=name, label=label, split=split) for name in names]


def test_a_pattern_finds_groups_in_file_names():
    images, _ = grouped_by_pattern(
        named("x/ISIC_12_a.png", "y/ISIC_12_b.png", "ISIC_13.png", "other.png"), r"ISIC_(\d+)"
    )
    assert [image.group for image in images] == ["12", "12", "13", ""]


def test_a_pattern_without_parentheses_is_the_group():
    images, _ = grouped_by_pattern(named("p1-a.png", "p1-b.png"), r"p\d")
    assert [image.group for image in images] == ["p1", "p1"]


def test_a_pattern_that_matches_no_file_is_refused():
    with one_line("got 'q', which matches no file, e.g. not 'a.png'; allowed: "):
        grouped_by_pattern(named("a.png"), "q")


def test_a_pattern_keeps_images_of_one_patient_together(tmp_path, fill):
    for label in ("mel", "nv"):
        for patient in range(10):
            fill(tmp_path / label, patient, 3, name=f"p{patient:02d}_{{}}.png")
    dataset = load(tmp_path, group_pattern=r"p(\d+)_")
    assert not {*dataset.train.groups} & {*dataset.test.groups}
    assert len({*dataset.train.groups} | {*dataset.test.groups}) == 10
    assert "groups-by-pattern" in kinds(dataset)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"group_pattern": "(", "name": "x"}, r"data group pattern: got '\('; allowed: a regular"),
        ({"group_pattern": "a", "group": "b"}, "with data group 'b'; allowed: one of them"),
        ({"group_pattern": "a", "name": "digits-lt"}, "for digits-lt; allowed: with folder: and"),
        (
            {"transparent": "white", "name": "digits-lt"},
            "for digits-lt; allowed: with folder:, csv",
        ),
        ({"label_column": "dx", "name": "digits-lt"}, "^--data.label: got 'dx' for digits-lt"),
    ],
)
def test_an_option_that_has_no_effect_is_refused(settings, message):
    with one_line(message):
        load(**{"name": "digits-lt"} | settings)


# Tracks of GTSRB


def test_tracks_are_groups_of_a_class():
    images = named("00001_00000.ppm", "00001_00001.ppm", label="00002")
    images += named("00003_00001_00000.png", label="3") + named("x.png", split="test")
    assert [image.group for image in with_tracks(images)] == ["00002/00001"] * 2 + ["3/00001", ""]


@pytest.mark.parametrize(("name", "label"), [("1_2.ppm", "00002"), ("00001_00000.ppm", "stop")])
def test_other_names_have_no_tracks(name, label):
    assert with_tracks(named(name, label=label)) is None


# All of them for testing


def test_all_images_of_a_source_can_be_test_images(tmp_path, fill):
    for name, count in (("train", 3), ("val", 1), ("test", 2)):
        fill(tmp_path / name / "cat", 10, count)
        fill(tmp_path / name / "ant", 100, 1)
    for path, counts in ((tmp_path, [3, 6]), (tmp_path / "train", [1, 3])):
        dataset = load_all(Data(name=str(path), size=8))
        assert dataset.test.class_counts.tolist() == counts
        assert dataset.test.images.shape == (sum(counts), 8, 8, 1)
        assert dataset.notes[0] == f"all {sum(counts)} images are test images"
        assert "divided" not in kinds(dataset)
        assert dataset.about()["imbalance_ratio"] is None


@pytest.mark.parametrize(
    ("data", "got"),
    [(Data(name="folder:x", imbalance_ratio=2), "--data.imbalance-ratio"), (Data(), "digits-lt")],
)
def test_all_images_are_those_of_a_user_and_not_cut(data, got):
    with pytest.raises(UserError, match=f"all images: got {got}; allowed: your own images"):
        load_all(data)


@pytest.mark.parametrize(
    "more", [{"size": 8}, {"validation": 0.3, "seed": 2}, {"imbalance_ratio": 2}]
)
def test_facts_are_those_of_the_loaded_set_and_read_headers_only(more, tmp_path, fill, monkeypatch):
    for label, count in (("ant", 12), ("bee", 2), ("cat", 1)):
        fill(tmp_path / label, 0, count)
    expected = DataFacts.of((loaded := load(tmp_path, **more)).splits, loaded.image_shape)
    monkeypatch.setattr("taet.data.image_files._eight_bit", None)
    assert facts(Data(name=str(tmp_path), **more)) == expected


def test_files_whose_names_begin_alike_are_named_as_possible_groups():
    images = named(*(f"p{patient}_{image}" for patient in range(20) for image in "ab"))
    (note,) = note_on_names_alike(images)
    assert note.startswith("the names of 40 of 40 files begin as another's")
    grouped, _ = grouped_by_pattern(images, BEGINNING)
    assert {image.group for image in grouped} == {f"p{patient}" for patient in range(20)}


@pytest.mark.parametrize(
    "names",
    [
        [f"IMG_{number:04}" for number in range(40)],
        [f"ISIC_{number:07}_downsampled" for number in range(40)],
        [f"{number:05}" for number in range(40)],
        [f"class{number % 3}_{number:04}" for number in range(40)],
        [*(f"{number}" for number in range(38)), "p1_a", "p1_b"],
    ],
)
def test_names_that_tell_images_apart_are_no_groups(names):
    assert note_on_names_alike(named(*names)) == []
