"""Folders of class folders and tables: splits, classes, groups, and what is refused."""

import shutil
import unicodedata

import numpy as np
import pytest
from PIL import Image

from taet.data import facts, load, load_all
from taet.data.dataset import DataFacts
from taet.errors import UserError
from taet.settings import Data


@pytest.fixture
def split(tmp_path, fill):
    for name, count in (("train", 3), ("val", 1), ("test", 2)):
        fill(tmp_path / name / "cat", 10, count)
        fill(tmp_path / name / "ant", 100, 1)
    return tmp_path


@pytest.fixture
def flat(tmp_path, fill):
    fill(tmp_path / "ant", 0, 12)
    fill(tmp_path / "bee", 100, 2)
    fill(tmp_path / "cat", 200, 1)
    return tmp_path


def levels(split):
    return split.images[:, 0, 0, 0].tolist()


def test_splits_come_from_their_folders_and_classes_from_the_alphabet(split):
    dataset = load(f"folder:{split}")
    assert dataset.class_names == ("ant", "cat")
    assert dataset.image_shape == (1, 6, 6)
    assert levels(dataset.train) == [100, 10, 11, 12]
    assert dataset.train.labels.tolist() == [0, 1, 1, 1]
    assert levels(dataset.validation) == [100, 10]
    assert dataset.test.class_counts.tolist() == [1, 2]
    assert dataset.mirror
    expected = dataset.manifest()
    for old, new in (("train", "Training"), ("val", "VALID"), ("test", "Test")):
        (split / old).rename(split / new)
    assert load(str(split)).manifest() == expected
    (split.parent / "outer").mkdir()
    shutil.move(split, split.parent / "outer" / "archive")
    assert load(str(split.parent / "outer")).manifest() == expected


def test_without_split_folders_a_fifth_of_each_class_is_the_test_set(flat):
    dataset = load(f"folder:{flat}")
    assert dataset.test.class_counts.tolist() == [2, 1, 0]
    assert dataset.train.class_counts.tolist() == [10, 1, 1]
    assert sorted([*dataset.train.indices, *dataset.test.indices]) == list(range(15))
    assert dataset.notes[0].startswith("no test images are given: 20% of each class, and one of two images, is for")
    assert dataset.notes[-1] == "no test image of: cat"
    assert dataset.test.sha256 == load(f"folder:{flat}").test.sha256 != load(f"folder:{flat}", seed=1).test.sha256
    (flat / "runs" / "evaluate-resnet8").mkdir(parents=True)
    (flat / "runs" / "evaluate-resnet8" / "evaluation.json").touch()  # of a card, whose folder is no class
    assert load(f"folder:{flat}").class_names == ("ant", "bee", "cat")


@pytest.mark.parametrize("more", [{"size": 8}, {"validation": 0.3, "seed": 2}, {"imbalance_ratio": 2}])
def test_facts_are_those_of_the_loaded_set_and_read_headers_only(more, flat, monkeypatch):
    expected = DataFacts.of((loaded := load(str(flat), **more)).splits, loaded.image_shape)
    monkeypatch.setattr("taet.data.images._eight_bit", None)
    assert facts(Data(name=str(flat), **more)) == expected


def test_hidden_and_other_files_are_left_out_nested_ones_and_links_are_read(split, fill, tmp_path_factory):
    (split / "train" / ".git").mkdir()
    for place in (split / "train", split / "train" / "ant"):
        (place / "._00.png").write_bytes(b"")
    (split / "train" / "ant" / "notes.txt").write_text("no image")
    fill(split / "train", 3)
    fill(split / "train" / "ant" / "more", 50)
    fill(split / "train" / "ant" / "Masks", 70)
    fill(split / "__MACOSX", 80)
    fill(split / "unsorted", 80)
    fill(split / "train" / "ant", 60, name="{:02d}_mask.png")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    fill(elsewhere, 200, 2)
    (split / "train" / "ant" / "linked").symlink_to(elsewhere)
    (split / "train" / "ant" / "loop").symlink_to(split / "train" / "ant")
    (elsewhere / "back").symlink_to(split / "train" / "ant")
    dataset = load(str(split), group="none")
    assert dataset.class_counts.tolist() == [4, 3]
    assert {"1 images outside of the class folders are left out", "left out: 1 other file (1 .txt)"} <= {*dataset.notes}
    assert {"2 masks of images are left out", "'unsorted' is left out"} <= {*dataset.notes}


def test_all_images_of_a_source_can_be_test_images(split):
    for path, counts in ((split, [3, 6]), (split / "train", [1, 3])):
        dataset = load_all(Data(name=str(path), size=8))
        assert dataset.test.class_counts.tolist() == counts
        assert dataset.test.images.shape == (sum(counts), 8, 8, 1)
        assert dataset.notes[0] == f"all {sum(counts)} images are test images"
        assert not any("20%" in note for note in dataset.notes)
        assert dataset.about()["imbalance_ratio"] is None
    for data, got in ((Data(name=str(split), imbalance_ratio=2), "--data.imbalance-ratio"), (Data(), "digits-lt")):
        with pytest.raises(UserError, match=f"all images: got {got}; allowed: your own images"):
            load_all(data)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: shutil.rmtree(p / "test"), "has no folder 'test'; add it"),
        (lambda p: [file.unlink() for file in (p / "test" / "ant").iterdir()], "class folder '.*ant' holds no image"),
        (lambda p: (p / "test" / "dog").mkdir(), "class folder '.*dog' holds no image; allowed: .*, or no such folder"),
        (lambda p: (p / "test" / "cat").rename(p / "test" / "cta"), "'cta'.*did you mean 'cat'"),
        (lambda p: shutil.copytree(p / "val", p / "valid"), "two validation folders, 'val' and 'valid'"),
    ],
)
def test_bad_folders_are_refused_in_one_line(split, spoil, message, refused):
    spoil(split)
    refused(f"folder:{split}", message)


def test_unreadable_images_are_named_or_skipped_and_counted(split, fill, refused):
    fill(split / "train" / "cat", 10, 5)
    noise = np.random.default_rng(0).integers(0, 256, (6, 6), np.uint8)
    for damaged in (split / "train" / "cat" / "02.png", split / "test" / "cat" / "00.png"):
        Image.fromarray(noise).save(damaged)
        damaged.write_bytes(damaged.read_bytes()[:60])  # behind its header
    refused(split, "2 of 11 images cannot be read: '.*02.png'")  # of all splits at once
    (split / "train" / "cat" / "00.png").write_bytes(b"no image")
    refused(split, r"1 of 11 images cannot be read by their headers: '.*00.png' \(not an image.*skip-unreadable")
    dataset = load(str(split), skip_unreadable=True)
    assert dataset.class_counts.tolist() == [1, 3]
    assert any(note.startswith("3 of 11 images cannot be read: '") and "02.png" in note for note in dataset.notes)


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


def test_subfolders_of_class_folders_stay_in_one_split(patients, fill, refused):
    dataset = load(f"folder:{patients}", validation=0.2)
    groups = [{*split.groups} for split in dataset.splits.values()]
    assert sum(map(len, groups)) == len(set().union(*groups)) == 20 + 10
    assert (abs(dataset.test.class_counts - [4, 10]) <= 4).all()
    assert "20 groups, each kept together; 10 images stand alone" in dataset.notes
    table(patients, ["0.png,1"], "file,patient", "visits.csv")
    assert "'visits.csv' is not used: only images of one subfolder are kept together" in load(str(patients)).notes
    assert dataset.notes[0].startswith("no test images are given: whole groups, ")
    for number, found in ((30, load_all(Data(name=str(patients)))), (len(groups[-1]), dataset)):
        assert any(f"{len(found.test)} test images of {number} groups: intervals take" in one for one in found.notes)
    assert load(f"folder:{patients}", validation=0.2).manifest() == dataset.manifest()
    assert load(f"folder:{patients}", group="none").train.groups is None
    for visit in ("first visit", "second visit"):  # of the only patient of a class
        fill(patients / "other" / "patient 0" / visit, 250, 2)
    dataset = load(f"folder:{patients}")
    whole = "class 'other' is one group, so it is in one split; --data.group none divides it"
    assert {whole, "no test image of: other"} < {*dataset.notes}
    assert not {*dataset.train.groups} & {*dataset.test.groups}
    fill(patients / "third", 250)  # an image alone is no group
    assert not any("'third' is one group" in note for note in load(f"folder:{patients}").notes)
    fill(patients / "fourth" / "patient 0", 250, 2)
    assert load(f"folder:{patients}").train.groups is None  # most classes have only one
    for name in ("third", "fourth"):
        shutil.rmtree(patients / name)
    fill(patients / "other" / "loose", 0)
    fill(patients / "runs" / "at", 0)
    (patients / "runs" / "at" / "run.json").touch()  # of a run, whose folder is no class
    assert load(f"folder:{patients}").class_names == ("mel", "nv", "other")
    for number, name in ((1, "train"), (2, "test")):
        (patients / "nv" / f"patient {number}").rename(patients / "nv" / name)
    refused(patients, "has its splits inside the class folders")
    shutil.rmtree(patients / "nv" / "test")
    before = load(str(patients)).notes[1]
    for label, form in (("mel", "NFC"), ("nv", "NFD")):  # one name, as two systems write it
        (patients / label / "patient 4").rename(patients / label / unicodedata.normalize(form, "é"))
    assert load(str(patients)).notes[1] == before


def test_a_group_in_two_given_splits_is_refused(split, fill, refused):
    fill(split / "train" / "cat" / "p 7", 30)
    fill(split / "test" / "ant" / "p 7", 40)
    refused(split, r"group 'p 7' is in two splits; .*--data.group none", group="folder")
    loose = load(str(split))
    assert loose.train.groups is None
    assert [note for note in loose.notes if note.endswith("as groups, e.g. patients: 1 of them in two splits")]
    fill(split / "unpacked" / "signs" / "stop", 3)
    refused(split / "unpacked", r"has one class folder; allowed: 2 or more; did you mean '.*signs'")


# Tables


def table(folder, rows, header="path,label", name="table.csv"):
    (folder / name).write_text("\n".join([header, *rows]) + "\n")
    return f"csv:{folder / name}"


@pytest.fixture
def images(tmp_path, fill):
    fill(tmp_path / "images", 0, 10)
    return tmp_path


def test_a_table_names_images_and_labels_and_may_name_splits(images):
    rows = [f"images/{i:02d}.png,{'ant' if i < 6 else 'bee'},{'train' if i % 2 else 'TEST'}" for i in range(10)]
    dataset = load(table(images, rows * 2, "path,label,split"))  # repeated rows count once
    assert dataset.class_names == ("ant", "bee")
    assert levels(dataset.train) == [1, 3, 5, 7, 9]
    assert levels(dataset.test) == [0, 2, 4, 6, 8]
    without = load(table(images, [row.rpartition(",")[0] for row in rows]))
    assert without.test.class_counts.tolist() == [1, 1]
    indexed = [f"{i},{row}".replace("/", "\\") for i, row in enumerate(rows)]  # by pandas on Windows
    assert load(table(images, indexed, ",path,label,split")).manifest() == dataset.manifest()


def test_other_usual_columns_separators_and_numbers_are_read(images, refused):
    rows = [f"{i:02d};{i % 3 - 1 + 10 * (i == 9)};lesion {i // 2};p{i // 2}" for i in range(10)]
    dataset = load(table(images, rows, "Image_ID;dx;lesion_id;patient_id"), seed=3)
    assert dataset.class_names == ("-1", "0", "1", "9")
    assert "path by column 'Image_ID', label by column 'dx', group by column 'patient_id'" in dataset.notes
    assert any(note.startswith("images are found by their names below") for note in dataset.notes)
    assert "columns that are not used: lesion_id" in dataset.notes
    groups = [{index // 2 for index in split.indices} for split in dataset.splits.values()]
    assert not groups[0] & groups[1]
    partly = [row if i > 5 else row.rpartition("p")[0] + "NA" * (i == 0) for i, row in enumerate(rows)]
    name = table(images, partly, "Image_ID;dx;lesion_id;patient_id")
    refused(name, "line 2: 'patient_id' is empty, but not 'lesion_id'; allowed: .* --data.group lesion_id")
    assert load(name, group="lesion_id").train.groups is not None
    quoted = [", ".join(f'"{cell}"' if i % 2 else cell for cell in row.split(";")) for i, row in enumerate(rows)]
    other = load(table(images, quoted, 'Image ID, dx, "Lesion ID", Patient ID'), seed=3)
    assert other.manifest() == dataset.manifest()
    some = [row.rpartition("p")[0] + "NA" if i < 4 else row for i, row in enumerate(rows)]  # written by R
    found = load(table(images, some, "Image_ID;dx;lesion;patient"))
    assert "3 groups, each kept together; 4 images stand alone" in found.notes
    name = table(images, rows, "Image_ID;dx;lesion;site")
    refused(name, r"unknown column for data group in .*'sites'.*did you mean 'site'", group="sites")
    assert load(name, group="site").train.groups is not None


def test_labels_of_a_table_beside_the_folders_are_used_but_no_predictions(flat, fill, refused):
    whole = load(f"folder:{flat}", imbalance_ratio=2, test="balanced")
    assert any("'ant' is among its largest classes, 'cat' among its smallest" in note for note in whole.notes)
    files = sorted(file.relative_to(flat) for file in flat.rglob("*.png"))
    table(flat, [f"{file},a,0.5" for file in files], "path,class,probability", "predictions.csv")
    table(flat, [f"{file.stem},{i // 2}" for i, file in enumerate(files)], "image_id,patient_id", "patients.csv")
    named = load(flat, imbalance_ratio=2, test="balanced")
    assert named.manifest() == whole.manifest()
    assert {*named.notes} - {*whole.notes} == {
        "'patients.csv' is not used: images of one patient_id may be in two splits"
    }
    table(flat, [f"{file},train" for file in files], "file,split", "split.csv")
    for group in (None, "none"):
        assert "'split.csv' is not used: it may give other splits" in load(flat, group=group).notes
    fill(flat / "cat" / "masks", 0, 3)
    table(flat, [f"{file},{i % 2}" for i, file in enumerate(files[:10])])
    assert "5 images without a row in it are left out" in load(f"folder:{flat}").notes
    assert {*load(flat).notes} > {*named.notes} - {*whole.notes}  # also where another table has the labels
    table(flat, [f"{file},{i % 2}," for i, file in enumerate(files)], "path,label,patient_id")  # of which none is known
    assert not any("'table.csv' is not used" in note for note in load(flat).notes)
    table(flat, [f"{file},{('bee', 'ant')[i % 2]}" for i, file in enumerate(files[:10])])
    refused(f"folder:{flat}", "5 images lie in folders of other classes than '.*table.csv' says, e.g. '.*/ant/00.png'")
    (flat / "table.csv").rename(flat / "table.tsv")
    assert load(flat / "table.tsv").class_names == ("ant", "bee")
    shutil.copy(flat / "table.tsv", flat / "copy.csv")
    assert any("labels that are not used: 'copy.csv' and 'table.tsv'; --data" in note for note in load(flat).notes)
    for name in ("ant", "cat"):
        shutil.rmtree(flat / name)
    refused(flat, r"has one class folder; allowed: 2 or more; --data 'csv:.*copy.csv' takes the labels of that table")


def test_labels_that_read_like_a_mistake_are_named(images):
    rows = [f"images/{i:02d}.png,{('01', '1', '2', 'NA', 'test')[i % 5]}" for i in range(10)]
    noted = load(table(images, rows)).notes
    assert "classes whose names differ in case, zeros or Unicode form only: 01 and 1" in noted
    assert {f"'{one}' is taken as a class; remove its images if it means no label" for one in ("NA", "test")} < {*noted}


def test_files_of_one_name_are_found_if_they_are_copies(images, fill, refused):
    fill(images / "others", 0, 10)
    decomposed = unicodedata.normalize("NFD", "é")
    rows = [f"/home/other/data/{i:02d}.png,{'éÉ'[i % 2] if i else decomposed}" for i in range(10)]
    dataset = load(table(images, rows))
    assert f"classes whose names differ in case, zeros or Unicode form only: {decomposed}, É and é" in dataset.notes
    assert sorted(levels(dataset.train) + levels(dataset.test)) == list(range(10))
    assert any(note.startswith("images are found by their names below") for note in dataset.notes)
    (images / "images" / "00.png").rename(images / "images" / f"{decomposed}.png")  # as a Mac writes it
    composed = table(images, ["images/é.png,1", *(f"images/{i:02d}.png,{i % 2}" for i in range(1, 10))])
    assert load(composed).train.class_counts.sum() == 8
    (images / "images" / f"{decomposed}.png").rename(images / "images" / "00.png")
    fill(images / "others", 0, 1, size=(99, 99))
    refused(table(images, rows), r"'/home/other/data/00.png' .* may be '.*00.png' or '.*00.png'; allowed: its path")


def test_missing_files_are_counted_and_the_first_is_named(images, fill, refused):
    fill(images / "masks", 0, 12)
    rows = [f"images/{i:02d}.png,{i % 2}" for i in range(12)]
    refused(table(images, rows), r"2 of 12 files are missing, first 'images/10.png' \('.*', line 12\); looked")
    refused(table(images, [f"lost/{row}" for row in rows]), r"2 of 12 files are missing")
    (images / "10.png").write_bytes((images / "images" / "00.png").read_bytes())
    bare = [row.removeprefix("images/") for row in rows[:11]]  # one beside the table, the others below it
    assert len(load(table(images, bare)).test) == 2


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (["images/00.png,0"], "path,labels", r"no column for label \(label, class, .*it has 'path', 'labels'"),
        (["images/00.png,0,1"], "path,label,label", "has two columns 'label'; allowed: each name once"),
        (["images/00.png,0,1"], "path,label", "line 2: got 3 cells; allowed: 2"),
        (["images/00.png, "], "path,label", "line 2: got 'images/00.png' and ''; allowed: a path and a label"),
        (["images/00.png,0,tset"], "path,label,split", "unknown split in '.*line 2: 'tset'.*did you mean 'test'"),
        (
            ["images/00.png,0,train", "images/01.png,1,train"],
            "path,label,split",
            "got the splits train; allowed: train,",
        ),
        (["images/00.png,0", "images/00.png,1"], "path,label", "two labels, splits or groups, in .*line 2 and in .*3"),
        (["images/00.png,0", "images/01.png,0"], "path,label", "allowed: 2 classes or more"),
        (["images/00.png,0", "images/01.png,1", "other/00.png,0"], "path,label", r"got '.*00\.png' in several rows"),
        (["images/00.png,0", "again/images/00.png,1"], "path,label", r"got '.*00\.png' in several rows"),
    ],
)
def test_bad_tables_are_refused_in_one_line(rows, header, message, images, refused):
    refused(table(images, [row.replace("again", str(images)) for row in rows], header), message)
