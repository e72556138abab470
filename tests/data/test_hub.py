"""Data sets of the Hugging Face hub, from small parquet files and folders of images on this
machine."""

import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from taet.data import load
from taet.data.sources import source
from taet.settings import Data
from tests.data.conftest import kinds, note_of

NAME = "hf:someone/signs@0123abc"


def png(level):
    stream = io.BytesIO()
    Image.new("L", (6, 6), level).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Return a function that makes a repository of parquet files or folders, which the library then
    reads as asked."""
    datasets, pyarrow, parquet = map(
        pytest.importorskip, ("datasets", "pyarrow", "pyarrow.parquet")
    )
    read, asked = datasets.load_dataset, []
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))

    def make(splits, kind="parquet", features=None):
        for split, columns in splits.items():
            if kind == "parquet":
                path = tmp_path / "repository" / "data" / f"{split}-00000-of-00001.parquet"
                path.parent.mkdir(parents=True, exist_ok=True)
                parquet.write_table(
                    pyarrow.Table.from_pydict(columns, schema=features.arrow_schema), path
                )
                continue
            for number, (image, label) in enumerate(
                zip(columns["image"], columns["label"], strict=True)
            ):
                folder = tmp_path / "repository" / split / str(label)
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{number}.png").write_bytes(image["bytes"])

        def load_dataset(name, *, revision):
            asked.append((name, revision))
            return read(str(tmp_path / "repository"), cache_dir=str(tmp_path / "cache"))

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return asked

    return make


def columns(count, classes=3, **more):
    return {
        "image": [{"bytes": png(i), "path": None} for i in range(count)],
        "label": [i % classes for i in range(count)],
    } | {name: values[:count] for name, values in more.items()}


def features(**more):
    import datasets

    return datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["stop", "give way", "ahead"]),
            **more,
        }
    )


def test_the_repository_is_read_at_its_revision(repository):
    asked = repository({"train": columns(9), "test": columns(6)}, features=features())
    assert load(NAME).name == NAME
    assert asked[0] == ("someone/signs", "0123abc")


def test_splits_classes_and_images_are_those_of_the_repository(repository):
    repository({"train": columns(9), "test": columns(6)}, features=features())
    dataset = load(NAME)
    assert dataset.class_names == ("stop", "give way", "ahead")  # in the order of the labels
    assert dataset.train.images[:, 0, 0, 0].tolist() == list(range(9))
    assert dataset.test.labels.tolist() == [0, 1, 2] * 2
    assert dataset.mirror


def test_images_of_the_hub_are_cut_resized_and_kept_on_disk(repository, cached):
    repository({"train": columns(9), "test": columns(6)}, features=features())
    cut = load(NAME, imbalance_ratio=3, size=8, storage="disk")
    assert (cut.class_counts.tolist(), cut.image_shape) == ([3, 1, 1], (1, 8, 8))
    assert len([*cached.glob("*.npy")]) == 2


def test_folders_of_images_without_a_test_split_are_divided(repository):
    repository({"train": columns(30)}, kind="folders")
    dataset = load(NAME)
    assert dataset.class_names == ("0", "1", "2")
    assert (dataset.class_counts.tolist(), dataset.test.class_counts.tolist()) == ([8] * 3, [2] * 3)


def test_validation_images_are_the_test_set_where_there_is_no_other(repository):
    repository({"train": columns(9), "validation": columns(6)}, features=features())
    dataset = load(NAME)
    assert dataset.test.class_counts.tolist() == [2, 2, 2]
    assert "validation-is-test" in kinds(dataset)


def test_a_test_split_without_labels_is_left_out_with_a_note(repository):
    hidden = columns(9) | {"label": [-1] * 9}
    repository({"train": columns(30), "test": hidden}, features=features())
    dataset = load(NAME)
    assert note_of(dataset, "hidden-labels").numbers == {"split": "test"}
    assert dataset.test.class_counts.tolist() == [2, 2, 2]


@pytest.fixture
def patients(repository):
    """Thirty training images of ten patients, four of whose images are for validation, too."""
    import datasets

    more = {"Patient ID": [f"p{i // 3}" for i in range(30)], "site": [None] * 28 + ["NA", "a"]}
    kinds_of = dict.fromkeys(more, datasets.Value("string"))
    splits = {"train": columns(30, **more), "validation": columns(6, **more)}
    repository(splits, features=features(**kinds_of))


@pytest.mark.usefixtures("patients")
def test_a_usual_column_in_any_case_has_the_groups(refused):
    refused(NAME, "group 'p[01]' is in two splits")


@pytest.mark.usefixtures("patients")
def test_groups_of_the_hub_can_be_turned_off():
    assert load(NAME, group="none").train.groups is None


@pytest.mark.usefixtures("patients")
def test_any_column_of_the_hub_may_be_that_of_the_groups():
    dataset = load(NAME, group="site")
    assert note_of(dataset, "groups").numbers == {"groups": 1, "alone": 35}


@pytest.mark.usefixtures("patients")
def test_an_unknown_column_of_groups_is_refused(refused):
    message = "unknown column for data group of .*'Patient'.*did you mean 'Patient ID'"
    refused(NAME, message, group="Patient")


@pytest.mark.usefixtures("patients")
def test_an_image_of_the_hub_is_named_by_its_split_and_number():
    images = source(Data(name=NAME, group="none")).splits["train"].images
    assert f"{NAME} train image 0" in images.key  # names a file of the cache


def test_a_column_of_labels_may_be_named(repository):
    import datasets

    kinds_of = {"image": datasets.Image(), "label": datasets.Value("int64")}
    kinds_of["kind"] = datasets.Value("string")
    given = {"train": columns(9, kind=[*"abc"] * 3), "test": columns(6, kind=[*"abc"] * 2)}
    repository(given, features=datasets.Features(kinds_of))
    assert load(NAME).class_names == ("0", "1", "2")
    assert load(NAME, label_column="kind").class_names == ("a", "b", "c")


def test_what_the_library_refuses_or_lacks_is_one_line(monkeypatch, refused):
    def load_dataset(name, *, revision):
        raise ConnectionError(f"no network\nfor {name} at {revision}")

    refused("hf:someone/signs", "without a revision; allowed: hf:USER/NAME@REVISION")
    monkeypatch.setitem(
        sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset, Image=np.ndarray)
    )
    refused(
        NAME,
        r"^data: cannot load 'hf:.*': ConnectionError: no network for someone/signs at 0123abc$",
    )
    tables = {"train": SimpleNamespace(features={"text": str})}
    monkeypatch.setattr(sys.modules["datasets"], "load_dataset", lambda *_, **__: tables)
    refused(NAME, "has the columns text; allowed: with images and a label")
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused(NAME, r"needs the package datasets: pip install 'taet\[datasets\]'")


def test_labels_that_are_lists_or_missing_are_no_classes(repository, refused):
    import datasets

    kinds = {"image": datasets.Image(), "label": datasets.Value("float32")}
    repository(
        {"train": columns(9) | {"label": [0.0, 1.0, float("nan")] * 3}},
        features=datasets.Features(kinds),
    )
    refused(NAME, "has training images without a label")
    kinds["label"] = datasets.List(datasets.Value("int64"))
    repository({"train": columns(9) | {"label": [[0, 1]] * 9}}, features=datasets.Features(kinds))
    refused(NAME, "has lists of labels; allowed: one label for each image")
