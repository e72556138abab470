"""GTSRB from small trees in both official layouts."""

import shutil

import numpy as np
import pytest
from PIL import Image

from taet.data import gtsrb, load
from taet.errors import UserError

CLASSES = 43
TRACKS, FRAMES, TEST = 3, 2, 2
HEADER = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\r\n"


def level(label, track):
    return 5 * label + track


def save(path, value, frame):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (15 + 3 * frame, 18), (value,) * 3).save(path)  # many sizes, few of them square
    return f"{path.name};{15 + 3 * frame};18;5;5;{9 + 3 * frame};12"


def write(place, training="Final_Training/Images"):
    """Write the tree below `place`, the folder GTSRB, with the test table beside it."""
    for label in range(CLASSES):
        folder = place / training / f"{label:05}"
        rows = [
            f"{save(folder / f'{track:05}_{frame:05}.ppm', level(label, track), frame)};{label}\r\n"
            for track in range(TRACKS)
            for frame in range(FRAMES)
        ]
        (folder / f"GT-{label:05}.csv").write_text(HEADER + "".join(rows))
    labels = [position % CLASSES for position in range(TEST * CLASSES)][::-1]
    images = place / "Final_Test" / "Images"
    rows = [f"{save(images / f'{n:05}.ppm', level(label, 4), n % 3)};{label}\r\n" for n, label in enumerate(labels)]
    (place.parent / "GT-final_test.csv").write_text(HEADER + "".join(rows))
    (images / "GT-final_test.test.csv").write_text(HEADER)  # the official one, which has no classes
    return place


@pytest.fixture(autouse=True)
def _small(monkeypatch, tmp_path):
    count = CLASSES * TRACKS * FRAMES
    monkeypatch.setattr(gtsrb, "TRAINING", {"Final_Training/Images": count, "Training": count})
    monkeypatch.setattr(gtsrb, "TEST", TEST * CLASSES)
    monkeypatch.setenv("TAET_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TAET_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("place", ["gtsrb/GTSRB", "GTSRB"])
@pytest.mark.parametrize("training", ["Final_Training/Images", "Training"])
def test_both_layouts_in_both_places(tmp_path, place, training):
    write(tmp_path / place, training)
    dataset = load("gtsrb", root=str(tmp_path))
    assert dataset.num_classes == len(set(dataset.class_names)) == 43
    assert dataset.class_names[14] == "stop"
    assert dataset.train.labels.tolist() == np.repeat(range(43), 6).tolist()
    expected = [level(label, track) for label in range(43) for track in range(3) for _ in range(2)]
    assert dataset.train.images.mean((1, 2, 3)).tolist() == expected
    assert dataset.test.labels.tolist() == [n % 43 for n in range(86)][::-1]
    assert dataset.test.images.mean((1, 2, 3)).tolist() == [level(label, 4) for label in dataset.test.labels]
    assert dataset.image_shape == (3, 32, 32)
    assert dataset.resized
    assert not dataset.mirror
    assert load("gtsrb", root=str(tmp_path), size=48).image_shape == (3, 48, 48)


def test_a_validation_split_never_shares_a_sign_with_training(tmp_path):
    write(tmp_path / "gtsrb/GTSRB")
    dataset = load("gtsrb", root=str(tmp_path), validation=0.34)
    assert dataset.class_counts.tolist() == [4] * 43
    assert dataset.validation.class_counts.tolist() == [2] * 43
    assert not set(dataset.train.groups) & set(dataset.validation.groups)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match=r"not in '.*here', 'data'; run taet data prepare gtsrb, .*GTSRB_Final_Test_GT"):
        load("gtsrb", root=str(tmp_path / "here"))
    (tmp_path / "gtsrb").mkdir()
    with pytest.raises(UserError, match=r"--data.root; the folder 'gtsrb' here is read by folder:gtsrb$"):
        load("gtsrb")


@pytest.mark.parametrize("where", ["gtsrb", "gtsrb/GTSRB", "gtsrb/GTSRB/Final_Test/Images"])
def test_the_test_table_may_lie_with_the_images(tmp_path, where):
    write(tmp_path / "gtsrb/GTSRB")
    shutil.move(tmp_path / "gtsrb/GT-final_test.csv", tmp_path / where / "GT-final_test.csv")
    assert len(load("gtsrb", root=str(tmp_path)).test) == 86


def test_damaged_trees_are_refused(tmp_path):
    place = write(tmp_path / "gtsrb/GTSRB")
    table = tmp_path / "gtsrb/GT-final_test.csv"
    text = table.read_text()
    for changed, message in (
        (text.replace(";ClassId", ";Class"), "has the class ''; allowed: 0 to 42; .* run taet data prepare gtsrb"),
        (text[:-5], "line 87: got 7 cells"),
        (text.replace(";42\n", ";43\n"), "has the class '43'; allowed: 0 to 42"),
        (text.replace(";42\n", ";41\n"), "got 86 test images of 42 classes in"),
        (text[: text.index("00085")], "got 85 test images of 43 classes in"),
    ):
        table.write_text(changed)
        with pytest.raises(UserError, match=message):
            load("gtsrb", root=str(tmp_path))
    table.unlink()
    with pytest.raises(UserError, match=r"GT-final_test.csv' is missing; .* run taet data prepare gtsrb"):
        load("gtsrb", root=str(tmp_path))
    (place / "Final_Training/Images/00007/00000_00000.ppm").rename(place / "Final_Training/Images/00007/a.ppm")
    with pytest.raises(UserError, match=r"a\.ppm'; allowed: names such as 00003_00029\.ppm"):
        load("gtsrb", root=str(tmp_path))
