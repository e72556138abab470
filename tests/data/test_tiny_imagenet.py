"""Tiny-ImageNet from a small tree in the exact official layout."""

import shutil

import numpy as np
import pytest
from PIL import Image

from taet.data import load, long_tail_counts, tiny_imagenet
from taet.errors import UserError

PER_CLASS = {"train": 12, "test": 2}
WNIDS = ("n02124075", "n01443537", "n03126707", "n01629819")  # as wnids.txt has them: in no order
WORDS = {
    "n01443537": "goldfish, Carassius auratus",
    "n01629819": "crane",
    "n02124075": "Egyptian cat",
    "n03126707": "crane",
    "n00001740": "entity",
}


def level(label, index):
    """The grey level that image `index` of class `label` has everywhere."""
    return 60 * label + 4 * index


def save(path, label, index):
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = Image.new("L", (64, 64), level(label, index))
    (grey if index == 1 else grey.convert("RGB")).save(path, "JPEG", quality=95)


def write(root, per_class=PER_CLASS):
    """Write the official tree; the image of number 1 of every class is a greyscale file, as some official ones are."""
    folder = root / "tiny-imagenet-200"
    order = sorted(WNIDS)
    annotations = []
    for index in range(per_class["test"]):
        for wnid in WNIDS:
            name = f"val_{len(annotations)}.JPEG"
            annotations.append(f"{name}\t{wnid}\t0\t32\t44\t62\n")
            save(folder / "val" / "images" / name, order.index(wnid), index)
    for label, wnid in enumerate(order):
        for index in range(per_class["train"]):
            save(folder / "train" / wnid / "images" / f"{wnid}_{index}.JPEG", label, index)
        boxes = "".join(f"{wnid}_{index}.JPEG\t0\t10\t63\t58\n" for index in range(per_class["train"]))
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text(boxes)
    (folder / "val" / "val_annotations.txt").write_text("".join(annotations))
    (folder / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in WNIDS))
    (folder / "words.txt").write_text("".join(f"{wnid}\t{words}\n" for wnid, words in WORDS.items()))
    save(folder / "test" / "images" / "test_0.JPEG", 0, 0)
    return folder


@pytest.fixture(autouse=True)
def _four_classes(monkeypatch, tmp_path):
    monkeypatch.setattr(tiny_imagenet, "CLASSES", len(WNIDS))
    monkeypatch.setattr(tiny_imagenet, "PER_CLASS", PER_CLASS)
    monkeypatch.setenv("TAET_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TAET_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("storage", ["memory", "disk"])
def test_classes_are_in_the_order_of_their_ids_and_images_in_that_of_their_names(tmp_path, storage):
    write(tmp_path)
    dataset = load("tiny-imagenet", root=str(tmp_path), storage=storage)
    assert dataset.class_names == ("goldfish", "crane (n01629819)", "Egyptian cat", "crane (n03126707)")
    assert dataset.train.labels.tolist() == np.repeat(range(4), 12).tolist()
    by_name = [0, 1, 10, 11, *range(2, 10)]  # _10 comes before _2
    expected = [level(label, index) for label in range(4) for index in by_name]
    assert np.abs(dataset.train.images[:].mean((1, 2, 3)) - expected).max() < 1.5  # JPEG rounds
    assert dataset.train.images.shape == (48, 64, 64, 3)
    assert np.ptp(dataset.train.images[:][1], axis=-1).max() == 0  # the greyscale file
    assert dataset.mirror


def test_the_annotated_validation_images_are_the_test_set(tmp_path):
    write(tmp_path)
    dataset = load("tiny-imagenet", root=str(tmp_path))
    labels = [sorted(WNIDS).index(wnid) for wnid in WNIDS] * 2
    assert dataset.test.labels.tolist() == labels
    expected = [level(label, position // 4) for position, label in enumerate(labels)]
    assert np.abs(dataset.test.images.mean((1, 2, 3)) - expected).max() < 1.5
    assert dataset.validation is None
    assert any("official validation images" in note for note in dataset.notes)


def test_the_published_long_tail(tmp_path):
    published = tiny_imagenet.PUBLISHED["tiny-imagenet-lt"]
    counts = long_tail_counts(200, 500, published["imbalance_ratio"], published["profile"])
    assert (counts[0], counts[-1], counts[100]) == (500, 5, 251)
    assert set(np.diff(counts)) == {-2, -3}
    write(tmp_path)
    dataset = load("tiny-imagenet-lt", root=str(tmp_path), imbalance_ratio=12, test="balanced")
    assert dataset.class_counts.tolist() == [12, 8, 4, 1]
    assert len(dataset.test) == 8


def test_it_is_looked_for_in_every_data_folder(tmp_path):
    with pytest.raises(UserError, match=r"not in '.*here', 'data'; .*taet data prepare.* TAET_DATA, or"):
        load("tiny-imagenet", root=str(tmp_path / "here"))


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("wnids.txt", r"wnids\.txt'; .*delete the folder tiny"),
        ("words.txt", r"words\.txt'; .*delete the folder tiny"),
        ("val/val_annotations.txt", r"val_annotations\.txt'; .*delete the folder tiny"),
        ("train/n01629819/images/n01629819_3.JPEG", r"got 11 train images of class n01629819 in .*allowed: 12 of each"),
        ("train/n02124075", "got 0 train images of class n02124075"),
        ("val/images/val_3.JPEG", r"val_3\.JPEG"),
    ],
)
def test_an_incomplete_tree_is_refused_by_the_name_of_what_is_missing(tmp_path, lost, message):
    path = write(tmp_path) / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match=message):
        load("tiny-imagenet", root=str(tmp_path))


def test_an_annotation_of_no_class_and_a_class_too_few_are_refused(tmp_path):
    folder = write(tmp_path)
    table = folder / "val" / "val_annotations.txt"
    table.write_text(table.read_text().replace("n02124075", "n00001740"))
    with pytest.raises(UserError, match="got 0 test images of class n02124075"):
        load("tiny-imagenet", root=str(tmp_path))
    table.write_text(
        table.read_text() + "val_0.JPEG\tn00001740\t0\t0\t1\t1\n" + "val_0.JPEG\tn02124075\t0\t0\t1\t1\n" * 2
    )
    with pytest.raises(UserError, match="got 3 test images of class n00001740"):
        load("tiny-imagenet", root=str(tmp_path))
    (folder / "wnids.txt").write_text("n01443537\n")
    with pytest.raises(UserError, match="names 1 classes; allowed: 4"):
        load("tiny-imagenet", root=str(tmp_path))
