"""Sets as a table of image files."""

import numpy as np
import pytest
from PIL import Image

from taet.data import image_listing, load
from taet.data.foreign_files import reading
from taet.errors import UserError
from taet.settings import Data


@pytest.fixture
def table(tmp_path):
    """Return a function that writes a table of lines; what it may list are images/0.png to 29.png, all different."""
    (tmp_path / "images").mkdir()
    for number in range(30):
        Image.new("L", (6, 6), number).save(tmp_path / "images" / f"{number}.png")

    def write(*lines, encoding="utf-8", end="\n"):
        path = tmp_path / "list.csv"
        path.write_bytes(end.join(lines).encode(encoding))
        return str(path)

    return write


def rows(numbers, *cells):
    return [",".join((f"images/{number}.png", *cells)) for number in numbers]


def levels(split):
    return split.images[:, 0, 0, 0].tolist()


def test_splits_and_labels_come_from_their_columns(table):
    path = table(
        "path,label,split",
        *rows(range(4), "nv", "train"),
        *rows([4, 5], "mel", "Train"),
        *rows([6], "mel", "val"),
        *rows([9, 8, 7], "nv", "test"),
    )
    dataset = load(f"csv:{path}")
    assert dataset.class_names == ("mel", "nv")
    assert dataset.train.labels.tolist() == [1, 1, 1, 1, 0, 0]
    assert levels(dataset.train) == [0, 1, 2, 3, 4, 5]
    assert levels(dataset.test) == [9, 8, 7]
    assert levels(dataset.validation) == [6]
    assert dataset.test.indices.tolist() == [0, 1, 2]
    assert dataset.train.groups is None
    assert dataset.notes[0] == "10 image files, 6x6 pixels, grey"
    assert load(path).manifest() == dataset.manifest()


@pytest.mark.parametrize("name", ["val", "valid", "validation", " VAL "])
def test_the_validation_split_has_three_names(table, name):
    cells = [(f"images/{i}.png", "ab"[i % 2], part) for i, part in enumerate(["train", "train", name, "test", "test"])]
    assert len(load(table("path,label,split", *map(",".join, cells))).validation) == 1


def test_without_a_split_a_fifth_of_each_class_is_the_test_set(table):
    path = table("path,label", *rows(range(20), "a"), *rows(range(20, 30), "b"))
    dataset = load(path)
    assert dataset.test.class_counts.tolist() == [4, 2]
    assert sorted([*levels(dataset.train), *levels(dataset.test)]) == list(range(30))
    assert sorted([*dataset.train.indices, *dataset.test.indices]) == list(range(30))
    assert dataset.notes[0].startswith("no column 'split' and no list for test: 20% of each class")
    assert load(path, seed=1).test.sha256 != dataset.test.sha256


@pytest.mark.parametrize(
    ("header", "group"), [("path,label,group", None), ("path,label,lesion_id", "lesion_id"), ("path,label,x y", "x y")]
)
def test_groups_stay_whole(table, header, group):
    path = table(header, *(f"images/{i}.png,{'ab'[i >= 20]},{f'g{i // 3}' if i < 27 else ''}" for i in range(30)))
    dataset = load(path, group=group, validation=0.2)
    groups = [{level // 3 for level in levels(split) if level < 27} for split in dataset.splits.values()]
    assert sum(map(len, groups)) == len(set().union(*groups)) == 9
    assert dataset.notes[1] == "9 groups, each in one split; 3 images stand alone"
    assert dataset.test.class_counts.tolist() == [3, 2]


def test_a_column_that_may_be_a_group_is_pointed_out(table):
    lines = [f"images/{number}.png,{'ab'[number % 2]},{number // 4}" for number in range(20)]
    hint = "column 'Patient_ID' may name groups of images: --data.group Patient_ID keeps each in one split"
    assert hint in load(table("path,label,Patient_ID", *lines)).notes
    assert hint not in load(table("path,label,Patient_ID", *lines), group="Patient_ID").notes
    both = [f"{line},{number // 2}" for number, line in enumerate(lines)]
    assert hint not in load(table("path,label,Patient_ID,group", *both)).notes


def test_other_columns_and_the_order_of_columns_do_not_matter(table):
    path = table("age,label,sex,path", *(f"5{i},{'ab'[i % 2]},f,images/{i}.png" for i in range(10)))
    assert load(path).class_names == ("a", "b")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_tables_are_written_in_many_ways(table, delimiter, end, encoding):
    lines = [delimiter.join((f'"images/{i}.png"', f'"{"äb"[i % 2]}, or ""so"""')) for i in range(10)]
    path = table(delimiter.join((" Path", "Label ")), *lines, "", encoding=encoding, end=end)
    assert load(path).class_names == ('b, or "so"', 'ä, or "so"')


def test_labels_that_are_whole_numbers_go_by_size_and_may_skip(table):
    path = table("path,label", *rows(range(10), "10"), *rows(range(10, 20), "2"), *rows(range(20, 30), "04"))
    dataset = load(path)
    assert dataset.class_names == ("2", "4", "10")
    assert levels(dataset.train.choose(np.flatnonzero(dataset.train.labels == 0)))[0] in range(10, 20)
    assert "labels are not 0 to 2: the 3 that occur are the classes, sorted" in dataset.notes
    dataset = load(table("path,label", *rows(range(10), "1"), *rows(range(10, 20), "0")))
    assert dataset.class_names == ("0", "1")
    assert not any("labels" in note for note in dataset.notes)


def test_labels_below_zero_go_by_size(table):
    cells = (("-1", range(10)), ("10", range(10, 20)), ("2", range(20, 30)))
    dataset = load(table("path,label", *(row for label, numbers in cells for row in rows(numbers, label))))
    assert dataset.class_names == ("-1", "2", "10")
    assert "labels are not 0 to 2: the 3 that occur are the classes, sorted" in dataset.notes


@pytest.mark.parametrize(("one", "other"), [("01", "1"), ("007", "7"), ("-0", "0")])
def test_labels_that_differ_only_as_text_are_different_classes(table, one, other):
    cells = ((one, range(10)), (other, range(10, 20)), ("10", range(20, 30)))
    dataset = load(table("path,label", *(row for label, numbers in cells for row in rows(numbers, label))))
    assert dataset.class_names == tuple(sorted((one, other, "10")))
    assert dataset.class_counts.tolist() == [8, 8, 8]
    assert f"labels '{one}' and '{other}' are the same number: all labels are used as text" in dataset.notes


def test_rows_that_repeat_are_taken_once(table):
    dataset = load(table("path,label", *rows(range(10), "a"), *rows(range(10, 20), "b"), *rows(range(5), "a")))
    assert len(dataset.train) + len(dataset.test) == 20
    assert "5 rows repeat another and are left out" in dataset.notes


def test_an_image_in_two_splits_is_noted_by_its_name(table, tmp_path):
    path = table(
        "path,label,split", *rows(range(4), "a", "train"), *rows(range(4, 8), "b", "train"), *rows([2, 9], "a", "test")
    )
    note = load(path).notes[-1]
    assert note == f"identical images: 1 of 2 test images are also in train, e.g. '{tmp_path}/images/2.png'"


def test_files_are_relative_to_the_table_or_to_the_root(table, tmp_path, monkeypatch):
    path = table("path,label", *(f"{i}.png,{'ab'[i % 2]}" for i in range(10)))
    monkeypatch.chdir(tmp_path)
    assert len(load(path, root="images").train) == 8
    absolute = table("path,label", *(f"{tmp_path}/images/{i}.png,{'ab'[i % 2]}" for i in range(10)))
    assert len(load(absolute).train) == 8
    elsewhere = tmp_path / "lists" / "list.csv"
    elsewhere.parent.mkdir()
    elsewhere.write_text("path,label\n" + "\n".join(f"../images/{i}.png,{'ab'[i % 2]}" for i in range(10)))
    assert len(load("csv:lists/list.csv").train) == 8


def test_the_files_of_a_table_can_be_surveyed(table):
    path = table("path,label,group", *rows(range(10), "a", "1"), *rows(range(10, 20), "b", ""))
    assert image_listing(Data(name=path)).survey.sentences() == ["20 image files, 6x6 pixels, grey"]
    assert image_listing(Data(name="digits-lt")) is None


def test_a_name_that_the_file_system_lists_otherwise_is_found(table, monkeypatch):
    monkeypatch.setattr("os.listdir", lambda _: [])
    assert len(load(table("path,label", *rows(range(5), "a"), *rows(range(5, 10), "b"))).train) == 8


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["picture,label", "images/0.png,a"],
            "has no column 'path'; its first line has: 'picture', 'label'; allowed: path,la",
        ),
        (["images/0.png,a"], "has no column 'path'"),
        (["picture,diagnosis", "images/0.png,a"], "of other names: --data.image-column NAME --data.label-column NAME"),
        (["path label", "images/0.png a"], "no column 'label'; its first line has: 'path label'"),
        ([], "no column 'label'; its first line has: nothing"),
        (["path,label"], "lists no image with a label"),
        (["path,label,Label", "a,b,c"], "has two columns 'label'; keep one"),
        (["path,label", *rows([0], "a"), "images/1.png"], "line 3: got 1 cells; allowed: 2"),
        (["path,label", *rows([0], "a", "b")], "line 2: got 3 cells; allowed: 2"),
        (["path,label", *rows([0], "a"), "", *rows([1], " ")], "line 4: no label; only the group"),
        (["path,label", ",a"], "line 2: no path"),
        (["path,label,split", *rows([0], "a", "")], "line 2: no split"),
        (["path,label,split", *rows([0], "a", "tset")], "unknown split in '.*', line 2: 'tset'.*did you mean 'test'"),
        (
            ["path,label,split", *rows([0], "a", "train"), *rows([1], "b", "train")],
            "has no row for test; allowed: train",
        ),
        (["path,label,split", *rows([0], "a", "test"), *rows([1], "b", "test")], "has no row for train"),
        (
            ["path,label,split", *rows([0], "a", "train"), *rows([1], "b", "test")],
            r"class 'b' has no training image, only others such as '.*images/1\.png'",
        ),
        (["path,label", *rows(range(3), "a")], "got only the label 'a'; allowed: 2 or more"),
        (
            ["path,label", *rows([0, 1], "a"), "./images/1.png,b"],
            "'images/1.png' has two labels, 'a' in '.*list.csv', line 3, and 'b' in '.*list.csv', line 4",
        ),
        (
            ["path,label,group", *rows([0], "a", "1"), *rows([0], "a", "2")],
            "'images/0.png' has two groups, '1' in '.*list.csv', line 2",
        ),
        (
            ["path,label", *rows([0], "a"), "gone 1.png,b", "images/2.png/3.png,a"],
            r"2 of 3 files are missing, first 'gone 1\.png' \('.*list\.csv', line 3\); looked for in '.*'; --data\.",
        ),
        (
            ["path,label,split,group", *rows(range(4), "a", "train", "x"), *rows([5], "a", "test", "x")],
            "got only the label",
        ),
        (
            [
                "path,label,split,group",
                *rows([0], "a", "train", "p7"),
                *rows([1], "b", "train", ""),
                *rows([2], "a", "test", "p7"),
            ],
            r"group 'p7' is in two splits: '.*images/0\.png' is for train, '.*images/2\.png' for test; keep it in one",
        ),
        (["path,label", '"images/0.png,a'], "cannot read '.*': unexpected end of data; allowed: a CSV file"),
        (
            ["path,label", *rows([0], "a"), *rows([1], "b")],
            "no column 'split' and no list for test, and no class has a second image to test on",
        ),
        (
            ["path,label,group", *rows(range(3), "a", "1"), *rows(range(3, 6), "b", "2")],
            "no list for test, and no class has a group to spare to test on; .*; without groups: another name for",
        ),
    ],
)
def test_bad_tables_are_refused_in_one_line(table, lines, message):
    with pytest.raises(UserError, match=message) as error:
        load(table(*lines))
    assert "\n" not in str(error.value)


def test_groups_that_were_asked_for_can_be_left_out(table):
    path = table("path,label,lesion", *rows(range(3), "a", "1"), *rows(range(3, 6), "b", "2"))
    with pytest.raises(UserError, match=r"no class has a group to spare .*; without groups: --data\.group None$"):
        load(path, group="lesion")


def test_a_missing_group_column_is_named(table):
    with pytest.raises(
        UserError, match=r"unknown column for data group in '.*list\.csv': 'lesion'.*did you mean 'lesion_id'"
    ):
        load(table("path,label,lesion_id", *rows(range(4), "a", "1")), group="lesion")


def test_other_files_are_refused(table, tmp_path):
    with pytest.raises(UserError, match=r"no such file: '.*nowhere\.csv'"):
        load(str(tmp_path / "nowhere.csv"))
    with pytest.raises(UserError, match=r"cannot read '.*x\.csv': File name too long"):
        reading(tmp_path / f"{'x' * 300}.csv", "a table").__enter__()
    with pytest.raises(UserError, match=r"cannot read '.*list\.csv': it is not in UTF-8"):
        load(table("path,label", *rows(range(4), "nävus"), encoding="latin-1"))


def test_long_lists_of_many_classes_are_read(table):
    lines = [f"images/{i % 30}.png,{i % 30},{'test' if i % 2 else 'train'}" for i in range(30)]
    repeated = [line.replace("test", "train") for line in lines]
    dataset = load(table("path,label,split", *(lines + repeated) * 300))
    assert dataset.num_classes == 30
    assert "17955 rows repeat another and are left out" in dataset.notes


def test_the_facts_are_known_without_the_images(table, facts_agree):
    path = table(
        "path,label,group", *(f"images/{i}.png,{'ab'[i >= 20]},{f'g{i // 3}' if i < 27 else ''}" for i in range(30))
    )
    facts_agree(path)


def test_usual_names_of_columns_are_used_and_said(table):
    lines = [f"L{i // 2},{i},{'ab'[i % 2]},30" for i in range(20)]
    dataset = load(table("lesion_id,image_id,dx,age", *lines))
    assert dataset.class_names == ("a", "b")
    assert sorted([*levels(dataset.train), *levels(dataset.test)]) == list(range(20))
    assert "images by column 'image_id', labels by column 'dx'" in dataset.notes
    assert any("files are found by their names below" in note for note in dataset.notes)
    assert any("--data.group lesion_id keeps each in one split" in note for note in dataset.notes)


def test_columns_and_paths_may_be_named(table):
    lines = [f"{i},{'ab'[i % 2]},{'xy'[i % 2]}" for i in range(10)]
    named = {"image_column": "number", "label_column": "kind", "image_template": "images/{}.png"}
    dataset = load(table("number,kind,label", *lines), **named)
    assert dataset.class_names == ("a", "b")
    assert not any("by column" in note for note in dataset.notes)
    with pytest.raises(UserError, match=r"column for data image column in .*'numbre'.*did you mean 'number'"):
        load(table("number,kind", *lines), **named | {"image_column": "numbre"})
    with pytest.raises(UserError, match=r"no column 'label'.*of other names: --data.label-column NAME"):
        load(table("number,kind", *lines), image_column="number")


def test_a_name_in_two_subfolders_is_not_guessed(table, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "0.png").write_bytes((tmp_path / "images" / "0.png").read_bytes())
    with pytest.raises(UserError, match=r"10 of 10 files are missing.*--data.image-template 'images/\{\}.jpg'"):
        load(table("image,label", *(f"{i},{'ab'[i % 2]}" for i in range(10))))


def test_a_group_is_taken_from_file_names(table):
    path = table("path,label", *(f"images/{i}.png,{'ab'[i >= 10]}" for i in range(30)))
    dataset = load(path, group_pattern=r"(\d)\.png")  # the last digit
    ones = [{level % 10 for level in levels(split)} for split in dataset.splits.values()]
    assert ones[0].isdisjoint(ones[1])
    with pytest.raises(UserError, match=r"'track' is found in no file name, e.g. '0.png'"):
        load(path, group_pattern="track")
    with pytest.raises(UserError, match=r"with data group 'label'; allowed: one"):
        load(path, group_pattern="(.)", group="label")
    with pytest.raises(UserError, match=r"allowed: a regular expression"):
        Data(group_pattern="(")


def test_images_held_out_that_are_nearly_training_images_are_counted_with_an_example(tmp_path):
    draw = np.random.default_rng(0)
    lines = ["path,label,split"]
    for i in range(6):
        image = draw.integers(0, 250, (16, 16), np.uint8)
        Image.fromarray(image).save(tmp_path / f"train{i}.png")
        lines.append(f"train{i}.png,{'ab'[i % 2]},train")
        other = image + np.uint8(3) if i < 2 else draw.integers(0, 250, (16, 16), np.uint8)
        Image.fromarray(other).save(tmp_path / f"test{i}.png")
        lines.append(f"test{i}.png,{'ab'[i % 2]},test")
    image = draw.integers(0, 250, (16, 16), np.uint8)
    for i in range(2):
        Image.fromarray(image + np.uint8(3 * i)).save(tmp_path / f"val{i}.png")
        lines.append(f"val{i}.png,{'ab'[i]},val")
    Image.fromarray(image + np.uint8(1)).save(tmp_path / "more.png")
    lines.append("more.png,a,train")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    held, note = [note for note in load(str(tmp_path / "list.csv")).notes if note.startswith("near-duplicates")]
    assert "2 of 2 validation images are nearly the same as a training image, e.g. 'val0.png' as 'more.png'" in held
    assert (
        "2 of 6 test images are nearly the same as a training image, e.g. 'test0.png' as 'train0.png'; --data" in note
    )
