"""Tables of labelled image files: columns, labels, finding the files, and what is refused."""

import unicodedata

import pytest

from taet.data import load
from taet.data.notes import naming_image_files
from tests.calls import one_line
from tests.data.conftest import note_of


def levels(split):
    return split.images[:, 0, 0, 0].tolist()


@pytest.fixture
def images(tmp_path, fill):
    """Ten images of levels 0 to 9."""
    fill(tmp_path / "images", 0, 10)
    return tmp_path


def labels(count=10, prefix="images/"):
    return [f"{prefix}{i:02d}.png,{'ab'[i % 2]}" for i in range(count)]


# Columns


def test_a_table_may_name_splits(images, write_table):
    rows = [f"images/{i:02d}.png,{i // 6},{'train' if i % 2 else 'TEST'}" for i in range(10)]
    dataset = load(write_table(images, rows, "path,label,split"))
    assert levels(dataset.train) == [1, 3, 5, 7, 9]
    assert levels(dataset.test) == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("column", ["set", "Usage", "partition"])
def test_a_column_whose_cells_are_all_splits_gives_the_splits(column, images, write_table):
    rows = [f"images/{i:02d}.png,{i // 6},{'Training' if i % 2 else 'Testing'}" for i in range(10)]
    dataset = load(write_table(images, rows, f"path,label,{column}"))
    assert levels(dataset.test) == [0, 2, 4, 6, 8]
    assert note_of(dataset, "columns").numbers["split"] == column


def test_a_column_of_that_name_with_other_cells_gives_none(images, write_table):
    rows = [f"{row},{'train' if i else 'A'}" for i, row in enumerate(labels())]
    dataset = load(write_table(images, rows, "path,label,set"))
    assert note_of(dataset, "unused-columns").numbers["names"] == ("set",)


def test_a_column_of_splits_leaves_columns_of_classes_as_they_are(images, write_table):
    rows = [
        f"images/{i:02d}.png,{'test' if i > 5 else 'train'},{i % 2},{1 - i % 2},{i % 3 % 2}"
        for i in range(10)
    ]
    dataset = load(write_table(images, rows, "image,subset,MEL,NV,male"))
    assert dataset.class_names == ("MEL", "NV")
    assert levels(dataset.test) == [6, 7, 8, 9]


@pytest.mark.parametrize(
    ("cells", "why"),
    [
        (["train", "test", ""], "line 4 has ''"),
        (["Training", "PublicTest", "PrivateTest"], "line 3 has 'PublicTest'"),
        (["val", "test"], "no row of it says train"),
    ],
)
def test_a_column_that_may_give_splits_and_is_not_used_is_noted(cells, why, images, write_table):
    rows = [f"{row},{cells[i % len(cells)]}" for i, row in enumerate(labels())]
    note = note_of(load(write_table(images, rows, "path,label,Usage")), "half-used-splits")
    assert why in str(note)


def test_two_columns_of_splits_that_differ_are_refused(images, write_table, refused):
    rows = [
        f"{row},{'train' if i % 2 else 'test'},{'train' if i % 3 else 'test'}"
        for i, row in enumerate(labels())
    ]
    refused(
        write_table(images, rows, "path,label,phase,dataset"),
        "two columns of splits, 'phase' and 'dataset', that differ; allowed: one of them",
    )


@pytest.mark.parametrize("column", ["split", "set"])
def test_splits_of_a_table_beside_class_folders_are_missed(column, tmp_path, fill, write_table):
    fill(tmp_path / "cat", 0, 5)
    fill(tmp_path / "dog", 50, 5)
    rows = [f"{name}/00.png,{split}" for name, split in (("cat", "train"), ("dog", "test"))]
    write_table(tmp_path, rows, f"image,{column}", name="meta.csv")
    assert "may give other splits" in str(note_of(load(tmp_path), "unused-table"))


def test_repeated_rows_count_once(images, write_table):
    dataset = load(write_table(images, labels() * 2))
    assert len(dataset.train) + len(dataset.test) == 10


def test_a_table_by_pandas_on_windows_is_read(images, write_table):
    expected = load(write_table(images, labels())).manifest()
    rows = [f"{i},{row}".replace("/", "\\") for i, row in enumerate(labels())]
    assert load(write_table(images, rows, ",path,label")).manifest() == expected


def test_a_table_that_excel_saves_as_unicode_text_is_read(images, write_table):
    expected = load(write_table(images, labels())).manifest()
    (images / "table.csv").write_text("\n".join(["path,label", *labels()]), encoding="utf-16")
    assert load(images).manifest() == expected


def test_lists_of_paths_and_numbers_are_the_tables_of_their_splits(images):
    """The form of ImageNet-LT and Places-LT."""
    for split, first in (("train", 0), ("test", 1)):
        lines = [f"images/{i:02d}.png {i // 5}\n" for i in range(first, 10, 2)]
        (images / f"Places_LT_{split}.txt").write_text("".join(lines))
    dataset = load(images)
    assert dataset.class_names == ("0", "1")
    assert levels(dataset.test) == [1, 3, 5, 7, 9]
    assert dataset.test.labels.tolist() == [0, 0, 1, 1, 1]


def test_lists_may_lie_apart_from_class_folders_with_other_splits(tmp_path, fill):
    """ImageNet-LT takes a long-tailed part of the training images of ImageNet."""
    for split in ("train", "val"):
        for name in ("n01", "n02"):
            fill(tmp_path / "imagenet" / split / name, 0 if split == "train" else 5, 4)
    lists = tmp_path / "lists"
    lists.mkdir()
    few = ["train/n01/00.png 0\n", "train/n01/01.png 0\n", "train/n02/02.png 1\n"]
    (lists / "ImageNet_LT_train.txt").write_text("".join(few))
    (lists / "ImageNet_LT_test.txt").write_text("val/n01/00.png 0\nval/n02/03.png 1\n")
    dataset = load(f"csv:{lists}", root=str(tmp_path / "imagenet"))
    assert levels(dataset.train) == [0, 1, 2]
    assert dataset.class_counts.tolist() == [2, 1]
    assert levels(dataset.test) == [5, 8]


def test_a_folder_without_a_table_for_training_is_refused(images, refused):
    refused(f"csv:{images}", "has no table of labels for each split, .* got none; allowed: a table")
    (images / "Places_LT_test.txt").write_text("images/00.png 0\nimages/01.png 1\n")
    refused(f"csv:{images}", "got 'Places_LT_test.txt'; allowed: a table")


def test_a_list_for_training_that_is_not_understood_is_refused(images, refused):
    (images / "Places_LT_train.txt").write_text("# path label\nimages/00.png 0\n")
    (images / "Places_LT_test.txt").write_text("images/00.png 0\nimages/01.png 1\n")
    refused(f"csv:{images}", r"Places_LT_train.txt' is not understood .* is '# path label'")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("list_eval_partition.txt", "{image} 0"),
        ("sizes.txt", "{image} 300"),
        ("train_pairs.txt", "{image} cat/00.png 1"),
        ("train.txt", "{image} 0"),
    ],
)
def test_texts_beside_class_folders_are_no_labels(name, line, tmp_path, fill):
    files = fill(tmp_path / "cat", 0, 5) + fill(tmp_path / "dog", 50, 5)
    lines = [line.format(image=file.relative_to(tmp_path)) for file in files]
    (tmp_path / name).write_text("\n".join(lines[:8]) + "\n")
    dataset = load(tmp_path)
    assert dataset.class_names == ("cat", "dog")
    assert len(dataset.train) + len(dataset.test) == 10


def test_a_list_that_is_not_used_beside_class_folders_is_named(tmp_path, fill):
    fill(tmp_path / "cat", 0, 5)
    fill(tmp_path / "dog", 50, 5)
    for split, number in (("test", 1), ("train", 0)):
        (tmp_path / f"{split}.txt").write_text(f"cat/0{number}.png 0\ndog/0{number}.png 1\n")
    note = note_of(load(tmp_path), "unused-tables")
    assert f"--data 'csv:{tmp_path}' takes their labels" in str(note)


def test_numbers_of_a_list_have_no_leading_zeros(images):
    (images / "train.txt").write_text("".join(f"images/0{i}.png {i // 3}\n" for i in range(6)))
    (images / "test.txt").write_text("images/06.png 00\nimages/07.png 01\n")
    assert load(images).test.labels.tolist() == [0, 1]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_text_with_a_header_is_a_table_where_it_is_named(encoding, images, write_table):
    """Excel saves "Unicode text" so."""
    expected = load(write_table(images, labels())).manifest()
    lines = ["path\tlabel", *(label.replace(",", "\t") for label in labels())]
    (images / "labels.txt").write_text("\n".join(lines), encoding=encoding)
    assert load(f"csv:{images / 'labels.txt'}").manifest() == expected


def test_a_text_of_other_lines_is_no_list(images):
    (images / "README.txt").write_text("Images of 2024\n")
    (images / "train.txt").write_text("images/00.png 0\nimages/01.png\n")
    with one_line(r"train.txt', line 2: got 'images/01.png'; allowed: the path of an image and"):
        load(images)


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("Image_ID", "dx"),
        ("image_name", "target"),
        ("id_code", "diagnosis"),
        ("File Name", "Class"),
        ("filename", "ClassId"),
    ],
)
def test_usual_names_of_columns_are_known(path, label, images, write_table):
    dataset = load(write_table(images, labels(), f"{path},{label}"))
    assert note_of(dataset, "columns").numbers["path"] == path
    assert note_of(dataset, "columns").numbers["label"] == label


def test_columns_may_be_named(images, write_table):
    rows = [f"{row},x" for row in labels()]
    name = write_table(images, rows, "where,what,label")
    dataset = load(name, path_column="where", label_column="what")
    assert dataset.class_names == ("a", "b")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"label_column": "wat"}, "unknown column for data label in .*'wat'.*did you mean 'what'"),
        ({"path_column": "x"}, "unknown column for data path in .*'x'; allowed: path, what"),
        ({"group": "y"}, "unknown column for data group in .*'y'"),
    ],
)
def test_the_name_of_a_column_that_is_not_there_is_refused(
    option, message, images, write_table, refused
):
    refused(write_table(images, labels(), "path,what"), message, **option)


def test_columns_that_are_not_used_are_named(images, write_table):
    rows = [f"{row},x,y" for row in labels()]
    dataset = load(write_table(images, rows, "path,label,age,sex"))
    assert note_of(dataset, "unused-columns") == "columns that are not used: age and sex"


def test_numbers_are_classes_in_the_order_of_numbers(images, write_table):
    rows = [f"images/{i:02d}.png,{(10, 2, -1)[i % 3]}" for i in range(10)]
    assert load(write_table(images, rows)).class_names == ("-1", "2", "10")


def test_whole_numbers_with_a_fraction_of_zero_are_classes_in_their_order(images, write_table):
    rows = [f"images/{i:02d}.png,{10 if i % 2 else 2}.0" for i in range(10)]
    assert load(write_table(images, rows)).class_names == ("2", "10")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_usual_delimiters_are_read(delimiter, images, write_table):
    rows = [row.replace(",", delimiter) for row in labels()]
    assert load(write_table(images, rows, f"path{delimiter}label")).class_names == ("a", "b")


def test_quoted_cells_and_blanks_around_them_are_read(images, write_table):
    rows = [", ".join(f'"{cell}"' for cell in row.split(",")) for row in labels()]
    assert load(write_table(images, rows, 'path, "label"')).class_names == ("a", "b")


@pytest.mark.parametrize("before", ["\n", "\n \n", "sep=;\n", "\ufeffsep=;\n"])
def test_lines_before_the_header_are_skipped(before, images, write_table):
    rows = [row.replace(",", ";") for row in labels()]
    assert load(write_table(images, rows, f"{before}path;label")).class_names == ("a", "b")


def test_a_column_for_each_class_is_read(images, write_table):
    rows = [f"images/{i:02d}.png,{i % 2:.1f},{1 - i % 2:.1f},0.0" for i in range(10)]
    dataset = load(write_table(images, rows, "image,MEL,NV,UNK"))
    assert dataset.class_names == ("MEL", "NV")
    assert note_of(dataset, "one-hot").numbers == {"classes": ("MEL", "NV", "UNK")}


@pytest.mark.parametrize(("ones", "count"), [("0,0", 0), ("1,1", 2)])
def test_a_row_of_no_class_or_of_two_is_refused(ones, count, images, write_table, refused):
    rows = ["images/00.png,1,0", f"images/01.png,{ones}"]
    name = write_table(images, rows, "image,MEL,NV")
    refused(name, f"line 3: got {count} classes of 'images/01.png'; allowed: one")


def test_columns_of_classes_are_found_beside_other_numbers(images, write_table):
    rows = [f"images/{i:02d}.png,{30 + i},{i // 5},{i % 2},{1 - i % 2}" for i in range(10)]
    dataset = load(write_table(images, rows, "image,age,benign,MEL,NV"))
    assert dataset.class_names == ("MEL", "NV")
    assert note_of(dataset, "unused-columns") == "columns that are not used: age and benign"


def test_two_sets_of_columns_that_could_be_classes_are_told_apart_by_their_names(
    images, write_table, refused
):
    rows = [f"images/{i:02d}.png,{i % 2},{1 - i % 2},9,{i // 5},{1 - i // 5}" for i in range(10)]
    name = write_table(images, rows, "image,MEL,NV,age,male,female")
    refused(name, "has no column for label")
    assert load(name, label_column="MEL, NV").class_names == ("MEL", "NV")
    refused(name, "unknown column for data label in .*'NEV'", label_column="MEL,NEV")
    refused(name, "line 2: got '9' in 'age'; allowed: 0 or 1", label_column="MEL,age")


def test_named_columns_that_no_table_has_are_refused_with_those_it_has(
    images, write_table, refused
):
    write_table(images, labels(), "scan,finding")
    refused(images, "data path: got 'scan'; .*'table.csv' has the columns", path_column="scan")


def test_where_no_table_is_understood_its_first_line_is_shown(images, write_table, refused):
    write_table(images, labels(), "scan,finding")
    refused(
        images,
        r"holds no class folders; .*the first line of 'table.csv' is scan and finding: "
        r"--data.path and --data.label name its columns",
    )


def test_two_tables_that_could_have_the_labels_are_named(images, write_table, refused):
    for name in ("a.csv", "b.csv"):
        write_table(images, labels(), name=name)
    refused(images, "it is not clear which of the tables 'a.csv' and 'b.csv' has the labels")


def test_a_licence_is_no_table(images, refused):
    (images / "LICENSE").write_text("MIT License\n")
    refused(images, "holds no class folders; allowed: class folders, or a table: csv:FILE$")


def test_a_table_of_another_program_is_named(images, refused):
    (images / "labels.xlsx").write_bytes(b"PK")
    refused(images, "holds no class folders; .*'labels.xlsx' is not read: save it as a .csv in UTF")


def test_a_folder_in_the_form_of_isic_2018_is_read(tmp_path, fill):
    for number, name in enumerate(("Training", "Validation", "Test")):
        stem = f"ISIC2018_Task3_{name}"
        fill(tmp_path / f"{stem}_Input", 10 * number, 6, name=f"ISIC_{number}{{:06d}}.jpg")
        truth = tmp_path / f"{stem}_GroundTruth" / f"{stem}_GroundTruth.csv"
        truth.parent.mkdir()
        rows = [f"ISIC_{number}{i:06d},{i % 2:.1f},{1 - i % 2:.1f}" for i in range(6)]
        truth.write_text("\n".join(["image,MEL,NV", *rows]))
    groups = [f"ISIC_0{i:06d},HAM_{i // 2},histopathology" for i in range(6)]
    (tmp_path / "ISIC2018_Task3_Training_LesionGroupings.csv").write_text(
        "\n".join(["image,lesion_id,diagnosis_confirm_type", *groups])
    )
    dataset = load(str(tmp_path))
    assert dataset.class_names == ("MEL", "NV")
    assert {name: len(split) for name, split in dataset.splits.items()} == {
        "train": 6,
        "validation": 6,
        "test": 6,
    }
    assert len({*dataset.train.groups}) == 3


# Groups


def with_groups(groups, header):
    rows = [f"{row},{group}" for row, group in zip(labels(), groups, strict=True)]
    return rows, f"path,label,{header}"


@pytest.mark.parametrize("column", ["group", "patient_id", "Patient ID", "lesion_id"])
def test_a_usual_column_of_groups_keeps_images_together(column, images, write_table):
    rows, header = with_groups([f"p{i // 2}" for i in range(10)], column)
    dataset = load(write_table(images, rows, header), seed=3)
    groups = [{index // 2 for index in split.indices} for split in dataset.splits.values()]
    assert not groups[0] & groups[1]


def test_an_empty_cell_is_no_group(images, write_table):
    rows, header = with_groups(["NA", "", "nan", "NULL", *["p1", "p2"] * 3], "patient")
    dataset = load(write_table(images, rows, header))
    assert note_of(dataset, "groups").numbers == {"groups": 2, "alone": 4}


def test_a_group_in_one_of_two_columns_is_refused_with_the_way(images, write_table, refused):
    rows, header = with_groups(
        ["x1,", *(f"x{i},p{i}" for i in range(1, 10))], "lesion_id,patient_id"
    )
    name = write_table(images, rows, header)
    refused(
        name,
        "line 2: 'patient_id' is empty, but not 'lesion_id'; allowed: .* --data.group lesion_id",
    )
    assert load(name, group="lesion_id").train.groups is not None


def test_any_column_may_be_that_of_the_groups(images, write_table):
    rows, header = with_groups([f"s{i // 2}" for i in range(10)], "site")
    assert load(write_table(images, rows, header), group="site").train.groups is not None


# Finding the files


def test_files_are_found_by_their_names_if_their_folder_is_elsewhere(images, write_table):
    dataset = load(write_table(images, labels(prefix="/home/other/data/")))
    assert sorted(levels(dataset.train) + levels(dataset.test)) == list(range(10))
    assert note_of(dataset, "found-by-name").numbers == {"count": 10}


def test_names_without_a_suffix_are_found(images, write_table):
    rows = [row.replace(".png", "") for row in labels()]
    assert len(load(write_table(images, rows)).train) == 8
    rows = [row.replace("images/", "") for row in rows]
    assert len(load(write_table(images, rows)).train) == 8


@pytest.mark.parametrize("suffix", [".PNG", ".jpg"])
def test_another_suffix_in_the_table_is_noted(suffix, images, write_table):
    rows = [row.replace(".png", suffix) for row in labels()]
    dataset = load(write_table(images, rows))
    note = note_of(dataset, "other-suffix")
    assert note.numbers["count"] == 10
    assert naming_image_files([note]) == [note]


def test_a_name_that_a_mac_decomposed_is_found(images, write_table):
    decomposed = unicodedata.normalize("NFD", "é")
    (images / "images" / "00.png").rename(images / "images" / f"{decomposed}.png")
    rows = [row.replace("00.png", "é.png") for row in labels()]
    assert len(load(write_table(images, rows)).train) == 8


def test_files_of_one_name_must_be_copies(images, fill, write_table, refused):
    fill(images / "others", 0, 10)
    name = write_table(images, labels(prefix="/home/other/data/"))
    assert len(load(name).train) == 8
    fill(images / "others", 0, 1, size=(99, 99))
    refused(
        name, r"'/home/other/data/00.png' .* may be '.*00.png' or '.*00.png'; allowed: its path"
    )


def test_files_that_are_masks_are_not_found_by_name(images, fill, write_table):
    fill(images / "masks", 100, 10)
    dataset = load(write_table(images, labels(prefix="")))
    assert sorted(levels(dataset.train) + levels(dataset.test)) == list(range(10))


@pytest.mark.parametrize("prefix", ["images/", "lost/"])
def test_missing_files_are_counted_and_the_first_is_named(prefix, images, write_table, refused):
    name = write_table(images, labels(12, prefix))
    refused(name, rf"2 of 12 files are missing, first '{prefix}10.png' \('.*', line 12\); looked")


def test_bare_names_are_beside_the_table_or_below_it(images, write_table):
    (images / "10.png").write_bytes((images / "images" / "00.png").read_bytes())
    assert len(load(write_table(images, labels(11, ""))).test) == 2


# Refused


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (
            ["images/00.png,0"],
            "path,labels",
            r"no column for label \(label, .*it has 'path', 'labels'.*--data\.label names another",
        ),
        ([], "path,label", "it has no rows|class names: got none"),
        (
            ["images/00.png,0,1"],
            "path,label,label",
            "has two columns 'label'; allowed: each name once",
        ),
        (["images/00.png,0,1"], "path,label", "line 2: got 3 cells; allowed: 2"),
        (
            ["images/00.png, "],
            "path,label",
            "line 2: got 'images/00.png' and ''; allowed: a path and a label",
        ),
        (
            ["images/00.png,0,tset"],
            "path,label,split",
            "unknown split in '.*line 2: 'tset'.*did you mean 'test'",
        ),
        (
            ["images/00.png,0", "images/00.png,1"],
            "path,label",
            "two labels, splits or groups, in .*line 2 and in .*3",
        ),
        (["images/00.png,0", "images/01.png,0"], "path,label", "allowed: 2 classes or more"),
        (
            ["images/00.png,0", "images/01.png,1", "other/00.png,0"],
            "path,label",
            r"got '.*00\.png' in several rows",
        ),
        (
            ["images/00.png,0", "again/images/00.png,1"],
            "path,label",
            r"got '.*00\.png' in several rows",
        ),
    ],
)
def test_bad_tables_are_refused_in_one_line(rows, header, message, images, write_table, refused):
    rows = [row.replace("again", str(images)) for row in rows]
    refused(write_table(images, rows, header), message)


@pytest.mark.parametrize(
    ("line", "message"),
    [("[1]", "line 1: got a list; allowed: an object"), ("{", "cannot read '.*': Expecting")],
)
def test_bad_lines_of_json_are_refused(line, message, images, refused):
    (images / "t.jsonl").write_text(line)
    refused(f"csv:{images / 't.jsonl'}", message)
