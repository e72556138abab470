"""Sets as folders of class folders."""

import numpy as np
import pytest
from PIL import Image

from taet.data import load
from taet.errors import UserError


def fill(folder, level, count=1, mode="L", size=(6, 6)):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new(mode, size, level + i if mode == "L" else (level + i,) * 3).save(folder / f"{i:02d}.png")


@pytest.fixture
def split(tmp_path):
    for name, count in (("train", 3), ("val", 1), ("test", 2)):
        fill(tmp_path / name / "cat", 10, count)
        fill(tmp_path / name / "ant", 100, 1)
    return tmp_path


@pytest.fixture
def flat(tmp_path):
    fill(tmp_path / "ant", 0, 12)
    fill(tmp_path / "bee", 100, 2)
    fill(tmp_path / "cat", 200, 1)
    return tmp_path


def test_splits_come_from_their_folders_and_classes_from_the_alphabet(split):
    dataset = load(f"folder:{split}")
    assert dataset.class_names == ("ant", "cat")
    assert dataset.image_shape == (1, 6, 6)
    assert dataset.train.images[:, 0, 0, 0].tolist() == [100, 10, 11, 12]
    assert dataset.train.labels.tolist() == [0, 1, 1, 1]
    assert dataset.validation.images[:, 0, 0, 0].tolist() == [100, 10]
    assert dataset.test.class_counts.tolist() == [1, 2]


@pytest.mark.parametrize("name", ["valid", "validation"])
def test_the_validation_folder_has_three_names(split, name):
    (split / "val").rename(split / name)
    assert len(load(str(split)).validation) == 2


def test_without_split_folders_a_fifth_of_each_class_is_the_test_set(flat):
    dataset = load(f"folder:{flat}")
    assert dataset.test.class_counts.tolist() == [2, 1, 0]
    assert dataset.train.class_counts.tolist() == [10, 1, 1]
    assert sorted([*dataset.train.indices, *dataset.test.indices]) == list(range(15))
    assert dataset.notes[0] == "no folder 'test': 20% of each class, rounded, at least 1 of 2, is for testing (seed 0)"
    assert dataset.notes[-1] == "no test image of: cat"
    assert dataset.test.sha256 == load(f"folder:{flat}").test.sha256
    assert dataset.test.sha256 != load(f"folder:{flat}", seed=1).test.sha256


def test_hidden_and_other_files_are_ignored_and_nested_ones_are_read(split):
    (split / ".git").mkdir()
    for path in (split / "train" / ".hidden" / "a.png", split / "train" / "ant" / ".thumbs" / "a.png"):
        path.parent.mkdir()
        path.write_bytes(b"")
    (split / "train" / "ant" / "._00.png").write_bytes(b"")
    (split / "train" / "ant" / "notes.txt").write_text("no image")
    fill(split / "train" / "ant" / "more", 50)
    assert load(str(split)).class_counts.tolist() == [2, 3]


def test_one_colour_image_makes_the_set_colour(split):
    fill(split / "test" / "ant", 7, mode="RGB")
    assert load(str(split)).image_shape == (3, 6, 6)


def test_sizes_must_agree_unless_one_is_given(split):
    fill(split / "test" / "cat", 7, size=(9, 5))
    with pytest.raises(UserError, match=r"train/ant/00\.png' is 6x6 pixels, '.*test/cat/00\.png' is 9x5.*--data\.size"):
        load(str(split))
    assert load(str(split), size=8).image_shape == (1, 8, 8)


def test_a_class_may_be_called_train(flat):
    (flat / "bee").rename(flat / "train")
    assert load(str(flat)).class_names == ("ant", "cat", "train")


def test_it_can_be_cut_like_any_set(flat):
    dataset = load(str(flat), imbalance_ratio=3, test="balanced")
    assert dataset.class_counts.tolist() == [3, 1, 1]
    assert dataset.test.class_counts.tolist() == [2, 1, 0]


def remove(folder):
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: remove(p / "train" / "ant"), "class folder '.*train/ant' holds no image"),
        (lambda p: remove(p / "train" / "ant") or (p / "train" / "ant").rmdir(), "train': got only 'cat'"),
        (lambda p: fill(p / "test" / "cta", 0), "unknown class folder in '.*test': 'cta'.*did you mean 'cat'"),
        (lambda p: (p / "test").rename(p / "tset"), "no folder 'test'"),
        (lambda p: fill(p / "valid" / "cat", 0), "two validation folders, 'val' and 'valid'"),
        (
            lambda p: (p / "train" / "cat" / "00.png").write_bytes(b""),
            r"cannot read image '.*cat/00\.png': it is empty",
        ),
    ],
)
def test_bad_folders_are_refused_in_one_line(split, spoil, message):
    spoil(split)
    with pytest.raises(UserError, match=message) as error:
        load(f"folder:{split}")
    assert "\n" not in str(error.value)


def test_a_folder_without_class_folders_is_refused(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"class folders in '.*': got none; allowed: 2 or more"):
        load(str(tmp_path))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no such folder: '.*nowhere'"):
        load(f"folder:{tmp_path / 'nowhere'}")
