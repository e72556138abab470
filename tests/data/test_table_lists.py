"""Sets as lists of image files, one for each split, as ImageNet-LT and iNaturalist 2018 are published."""

import importlib
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from taet.data import image_listing, load
from taet.data.rows import read_rows
from taet.errors import UserError
from taet.settings import Data

CLASSES = ("n01440764", "n01443537", "n02085620")
TWO_LABELS = {
    "images": [{"id": 1, "file_name": "a.png"}],
    "annotations": [{"image_id": 1, "category_id": 3}, {"image_id": 1, "category_id": 4}],
}


def draw(path, level):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 5), (level, 0, 255 - level)).save(path)


@pytest.fixture
def imagenet_lt(tmp_path):
    """Return the folder of the lists and that of the images; ImageNet-LT's validation images lie in train/."""
    images, lists = tmp_path / "imagenet", tmp_path / "ImageNet_LT"
    lists.mkdir()
    layout = {"train": ("train", (4, 2, 1)), "val": ("train", (1, 1, 1)), "test": ("val", (2, 2, 2))}
    level = 0
    for split, (folder, counts) in layout.items():
        lines = []
        for label, (name, count) in enumerate(zip(CLASSES, counts, strict=True)):
            for _ in range(count):
                level += 1
                path = f"{folder}/{name}/{name}_{level}.JPEG"
                draw(images / path, level)
                lines.append(f"{path} {label}\n")
        (lists / f"ImageNet_LT_{split}.txt").write_text("".join(lines))
    (lists / "ImageNet_LT_open.txt").write_text("open/1.JPEG -1\n")
    return lists, images


@pytest.fixture
def inaturalist(tmp_path):
    """Return the folder that holds the annotations and the images, with labels of train and val alone."""
    level, folder = 0, tmp_path / "inat"
    for split, counts in {"train": (3, 2), "val": (1, 1), "test": (2, 0)}.items():
        images, annotations = [], []
        for place, count in enumerate(counts):
            kind, category = (("Plantae", 7477), ("Aves", 30))[place]
            for _ in range(count):
                level += 1
                name = f"train_val2018/{kind}/{category}/{level:032x}.jpg"
                draw(folder / name, level)
                images.append({"id": 100 + level, "file_name": name, "width": 6, "height": 5, "license": 3})
                annotations.append({"id": 900 + level, "image_id": 100 + level, "category_id": category})
        text = {"info": {"year": 2018}, "images": images, "categories": [{"id": 30, "name": "Turdus"}]}
        text |= {} if split == "test" else {"annotations": annotations[::-1]}
        (folder / f"{split}2018.json").write_text(json.dumps(text))
    return folder


def test_the_lists_beside_one_for_training_are_its_splits(imagenet_lt):
    lists, images = imagenet_lt
    dataset = load(f"csv:{lists}/ImageNet_LT_train.txt", root=str(images))
    counts = {name: split.class_counts.tolist() for name, split in dataset.splits.items()}
    assert counts == {"train": [4, 2, 1], "validation": [1, 1, 1], "test": [2, 2, 2]}
    assert dataset.class_names == ("0", "1", "2")
    assert dataset.notes[0] == "16 image files, 6x5 pixels, colour"
    assert image_listing(Data(name=f"csv:{lists}/ImageNet_LT_train.txt", root=str(images))).survey.sentences() == [
        dataset.notes[0]
    ]


def test_lists_take_the_place_of_a_folder_of_the_same_images(imagenet_lt, tmp_path):
    lists, images = imagenet_lt
    for split in ("train", "val", "test"):
        for line in (lists / f"ImageNet_LT_{split}.txt").read_text().splitlines():
            path, label = line.split()
            target = tmp_path / "copied" / split / CLASSES[int(label)] / f"{int(path.split('_')[-1][:-5]):03d}.JPEG"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((images / path).read_bytes())
    listed = load(f"csv:{lists}/ImageNet_LT_train.txt", root=str(images))
    copied = load(f"folder:{tmp_path}/copied")
    assert {part: split.sha256 for part, split in listed.splits.items()} == {
        part: split.sha256 for part, split in copied.splits.items()
    }


def test_an_annotated_list_knows_its_images_by_their_numbers(inaturalist):
    dataset = load(f"csv:{inaturalist}/train2018.json")
    assert dataset.class_names == ("30", "7477")
    assert dataset.class_counts.tolist() == [2, 3]
    assert dataset.validation is None
    assert dataset.test.class_counts.tolist() == [1, 1]
    assert "'test2018.json' has no labels and is left out" in dataset.notes
    assert "no list with labels for test: 'val2018.json' is for testing" in dataset.notes
    files = image_listing(Data(name=f"csv:{inaturalist}/train2018.json")).by_split()
    assert [file.parent.name for file in files["train"]] == ["30", "30", "7477", "7477", "7477"]


def test_fields_that_are_not_used_may_hold_anything(inaturalist):
    path = inaturalist / "train2018.json"
    rows, found = read_rows(path).rows, json.loads(path.read_text())
    for annotation in found["annotations"]:
        annotation |= {"area": float("nan"), "note": 10**30}
    path.write_text(json.dumps(found))
    assert read_rows(path).rows == rows


def test_lines_and_annotations_say_the_same(inaturalist, tmp_path):
    lists = tmp_path / "data_txt"
    lists.mkdir()
    for split in ("train", "val"):
        rows = read_rows(inaturalist / f"{split}2018.json").rows
        (lists / f"iNaturalist18_{split}.txt").write_text("".join(f"{row.path} {row.label}\n" for row in rows))
    lines = load(f"csv:{lists}/iNaturalist18_train.txt", root=str(inaturalist))
    assert lines.manifest() == load(f"csv:{inaturalist}/train2018.json").manifest()


def test_a_list_that_stands_alone_is_divided(imagenet_lt):
    lists, images = imagenet_lt
    dataset = load(f"csv:{lists}/ImageNet_LT_test.txt", root=str(images))
    assert dataset.class_counts.tolist() == [1, 1, 1]
    assert dataset.notes[0].startswith("no column 'split' and no list for test: 20% of each class")


def test_unlabelled_lists_leave_a_list_undivided(inaturalist):
    (inaturalist / "val2018.json").unlink()
    dataset = load(f"csv:{inaturalist}/train2018.json")
    assert dataset.test.class_counts.tolist() == [1, 1]
    assert "'test2018.json' has no labels and is left out" in dataset.notes


def test_a_table_without_labels_beside_one_for_training_is_left_out(imagenet_lt):
    lists, images = imagenet_lt
    rows = [line.replace(" ", ",") for line in (lists / "ImageNet_LT_test.txt").read_text().splitlines()]
    (lists / "train.csv").write_text("\n".join(["path,label", *rows]))
    (lists / "test.csv").write_text("id,path\n7,nowhere.png\n")
    dataset = load(f"csv:{lists}/train.csv", root=str(images))
    assert len(dataset.test) == 3
    assert "'test.csv' has no labels and is left out" in dataset.notes


def test_tables_with_a_header_can_be_the_lists(imagenet_lt):
    lists, images = imagenet_lt
    for split in ("train", "test"):
        rows = [line.split() for line in (lists / f"ImageNet_LT_{split}.txt").read_text().splitlines()]
        lines = [f"{path};{CLASSES[int(label)]};{'' if split == 'test' else label}" for path, label in rows]
        (lists / f"{split}.csv").write_text("\n".join(["path;label;group", *lines]))
    dataset = load(f"csv:{lists}/train.csv", root=str(images))
    assert dataset.class_names == CLASSES
    assert dataset.class_counts.tolist() == [4, 2, 1]
    assert len(np.unique(dataset.train.groups)) == 3
    assert len(np.unique(dataset.test.groups)) == 6


def test_a_column_comes_before_the_lists_beside_a_table(imagenet_lt):
    lists, images = imagenet_lt
    rows = [line.split() for line in (lists / "ImageNet_LT_test.txt").read_text().splitlines()]
    table = [f"{path},{label},{('train', 'test')[i % 2]}" for i, (path, label) in enumerate(rows)]
    (lists / "train.csv").write_text("\n".join(["path,label,split", *table]))
    (lists / "test.csv").write_text("path,label\nnowhere.png,5\n")
    assert len(load(f"csv:{lists}/train.csv", root=str(images)).test) == 3


def test_paths_in_lines_may_hold_blanks_and_tabs_may_divide(imagenet_lt):
    lists, images = imagenet_lt
    draw(images / "two words.png", 200)
    (lists / "short.txt").write_text("two words.png 0\n\n./val/../two words.png\t0 \ntrain/n01443537/x.png\t-1\n")
    rows = read_rows(lists / "short.txt").rows
    assert [(row.number, row.path, row.label) for row in rows] == [
        (1, "two words.png", "0"),
        (3, "two words.png", "0"),
        (4, "train/n01443537/x.png", "-1"),
    ]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"train.txt": "a.png 0\nb.png one\n"},
            r"train\.txt', line 2: got 'b\.png one'; allowed: a path and a whole nu",
        ),
        ({"train.txt": "a.png 0\n7\n"}, "line 2: got '7'"),
        (
            {"train.txt": "a.png 0\n", "val.txt": "b.png 0\n", "valid.txt": "b.png 0\n"},
            "two lists for validation, '.*val",
        ),
        (
            {"train.csv": "path,label\na.png,0\n", "test.csv": "path,label,split\nb.png,1,test\n"},
            r"test\.csv' has a column 'split', but by its name it is for test; keep one",
        ),
        (
            {"train.txt": "a.png 0\n", "test.txt": "b.png 0\na.png 1\n"},
            r"two labels, '0' in '.*train\.txt', line 1, and '1'",
        ),
        (
            {"train.txt": "a.png 0\n", "test.txt": "c.png 0\n"},
            r"1 of 2 files are missing, first 'c\.png' \('.*test\.txt'",
        ),
        ({"train.txt": "a.png 0\n", "test.txt": "b.png 1\n"}, "class '1' has no training image"),
        ({"train.json": '{"images": [}'}, r"cannot read '.*train\.json': Expecting value: .*; allowed: a JSON file"),
        (
            {"train.json": "[1, 2]"},
            "cannot read '.*': it has another structure; allowed: a JSON file of images with id and file_name",
        ),
        ({"train.json": '{"annotations": []}'}, "cannot read '.*': 'images' is missing; allowed"),
        ({"train.json": '{"images": [{"id": 1, "file_name": "a.png"}]}'}, "lists no image with a label"),
        (
            {"train.json": '{"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 2}]}'},
            "cannot read '.*': 2 is missing",
        ),
        (
            {"train.json": json.dumps(TWO_LABELS)},
            r"'a\.png' has two labels, '3' in '.*', annotation 1, and '4' in '.*', annotation 2",
        ),
    ],
)
def test_bad_lists_are_refused_in_one_line(tmp_path, files, message):
    for name in ("a.png", "b.png"):
        draw(tmp_path / name, 9)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as error:
        load(f"csv:{tmp_path / next(iter(files))}")
    assert "\n" not in str(error.value)


def test_a_group_cannot_be_asked_of_lines(imagenet_lt):
    lists, images = imagenet_lt
    with pytest.raises(UserError, match=r"data group: got 'lesion'; 'csv:.*' has no groups"):
        load(f"csv:{lists}/ImageNet_LT_train.txt", root=str(images), group="lesion")


@pytest.fixture
def full_length(tmp_path, monkeypatch):
    """Return a function that writes lists as long as those of a set; their images are there for whoever asks."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    terms = importlib.import_module("class_terms")
    (tmp_path / "images").mkdir()

    def write(name):
        about = terms.SETS[name]
        labels = {
            "train": np.repeat(np.arange(about.classes), terms.power_law_counts(about)),
            "val": np.arange(about.classes),
        }
        files = {part: [f"{part}{number:036d}.jpg" for number in range(len(of))] for part, of in labels.items()}
        for part, names in files.items():
            lines = (f"images/{file} {label}\n" for file, label in zip(names, labels[part].tolist(), strict=True))
            (tmp_path / f"a_{part}_list.txt").write_text("".join(lines))
        monkeypatch.setattr("os.listdir", lambda _: [*files["train"], *files["val"]])
        return f"csv:{tmp_path}/a_train_list.txt", about

    return write


@pytest.mark.full
def test_lists_as_long_as_those_of_inaturalist_are_read(full_length):
    name, about = full_length("inaturalist-2018")
    files = image_listing(Data(name=name)).by_split()
    assert len(files["train"]) == 437_513
    assert len(files["test"]) == about.classes == 8142


@pytest.mark.full
def test_a_long_list_takes_less_than_a_kilobyte_for_an_image(full_length):
    name, about = full_length("imagenet-lt")
    tracemalloc.start()
    files = image_listing(Data(name=name)).by_split()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(files["train"]) == 115_846
    assert peak < 1000 * about.images
