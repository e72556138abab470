"""Sets as folders of class folders."""

import shutil

import numpy as np
import pytest
from PIL import Image

from taet.data import image_listing, load
from taet.errors import UserError
from taet.settings import Data

PARTS = ("train", "test")


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


@pytest.mark.parametrize(("train", "val", "test"), [("Train", "Val", "Test"), ("TRAIN", "Validation", "test")])
def test_split_folders_may_be_in_capitals(split, train, val, test):
    expected = load(str(split))
    for old, new in (("train", train), ("val", val), ("test", test)):
        (split / old).rename(split / "moved")
        (split / "moved").rename(split / new)
    dataset = load(str(split))
    assert dataset.class_names == ("ant", "cat")
    assert dataset.manifest() == expected.manifest()


def test_without_split_folders_a_fifth_of_each_class_is_the_test_set(flat):
    dataset = load(f"folder:{flat}")
    assert dataset.test.class_counts.tolist() == [2, 1, 0]
    assert dataset.train.class_counts.tolist() == [10, 1, 1]
    assert sorted([*dataset.train.indices, *dataset.test.indices]) == list(range(15))
    assert dataset.notes[0] == "no folder 'test': 20% of each class, rounded, at least 1 of 2, is for testing (seed 0)"
    assert dataset.notes[-1] == "no test image of: cat"
    assert dataset.test.sha256 == load(f"folder:{flat}").test.sha256
    assert dataset.test.sha256 != load(f"folder:{flat}", seed=1).test.sha256


def test_a_class_may_lack_test_images_which_is_noted(split):
    shutil.rmtree(split / "test" / "ant")
    shutil.rmtree(split / "val" / "cat")
    dataset = load(str(split))
    assert dataset.test.class_counts.tolist() == [0, 2]
    assert dataset.validation.class_counts.tolist() == [1, 0]
    assert "no test image of: ant" in dataset.notes


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
        (lambda p: remove(p / "test" / "ant"), "class folder '.*test/ant' holds no image"),
        (
            lambda p: shutil.rmtree(p / "test") or (p / "test").mkdir(),
            "class folders in '.*test': got none; allowed: 1",
        ),
        (lambda p: fill(p / "test" / "cta", 0), "unknown class folder in '.*test': 'cta'.*did you mean 'cat'"),
        (lambda p: (p / "test").rename(p / "tset"), "no folder 'test'"),
        (lambda p: fill(p / "valid" / "cat", 0), "two validation folders, 'val' and 'valid'"),
        (lambda p: fill(p / "Train" / "cat", 0), "two train folders, 'Train' and 'train'"),
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


@pytest.fixture
def patients(tmp_path):
    """Three kinds of lesion of 20 patients; patients 0 to 4 have two kinds."""
    for number in range(20):
        fill(tmp_path / "nv" / f"patient {number}", number, 1 + number % 4)
    for number in range(5):
        fill(tmp_path / "mel" / f"patient {number}", 100 + 10 * number, 2)
    fill(tmp_path / "mel", 200, 10)
    fill(tmp_path / "bkl" / "clinic" / "patient 99", 220, 3)
    fill(tmp_path / "bkl" / "clinic" / "patient 98", 230, 2)
    return tmp_path


def owners(dataset):
    """The folders of each split's images below their class folder, of the images that lie in one."""
    files = image_listing(Data(name=dataset.name, group="folder")).by_split()
    return {
        part: {"/".join(files[part][i].parts[2:-1]) for i in split.indices} - {""}
        for part, split in dataset.splits.items()
    }


def test_folders_below_a_class_folder_stay_in_one_split(patients, monkeypatch):
    monkeypatch.chdir(patients.parent)
    dataset = load(f"folder:{patients.name}", group="folder", validation=0.2)
    folders = owners(dataset)
    assert not folders["train"] & folders["test"]
    assert not folders["train"] & folders["validation"]
    assert not folders["validation"] & folders["test"]
    assert set().union(*folders.values()) == {
        *(f"patient {number}" for number in range(20)),
        "clinic/patient 98",
        "clinic/patient 99",
    }
    total = np.array([5, 20, 50])
    assert (abs(dataset.test.class_counts - total / 5) <= [3, 2, 4]).all()
    assert dataset.class_counts.all()
    assert dataset.notes[:2] == (
        "no folder 'test': as near to 20% of each class as whole groups come, at least 1 of 2, is for testing (seed 0)",
        "22 groups, each in one split; 10 images stand alone",
    )
    assert (
        "0.2 of each training class, as near as whole groups come, at least 1 of 2, is held out for validation"
        in dataset.notes
    )
    again = load(f"folder:{patients.name}", group="folder", validation=0.2)
    assert again.manifest() == dataset.manifest()


def test_a_class_of_two_patients_is_tested_on_one_of_them(tmp_path):
    numbered(tmp_path, "ant", range(20))
    for number in range(2):
        fill(tmp_path / "bee" / f"patient {number}", 100 + 10 * number, 3)
    dataset = load(str(tmp_path), group="folder")
    assert dataset.class_counts.tolist() == [16, 3]
    assert dataset.test.class_counts.tolist() == [4, 3]


def test_a_folder_in_two_given_splits_is_refused(split):
    fill(split / "train" / "cat" / "p 7", 30)
    fill(split / "test" / "ant" / "p 7", 40)
    assert len(load(str(split)).train) == 5
    with pytest.raises(
        UserError, match=r"group 'p 7' is in two splits: '.*train/cat/p 7/00\.png' is for train, '.*test"
    ):
        load(str(split), group="folder")
    with pytest.raises(UserError, match=r"keep it in one; without groups: --data\.group None$"):
        load(str(split), group="folder")


def numbered(folder, name, numbers):
    for number in numbers:
        fill(folder / name / f"p {number}", number)


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda p: [numbered(p, "ant", range(5)), numbered(p, "bee", range(5, 10))], True),
        (lambda p: [numbered(p, "ant", range(5)), numbered(p, "bee", range(5))], True),
        (lambda p: [numbered(p, "ant", range(5)), fill(p / "bee", 10, 5)], True),  # of files that stand alone
        (lambda p: [fill(p / name / "images", 10, 9) for name in ("ant", "bee")], False),
        (lambda p: [fill(p / name / kind, 10, 9) for name in ("ant", "bee") for kind in ("left", "right")], False),
        (lambda p: [numbered(p, "ant", range(5)), fill(p / "bee" / "images", 10, 9)], False),
        (lambda p: [fill(p / name, 10, 9) for name in ("ant", "bee")], False),
        (lambda p: [fill(p / part / name / "images", 9) for part in ("train", "test") for name in "ab"], False),
        (lambda p: [numbered(p / part, name, range(s, s + 2)) for s, part in enumerate(PARTS) for name in "ab"], False),
        (lambda p: [numbered(p / part, name, [s, s + 5]) for s, part in enumerate(PARTS) for name in "ab"], True),
    ],
)
def test_folders_count_as_groups_only_where_they_can_be_used(tmp_path, build, expected):
    build(tmp_path)
    assert image_listing(Data(name=str(tmp_path))).subfolders_are_groups() == expected
    if expected:
        assert load(str(tmp_path), group="folder").train.groups is not None


def test_groups_too_large_to_test_on_are_refused_with_the_way_on(tmp_path):
    for name in ("ant", "bee"):
        fill(tmp_path / name / "images", 10, 9)
    with pytest.raises(UserError, match=r"no class has a group to spare .*; without groups: --data\.group None$"):
        load(str(tmp_path), group="folder")
    assert len(load(str(tmp_path)).test) == 4


def test_a_survey_refuses_files_that_cannot_be_read_as_reading_does(split):
    assert len(image_listing(Data(name=str(split))).survey.checked().paths) == 9
    for spoilt in (["train/cat/00.png"], list(split.rglob("*.png"))):
        for path in spoilt:
            (split / path).write_bytes(b"no image")
        with pytest.raises(UserError) as reading:
            load(str(split))
        with pytest.raises(UserError, match=r"cannot read image '.*': it is no image") as surveying:
            image_listing(Data(name=str(split))).survey.checked()
        assert str(surveying.value) == str(reading.value)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ("patient", "data group: got 'patient'; allowed of a folder: folder"),
        ("folder", "got 'folder', but no class folder in '.*' holds folders"),
    ],
)
def test_groups_that_are_not_there_are_refused(flat, group, message):
    with pytest.raises(UserError, match=message):
        load(str(flat), group=group)


def test_what_other_programs_leave_is_left_out_and_counted(split):
    for name in (".DS_Store", "Thumbs.db", "notes.txt", "more.TXT"):
        (split / "train" / "cat" / name).write_bytes(b"")
    (split / "train" / "cat" / "no ending").write_bytes(b"")
    fill(split / "test", 0)
    (split / "labels.csv").write_bytes(b"")
    dataset = load(str(split))
    assert dataset.class_counts.tolist() == [1, 3]
    assert dataset.notes[0].startswith("left out: ")
    assert set(dataset.notes[0][10:].split(", ")) == {
        "1 .db",
        "1 .txt",
        "1 .TXT",
        "1 no ending",
        "1 outside of the class folders",
    }


def test_names_may_hold_anything(tmp_path):
    for name in ("mélanome malin", "皮膚", "a,b;c", "50%"):
        fill(tmp_path / name, 10, 2)
    (tmp_path / "皮膚" / "00.png").rename(tmp_path / "皮膚" / "Läsion nº 1 .PNG")
    assert load(str(tmp_path)).class_names == ("50%", "a,b;c", "mélanome malin", "皮膚")


def test_class_names_that_are_alike_are_noted(tmp_path):
    for name in ("Cat", "cat", "dog", "e\u0301", "\u00e9"):
        fill(tmp_path / name, 10, 2)
    notes = load(str(tmp_path)).notes
    assert "different classes with similar names: 'Cat', 'cat'" in notes
    assert len([note for note in notes if "similar names" in note]) == 2


def test_links_are_followed_once(split, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    fill(elsewhere, 200, 2)
    (split / "train" / "ant" / "linked").symlink_to(elsewhere)
    (elsewhere / "round").symlink_to(elsewhere)
    (split / "train" / "dog").symlink_to(elsewhere)
    fill(split / "test" / "dog", 1)
    assert load(str(split)).class_counts.tolist() == [3, 3, 2]
    (split / "train" / "cat" / "broken.png").symlink_to(elsewhere / "gone.png")
    with pytest.raises(UserError, match=r"cannot read image '.*broken\.png': No such file or directory"):
        load(str(split))


def test_more_than_a_thousand_classes_work(tmp_path):
    fill(tmp_path / "train" / "0", 7, size=(4, 4))
    for number in range(1, 1001):
        (tmp_path / "train" / str(number)).mkdir()
        (tmp_path / "train" / str(number) / "a.png").write_bytes((tmp_path / "train" / "0" / "00.png").read_bytes())
    fill(tmp_path / "test" / "0", 8, size=(4, 4))
    fill(tmp_path / "test" / "999", 8, size=(4, 4))
    dataset = load(str(tmp_path))
    assert dataset.num_classes == 1001
    assert dataset.class_counts.tolist() == [1] * 1001
    assert dataset.test.class_names[dataset.test.labels[1]] == "999"
    assert dataset.notes[-1].endswith(" and 989 more")
    assert len(dataset.notes[-1]) < 100


def test_one_image_per_class_works_where_the_test_images_are_given(tmp_path):
    fill(tmp_path / "ant", 1)
    fill(tmp_path / "bee", 2)
    with pytest.raises(UserError, match="no folder 'test', and no class has a second image to test on; allowed"):
        load(str(tmp_path))
    for name in ("ant", "bee"):
        fill(tmp_path / "set" / "train" / name, 1)
        fill(tmp_path / "set" / "test" / name, 3)
    assert len(load(str(tmp_path / "set"), validation=0.5).train) == 2


def test_images_in_two_splits_are_counted_and_one_is_named(tmp_path):
    noise = iter(np.random.default_rng(0).integers(0, 256, (20, 6, 6), np.uint8))
    for part in ("train", "val", "test"):
        for name in ("ant", "cat"):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(3):
                Image.fromarray(next(noise)).save(tmp_path / part / name / f"{number}.png")
    assert not any("identical" in note for note in load(str(tmp_path)).notes)
    for source, copy in (
        ("train/cat/0", "test/ant/twin"),
        ("train/cat/1", "test/cat/twin"),
        ("train/cat/1", "test/cat/triplet"),
        ("test/ant/0", "val/ant/twin"),
    ):
        (tmp_path / f"{copy}.png").write_bytes((tmp_path / f"{source}.png").read_bytes())
    assert load(str(tmp_path)).notes[-1] == (
        f"identical images: 3 of 9 test images are also in train, e.g. '{tmp_path}/test/ant/twin.png'; "
        f"1 of 9 test images are also in validation, e.g. '{tmp_path}/test/ant/0.png'"
    )


def test_images_held_out_for_validation_are_compared_too(flat):
    image = (flat / "bee" / "00.png").read_bytes()
    for number in range(20):
        (flat / "cat" / f"{number}.png").write_bytes(image)
    dataset = load(str(flat), validation=0.2)
    assert "validation images are also in train, e.g. '" in dataset.notes[-1]
    assert dataset.notes[-1].split("'")[1].startswith(f"{flat}/cat/")


def test_on_disk_the_set_is_the_same(patients, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TAET_CACHE", str(tmp_path_factory.mktemp("cache")))
    memory, disk = (
        load(str(patients), group="folder", validation=0.2, size=5, storage=storage) for storage in ("memory", "disk")
    )
    assert disk.manifest() == memory.manifest()
    assert disk.notes == memory.notes


def test_a_folder_without_class_folders_is_refused(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"class folders in '.*': got none; allowed: 2 or more"):
        load(str(tmp_path))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no such folder: '.*nowhere'"):
        load(f"folder:{tmp_path / 'nowhere'}")


def test_the_facts_are_known_without_the_images(patients, facts_agree):
    facts_agree(f"folder:{patients}")
    facts_agree(f"folder:{patients}", group="folder")


def test_the_facts_of_given_splits(split, facts_agree):
    fill(split / "train" / "ant", 100, 3, mode="RGB")
    facts_agree(str(split))


@pytest.mark.parametrize("place", ["inside", "beside"])
def test_a_flat_test_folder_takes_its_labels_from_a_table(split, place):
    """As GTSRB is downloaded: classes are numbers, written differently in folders and table."""
    for part in ("train", "val"):
        (split / part / "ant").rename(split / part / "00000")
        (split / part / "cat").rename(split / part / "00001")
    expected = load(str(split / "train")) and [100, 10, 11]
    files = [split / "test" / "ant" / "00.png", *sorted((split / "test" / "cat").iterdir())]
    lines = ["Filename;Width;ClassId"]
    for number, (file, label) in enumerate(zip(files, (0, 1, 1), strict=True)):
        file.rename(split / "test" / f"x{number}.png")
        lines.append(f"x{number}.png;6;{label}")
    for name in ("ant", "cat"):
        (split / "test" / name).rmdir()
    with pytest.raises(UserError, match="holds images without class folders, and no table for them; allowed: class fo"):
        load(str(split))
    table = split / "test" / "GT.csv" if place == "inside" else split / "Test.csv"
    table.write_text("\n".join(lines))
    dataset = load(str(split))
    assert dataset.test.images[:, 0, 0, 0].tolist() == expected
    assert dataset.test.labels.tolist() == [0, 1, 1]
    assert f"'test' has no class folders: its labels are those of '{table.name}'" in dataset.notes
    table.write_text("\n".join([*lines[:-1], "x2.png;6;7"]))
    with pytest.raises(UserError, match=r"unknown class in .* '7'"):
        load(str(split))


def test_an_archive_that_holds_a_folder_twice_is_read_once(split):
    """As Kaggle's copy of GTSRB: Train and train, Test and test, with the same files."""
    expected = load(str(split)).train.sha256
    shutil.copytree(split / "train", split / "TRAIN")
    assert load(str(split)).train.sha256 == expected
    (split / "TRAIN" / "cat" / "00.png").write_bytes(b"another size")
    with pytest.raises(UserError, match="two train folders, 'TRAIN' and 'train'; keep one"):
        load(str(split))


@pytest.fixture
def parts(tmp_path):
    """As HAM10000 is downloaded: two folders of images, and a table of both with its own names of columns."""
    lines = ["lesion_id,image_id,dx,dx_type"]
    for number in range(20):
        folder = tmp_path / f"images_part_{1 + number % 2}"
        folder.mkdir(exist_ok=True)
        Image.new("L", (6, 6), number).save(folder / f"ISIC_{number:03}.png")
        lines.append(f"HAM_{number // 4},ISIC_{number:03},{('nv', 'mel')[number % 5 == 0]},histo")
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    (tmp_path / "pixels.csv").write_text("pixel0,pixel1,label\n1,2,3")
    return tmp_path


def test_folders_that_are_no_classes_take_their_labels_from_the_table_beside_them(parts):
    """Else a model would learn in which part of the download an image is."""
    dataset = load(str(parts))
    assert dataset.class_names == ("mel", "nv")
    every = [*zip(dataset.train.images[:, 0, 0, 0], dataset.train.labels, strict=True)]
    assert all(label == (number % 5 != 0) for number, label in every)
    assert "its folders are not classes: the labels are those of 'metadata.csv'" in dataset.notes
    assert load(str(parts), group="lesion_id").train.groups is not None
    shutil.copytree(parts / "images_part_1", parts / "IMAGES_PART_1")
    assert load(str(parts)).train.sha256 == dataset.train.sha256


def test_of_two_tables_of_the_images_one_must_be_named(parts):
    shutil.copy(parts / "metadata.csv", parts / "labels.csv")
    with pytest.raises(
        UserError, match=r"2 tables of its images, 'labels.csv', 'metadata.csv'; name one: csv:.*labels"
    ):
        load(str(parts))
    assert load(f"csv:{parts / 'metadata.csv'}").class_names == ("mel", "nv")


def test_a_table_that_agrees_with_the_class_folders_or_is_of_other_files_changes_nothing(flat):
    expected = load(str(flat))
    rows = [
        f"{file.relative_to(flat)},{number}"
        for number, name in enumerate(["ant", "bee", "cat"])
        for file in (flat / name).iterdir()
    ]
    for lines in (rows, [f"{number}.jpg,{number % 2}" for number in range(30)], rows[:1]):
        (flat / "labels.csv").write_text("\n".join(["path,label", *lines]))
        assert load(str(flat)).class_names == expected.class_names
