"""GTSRB from small trees in both official layouts."""

import shutil

import numpy as np
import pytest
from PIL import Image
from taet.data.listing import FRAMES as FRAMES_PATTERN

from taet.data import facts, gtsrb, image_listing, load
from taet.errors import UserError
from taet.settings import Data

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


def read(root, **settings):
    return gtsrb.read(Data(name="gtsrb", root=str(root), **settings))


@pytest.mark.parametrize("place", ["gtsrb/GTSRB", "GTSRB"])
@pytest.mark.parametrize("training", ["Final_Training/Images", "Training"])
def test_both_layouts_in_both_places(tmp_path, place, training):
    write(tmp_path / place, training)
    dataset = read(tmp_path)
    assert dataset.num_classes == len(set(dataset.class_names)) == 43
    assert dataset.class_names[14] == "stop"
    assert dataset.train.labels.tolist() == np.repeat(range(43), 6).tolist()
    expected = [level(label, track) for label in range(43) for track in range(3) for _ in range(2)]
    assert dataset.train.images.mean((1, 2, 3)).tolist() == expected
    assert dataset.test.labels.tolist() == [n % 43 for n in range(86)][::-1]
    assert dataset.test.images.mean((1, 2, 3)).tolist() == [level(label, 4) for label in dataset.test.labels]
    assert not dataset.mirror


def test_whole_images_become_32_pixels_unless_a_size_is_given(tmp_path):
    write(tmp_path / "gtsrb/GTSRB")
    dataset = read(tmp_path)
    assert dataset.image_shape == (3, 32, 32)
    assert "scaled to 32x32 pixels, since they have many sizes" in dataset.notes[0]
    larger = read(tmp_path, size=48)
    assert larger.image_shape == (3, 48, 48)
    assert "since" not in larger.notes[0]
    assert load("gtsrb", root=str(tmp_path)).resized


def test_the_frames_of_one_sign_are_a_group(tmp_path):
    write(tmp_path / "gtsrb/GTSRB")
    split = read(tmp_path).train
    expected = [100_000 * label + track for label in range(43) for track in range(3) for _ in range(2)]
    assert split.groups.tolist() == expected


def test_a_validation_split_never_shares_a_sign_with_training(tmp_path):
    write(tmp_path / "gtsrb/GTSRB")
    dataset = load("gtsrb", root=str(tmp_path), validation=0.34)
    assert dataset.class_counts.tolist() == [4] * 43
    assert dataset.validation.class_counts.tolist() == [2] * 43
    assert not set(dataset.train.groups) & set(dataset.validation.groups)


def test_it_is_looked_for_in_every_data_folder(tmp_path):
    with pytest.raises(UserError, match=r"not in '.*here', 'data'; run taet data prepare gtsrb, .*GTSRB_Final_Test_GT"):
        load("gtsrb", root=str(tmp_path / "here"))


def test_a_folder_of_that_name_is_pointed_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gtsrb").mkdir()
    with pytest.raises(UserError, match=r"--data.root; the folder 'gtsrb' here is read by folder:gtsrb$"):
        load("gtsrb")


def test_the_larger_training_set_is_taken_where_both_are_there(tmp_path):
    place = write(tmp_path / "gtsrb/GTSRB")
    shutil.copytree(place / "Final_Training/Images", place / "Training")
    (place / "Training/00000/00000_00000.ppm").unlink()
    assert len(read(tmp_path).train) == 258
    shutil.rmtree(place / "Final_Training")
    with pytest.raises(UserError, match=r"got 257 training images in '.*Training'; allowed: 258"):
        read(tmp_path)


@pytest.mark.parametrize("where", ["gtsrb/GTSRB", "gtsrb/GTSRB/Final_Test/Images"])
def test_the_test_table_may_lie_with_the_images(tmp_path, where):
    write(tmp_path / "gtsrb/GTSRB")
    shutil.move(tmp_path / "gtsrb/GT-final_test.csv", tmp_path / where / "GT-final_test.csv")
    assert len(read(tmp_path).test) == 86


def test_damaged_trees_are_refused(tmp_path):
    place = write(tmp_path / "gtsrb/GTSRB")
    table = tmp_path / "gtsrb/GT-final_test.csv"
    text = table.read_text()
    for changed, message in (
        (text.replace(";ClassId", ""), "GTSRB: .* has no column 'label'.* run taet data prepare gtsrb"),
        (text[:-5], "GTSRB: .* got .* cells; .* run taet data prepare gtsrb"),
        (text.replace(";42\n", ";43\n"), "got class 43; allowed: 0 to 42"),
        (text.replace(";42\n", ";41\n"), "got 86 test images, none of class 42 in"),
        (text[: text.index("00085")], "got 85 test images in"),
    ):
        table.write_text(changed)
        with pytest.raises(UserError, match=message):
            read(tmp_path)
    table.unlink()
    with pytest.raises(UserError, match=r"GT-final_test.csv' is missing; .* run taet data prepare gtsrb"):
        read(tmp_path)
    (place / "Final_Training/Images/00007/00000_00000.ppm").rename(place / "Final_Training/Images/00007/a.ppm")
    with pytest.raises(UserError, match=r"a\.ppm'; allowed: names such as 00003_00029\.ppm"):
        read(tmp_path)


def test_the_facts_are_known_without_the_files(tmp_path, monkeypatch, facts_agree):
    monkeypatch.setattr(gtsrb, "TRACK_COUNTS", [TRACKS] * CLASSES)
    monkeypatch.setattr(gtsrb, "FRAMES", FRAMES)
    monkeypatch.setattr(gtsrb, "TEST_COUNTS", [TEST] * CLASSES)
    files = tmp_path / "files"
    write(files / "GTSRB")
    (files / "GTSRB" / "Final_Training" / "Images" / "00033" / "00002_00001.ppm").unlink()  # as the official one lacks
    monkeypatch.setattr(gtsrb, "TRAINING", {"Final_Training/Images": CLASSES * TRACKS * FRAMES - 1})
    facts_agree("gtsrb", root=str(files), published=True)


def test_the_official_numbers(monkeypatch):
    monkeypatch.undo()
    found = facts(Data(name="gtsrb", root="nowhere"))
    assert found.sizes == {"train": gtsrb.TRAINING["Final_Training/Images"], "test": gtsrb.TEST}
    assert (min(found.class_counts), max(found.class_counts), found.class_counts[33]) == (210, 2250, 689)


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("training", "above", "table"),
    [
        ("Final_Training/Images", "gtsrb/GTSRB", "gtsrb"),
        ("Training", ".", "gtsrb"),
        ("Final_Training/Images", "gtsrb", "gtsrb/GTSRB/Final_Test"),
        ("Final_Training/Images", "gtsrb/GTSRB", "gtsrb/GTSRB/Final_Test/Images"),
    ],
)
def test_the_official_folders_are_understood_by_their_bare_path(tmp_path, training, above, table):
    write(tmp_path / "own/gtsrb/GTSRB", training)
    official = gtsrb.read(Data(name="gtsrb", root=str(tmp_path / "own")))
    shutil.move(tmp_path / "own/gtsrb/GT-final_test.csv", tmp_path / "own" / table / "GT-final_test.csv")
    dataset = load(str(tmp_path / "own" / above), size=32)
    assert dataset.class_names == tuple(f"{label:05}" for label in range(43))
    assert dataset.train.sha256 == official.train.sha256
    assert sorted(dataset.test.labels) == sorted(official.test.labels)
    means, expected = (split.images.mean((1, 2, 3)) for split in (dataset.test, official.test))
    assert dict(zip(dataset.test.labels, means, strict=True)) == dict(zip(official.test.labels, expected, strict=True))
    assert any("its labels are those of 'GT-final_test.csv'" in note for note in dataset.notes)


@pytest.mark.parametrize("part", ["Final_Training", "Final_Training/Images"])
def test_the_training_folder_alone_is_read_and_the_whole_is_named(tmp_path, part):
    place = write(tmp_path / "own/GTSRB")
    dataset = load(str(place / part), size=32, group_pattern=FRAMES_PATTERN)
    assert len(dataset.train) + len(dataset.test) == CLASSES * TRACKS * FRAMES
    assert f"'{place}/Final_Test' is not read; --data {place} reads it as well" in dataset.notes


@pytest.mark.parametrize("given", [True, False])
def test_tracks_counted_anew_in_each_class_are_groups_of_one_class(tmp_path, given):
    place = write(tmp_path / "own/GTSRB")
    data = Data(name=f"folder:{place if given else place / 'Final_Training'}")
    listed = image_listing(data)
    assert listed.are_frames()
    grouped = listed.grouped_by(FRAMES_PATTERN)
    alone = TEST * CLASSES if given else 0
    assert len(set(grouped.whole.groups)) == TRACKS * CLASSES + alone
    for group in set(grouped.whole.groups):
        assert len(set(grouped.labels[grouped.whole.groups == group])) == 1
    assert "file names repeat in several classes: each group by file names is of one class" in grouped.notes
    parts = grouped.parts(0)
    assert not set(grouped.whole.groups[parts["train"]]) & set(grouped.whole.groups[parts["test"]])


def patients(place, repeated):
    """Twenty patients with images in both classes; the first `repeated` have the same names in both."""
    for label, kind in enumerate(("benign", "malign")):
        for patient in range(20):
            for number in range(3):
                same = 0 if patient < repeated else 3 * label
                save(place / kind / f"p{patient:02d}_{number + same}.png", 5 * patient, number)
    return image_listing(Data(name=f"folder:{place}"))


@pytest.mark.parametrize("repeated", [0, 1, 20])
def test_a_pattern_of_ones_own_keeps_a_patient_in_one_group_whatever_names_repeat(tmp_path, repeated):
    grouped = patients(tmp_path / "own", repeated).grouped_by(r"(p\d+)_")
    assert len(set(grouped.whole.groups)) == 20
    parts = grouped.parts(0)
    assert not set(grouped.whole.groups[parts["train"]]) & set(grouped.whole.groups[parts["test"]])


def test_a_pattern_with_a_slash_is_searched_in_paths(tmp_path):
    listed = patients(tmp_path / "own", 20)
    assert set(listed.grouped_by(r"(\w+)/p0").group_names) == {"", "benign", "malign"}
    with pytest.raises(UserError, match=r"found in no file name, e.g. 'p00_0.png'; a pattern with / is searched in pa"):
        listed.grouped_by("(benign)")
    with pytest.raises(UserError, match=r"found in no path, e.g. 'benign/p00_0.png'$"):
        listed.grouped_by("(sick)/")
