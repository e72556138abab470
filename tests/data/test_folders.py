"""Folders of image files: which layout they have, what is an image, groups by subfolders, and what
is refused."""

import os
import shutil
import unicodedata

import pytest

from taet.data import load
from taet.data.sources import load_all
from taet.settings import Data
from tests.data.conftest import kinds, note_of


@pytest.fixture
def split(tmp_path, fill):
    """Folders train/, val/ and test/ of class folders."""
    for name, count in (("train", 3), ("val", 1), ("test", 2)):
        fill(tmp_path / name / "cat", 10, count)
        fill(tmp_path / name / "ant", 100, 1)
    return tmp_path


@pytest.fixture
def flat(tmp_path, fill):
    """Three class folders."""
    fill(tmp_path / "ant", 0, 12)
    fill(tmp_path / "bee", 100, 2)
    fill(tmp_path / "cat", 200, 1)
    return tmp_path


def levels(split):
    return split.images[:, 0, 0, 0].tolist()


# Layouts


def test_splits_come_from_their_folders(split):
    dataset = load(f"folder:{split}")
    assert levels(dataset.train) == [100, 10, 11, 12]
    assert levels(dataset.validation) == [100, 10]
    assert dataset.test.class_counts.tolist() == [1, 2]


def test_classes_come_from_the_alphabet(split):
    dataset = load(f"folder:{split}")
    assert dataset.class_names == ("ant", "cat")
    assert dataset.train.labels.tolist() == [0, 1, 1, 1]


def test_folders_of_splits_may_have_other_usual_names(split):
    expected = load(str(split)).manifest()
    for old, new in (("train", "Training"), ("val", "VALID"), ("test", "Test")):
        (split / old).rename(split / new)
    assert load(str(split)).manifest() == expected


def test_an_archive_may_unpack_to_a_folder_of_its_own(split):
    expected = load(str(split)).manifest()
    outer = split.parent / "outer"
    outer.mkdir()
    shutil.move(split, outer / "archive")
    assert load(str(outer)).manifest() == expected


def test_train_and_validation_alone_have_the_validation_images_as_test_set(split):
    expected = load(str(split)).validation
    shutil.rmtree(split / "test")
    dataset = load(str(split))
    assert dataset.test.sha256 == expected.sha256
    assert dataset.validation is None
    assert "validation-is-test" in kinds(dataset)


def test_two_folders_of_one_split_are_refused(split, refused):
    shutil.copytree(split / "val", split / "valid")
    refused(split, "two validation folders, 'val' and 'valid'; keep one")


def test_a_folder_of_one_split_alone_is_refused(split, refused):
    for name in ("val", "test"):
        shutil.rmtree(split / name)
    refused(split, "has no folder 'test'; add it, or leave only the class folders")


def test_a_folder_for_testing_alone_is_refused(split, refused):
    for name in ("train", "val"):
        shutil.rmtree(split / name)
    refused(split, "has no folder 'train'; add it")


def test_splits_inside_the_class_folders_are_refused(tmp_path, fill, refused):
    for label in ("ant", "bee"):
        for name in ("train", "test"):
            fill(tmp_path / label / name, 0, 2)
    refused(tmp_path, "has its splits inside the class folders; allowed: train/ and test/")


def test_a_test_class_without_a_training_image_is_refused(split, refused):
    (split / "test" / "cat").rename(split / "test" / "cta")
    refused(split, "without a training image: 'cta'.*did you mean 'cat'")


def test_one_class_folder_is_refused(flat, refused):
    for name in ("bee", "cat"):
        shutil.rmtree(flat / name)
    refused(flat, "has one class folder; allowed: 2 or more$")


def test_a_folder_above_the_class_folders_is_refused_with_the_right_one(tmp_path, fill, refused):
    fill(tmp_path / "signs" / "stop", 3)
    refused(tmp_path, "has one class folder; allowed: 2 or more; did you mean '.*signs'")


def test_a_folder_without_class_folders_is_refused(tmp_path, refused):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("nothing")
    refused(
        tmp_path / "empty", "holds no class folders; allowed: class folders, or a table: csv:FILE$"
    )


def test_the_folder_of_one_class_is_refused_with_the_folder_above(tmp_path, fill, refused):
    fill(tmp_path / "signs" / "stop", 3)
    refused(
        tmp_path / "signs" / "stop",
        "it holds images: if they are of one class, give the folder above, '.*signs'$",
    )


# What is an image


def test_hidden_files_are_no_images(flat):
    before = load(str(flat)).manifest()
    (flat / ".git").mkdir()
    for place in (flat, flat / "ant"):
        (place / "._00.png").write_bytes(b"")
    assert load(str(flat)).manifest() == before


@pytest.mark.parametrize(
    "name", ["@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "__MACOSX"]
)
def test_folders_of_systems_and_storage_devices_hold_no_images(name, flat, fill):
    before = load(str(flat))
    fill(flat / name, 80)
    fill(flat / "ant" / name / "00.png", 80, name="THUMB_{}.jpg")
    after = load(str(flat))
    assert after.manifest() == before.manifest()
    assert after.class_names == ("ant", "bee", "cat")


def test_runs_and_cards_in_the_folder_are_no_classes(flat, fill):
    for name, file in (("runs/at", "run.json"), ("runs/evaluate-resnet8", "evaluation.json")):
        fill(flat / name, 0)
        (flat / name / file).touch()
    assert load(str(flat)).class_names == ("ant", "bee", "cat")


def test_masks_are_no_images(flat, fill):
    before = load(str(flat), group="none").manifest()
    fill(flat / "ant" / "Masks", 70)
    fill(flat / "ant", 60, name="{:02d}_mask.png")
    dataset = load(str(flat), group="none")
    assert dataset.manifest() == before
    assert note_of(dataset, "masks").numbers == {"count": 2}


def test_files_of_other_kinds_are_counted(flat):
    (flat / "ant" / "notes.txt").write_text("no image")
    assert note_of(load(str(flat)), "other-files") == "left out: 1 other file (1 .txt)"


def test_images_outside_of_the_class_folders_are_counted(flat, fill):
    fill(flat, 3)
    assert note_of(load(str(flat)), "outside").numbers == {"count": 1}


def test_other_folders_beside_those_of_the_splits_are_named(split, fill):
    fill(split / "unsorted", 80)
    assert note_of(load(str(split)), "folder") == "'unsorted' is left out"


def test_nested_folders_are_read(flat, fill):
    fill(flat / "ant" / "more" / "still more", 50)
    dataset = load(str(flat), group="none")
    assert len(dataset.train) + len(dataset.test) == 15 + 1


def test_links_are_followed_once(flat, fill, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    fill(elsewhere, 220, 2)
    (flat / "bee" / "linked").symlink_to(elsewhere)
    (flat / "bee" / "loop").symlink_to(flat / "bee")
    (elsewhere / "back").symlink_to(flat / "bee")
    dataset = load(str(flat), group="none")
    assert (dataset.class_counts + dataset.test.class_counts).tolist() == [12, 4, 1]


@pytest.mark.parametrize("suffix", [".jfif", ".JPG", ".jpe"])
def test_usual_suffixes_of_jpeg_files_are_read(suffix, tmp_path, fill):
    for label in ("ant", "bee"):
        for file in fill(tmp_path / label, 0, 4, name="{}.jpg"):
            file.rename(file.with_suffix(suffix))
    assert len(load(str(tmp_path)).train) == 6


def test_an_empty_class_folder_for_testing_is_as_good_as_none(split):
    shutil.rmtree(split / "test" / "ant")
    expected = load(str(split))
    (split / "test" / "ant").mkdir()
    dataset = load(str(split))
    assert dataset.manifest() == expected.manifest()
    assert note_of(dataset, "empty-class").numbers == {"names": ("ant",)}
    assert "no test image of: ant" in dataset.notes


@pytest.mark.parametrize("name", ["train/ant", "train/dog"])
def test_an_empty_class_folder_for_training_is_refused(name, split, refused):
    shutil.rmtree(split / name, ignore_errors=True)
    (split / name).mkdir()
    refused(split, f"class folder '.*{name}' holds no image; allowed: .*, or no such folder")


def test_a_class_folder_of_other_files_is_refused_with_the_suffixes(split, refused):
    for file in (split / "test" / "ant").iterdir():
        file.rename(file.with_suffix(".dcm"))
    refused(split, r"class folder '.*ant' holds no image; allowed: \.bmp, ")


def test_a_pipe_among_the_images_is_named(flat, refused):
    os.mkfifo(flat / "ant" / "z.png")
    refused(flat, r"1 of 16 images cannot be read .*z\.png' \(not an ordinary file\)")


# Groups


@pytest.fixture
def patients(tmp_path, fill):
    """Two kinds of lesion of 20 patients, of whom 0 to 4 have both; ten images of nobody."""
    for number in range(20):
        fill(tmp_path / "nv" / f"patient {number}", number, 1 + number % 4)
    for number in range(5):
        fill(tmp_path / "mel" / f"patient {number}", 100 + 10 * number, 2)
    fill(tmp_path / "mel", 200, 10)
    fill(tmp_path / "nv" / "patient 3" / "second visit", 240)
    return tmp_path


def test_subfolders_of_class_folders_stay_in_one_split(patients):
    dataset = load(f"folder:{patients}", validation=0.2)
    groups = [{*split.groups} for split in dataset.splits.values()]
    assert sum(map(len, groups)) == len(set().union(*groups)) == 20 + 10
    assert (abs(dataset.test.class_counts - [4, 10]) <= 4).all()
    assert note_of(dataset, "groups").numbers == {"groups": 20, "alone": 10}
    assert note_of(dataset, "subfolder-groups").numbers == {"level": 1, "groups": 20}


def test_intervals_are_said_to_take_images_of_one_group_as_independent(patients):
    everything = load_all(Data(name=str(patients)))
    said = f"{len(everything.test)} test images of 30 groups: intervals take"
    assert any(note.startswith(said) for note in everything.notes)


def test_the_split_by_groups_depends_on_the_seed_alone(patients):
    first, again, other = (load(str(patients), seed=seed).test.sha256 for seed in (0, 0, 1))
    assert first == again != other


def test_groups_can_be_turned_off(patients):
    assert load(str(patients), group="none").train.groups is None


def test_groups_are_at_the_first_level_at_which_a_class_has_two(patients, fill):
    for visit in ("first visit", "second visit"):  # of the only patient of a class
        fill(patients / "other" / "patient 0" / visit, 250, 2)
    dataset = load(str(patients))
    assert note_of(dataset, "class-is-one-group").numbers == {"name": "other"}
    assert "no test image of: other" in dataset.notes
    assert not {*dataset.train.groups} & {*dataset.test.groups}


def test_an_image_alone_is_no_group(patients, fill):
    fill(patients / "third", 250)
    assert "class-is-one-group" not in kinds(load(str(patients)))


def test_subfolders_are_no_groups_if_half_of_the_classes_have_only_one(patients, fill):
    for name in ("third", "fourth"):
        fill(patients / name / "patient 0", 250, 2)
    dataset = load(str(patients))
    assert dataset.train.groups is None
    assert note_of(dataset, "subfolders-no-groups").numbers == {"torn": 0, "lone": 2}


def test_a_name_in_two_unicode_forms_is_one_group(patients):
    before = note_of(load(str(patients)), "groups")
    for label, form in (("mel", "NFC"), ("nv", "NFD")):  # as two systems write it
        folder = patients / label / "patient 4"
        folder.rename(patients / label / unicodedata.normalize(form, "é"))
    assert note_of(load(str(patients)), "groups") == before


def test_subfolders_in_two_splits_are_no_groups(split, fill):
    fill(split / "train" / "cat" / "p 7", 30)
    fill(split / "test" / "ant" / "p 7", 40)
    dataset = load(str(split))
    assert dataset.train.groups is None
    assert note_of(dataset, "subfolders-no-groups").numbers["torn"] == 1


def test_subfolders_in_two_splits_are_refused_as_groups(split, fill, refused):
    fill(split / "train" / "cat" / "p 7", 30)
    fill(split / "test" / "ant" / "p 7", 40)
    refused(split, r"group 'p 7' is in two splits; .*--data.group none", group="folder")


def test_a_column_of_groups_is_refused_of_class_folders(flat, refused):
    refused(
        flat, "data group: got 'patient'; allowed of a folder: folder .* or none", group="patient"
    )


# Tables in a folder


def rows_of(folder, labels=("0", "1")):
    files = sorted(file.relative_to(folder) for file in folder.rglob("*.png"))
    return [f"{file},{labels[i % len(labels)]}" for i, file in enumerate(files)]


def test_a_table_beside_the_images_has_the_labels(flat, write_table):
    write_table(flat, rows_of(flat))
    dataset = load(str(flat))
    assert dataset.class_names == ("0", "1")
    assert note_of(dataset, "table") == "labels are those of 'table.csv'"


def test_images_without_a_row_are_counted_but_not_masks(flat, fill, write_table):
    fill(flat / "cat" / "masks", 0, 3)
    write_table(flat, rows_of(flat)[:10])
    assert note_of(load(str(flat)), "without-a-row").numbers == {"count": 5}


def test_a_table_that_contradicts_the_class_folders_is_refused(flat, write_table, refused):
    write_table(flat, rows_of(flat, labels=("bee", "ant"))[:10])
    refused(
        flat,
        "5 images lie in folders of other classes than '.*table.csv' says, e.g. '.*/ant/00.png'",
    )


def test_two_tables_of_labels_are_named_and_not_used(flat, write_table):
    for name in ("a.csv", "b.tsv"):
        write_table(flat, rows_of(flat), name=name)
    dataset = load(str(flat))
    assert dataset.class_names == ("ant", "bee", "cat")
    assert "'a.csv' and 'b.tsv'; --data 'csv:" in note_of(dataset, "unused-tables")


def test_one_class_folder_beside_tables_of_labels_is_refused_with_the_way(
    flat, write_table, refused
):
    for name in ("ant", "cat"):
        shutil.rmtree(flat / name)
    for name in ("a.csv", "b.tsv"):
        write_table(flat, rows_of(flat), name=name)
    refused(flat, "one class folder; .*; --data 'csv:.*a.csv' takes the labels of that table")


def test_a_table_of_predictions_has_no_labels(flat, write_table):
    before = load(str(flat)).manifest()
    rows = [f"{row},0.5" for row in rows_of(flat)]
    write_table(flat, rows, "path,class,probability")
    assert load(str(flat)).manifest() == before


def test_a_table_of_groups_beside_class_folders_is_named(flat, write_table):
    write_table(flat, ["00,1"], "image_id,patient_id", "patients.csv")
    note = note_of(load(str(flat)), "unused-table")
    assert note == "'patients.csv' is not used: images of one patient_id may be in two splits"


def test_a_table_of_groups_beside_subfolders_is_named(patients, write_table):
    write_table(patients, ["0.png,1"], "file,patient", "visits.csv")
    note = note_of(load(str(patients)), "unused-table")
    assert note == "'visits.csv' is not used: only images of one subfolder are kept together"


@pytest.mark.parametrize("group", [None, "none"])
def test_a_table_of_splits_beside_class_folders_is_named(group, flat, write_table):
    write_table(flat, ["ant/00.png,train"], "file,split", "split.csv")
    note = note_of(load(str(flat), group=group), "unused-table")
    assert note == "'split.csv' is not used: it may give other splits"


def test_a_table_for_each_split_has_the_labels(tmp_path, fill, write_table):
    for name in ("train", "val", "test"):
        fill(tmp_path / "images", 0, 6, name=f"{name}{{}}.png")
        rows = [f"{name}{i}.png,{'ab'[i % 2]}" for i in range(6)]
        write_table(tmp_path, rows, "image_name,label", f"{name}.csv")
    dataset = load(str(tmp_path))
    assert {name: len(split) for name, split in dataset.splits.items()} == {
        "train": 6,
        "validation": 6,
        "test": 6,
    }
    assert dataset.class_names == ("a", "b")


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_table_in_the_folder_of_each_split_has_the_labels(kind, tmp_path, fill):
    """As in folders for the library `datasets`."""
    for number, name in enumerate(("train", "test")):
        fill(tmp_path / name, 10 * number, 4)
        pairs = [(f"{i:02d}.png", "ab"[i % 2]) for i in range(4)]
        if kind == "csv":
            lines = ["file_name,label", *(",".join(pair) for pair in pairs)]
        else:
            lines = ['{"file_name": "%s", "label": "%s"}' % pair for pair in pairs]  # noqa: UP031
        (tmp_path / name / f"metadata.{kind}").write_text("\n".join(lines))
    dataset = load(str(tmp_path))
    assert levels(dataset.train) == [0, 1, 2, 3]
    assert levels(dataset.test) == [10, 11, 12, 13]
    assert dataset.test.labels.tolist() == [0, 1, 0, 1]


def test_one_table_beside_the_folders_of_splits_has_the_labels(tmp_path, fill, write_table):
    rows = list[str]()
    for name in ("train", "test"):
        rows += [
            f"{name}/{file.name},{'ab'[i % 2]}"
            for i, file in enumerate(fill(tmp_path / name, 0, 4))
        ]
    write_table(tmp_path, rows, "file_name,label", "metadata.csv")
    dataset = load(str(tmp_path))
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 4, "test": 4}


def test_a_column_that_no_table_of_the_folder_has_is_refused(flat, refused):
    refused(flat, "data label: got 'dx'; allowed: with a table of labels", label_column="dx")


def test_a_test_folder_without_labels_is_left_out_with_a_note(tmp_path, fill, write_table):
    """As of a competition: train.csv has labels, test.csv has none."""
    fill(tmp_path / "train", 0, 10)
    fill(tmp_path / "test", 50, 4)
    write_table(tmp_path, [f"{i:02d},{i % 2}" for i in range(10)], "id_code,diagnosis", "train.csv")
    write_table(tmp_path, ["00", "01", "02", "03"], "id_code", "test.csv")
    dataset = load(str(tmp_path))
    assert note_of(dataset, "hidden-labels").numbers == {"split": "test"}
    assert sorted(levels(dataset.train) + levels(dataset.test)) == list(range(10))


def test_a_sample_of_a_submission_has_no_labels(tmp_path, fill, write_table):
    fill(tmp_path / "images", 0, 10)
    rows = [f"{i:02d},{i % 2}" for i in range(10)]
    for name in ("train.csv", "sample_submission.csv"):
        write_table(tmp_path, rows, "image_id,label", name)
    assert note_of(load(str(tmp_path)), "table") == "labels are those of 'train.csv'"
