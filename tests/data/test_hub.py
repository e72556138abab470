"""Data sets of the Hugging Face hub, from small parquet files and folders of images on this machine."""

import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from taet.data import load, source
from taet.settings import Data

NAME = "hf:someone/signs@0123abc"


def png(level):
    stream = io.BytesIO()
    Image.new("L", (6, 6), level).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Return a function that makes a repository of parquet files or folders, which the library then reads as asked."""
    datasets, pyarrow, parquet = map(pytest.importorskip, ("datasets", "pyarrow", "pyarrow.parquet"))
    read, asked = datasets.load_dataset, []
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))

    def make(splits, kind="parquet", features=None):
        for split, columns in splits.items():
            if kind == "parquet":
                path = tmp_path / "repository" / "data" / f"{split}-00000-of-00001.parquet"
                path.parent.mkdir(parents=True, exist_ok=True)
                parquet.write_table(pyarrow.Table.from_pydict(columns, schema=features.arrow_schema), path)
                continue
            for number, (image, label) in enumerate(zip(columns["image"], columns["label"], strict=True)):
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
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["stop", "give way", "ahead"]), **more}
    )


def test_splits_classes_and_images_are_those_of_the_repository(repository):
    asked = repository({"train": columns(9), "test": columns(6)}, features=features())
    dataset = load(NAME)
    assert asked[0] == ("someone/signs", "0123abc")
    assert dataset.name == NAME
    assert dataset.class_names == ("stop", "give way", "ahead")  # in the order of the labels
    assert dataset.train.images[:, 0, 0, 0].tolist() == list(range(9))
    assert dataset.test.labels.tolist() == [0, 1, 2] * 2
    assert dataset.mirror
    cut = load(NAME, imbalance_ratio=3, size=8, storage="disk")
    assert (cut.class_counts.tolist(), cut.image_shape) == ([3, 1, 1], (1, 8, 8))


def test_folders_of_images_without_a_test_split_are_divided(repository):
    repository({"train": columns(30)}, kind="folders")
    dataset = load(NAME)
    assert dataset.class_names == ("0", "1", "2")
    assert (dataset.class_counts.tolist(), dataset.test.class_counts.tolist()) == ([8] * 3, [2] * 3)


def test_validation_stands_in_for_test_and_groups_are_a_column(repository, refused):
    import datasets

    patients = {"Patient ID": [f"p{i // 3}" for i in range(30)], "site": [None] * 28 + ["NA", "a"]}
    more = dict.fromkeys(patients, datasets.Value("string"))
    splits = {"train": columns(30, **patients), "validation": columns(6, **patients)}
    repository(splits | {"test": columns(9, **patients) | {"label": [-1] * 9}}, features=features(**more))
    made, read = load(NAME, group="none"), source(Data(name=NAME, group="none")).splits
    assert (made.test.class_counts.tolist(), made.train.groups) == ([2, 2, 2], None)
    assert f"{NAME} train image 0" in read["train"].images.key  # names a file of the cache
    refused(NAME, "group 'p[01]' is in two splits")  # by the usual column, in any case
    assert "1 groups, each kept together; 35 images stand alone" in load(NAME, group="site").notes
    refused(NAME, "unknown column for data group of .*'Patient'.*did you mean 'Patient ID'", group="Patient")


def test_what_the_library_refuses_or_lacks_is_one_line(monkeypatch, refused):
    def load_dataset(name, *, revision):
        raise ConnectionError(f"no network\nfor {name} at {revision}")

    refused("hf:someone/signs", "without a revision; allowed: hf:USER/NAME@REVISION")
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset, Image=np.ndarray))
    refused(NAME, r"^data: cannot load 'hf:.*': ConnectionError: no network for someone/signs at 0123abc$")
    tables = {"train": SimpleNamespace(features={"text": str})}
    monkeypatch.setattr(sys.modules["datasets"], "load_dataset", lambda *_, **__: tables)
    refused(NAME, "has the columns text; allowed: with images and a label")
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused(NAME, r"needs the package datasets: pip install 'taet\[datasets\]'")


def test_labels_that_are_lists_or_missing_are_no_classes(repository, refused):
    import datasets

    kinds = {"image": datasets.Image(), "label": datasets.Value("float32")}
    repository({"train": columns(9) | {"label": [0.0, 1.0, float("nan")] * 3}}, features=datasets.Features(kinds))
    refused(NAME, "has training images without a label")
    kinds["label"] = datasets.List(datasets.Value("int64"))
    repository({"train": columns(9) | {"label": [[0, 1]] * 9}}, features=datasets.Features(kinds))
    refused(NAME, "has lists of labels; allowed: one label for each image")
