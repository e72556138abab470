"""Miniatures of what published sets unpack to, read by the path alone."""

import numpy as np
import pytest
from PIL import Image

from taet.data import load, published
from tests.data.conftest import note_of

pytestmark = pytest.mark.usefixtures("here")
COLOUR = {"mode": "RGB", "size": (12, 10)}


def apart(dataset):
    """How many groups there are; those of the two splits differ."""
    train, test = {*dataset.train.groups}, {*dataset.test.groups}
    assert not train & test
    return len(train | test)


@pytest.fixture
def signs(tmp_path, monkeypatch):
    """Return a function that writes the tree below a folder GTSRB, with the test table beside it: 3
    tracks of 2."""
    monkeypatch.setitem(published.SETS, "gtsrb", published.SETS["gtsrb"]._replace(images=(258, 86)))
    monkeypatch.setattr(published, "GTSRB_ONLINE", 258)
    header = "Filename;Width;Height;Roi.X1;ClassId\r\n"

    def save(path, value, frame):
        path.parent.mkdir(parents=True, exist_ok=True)
        # many sizes, few of them square
        Image.new("RGB", (15 + 3 * frame, 18), (value,) * 3).save(path)

    def write(place="gtsrb/GTSRB", training="Final_Training/Images"):
        for label in range(43):
            for track, frame in np.ndindex(3, 2):
                save(
                    tmp_path / place / training / f"{label:05}/{track:05}_{frame:05}.ppm",
                    5 * label + track,
                    frame,
                )
            (tmp_path / place / training / f"{label:05}/GT-{label:05}.csv").write_text(header)
        images, rows = tmp_path / place / "Final_Test" / "Images", ""
        for number in range(86):
            label = (85 - number) % 43
            save(images / f"{number:05}.ppm", 5 * label + 4, number % 3)
            rows += f"{number:05}.ppm;15;18;5;{label}\r\n"
        ((tmp_path / place).parent / "GT-final_test.csv").write_text(header + rows)
        # it has no classes
        (images / "GT-final_test.test.csv").write_text("Filename;Width;Height;Roi.X1\r\n")

    return write


@pytest.mark.parametrize("folder", ["", "gtsrb"])
def test_gtsrb_in_its_official_folders(folder, tmp_path, signs):
    signs()
    dataset = load(str(tmp_path / folder), size=8)
    assert dataset.class_names == tuple(f"{label:05}" for label in range(43))
    assert dataset.class_counts.tolist() == [6] * 43
    assert dataset.test.labels.tolist() == [n % 43 for n in range(86)][::-1]
    assert not dataset.mirror


def test_frames_of_one_sign_stay_in_one_split(tmp_path, signs):
    signs()
    dataset = load(str(tmp_path), size=8, validation=0.34)
    assert dataset.class_counts.tolist() == [4] * 43
    assert dataset.validation.class_counts.tolist() == [2] * 43
    assert not {*dataset.train.groups} & {*dataset.validation.groups}


def test_the_training_folder_of_gtsrb_alone_is_divided_by_tracks(tmp_path, signs):
    signs()
    alone = load(str(tmp_path / "gtsrb/GTSRB/Final_Training/Images"), size=8)
    assert alone.test.class_counts.tolist() == [2] * 43
    apart(alone)


def test_what_names_as_those_of_gtsrb_change_is_noted(tmp_path, signs):
    signs()
    path = str(tmp_path / "gtsrb/GTSRB/Final_Training/Images")
    frames = "names as GTSRB's: the frames of one sign stay in one split"
    assert note_of(load(path, size=8, mirror="yes"), "tracks") == frames
    assert note_of(load(path, size=8), "tracks") == f"{frames}, and no image is mirrored"


def test_groups_of_a_table_are_taken_and_not_tracks(tmp_path, signs):
    signs()
    files = sorted(tmp_path.glob("gtsrb/GTSRB/Final_Training/Images/*/*.ppm"))
    lines = [f"{file},{file.parent.name},{number % 4}\n" for number, file in enumerate(files)]
    (tmp_path / "own.csv").write_text("".join(["file,label,group\n", *lines]))
    own = load(f"csv:{tmp_path / 'own.csv'}", size=8)
    assert len({*own.train.groups}) <= 4
    assert not own.mirror


@pytest.mark.full
@pytest.mark.parametrize(
    ("place", "training"), [("gtsrb/GTSRB", "Final_Training/Images"), ("GTSRB", "Training")]
)
def test_gtsrb_in_both_layouts_and_places(tmp_path, place, training, signs):
    signs(place, training)
    dataset = load("gtsrb", root=str(tmp_path))
    assert (len(set(dataset.class_names)), dataset.class_names[14]) == (43, "stop")
    assert dataset.train.labels.tolist() == np.repeat(range(43), 6).tolist()
    expected = [5 * label + track for label in range(43) for track in range(3) for _ in range(2)]
    assert dataset.train.images.mean((1, 2, 3)).tolist() == expected
    assert dataset.test.labels.tolist() == [n % 43 for n in range(86)][::-1]
    assert dataset.test.images.mean((1, 2, 3)).tolist() == [
        5 * label + 4 for label in dataset.test.labels
    ]
    assert (dataset.image_shape, dataset.resized, dataset.mirror) == ((3, 32, 32), True, False)
    held = load("gtsrb", root=str(tmp_path), validation=0.34, size=48)
    assert (held.class_counts.tolist(), held.image_shape) == ([4] * 43, (3, 48, 48))
    assert not set(held.train.groups) & set(held.validation.groups)


def test_what_gtsrb_lacks_is_named(tmp_path, signs, refused):
    refused(
        "gtsrb",
        r"not in '.*here', 'data'; run taet data prepare gtsrb, .*GTSRB_Final_Test_GT",
        root="here",
    )
    signs()
    table = tmp_path / "gtsrb/GT-final_test.csv"
    text = table.read_text()
    for changed, message in (
        (text.replace(";42\n", ";43\n"), "unknown class of .*'43'"),
        (text[: text.index("00085")], "got {'train': 258, 'test': 85} images"),
    ):
        table.write_text(changed)
        refused("gtsrb", rf"run taet data prepare gtsrb\): .*{message}", root=str(tmp_path))


def test_gtsrb_as_kaggle_has_it(tmp_path, fill):
    for label in range(2):
        for track in range(5):
            fill(
                tmp_path / f"Train/{label}",
                track,
                3,
                name=f"{label:05}_{track:05}_{{:05d}}.png",
                **COLOUR,
            )
            fill(
                tmp_path / f"train/{label}",
                track,
                3,
                name=f"{label:05}_{track:05}_{{:05d}}.png",
                **COLOUR,
            )
    fill(tmp_path / "Test", 50, 4, name="{:05d}.png", **COLOUR)
    lines = [f"12,10,{i % 2},Test/{i:05}.png" for i in range(4)]
    (tmp_path / "Test.csv").write_text("\n".join(["Width,Height,ClassId,Path", *lines]))
    files = sorted((tmp_path / "Train").rglob("*.png"))
    lines = [f"12,10,{file.parent.name},Train/{file.parent.name}/{file.name}" for file in files]
    (tmp_path / "Train.csv").write_text("\n".join(["Width,Height,ClassId,Path", *lines]))
    dataset = load(str(tmp_path), size=8)
    assert (dataset.class_counts.tolist(), dataset.test.labels.tolist()) == ([15, 15], [0, 1, 0, 1])
    by_table = load(str(tmp_path / "Train.csv"), size=8)
    assert not by_table.mirror
    apart(by_table)


def test_ham10000_with_lesions(tmp_path, fill):
    fill(tmp_path / "HAM10000_images_part_1", 0, 30, name="ISIC_{:07d}.jpg", **COLOUR)
    fill(tmp_path / "HAM10000_images_part_2", 100, 10, name="ISIC_1{:06d}.jpg", **COLOUR)
    # Kaggle has it twice
    fill(tmp_path / "ham10000_images_part_1", 0, 30, name="ISIC_{:07d}.jpg", **COLOUR)
    names = [*(f"ISIC_{i:07d}" for i in range(30)), *(f"ISIC_1{i:06d}" for i in range(10))]
    rows = [
        f"HAM_{i // 2},{name},{'nv' if i < 30 else 'mel'},histo,80.0"
        for i, name in enumerate(names)
    ]
    (tmp_path / "HAM10000_metadata.csv").write_text(
        "\n".join(["lesion_id,image_id,dx,dx_type,age", *rows])
    )
    (tmp_path / "hmnist_8_8_L.csv").write_text("pixel0000,label\n1,2\n")
    dataset = load(str(tmp_path))
    assert dataset.class_names == ("mel", "nv")
    assert dataset.class_counts.tolist() == [8, 24]
    assert apart(dataset) == 20
    by_table = load(str(tmp_path / "HAM10000_metadata.csv"))
    assert by_table.manifest() == dataset.manifest()
    assert "labels are those of 'HAM10000_metadata.csv'" in dataset.notes


def test_isic_2019_with_lesions(tmp_path, fill, refused):
    fill(tmp_path / "ISIC_2019_Training_Input", 0, 40, name="ISIC_{:07d}.jpg", **COLOUR)
    classes = ["MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK"]
    ones = [[float(column == (0 if i < 10 else 1)) for column in range(9)] for i in range(40)]
    rows = [f"ISIC_{i:07d},{','.join(map(str, one))}" for i, one in enumerate(ones)]
    truth = tmp_path / "ISIC_2019_Training_GroundTruth.csv"
    truth.write_text("\n".join(["image," + ",".join(classes), *rows]))
    meta = [
        f"ISIC_{i:07d},55.0,torso,{f'BCN_{i // 4}' if i % 8 < 4 else ''},male" for i in range(40)
    ]
    header = "image,age_approx,anatom_site_general,lesion_id,sex"
    (tmp_path / "ISIC_2019_Training_Metadata.csv").write_text("\n".join([header, *meta]))
    dataset = load(str(tmp_path), size=8)
    assert dataset.class_names == ("MEL", "NV")
    assert apart(dataset) == 5 + 20  # twenty images are of no known lesion
    assert load(str(tmp_path), size=8, group="none").train.groups is None
    truth.write_text(truth.read_text().replace("1.0", "0.0", 1))
    refused(tmp_path, "line 2: got 0 classes of 'ISIC_0000000'; allowed: one", size=8)
